"""A reachable vocabulary: fewer logits, the same kind of model."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.nn import functional
from transformers import AutoModelForCausalLM, StaticCache

from enigma.causality import prove_causality
from enigma.configuration_enigma import EnigmaConfig
from enigma.language_model.memory.ngram_counts import count_ngrams
from enigma.language_model.presets import PRESETS, count_parameters
from enigma.language_model.reachable import ReachableVocabulary

VOCABULARY = 120
REACHABLE = torch.tensor([7, 3, *range(20, 60), 101])
POSSIBLE = torch.ones(VOCABULARY, dtype=torch.bool)
POSSIBLE[60:90] = False
OTHERS = int(POSSIBLE.sum()) - len(REACHABLE)
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 10}


def draw(*shape, seed=0):
    """Ids that are possible, reachable or not."""
    generator = torch.Generator().manual_seed(seed)
    ids = POSSIBLE.nonzero().flatten()
    return ids[torch.randint(len(ids), shape, generator=generator)]


IDS = draw(2, 12)


@pytest.fixture
def make_reachable(make_causal_lm):
    def make(**changes):
        model = make_causal_lm(attention_dropout=0.0, **changes)
        model.set_reachable(REACHABLE, POSSIBLE)
        return model

    return make


def test_probabilities_add_up_to_one_over_all_ids(make_reachable):
    model = make_reachable().double()
    logits = model(IDS).logits
    assert logits.shape == (2, 12, VOCABULARY)
    p = logits.softmax(-1)
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 12, dtype=torch.float64))
    assert bool((p[..., ~POSSIBLE] == 0).all())
    assert bool((p[..., POSSIBLE] > 0).all())
    others = POSSIBLE.clone()
    others[REACHABLE] = False
    assert bool((p[..., others].diff(dim=-1) == 0).all())
    weight = model.lm.head.weight
    rows = torch.cat((weight[REACHABLE.sort().values], weight[:1]))
    classes = functional.linear(model.lm.hidden_states(IDS), rows).softmax(-1)
    torch.testing.assert_close(p[..., REACHABLE.sort().values], classes[..., :-1])
    torch.testing.assert_close(p[..., others].sum(-1), classes[..., -1])


def test_without_it_nothing_changes(make_causal_lm):
    """`None` is the model of the versions before, bit for bit, in its files too."""
    model = make_causal_lm()
    assert model.lm.reachable is None
    assert torch.equal(model(IDS).logits, model.lm.head(model.lm.hidden_states(IDS)))
    assert not any("reachable" in name for name in model.state_dict())


@pytest.mark.parametrize("head", ["tied", "untied", "called"])
@pytest.mark.parametrize("num_items", [None, torch.tensor(700)])
def test_the_training_loss_is_that_of_the_logits(make_reachable, head, num_items):
    model = make_reachable(tie_word_embeddings=head == "tied").double()
    if head == "called":
        model.lm.head.register_forward_hook(lambda *_: None)
    ids = draw(3, 250)
    labels = ids.clone()
    labels[1, :100] = -100
    parameters = list(model.parameters())
    logits, targets = model(ids).logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten()
    expected = functional.cross_entropy(logits, targets)
    if num_items is not None:
        expected = expected * (targets != -100).sum() / num_items
    plain = torch.autograd.grad(expected, parameters, allow_unused=True)
    loss = model.train()(ids, labels=labels, num_items_in_batch=num_items).loss
    torch.testing.assert_close(loss, expected)
    torch.testing.assert_close(torch.autograd.grad(loss, parameters, allow_unused=True), plain)
    model.config.logits_in_training = True
    whole = model(ids, labels=labels, num_items_in_batch=num_items).loss
    torch.testing.assert_close(whole, expected.float())


def test_an_impossible_target_costs_infinity(make_reachable):
    model = make_reachable().train()
    ids = IDS.clone()
    ids[0, 5] = 75
    assert model(ids, labels=ids).loss == model.eval()(ids, labels=ids).loss == math.inf
    ids[0, 5] = 0  # unreachable, but possible
    assert math.isfinite(model(ids, labels=ids).loss.item())


def test_ids_that_are_not_reachable_are_read_alike(make_reachable):
    model = make_reachable()
    one, other = IDS.clone(), IDS.clone()
    one[:, 4], other[:, 4] = 0, 110
    assert torch.equal(model(one).logits, model(other).logits)
    one[:, 4] = 7
    assert not torch.equal(model(one).logits, model(other).logits)


def with_new_ids(model):
    model.resize_token_embeddings(VOCABULARY + 2)
    return model


def with_another_embedding(model):
    model.set_input_embeddings(nn.Embedding(VOCABULARY, 32))
    return model


@pytest.mark.parametrize(
    "change", [lambda model: model, copy.deepcopy, with_new_ids, with_another_embedding]
)
def test_the_embedding_alone_reads_as_the_model_does(make_reachable, change):
    """Prompt tuning calls it, and so does whoever passes embeddings in place of ids."""
    model = change(make_reachable(tie_word_embeddings=False))
    rows = model.get_input_embeddings()(IDS)
    assert torch.equal(model(inputs_embeds=rows).logits, model(IDS).logits)
    model.set_reachable(REACHABLE[:20], torch.ones(model.lm.vocab_size, dtype=torch.bool))
    rows = model.get_input_embeddings()(input=IDS)
    assert torch.equal(model(inputs_embeds=rows).logits, model(IDS).logits)


# PEFT asks transformers by the old name.
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing`:FutureWarning")
@pytest.mark.filterwarnings("ignore:Model has `tie_word_embeddings=True`")
def test_a_copy_of_the_embedding_follows_the_model(make_reachable):
    """PEFT trains a copy, which it makes before the model moves or gets another vocabulary."""
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig(target_modules="all-linear", modules_to_save=["tokens"])
    model = peft.get_peft_model(make_reachable(), config).eval()
    whole = torch.ones(VOCABULARY, dtype=torch.bool)
    model.base_model.model.set_reachable(torch.tensor([70, 71, *REACHABLE.tolist()]), whole)
    one, other = (torch.full((1, 3), last) for last in (70, 71))
    assert not torch.equal(model(one).logits, model(other).logits)
    moved = model.to("meta").get_input_embeddings()
    assert moved(one.to("meta")).shape == (1, 3, 32)


def test_a_negative_id_is_no_token(make_reachable):
    model = make_reachable()
    ids = torch.tensor([[7, 20, -1, -100]])
    assert model.lm.classes(ids).tolist() == [[1, 2, -1, -100]]
    counts = count_ngrams(model.lm.classes(ids), model.lm.num_classes, 1)
    assert counts.totals[0].item() == 2
    for read in (model, model.get_input_embeddings()):
        with pytest.raises(IndexError):
            read(ids)


@pytest.mark.parametrize("beams", [1, 3])
def test_generation_agrees_with_and_without_caches(make_reachable, beams):
    model = make_reachable()
    ids = torch.cat((torch.zeros(2, 3, dtype=torch.long), IDS), dim=1)
    settings = {"attention_mask": (ids > 0).long(), "num_beams": beams, **GREEDY}
    fast = model.generate(ids, **settings)
    assert bool(POSSIBLE[fast].all())
    assert torch.equal(fast, model.generate(ids, use_cache=False, **settings))
    assert torch.equal(fast, model.generate(ids, cache_implementation="static", **settings))
    cache = StaticCache(config=model.config, max_cache_len=20)
    parts = [model(part, past_key_values=cache).logits for part in IDS.split((5, 1, 6), dim=1)]
    torch.testing.assert_close(torch.cat(parts, dim=1), model(IDS).logits, rtol=0, atol=1e-5)


def test_files_restore_it(make_reachable, tmp_path):
    model = make_reachable()
    model.save_pretrained(tmp_path)
    again, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert again.config.num_reachable == len(REACHABLE)
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.lm.reachable.num_other == OTHERS
    p = half(IDS).logits.float().softmax(-1)
    torch.testing.assert_close(p.sum(-1), torch.ones(2, 12))


@pytest.mark.parametrize("tied", [True, False])
def test_tokens_that_are_added_are_reachable_and_learn(make_reachable, tied, tmp_path):
    model = make_reachable(tie_word_embeddings=tied)
    before = model(IDS).logits.detach()
    model.resize_token_embeddings(130)
    after = model(IDS).logits
    torch.testing.assert_close(after[..., :120], before)
    assert model.config.num_reachable == len(REACHABLE) + 10
    torch.testing.assert_close(after.softmax(-1).sum(-1), torch.ones(2, 12))
    ids = IDS.clone()
    ids[:, 6] = 125
    model.train()(ids, labels=ids).loss.backward()
    assert bool(model.lm.embedding.tokens.weight.grad[125].any())
    assert bool(model.lm.head.weight.grad[125].any())
    model.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    torch.testing.assert_close(again(ids).logits, model.eval()(ids).logits)
    model.resize_token_embeddings(120)
    torch.testing.assert_close(model(IDS).logits, before)
    with pytest.raises(ValueError, match="expected more than 3 ids"):
        model.resize_token_embeddings(3)
    torch.testing.assert_close(model(IDS).logits, before)


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated")
def test_an_adapter_on_the_head_learns(make_reachable):
    peft = pytest.importorskip("peft")
    settings = peft.LoraConfig(r=2, target_modules=["query", "head"], task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(make_reachable(tie_word_embeddings=False), settings).train()
    loss = adapted(input_ids=IDS, labels=IDS).loss
    loss.backward()
    torch.testing.assert_close(loss, adapted.eval()(input_ids=IDS, labels=IDS).loss)
    grads = [p.grad for name, p in adapted.named_parameters() if "lora_B" in name]
    assert len(grads) == 4
    assert all(bool(grad.any()) for grad in grads)


def test_no_logit_depends_on_a_later_token(make_reachable):
    model = make_reachable()
    report = prove_causality(model, length=8, ids=IDS[0, :8])
    assert report.is_causal, report.real.leak


def test_sizes_are_counted_and_wrong_ones_refused():
    settings = {**PRESETS["512-wide-6-layer"], "num_reachable": 3584}
    assert count_parameters(settings) == count_parameters(PRESETS["512-wide-6-layer"])
    for wrong in (0, 120):
        with pytest.raises(ValueError, match="None gives every id a logit of its own"):
            ReachableVocabulary(120, wrong)
        with pytest.raises(Exception, match="num_reachable must be from 1 to"):
            EnigmaConfig(vocab_size=120, num_reachable=wrong)
    for ids, possible, message in (
        ([3, 120], POSSIBLE, "ids from 0 to 119, got 3 to 120"),
        ([3, 4, 3], POSSIBLE, "once, got 3 twice"),
        ([3, 70], POSSIBLE, "got 70, which is not"),
        (range(120), torch.ones(120, dtype=torch.bool), "leave the rarest id out"),
    ):
        with pytest.raises(ValueError, match=message):
            ReachableVocabulary.of(torch.tensor(list(ids)), possible)
    # The remedy.
    assert (
        ReachableVocabulary.of(torch.arange(119), torch.ones(120, dtype=torch.bool)).num_other == 1
    )


@pytest.mark.parametrize(
    ("reachable", "num_ids", "expected"),
    [
        (range(2, 60), 2, "expected more than 2 ids"),
        (range(60), 50, "expected a possible id that is not reachable"),
    ],
)
def test_what_cannot_be_cut_leaves_the_model_as_it_was(
    make_causal_lm, reachable, num_ids, expected
):
    model = make_causal_lm()
    model.set_reachable(torch.tensor(reachable), torch.ones(VOCABULARY, dtype=torch.bool))
    before = model(IDS).logits
    with pytest.raises(ValueError, match=expected):
        model.resize_token_embeddings(num_ids)
    assert torch.equal(model(IDS).logits, before)


def test_another_number_of_ids_is_refused(make_lm):
    with pytest.raises(ValueError, match=r"the shape \(120,\), got \(5,\)"):
        make_lm().set_reachable(torch.tensor([1]), torch.ones(5, dtype=torch.bool))


class Doubled(nn.Linear):
    """A head that does more than multiply."""

    def forward(self, x):
        return 2 * super().forward(x)


def test_a_head_that_does_more_is_called(make_reachable):
    model = make_reachable()
    expected = (2 * model.lm.reachable.class_logits(model.lm.head, torch.ones(32))).softmax(-1)
    model.lm.head.__class__ = Doubled
    p = model.lm.logits(torch.ones(32)).softmax(-1)
    torch.testing.assert_close(p[model.lm.reachable.class_ids[:-1]], expected[:-1])
