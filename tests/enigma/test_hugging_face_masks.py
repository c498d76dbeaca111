"""Padding, packing, masks of 4 dimensions, static caches, large indices and empty inputs."""

from itertools import product

import pytest
import torch
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.nn import functional
from transformers import StaticCache

import enigma.model as model_module
from enigma.attention import AttentionContext, alibi_slopes
from enigma.bijections.base import KeyValueCache
from enigma.language_model import inputs as inputs_module
from enigma.language_model.memory.ngram_counts import count_ngrams
from enigma.modeling_enigma import EnigmaForCausalLM

IDS = torch.randint(1, 120, (2, 12), generator=torch.Generator().manual_seed(0))
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}
CLOSE = {"rtol": 0, "atol": 1e-5}
CAUSAL = torch.ones(12, 12, dtype=torch.bool).tril()


def left_padded():
    padded = functional.pad(IDS[:1, :8], (4, 0))
    batch = torch.cat((padded, IDS[1:]))
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    return batch, mask


@pytest.mark.parametrize("changes", [{}, {"use_alibi": False, "max_len": 32}])
@pytest.mark.parametrize("first", [1, 5])
def test_packed_texts_do_not_see_each_other(make_causal_lm, changes, first):
    model = make_causal_lm(attention_dropout=0.0, **changes)
    places = torch.cat((torch.arange(first), torch.arange(12 - first))).unsqueeze(0)
    packed = model(IDS[:1], position_ids=places).logits
    parts = [model(part).logits for part in IDS[:1].split((first, 12 - first), dim=1)]
    torch.testing.assert_close(packed, torch.cat(parts, dim=1), **CLOSE)
    loss = model.train()(IDS[:1], position_ids=places, labels=IDS[:1]).loss
    flat = functional.cross_entropy(packed[0, :-1], IDS[0, 1:])
    torch.testing.assert_close(loss, flat)


def test_positions_that_go_up_by_one_are_a_single_text(make_causal_lm):
    model = make_causal_lm()
    places = torch.arange(12).expand(2, -1)
    assert torch.equal(model(IDS, position_ids=places).logits, model(IDS).logits)


LEAST = torch.finfo(torch.float32).min


@pytest.mark.parametrize(
    ("kind", "hidden"), [("bool", 0), ("int", 0), ("float", LEAST), ("float", -torch.inf)]
)
@pytest.mark.parametrize("eager", [False, True])
def test_a_mask_of_four_dimensions_decides_what_is_seen(make_causal_lm, kind, hidden, eager):
    model = make_causal_lm()
    block = torch.zeros(12, 12, dtype=torch.bool)
    block[:5, :5] = block[5:, 5:] = True
    mask = (block & CAUSAL).expand(2, 1, -1, -1)
    if kind == "int":
        mask = mask.long()
    if kind == "float":
        mask = torch.zeros(mask.shape).masked_fill(~mask, hidden)
    places = torch.cat((torch.arange(5), torch.arange(7))).expand(2, -1)
    output = model(IDS, attention_mask=mask, position_ids=places, output_attentions=eager)
    parts = [model(part).logits for part in IDS.split((5, 7), dim=1)]
    torch.testing.assert_close(output.logits, torch.cat(parts, dim=1), **CLOSE)


def test_a_row_that_sees_nothing_spoils_no_other(make_causal_lm):
    model = make_causal_lm()
    batch, mask = left_padded()
    seen = CAUSAL & mask.bool()[:, None, None, :]
    added = torch.zeros(seen.shape).masked_fill(~seen, -torch.inf)
    places = (mask.cumsum(-1) - 1).clamp(min=0)
    for attentions, whole in product((False, True), (seen, added)):
        logits = model(
            batch, attention_mask=whole, position_ids=places, output_attentions=attentions
        ).logits
        expected = model(batch, attention_mask=mask).logits
        torch.testing.assert_close(logits[mask.bool()], expected[mask.bool()], **CLOSE)


def test_tokens_decoded_with_a_mask_of_four_dimensions(make_causal_lm):
    model = make_causal_lm()
    cache = model(IDS[:, :9], use_cache=True).past_key_values
    for last in (10, 12):
        first = cache.get_seq_length()
        new = model(
            IDS[:, first:last],
            attention_mask=CAUSAL[first:last, :last].expand(2, 1, -1, -1),
            past_key_values=cache,
        )
        torch.testing.assert_close(new.logits, model(IDS).logits[:, first:last], **CLOSE)


def test_a_mask_or_positions_of_other_tokens_are_refused(make_causal_lm):
    """A mask is of all tokens; positions come from it, so a wrong one would move them."""
    model = make_causal_lm()
    cache = model(IDS[:, :8], use_cache=True).past_key_values
    new, ones = {"input_ids": IDS[:, 8:], "past_key_values": cache}, torch.ones(2, 15).long()
    for inputs, mask, expected in (
        (new, ones[:, :4], r"\(B, 12\), got \(2, 4\).*those in the cache included"),
        ({"input_ids": IDS}, ones, r"\(B, 12\), got \(2, 15\)"),
        ({"input_ids": IDS, "use_cache": False}, ones, r"\(B, 12\), got \(2, 15\)"),
        ({"input_ids": IDS}, ones[0, :12], r"\(B, 12\), got \(12,\)"),
    ):
        with pytest.raises(ValueError, match=expected):
            model(**inputs, attention_mask=mask)
    wrong = (torch.arange(12), torch.arange(4).expand(2, -1), torch.arange(15).expand(2, -1))
    for positions in wrong:
        with pytest.raises(ValueError, match=r"position_ids of shape \(B, L\) = \(B, 12\)"):
            model(IDS, position_ids=positions, use_cache=False)
    logits = model(**new, attention_mask=ones[:, :12]).logits  # the remedy
    torch.testing.assert_close(logits, model(IDS).logits[:, 8:], **CLOSE)


def test_texts_that_convolutions_would_mix_are_refused(make_causal_lm):
    model = make_causal_lm(kernel_size=3)
    places = torch.cat((torch.arange(5), torch.arange(7))).unsqueeze(0)
    with pytest.raises(ValueError, match="expected kernel_size=1 with position_ids"):
        model(IDS[:1], position_ids=places)
    with pytest.raises(ValueError, match="expected kernel_size=1 with a mask of 4 dimensions"):
        model(IDS, attention_mask=CAUSAL.expand(2, 1, -1, -1))
    _, mask = left_padded()
    model(IDS, attention_mask=mask)  # the remedy


@pytest.mark.parametrize("changes", [{}, {"kernel_size": 3}, {"use_alibi": False, "max_len": 32}])
@pytest.mark.parametrize("padded", [False, True])
def test_a_static_cache_gives_the_tokens_of_a_dynamic_one(make_causal_lm, changes, padded):
    model = make_causal_lm(**changes)
    batch, mask = left_padded() if padded else (IDS, torch.ones_like(IDS))
    settings = {"attention_mask": mask, "max_new_tokens": 12, **GREEDY}
    static = model.generate(batch, cache_implementation="static", **settings)
    assert torch.equal(static, model.generate(batch, **settings))


@pytest.mark.parametrize("pieces", [(5, 1, 6), (12,), (1, 1, 10)])
def test_a_static_cache_fed_in_pieces_gives_the_same_logits(make_causal_lm, pieces):
    model = make_causal_lm()
    cache = StaticCache(config=model.config, max_cache_len=20)
    parts = [model(piece, past_key_values=cache).logits for piece in IDS.split(pieces, dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(IDS).logits, **CLOSE)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_index_of_a_million_costs_no_precision(make_lm, dtype):
    """The rotors have 16 settings, so the same tokens a million later have the same logits."""
    lm = make_lm().to(dtype)
    expected = lm(IDS)
    index = torch.arange(10**6, 10**6 + 12)
    torch.testing.assert_close(lm.logits(lm.hidden_states(IDS, index=index)), expected, **CLOSE)


@pytest.mark.parametrize("pieces", [(6, 1, 1, 1, 1, 1, 1), (6, 3, 3), (12,)])
def test_nor_does_it_with_a_cache(make_causal_lm, pieces):
    model = make_causal_lm()
    cache, parts, first = None, [], 10**6
    for piece in IDS.split(pieces, dim=1):
        places = torch.arange(first, first + piece.shape[1]).expand(2, -1)
        output = model(piece, position_ids=places, past_key_values=cache, use_cache=True)
        cache, first = output.past_key_values, first + piece.shape[1]
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(IDS).logits, **CLOSE)


class Filled(KeyValueCache):
    """A cache of a million keys, of which the last ones count."""


def test_the_bias_of_the_last_token_of_a_long_text_is_exact():
    """A million keys: every score that is not beyond exp's reach has the bias of float64."""
    index = torch.arange(10**6)
    keys = AttentionContext(index, cache=Filled()).digits.float()
    bias = AttentionContext(index[-1:], cache=Filled()).bias(keys.expand(1, 8, -1, -1), 8)
    exact = alibi_slopes(8)[:, None, None] * (index - index[-1]).double()
    near = exact > -100
    torch.testing.assert_close(bias[0].double()[near], exact[near], rtol=0, atol=1e-5)


def test_a_context_serves_layers_of_other_devices():
    """As `device_map` spreads them; the meta device stands for a second GPU."""
    context = AttentionContext(torch.arange(3), torch.ones(1, 3, 1), cache=Filled())
    for device in ("cpu", "meta"):
        q, keys = torch.ones(1, 2, 3, 6, device=device), torch.ones(1, 2, 9, 8, device=device)
        found = (*context.positions(q), context.bias(keys, 2), context.seen(3, 9, q.device))
        assert {tensor.device.type for tensor in found} == {device}


@pytest.mark.parametrize("shape", [(0, 5), (2, 0), (0, 0)])
@pytest.mark.parametrize(
    "changes",
    [
        {}, {"use_alibi": False}, {"kernel_size": 2}, {"num_driven_rotors": 1},
        {"pointer_channels": 4},
    ],
)  # fmt: skip
def test_empty_inputs_give_empty_logits(make_lm, make_causal_lm, shape, changes):
    ids = torch.zeros(shape, dtype=torch.long)
    assert make_lm(**changes)(ids).shape == (*shape, 120)
    model = make_causal_lm(**changes)
    assert model(ids).logits.shape == (*shape, 120)
    assert model(ids, attention_mask=torch.ones_like(ids)).logits.shape == (*shape, 120)


def test_a_single_text_needs_no_batch_dimension(make_lm, make_causal_lm):
    lm = make_lm()
    assert torch.equal(lm(IDS[0]), lm(IDS[:1])[0])
    assert lm(IDS[0, :0]).shape == (0, 120)
    few = IDS[0, : lm.layers[0].attention.num_heads]  # a mask (L,) would pass for one per head
    mask = torch.ones_like(few)
    mask[0] = 0
    assert torch.equal(lm(few, mask=mask), lm(few[None], mask=mask[None])[0])
    for ids, wrong in (
        (IDS, torch.ones(12)),
        (IDS, torch.ones(2, 1)),
        (IDS, torch.ones(2, 13)),
        (IDS, torch.ones(1, 12)),
        (IDS[:1, :4], torch.ones(4, 4)),
        (IDS[0], torch.ones(13)),
    ):
        with pytest.raises(ValueError, match=r"mask must have the shape \(\d, \d+\), got \("):
            lm(ids, mask=wrong)
    with pytest.raises(ValueError, match=r"shape \(B, L\), got \(12,\).*input_ids.unsqueeze\(0\)"):
        make_causal_lm()(IDS[0])


@pytest.mark.parametrize(
    "changes",
    [{}, {"use_alibi": False, "max_len": 12}, {"num_driven_rotors": 1}, {"pointer_channels": 4}],
)
def test_a_mask_says_where_texts_start_without_the_adapter_too(make_lm, make_causal_lm, changes):
    batch, mask = left_padded()
    lm = make_lm(**changes)
    padded, whole = lm(batch, mask=mask)
    torch.testing.assert_close(padded[4:], lm(IDS[0, :8]), **CLOSE)
    torch.testing.assert_close(whole, lm(IDS[1]), **CLOSE)
    torch.testing.assert_close(lm(batch[0], mask=mask[0]), padded, **CLOSE)
    adapter = make_causal_lm(attention_dropout=0.0, **changes)
    assert torch.equal(adapter(batch, attention_mask=mask).logits, adapter.lm(batch, mask=mask))


@pytest.mark.parametrize("part", ["kernel_size", "pointer_channels", "n-grams"])
def test_padding_inside_a_text_is_refused_where_it_hides_what_comes_before(make_causal_lm, part):
    """Right-padded prompts that are continued: attention alone reads across the padding."""
    model = make_causal_lm(**({} if part == "n-grams" else {part: 4}))
    if part == "n-grams":
        model.set_ngrams(count_ngrams(IDS, 120, 3))
    mask = torch.tensor([[1] * 12, [1] * 5 + [0] * 4 + [1] * 3])
    refused = pytest.raises(ValueError, match=r"padding inside the text of row 1, .*on the left")
    on_the_right, on_the_left = mask.sort(descending=True).values, mask.sort().values
    for logits in (
        lambda mask: model(IDS, attention_mask=mask).logits[1],
        lambda mask: model.lm(IDS, mask=mask)[1],
    ):
        with refused:
            logits(mask)
        text = model(IDS[1:, :8]).logits[0]
        torch.testing.assert_close(logits(on_the_right)[:8], text, **CLOSE)
        text = model(IDS[1:, 4:]).logits[0]
        torch.testing.assert_close(logits(on_the_left)[4:], text, **CLOSE)  # the remedy
    cache = model(IDS[:, :9], attention_mask=mask[:, :9], use_cache=True).past_key_values
    with refused:
        model(IDS[:, 9:], attention_mask=mask, past_key_values=cache)
    prompt = {"attention_mask": mask[:, :9], "max_new_tokens": 2, **GREEDY}
    with refused:
        model.generate(IDS[:, :9], **prompt)
    prompt["attention_mask"] = mask[:, :9].sort().values
    expected = model.generate(IDS[:, :9], use_cache=False, **prompt)
    for settings in ({"cache_implementation": "static"}, {"prefill_chunk_size": 3}):
        assert torch.equal(model.generate(IDS[:, :9], **prompt, **settings), expected)


@pytest.mark.parametrize("changes", [{}, {"num_driven_rotors": 1}])
def test_other_models_read_across_padding(make_causal_lm, changes):
    model = make_causal_lm(**changes)
    mask = torch.tensor([[1] * 5 + [0] * 4 + [1] * 3])
    together = model(IDS[:1], attention_mask=mask).logits[mask.bool()]
    torch.testing.assert_close(together, model(IDS[:1, mask[0].bool()]).logits[0], **CLOSE)


def test_a_mask_makes_no_gpu_wait(make_causal_lm, monkeypatch):
    """On a GPU, to read a tensor's value is to wait for it; a fake tensor cannot be read."""
    for module in (inputs_module, model_module):  # a check for the CPU, see the next test
        monkeypatch.setattr(module, "refuse_padding_inside", lambda _: None)
    config = make_causal_lm(kernel_size=3, attention_dropout=0.0).config
    with FakeTensorMode(), torch.no_grad():
        model = EnigmaForCausalLM(config)
        ids = torch.zeros(2, 12, dtype=torch.long)
        cache = model(ids, attention_mask=torch.ones_like(ids), use_cache=True).past_key_values
        mask = torch.ones(2, 13, dtype=torch.long)
        new = model(ids[:, :1], attention_mask=mask, past_key_values=cache)
        assert new.logits.shape == (2, 1, 120)
        with pytest.raises(DataDependentOutputException):
            bool(mask.all())


def test_where_padding_stands_is_read_on_a_cpu_only():
    mask = torch.tensor([[1, 0, 1]])
    with pytest.raises(ValueError, match="padding inside the text"):
        inputs_module.refuse_padding_inside(mask)
    elsewhere = mask.to("meta")
    with pytest.raises(RuntimeError, match="meta"):
        bool(elsewhere.all())
    inputs_module.refuse_padding_inside(elsewhere)
