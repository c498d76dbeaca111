"""A language model with memories: one normalised prediction, whatever path computes it."""

import copy

import pytest
import torch
from torch.nn import functional
from transformers import AutoModelForCausalLM, StaticCache

from enigma.causality import prove_causality
from enigma.language_model.memory.gate import gate_logits
from enigma.language_model.memory.ngram_counts import count_ngrams
from enigma.language_model.memory.ngram_memory import NGramMemory

VOCABULARY, ORDER = 120, 4
REACHABLE, POSSIBLE = torch.arange(2, 40), torch.ones(VOCABULARY, dtype=torch.bool)
POSSIBLE[60:90] = False
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": 0, "max_new_tokens": 10}
CLOSE = {"rtol": 0, "atol": 1e-5}


def draw(*shape, seed=0):
    """Ids of which some are unreachable, and n-grams recur."""
    generator = torch.Generator().manual_seed(seed)
    weight = 1 / torch.arange(1.0, 46)
    flat = torch.multinomial(weight, shape[0] * shape[1], replacement=True, generator=generator)
    return flat.view(shape) + 1


COUNTED, IDS = draw(30, 12), draw(2, 12, seed=1)


each_memory = pytest.mark.parametrize("memory", ["n-grams", "pointer", "both"])


@pytest.fixture
def make_mixed(make_causal_lm, stirred):
    def make(memory="n-grams", *, reachable=True, leave_one_out=False, **changes):
        channels = 0 if memory == "n-grams" else 4
        model = make_causal_lm(attention_dropout=0.0, pointer_channels=channels, **changes)
        if reachable:
            model.set_reachable(REACHABLE, POSSIBLE)
        if memory == "pointer":
            return model
        counts = count_ngrams(model.lm.classes(COUNTED), model.lm.num_classes, ORDER)
        model.set_ngrams(counts, leave_one_out=leave_one_out)
        stirred(model.lm.ngrams)
        return model

    return make


@pytest.mark.parametrize("reachable", [True, False])
def test_it_is_the_mixture_of_two_distributions(make_mixed, reachable):
    model = make_mixed(reachable=reachable).double()
    lm = model.lm
    hidden = lm.hidden_states(IDS)
    rows = lm.ngrams.context_rows(lm.classes(IDS))
    p_ngram, facts = lm.ngrams.probabilities(rows.flatten(0, 1), torch.float64)
    g = gate_logits(lm.ngrams.gate, hidden.flatten(0, 1), facts).sigmoid().unsqueeze(-1)
    assert 0.02 < g.min().item() < g.max().item() < 0.98
    network = lm.class_logits(hidden).flatten(0, 1).softmax(-1)
    p = (g * network + (1 - g) * p_ngram).view(2, 12, -1)
    if reachable:
        p = lm.reachable.spread(p.log()).exp()
    actual = model(IDS).logits.exp()
    torch.testing.assert_close(actual, p)
    torch.testing.assert_close(actual.sum(-1), torch.ones(2, 12, dtype=torch.float64))
    torch.testing.assert_close(lm(IDS).exp(), p)
    torch.testing.assert_close(lm(IDS[0]).exp(), p[0])


def test_the_training_loss_is_half_the_networks_and_half_the_mixtures(make_mixed):
    model = make_mixed().double()
    labels = IDS.clone()
    labels[0, :3] = -100
    targets = labels[:, 1:].flatten()
    mixed = functional.cross_entropy(model(IDS).logits[:, :-1].flatten(0, 1), targets)
    alone = model.lm.logits(model.lm.hidden_states(IDS))
    network = functional.cross_entropy(alone[:, :-1].flatten(0, 1), targets)
    expected = (mixed + network) / 2
    loss = model.train()(IDS, labels=labels).loss
    torch.testing.assert_close(loss, expected)
    count = (targets != -100).sum()
    shifted = functional.pad(labels[:, 1:], (0, 1), value=-100)
    summed = model(IDS, shift_labels=shifted, num_items_in_batch=torch.tensor(50)).loss
    torch.testing.assert_close(summed * 50, expected * count)
    model.config.logits_in_training = True
    both = model(IDS, labels=labels)
    torch.testing.assert_close(both.loss, expected)
    torch.testing.assert_close(both.logits, model.eval()(IDS).logits)
    model.lm.head.register_forward_hook(lambda *_: None)  # a head that is called
    torch.testing.assert_close(model.train()(IDS, labels=labels).loss, expected)


def test_the_network_learns_from_both_parts_and_the_gate_reads_only(make_mixed):
    """The gate's gradient ends at the hidden states; the network's is that of both losses."""
    model = make_mixed().double().train()
    network = [p for name, p in model.named_parameters() if "ngrams" not in name]
    gate = list(model.lm.ngrams.parameters())
    assert len(gate) == 2
    loss = model(IDS, labels=IDS).loss
    gradients = torch.autograd.grad(loss, [*network, *gate], retain_graph=True)
    assert all(bool(each.any()) for each in gradients[-2:])
    with torch.no_grad():
        model.lm.ngrams.gate.weight[:, :32] = 0  # the features of the hidden states
    before = torch.autograd.grad(model(IDS, labels=IDS).loss, network)
    hidden = model.lm.hidden_states(IDS)
    rows = model.lm.evidence(hidden, IDS).rows_BLK[:, :-1].flatten(0, 1)
    hidden = hidden[:, :-1]
    target = model.lm.classes(IDS[:, 1:]).flatten()
    cost = model.lm.reachable.targets(IDS[:, 1:].flatten(), torch.float64)[1]
    log_network = model.lm.class_logits(hidden).flatten(0, 1).log_softmax(-1)
    log_network = log_network.gather(1, target.unsqueeze(1))[:, 0]
    log_ngram, facts = model.lm.ngrams.log_prob(rows, target, torch.float64)
    g = gate_logits(model.lm.ngrams.gate, hidden.flatten(0, 1), facts).detach().sigmoid()
    mixed = (g * log_network.exp() + (1 - g) * log_ngram.exp()).log()
    expected = -(log_network + mixed).mean() / 2 + cost.mean()
    torch.testing.assert_close(torch.autograd.grad(expected, network), before)


@pytest.mark.parametrize("training", [True, False])
def test_a_memory_is_in_the_mode_of_the_model_that_gets_it(make_causal_lm, training):
    model = make_causal_lm().train(training)
    model.set_pointer(4)
    model.set_ngrams(count_ngrams(COUNTED, VOCABULARY, ORDER), leave_one_out=True)
    assert all(module.training is training for module in model.modules())
    hidden = model.lm.hidden_states(COUNTED)
    at_once = model.lm.nll_nats(hidden, COUNTED)
    model.train(training)
    torch.testing.assert_close(at_once, model.lm.nll_nats(hidden, COUNTED), rtol=0, atol=0)


def test_train_text_sees_the_memory_as_held_out_text_does(make_mixed):
    model = make_mixed(leave_one_out=True)
    plain = model(COUNTED, labels=COUNTED).loss
    left_out = model.train()(COUNTED, labels=COUNTED).loss
    assert left_out > plain + 0.1
    model.lm.ngrams.leave_one_out = False
    assert model(COUNTED, labels=COUNTED).loss < left_out - 0.1
    fresh = draw(200, 12, seed=7)
    memory = model.lm.ngrams
    figures = {}
    for name, ids, leave in (("train", COUNTED, True), ("train, plain", COUNTED, False),
                             ("held out", fresh, False)):  # fmt: skip
        memory.leave_one_out = leave
        rows = memory.context_rows(model.lm.classes(ids))[:, :-1].flatten(0, 1)
        log_p, _ = memory.log_prob(rows, model.lm.classes(ids[:, 1:]).flatten(), torch.float64)
        figures[name] = -float(log_p.mean())
    assert abs(figures["train"] - figures["held out"]) < 0.15
    assert figures["train, plain"] < figures["held out"] - 1


@pytest.mark.parametrize("changes", [{}, {"kernel_size": 3}])
@pytest.mark.parametrize("beams", [1, 3])
@each_memory
def test_generation_agrees_with_and_without_caches(make_mixed, memory, changes, beams):
    model = make_mixed(memory, **changes)
    ids = torch.cat((torch.zeros(2, 3, dtype=torch.long), IDS), dim=1)
    settings = {"attention_mask": (ids > 0).long(), "num_beams": beams, **GREEDY}
    fast = model.generate(ids, **settings)
    assert torch.equal(fast, model.generate(ids, use_cache=False, **settings))
    assert torch.equal(fast, model.generate(ids, cache_implementation="static", **settings))
    if beams == 1:
        looked_up = model.generate(ids[:1], prompt_lookup_num_tokens=3, **{
            **settings, "attention_mask": settings["attention_mask"][:1]
        })  # fmt: skip
        assert torch.equal(looked_up, fast[:1])


@pytest.mark.parametrize("static", [True, False])
@each_memory
def test_a_text_fed_in_pieces_gives_the_same_logits(make_mixed, memory, static):
    model = make_mixed(memory)
    cache = StaticCache(config=model.config, max_cache_len=20) if static else None
    parts = []
    for part in IDS.split((5, 1, 6), dim=1):
        output = model(part, past_key_values=cache, use_cache=True)
        cache = output.past_key_values
        parts.append(output.logits)
    torch.testing.assert_close(torch.cat(parts, dim=1), model(IDS).logits, **CLOSE)


@each_memory
def test_no_memory_crosses_the_border_of_a_text(make_mixed, memory):
    model = make_mixed(memory)
    padded = torch.cat((torch.zeros(1, 4, dtype=torch.long), IDS[:1, :8]), dim=1)
    batch, mask = torch.cat((padded, IDS[1:])), torch.ones(2, 12, dtype=torch.long)
    mask[0, :4] = 0
    alone = model(IDS[:1, :8]).logits[0]
    torch.testing.assert_close(model(batch, attention_mask=mask).logits[0, 4:], alone, **CLOSE)
    places = torch.cat((torch.arange(5), torch.arange(7))).unsqueeze(0)
    packed = model(IDS[:1], position_ids=places).logits
    parts = [model(part).logits for part in IDS[:1].split((5, 7), dim=1)]
    torch.testing.assert_close(packed, torch.cat(parts, dim=1), **CLOSE)
    four = torch.ones(12, 12, dtype=torch.bool).tril().expand(2, 1, -1, -1)
    with pytest.raises(
        ValueError, match=r"expected a mask of 2 dimensions .* pointer, got one of 4"
    ):
        model(IDS, attention_mask=four)


@each_memory
def test_embeddings_are_refused_and_the_remedy_works(make_mixed, memory):
    model = make_mixed(memory)
    rows = model.get_input_embeddings()(model.lm.reachable.rows(IDS))
    with pytest.raises(ValueError, match=r"expected ids .*, got embeddings; .*set_pointer\(0\)"):
        model(inputs_embeds=rows)
    network = model.lm.logits(model.lm.hidden_states(IDS))
    model.set_ngrams(None)
    model.set_pointer(0)
    assert (model.config.ngram_sizes, model.config.pointer_channels) == (None, 0)
    assert torch.equal(model(IDS).logits, network)
    torch.testing.assert_close(model(inputs_embeds=rows).logits, network)


def test_files_restore_it(make_mixed, tmp_path):
    model = make_mixed("both")
    model.save_pretrained(tmp_path)
    again, found = AutoModelForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not found["missing_keys"]
    assert not found["unexpected_keys"]
    assert torch.equal(again(IDS).logits, model(IDS).logits)
    assert not again.lm.ngrams.leave_one_out, "another text may follow"
    half = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert torch.equal(half.lm.ngrams.discount_bits, model.lm.ngrams.discount_bits)
    assert bool(half(IDS).logits.isfinite().any())


def test_parts_that_were_set_survive_init_weights(make_causal_lm, stirred):
    """Tools call it again after they have added a part of their own."""
    model = make_causal_lm()

    def set_ngrams():
        model.set_ngrams(count_ngrams(model.lm.classes(COUNTED), model.lm.num_classes, ORDER))

    for change in (
        lambda: model.set_reachable(REACHABLE, POSSIBLE),
        lambda: model.resize_token_embeddings(VOCABULARY + 10),
        set_ngrams,
        lambda: model.set_pointer(4),
    ):
        change()
        before = copy.deepcopy(stirred(model).state_dict())
        model.init_weights()
        for name, value in model.state_dict().items():
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("reachable", [True, False])
def test_ids_can_be_added_but_not_taken(make_mixed, reachable):
    model = make_mixed("both", reachable=reachable)
    before = model(IDS).logits.detach()
    with pytest.raises(ValueError, match=r"at least 120 ids .*, got 110; .*set_ngrams\(None\)"):
        model.resize_token_embeddings(110)
    model.resize_token_embeddings(130)
    after = model(IDS).logits.detach()
    torch.testing.assert_close(after.exp().sum(-1), torch.ones(2, 12))
    # The uniform distribution below the unigram, and that of the network, have more classes.
    assert float((after[..., :120].exp() - before.exp()).abs().max()) < 0.05
    ids = IDS.clone()
    ids[:, 6] = 125
    model.train()(ids, labels=ids).loss.backward()
    assert bool(model.lm.embedding.tokens.weight.grad[125].any())


class AheadMemory(NGramMemory):
    """A memory whose contexts end one token too late."""

    def context_rows(self, class_BL, starts_BL=None, earlier_BK=None):
        rows = super().context_rows(class_BL, starts_BL, earlier_BK)
        return torch.cat((rows[:, 1:], rows[:, -1:]), dim=1)


def test_the_proof_of_causality_covers_it(make_mixed):
    model = make_mixed()
    report = prove_causality(model, length=10, ids=IDS[0, :10])
    assert report.is_causal, report.real.leak
    model.lm.ngrams.__class__ = AheadMemory
    report = prove_causality(model, length=10, ids=IDS[0, :10])
    assert not report.is_causal
    assert report.real.suffix_change > 0
    assert "replacing the tokens after" in report.real.leak


def test_counts_of_other_classes_are_refused(make_causal_lm):
    model = make_causal_lm()
    with pytest.raises(ValueError, match=r"n-grams of 120 classes, got 50; .*set_reachable first"):
        model.set_ngrams(count_ngrams(COUNTED, 50, 2))
    model.set_ngrams(count_ngrams(model.lm.classes(COUNTED), model.lm.num_classes, 2))
    with pytest.raises(ValueError, match="call set_reachable before set_ngrams"):
        model.set_reachable(REACHABLE, POSSIBLE)
