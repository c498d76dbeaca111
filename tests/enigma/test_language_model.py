"""The language model and its Hugging Face adapter."""

import re
from functools import partial

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, DynamicCache

from enigma.attention import AttentionContext, CausalSelfAttention, alibi_slopes
from enigma.bijections.round_trip import core_round_trip_error
from enigma.configuration_enigma import EnigmaConfig
from enigma.layers.norm import rms_normalise
from enigma.model import Enigma, EnigmaLM
from enigma.modeling_enigma import EnigmaForCausalLM

IDS = torch.randint(1, 120, (2, 12), generator=torch.Generator().manual_seed(0))
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0}


def test_the_linear_biases_are_those_of_alibi(stirred):
    attention = stirred(CausalSelfAttention(32, 4).double())
    x = torch.randn(2, 300, 32, dtype=torch.float64)
    index = torch.arange(300)
    q, k = (
        rms_normalise(linear(x).view(2, 300, 4, 6).transpose(1, 2))
        for linear in (attention.query, attention.key)
    )
    scores = q @ k.mT / 8**0.5 - alibi_slopes(4)[:, None, None] * (index[:, None] - index)
    weights = scores.masked_fill(index > index[:, None], -torch.inf).softmax(-1)
    expected = (weights @ attention.value(x).view(2, 300, 4, 8).transpose(1, 2)).transpose(1, 2)
    actual = attention(x, AttentionContext(index))
    torch.testing.assert_close(actual, attention.out(expected.flatten(2)), rtol=0, atol=1e-10)


def test_both_constructors_start_with_rows_of_length_one():
    sizes = {"vocab_size": 2000, "d": 64, "num_rev_blocks": 1, "num_heads": 2}
    torch.manual_seed(0)
    plain = EnigmaLM(**sizes, num_transformer_layers=1)
    adapted = EnigmaForCausalLM(EnigmaConfig(**sizes, num_transformer_layers=1)).lm
    for lm in (plain, adapted):
        lengths = torch.linalg.vector_norm(lm.embedding.tokens.weight, dim=-1)
        torch.testing.assert_close(lengths.mean(), torch.tensor(1.0), rtol=0.02, atol=0)


def test_loss_is_the_mean_over_shifted_labels(make_causal_lm):
    model = make_causal_lm()
    labels = IDS.clone()
    labels[0, :5] = -100
    out = model(IDS, labels=labels)
    flat = functional.cross_entropy(out.logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    torch.testing.assert_close(out.loss, flat)
    summed = model(IDS, labels=labels, num_items_in_batch=torch.tensor(100)).loss
    torch.testing.assert_close(summed * 100, flat * (labels[:, 1:] != -100).sum())


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 1e-6)])
@pytest.mark.parametrize("num_items", [None, torch.tensor(700)])
def test_the_training_loss_and_its_gradients_are_the_plain_ones(
    make_causal_lm, dtype, tolerance, num_items
):
    model = make_causal_lm(attention_dropout=0.0).to(dtype)
    # More tokens than one chunk, and a last chunk that is not full.
    ids = torch.randint(120, (3, 250), generator=torch.Generator().manual_seed(1))
    labels = ids.clone()
    labels[1, :100] = -100
    logits, targets = model(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    expected = functional.cross_entropy(logits, targets)
    if num_items is not None:
        expected = expected * (targets != -100).sum() / num_items
    expected_gradients = torch.autograd.grad(expected, list(model.parameters()))

    out = model.train()(ids, labels=labels, num_items_in_batch=num_items)
    assert out.logits is None, "all logits are never held at once"
    torch.testing.assert_close(out.loss, expected, rtol=tolerance, atol=0)
    gradients = torch.autograd.grad(out.loss, list(model.parameters()))
    for (name, _), actual, plain in zip(
        model.named_parameters(), gradients, expected_gradients, strict=True
    ):
        assert (actual - plain).norm() < 10 * tolerance * plain.norm(), name


# torch's RMSNorm has no fused kernel for bf16 input and fp32 gain, and says so once.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_under_bf16_autocast_the_loss_keeps_all_its_digits(make_causal_lm):
    model = make_causal_lm().train()
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(IDS, labels=IDS).loss
    assert loss.dtype == torch.float32
    assert loss != loss.bfloat16()


@pytest.mark.parametrize("changes", [{}, {"kernel_size": 3, "learnable_plugboard": True}])
def test_every_parameter_takes_part(make_causal_lm, changes):
    model = make_causal_lm(**changes).train()
    model(IDS, labels=IDS).loss.backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == []


def test_the_head_is_tied_and_files_restore_the_same_model(make_causal_lm, tmp_path):
    model = make_causal_lm()
    assert model.lm.head.weight is model.lm.embedding.tokens.weight
    model.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").is_file()
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert again.lm.head.weight is again.lm.embedding.tokens.weight
    state = again.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    torch.testing.assert_close(again(IDS).logits, model(IDS).logits)


def test_an_untied_head_has_its_own_weights(make_causal_lm, tmp_path):
    model = make_causal_lm(tie_word_embeddings=False)
    assert model.lm.head.weight is not model.lm.embedding.tokens.weight
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert torch.equal(again.lm.head.weight, model.lm.head.weight)


VARIANTS = [
    {},
    {"max_len": 16},
    {"use_dynamic_conv1x1": False, "num_rotors": 1},
    {"kernel_size": 3},
    {"kernel_size": 3, "return_path": "untied"},
    {"kernel_size": 2, "return_path": "inverse", "rotor_form": "lifting"},
    {"exact": True, "rotor_form": "lifting", "learnable_plugboard": True},
]


@pytest.mark.parametrize("changes", VARIANTS)
def test_cached_generation_equals_uncached(make_causal_lm, changes):
    model = make_causal_lm(**changes)
    fast = model.generate(IDS, max_new_tokens=24, use_cache=True, **GREEDY)
    slow = model.generate(IDS, max_new_tokens=24, use_cache=False, **GREEDY)
    assert fast.shape == (2, 36)
    assert torch.equal(fast, slow)


def test_beam_search_reorders_the_cache_of_the_convolutions(make_causal_lm):
    model = make_causal_lm(kernel_size=3)
    beams = {"num_beams": 3, "max_new_tokens": 10, **GREEDY}
    assert torch.equal(
        model.generate(IDS, use_cache=True, **beams), model.generate(IDS, use_cache=False, **beams)
    )


def test_a_text_fed_in_pieces_gives_the_same_logits(make_causal_lm):
    model = make_causal_lm()
    cache, pieces = None, []
    for piece in IDS.split((5, 1, 6), dim=1):
        out = model(piece, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        pieces.append(out.logits)
    torch.testing.assert_close(torch.cat(pieces, 1), model(IDS).logits, rtol=0, atol=1e-5)


@pytest.mark.parametrize("changes", VARIANTS)
def test_a_left_padded_row_equals_the_row_alone(make_causal_lm, changes):
    model = make_causal_lm(**changes)
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), IDS[:1, :8]), dim=1)
    batch = torch.cat((padded, IDS[1:]))
    mask = torch.ones_like(batch)
    mask[0, :4] = 0
    together = model(batch, attention_mask=mask).logits[0, 4:]
    # On the grid, a difference in the last bit becomes 2^-14.
    tolerance = 1e-3 if changes.get("exact") else 1e-5
    torch.testing.assert_close(together, model(IDS[:1, :8]).logits[0], rtol=0, atol=tolerance)
    grown = model.generate(batch, attention_mask=mask, max_new_tokens=12, **GREEDY)
    alone = model.generate(IDS[:1, :8], max_new_tokens=12, **GREEDY)
    assert torch.equal(grown[0, 4:], alone[0])


def test_gradient_checkpointing_gives_the_same_gradients(make_causal_lm):
    grads = []
    for checkpointing in (False, True):
        model = make_causal_lm(attention_dropout=0.0).train()
        if checkpointing:
            model.activation_checkpointing_enable()
            assert model.gradient_checkpointing
        model(IDS, labels=IDS).loss.backward()
        grads.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*grads, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_learned_positions_end_at_max_len(make_lm):
    lm = make_lm(use_alibi=False, max_len=8)
    lm(IDS[:, :8])
    with pytest.raises(ValueError, match="at most max_len=8 tokens with learned positions, got 9"):
        lm(IDS[:, :9])


def test_the_core_of_a_language_model_undoes_itself(make_lm):
    report = core_round_trip_error(make_lm(), length=20)
    assert report.float64 < 1e-12
    assert report.float32 < 1e-5
    assert set(report.to_dict()) >= {"length", "float32", "float64"}


def with_large_streams(lm):
    """As training makes them: what the layers add before the machine, and its blocks in it."""
    with torch.no_grad():
        for layer in lm.layers[: (len(lm.layers) + 1) // 2]:
            for matrix in (p for p in layer.parameters() if p.ndim > 1):
                matrix.mul_(30)
        for matrix in (p for p in lm.core.blocks.parameters() if p.ndim > 1):
            matrix.mul_(8)
    return lm


def test_the_round_trip_is_measured_on_the_streams_of_text(make_lm):
    lm = with_large_streams(make_lm())
    standard_normal = core_round_trip_error(lm, length=20)
    of_text = core_round_trip_error(lm, ids=IDS)
    assert of_text.length == IDS.shape[1]
    assert standard_normal.float32 > 1e-5
    assert of_text.float32 < 1e-5
    assert of_text.float32_reversed < 1e-5


@pytest.mark.parametrize("training", [True, False])
def test_the_measurement_leaves_every_part_in_its_mode(make_lm, training):
    lm = make_lm().train(training)
    lm.layers[1].train(not training)
    lm.core.blocks[0].g.training = not training
    modes = [module.training for module in lm.modules()]
    core_round_trip_error(lm, ids=IDS)
    assert [module.training for module in lm.modules()] == modes


def test_in_exact_mode_text_comes_back_to_the_bit(make_lm):
    report = core_round_trip_error(make_lm(exact=True, rotor_form="lifting"), ids=IDS)
    assert report.float32 == report.float32_reversed == 0.0


def test_a_machine_that_text_cannot_come_back_from_is_seen(make_lm):
    lm = make_lm()
    with torch.no_grad():
        for matrix in (p for p in lm.core.blocks.parameters() if p.ndim > 1):
            matrix.mul_(300)
    report = core_round_trip_error(lm, ids=IDS)
    assert min(report.float32, report.float32_reversed) > 1e-5


def test_a_token_of_large_numbers_does_not_hide_the_others(make_lm):
    """A stream of one token is a million times as large: its error is nothing beside it."""
    lm = with_large_streams(make_lm())
    with torch.no_grad():
        lm.embedding.tokens.weight[5] = 1e6
        for parameter in lm.layers.parameters():
            parameter.zero_()  # so the machine reads the embeddings
    ids = IDS.masked_fill(IDS == 5, 6)
    alone = core_round_trip_error(lm, ids=ids).float32
    ids = torch.cat((ids, torch.full_like(ids[:, :1], 5)), dim=1)
    assert core_round_trip_error(lm, ids=ids).float32 >= alone > 1e-5


def test_ids_need_a_model_that_reads_them(make_lm):
    with pytest.raises(TypeError, match="which reads ids, got an Enigma"):
        core_round_trip_error(make_lm().core, ids=IDS)
    lm = make_lm()
    lm.forward = lambda ids, head: ids
    with pytest.raises(TypeError, match="a model that calls its core, got one that does not"):
        core_round_trip_error(lm, ids=IDS)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"kernel_size": 3},
        {"num_driven_rotors": 1, "rotor_channels": 4, "rotor_reflections": 2},
        {"pointer_channels": 4},
    ],
)
def test_a_cache_without_attention_layers_is_refused(make_lm, changes):
    """Its length is that of the keys: every token would be the first of its text."""
    lm = make_lm(num_transformer_layers=0, **changes)
    for run in (lm, lm.hidden_states):
        with pytest.raises(ValueError, match=r"without attention layers.*without a cache"):
            run(IDS, cache=DynamicCache())
        assert run(IDS).shape[:2] == IDS.shape  # what the message says to do


def test_errors_say_what_was_expected():
    with pytest.raises(ValueError, match="vocab_size must be at least 1, got 0"):
        EnigmaLM(0)
    with pytest.raises(Exception, match="return_path"):
        EnigmaConfig(return_path="backwards")
    for share in (-0.5, 1.0):
        with pytest.raises(ValueError, match=f"at least 0 and below 1, got {share}"):
            EnigmaLM(50, attention_dropout=share)


@pytest.mark.parametrize(
    ("d", "num_heads", "positions"), [(8, 2, 8), (12, 3, 12), (28, 7, 14), (256, 8, 16)]
)
def test_heads_and_positions_fit_the_width_by_default(d, num_heads, positions):
    config = EnigmaConfig(vocab_size=11, hidden_size=d, num_transformer_layers=1)
    assert (config.num_heads, config.conv1x1_positions) == (num_heads, positions)
    again = EnigmaConfig.from_dict(config.to_diff_dict())
    assert (again.num_heads, again.conv1x1_positions) == (num_heads, positions)
    lm = EnigmaLM(11, d, num_transformer_layers=1)
    assert lm.layers[0].attention.num_heads == num_heads
    assert lm.core.rotors.positions == positions
    assert lm.state_dict().keys() == EnigmaForCausalLM(config).lm.state_dict().keys()


WRONG_SIZES = [
    {"d": 8, "num_heads": 8}, {"d": 8, "num_heads": 0}, {"d": 30, "num_heads": 7},
    {"d": 8, "conv1x1_positions": 16}, {"d": 8, "conv1x1_positions": 0},
]  # fmt: skip


@pytest.mark.parametrize("sizes", WRONG_SIZES, ids=str)
@pytest.mark.parametrize("make", [EnigmaConfig, partial(EnigmaLM, 11)])
def test_wrong_heads_or_positions_are_answered_with_working_ones(sizes, make):
    ((name, wrong),) = [(key, value) for key, value in sizes.items() if key != "d"]
    with pytest.raises(
        Exception, match=rf"must divide .*, got {wrong}; to fix this: take"
    ) as error:
        make(**sizes)
    assert make is not EnigmaConfig or f"{name} must divide" in str(error.value)
    first, others = re.search(r"take (\d+), or another of \[(.+)\]", str(error.value)).groups()
    for working in (first, *others.split(", ")):
        make(**sizes | {name: int(working)})


@pytest.mark.parametrize("d", [0, 3])
def test_a_width_without_room_for_one_head_is_refused(d):
    for make in (EnigmaConfig, partial(EnigmaLM, 11)):
        with pytest.raises(ValueError, match=f"d must be at least 4, got {d}"):
            make(d=d)
    with pytest.raises(ValueError, match="num_channels must be at least 1, got 0"):
        Enigma(d=0)


@pytest.mark.parametrize("memory", ["plain", "reversible"])
def test_hooks_on_attention_layers_fire_once_in_a_forward_pass(make_lm, memory):
    lm = make_lm(memory=memory).train()
    calls = []
    for number, layer in enumerate(lm.layers):
        layer.register_forward_hook(lambda *_, number=number: calls.append(number))
    lm(IDS).sum().backward()
    assert calls == [0, 1, 2]
