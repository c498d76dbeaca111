"""The n-gram memory alone: it equals its definition, and what it says adds up to 1."""

import json

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from enigma.language_model.memory.ngram_counts import NGramCounts, count_ngrams
from enigma.language_model.memory.ngram_memory import NGramMemory
from tests.enigma.language_model.kneser_ney import KneserNey

CLASSES, ORDER = 6, 4
DOUBLE = torch.float64


def draw(seed, *shape):
    """Zipf-like classes."""
    generator = torch.Generator().manual_seed(seed)
    weight = 1 / torch.arange(1.0, CLASSES + 1)
    flat = torch.multinomial(weight, shape[0] * shape[1], replacement=True, generator=generator)
    return flat.view(shape)


def memory_of(counts, **changes):
    memory = NGramMemory.of(counts, d=8).double().eval()
    for name, value in changes.items():
        setattr(memory, name, value)
    return memory


def texts_of(class_NL):
    return [[c for c in row if c >= 0] for row in class_NL.tolist()]


def pruned(counts, threshold):
    """Leave rare n-grams of order 3 and above out, but no prefix of what stays."""
    keys, numbers, totals = list(counts.keys), list(counts.counts), list(counts.totals)
    needed = torch.zeros(len(keys[-1]), dtype=torch.bool)
    kept = []
    for k in reversed(range(len(keys))):
        keep = (numbers[k] >= threshold) | needed if k >= 2 else torch.ones_like(needed)
        kept.insert(0, keep)
        if k:
            needed = torch.zeros(len(keys[k - 1]), dtype=torch.bool)
            needed[keys[k][keep] >> 16] = True
    row = torch.zeros(1, dtype=torch.long)
    before = torch.ones(1, dtype=torch.bool)
    for k, keep in enumerate(kept):
        totals[k] = totals[k][before]
        key = keys[k][keep]
        keys[k] = row[key >> 16] << 16 | key & 0xFFFF
        numbers[k] = numbers[k][keep]
        row, before = keep.cumsum(0) - 1, keep
    return NGramCounts(keys, numbers, totals, counts.discounts, counts.num_classes)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), length=st.integers(ORDER, 12), texts=st.integers(1, 5))
def test_it_is_kneser_ney_by_its_definition(seed, length, texts):
    class_NL = draw(seed, texts, length)
    class_NL[0, ORDER:] = -1
    reference = KneserNey(texts_of(class_NL), CLASSES, ORDER)
    counts = count_ngrams(class_NL, CLASSES, ORDER)
    torch.testing.assert_close(counts.discounts, torch.tensor(reference.discounts, dtype=DOUBLE))
    memory = memory_of(counts)
    other_1L = draw(seed + 1, 1, 7)
    rows_LK = memory.context_rows(other_1L)[0]
    p_LC, facts = memory.probabilities(rows_LK, DOUBLE)
    expected = [
        [reference.probability(other_1L[0, : t + 1].tolist(), w) for w in range(CLASSES)]
        for t in range(7)
    ]
    torch.testing.assert_close(p_LC, torch.tensor(expected, dtype=DOUBLE))
    target_L = draw(seed + 2, 1, 7)[0]
    log_p_L, facts_of_targets = memory.log_prob(rows_LK, target_L, DOUBLE)
    torch.testing.assert_close(log_p_L.exp(), p_LC.gather(1, target_L.unsqueeze(1))[:, 0])
    torch.testing.assert_close(facts_of_targets, facts)


@settings(deadline=None, max_examples=30)
@given(seed=st.integers(0, 10**6), threshold=st.integers(1, 4))
def test_distributions_add_up_to_one_however_it_is_pruned(seed, threshold):
    counts = pruned(count_ngrams(draw(seed, 8, 12), CLASSES, ORDER), threshold)
    memory = memory_of(counts)
    rows_NK = memory.context_rows(draw(seed + 1, 5, 9)).flatten(0, 1)
    p_NC, _ = memory.probabilities(rows_NK, DOUBLE)
    torch.testing.assert_close(p_NC.sum(-1), torch.ones(45, dtype=DOUBLE))
    assert float(p_NC.min()) > 0
    for w in range(CLASSES):
        log_p_N, _ = memory.log_prob(rows_NK, torch.full((45,), w), DOUBLE)
        torch.testing.assert_close(log_p_N.exp(), p_NC[:, w])


@settings(deadline=None, max_examples=15)
@given(seed=st.integers(0, 10**6), texts=st.integers(1, 4))
def test_leaving_one_out_is_counting_without_it(seed, texts):
    class_NL = draw(seed, texts, 8)
    counts = count_ngrams(class_NL, CLASSES, ORDER)
    memory = memory_of(counts, leave_one_out=True).train()
    rows = memory.context_rows(class_NL)
    log_p, facts = memory.log_prob(rows[:, :-1].flatten(0, 1), class_NL[:, 1:].flatten(), DOUBLE)
    lines = texts_of(class_NL)
    expected, fresh = [], []
    for t, line in enumerate(lines):
        for end in range(1, len(line)):
            reference = KneserNey(
                lines, CLASSES, ORDER, discounts=counts.discounts.tolist(), without=(t, end)
            )
            expected.append(reference.probability(line[:end], line[end]))
            fresh += [
                sum(reference.follow.get(tuple(line[end - k : end]), {}).values())
                if k <= end
                else 0
                for k in range(1, ORDER)
            ]
    torch.testing.assert_close(log_p.exp(), torch.tensor(expected, dtype=DOUBLE))
    totals = facts.view(-1, ORDER - 1, 4)[..., 1].expm1()
    torch.testing.assert_close(totals.flatten(), torch.tensor(fresh, dtype=DOUBLE))
    seen = rows[:, :-1].flatten(0, 1), class_NL[:, 1:].flatten(), DOUBLE
    assert torch.equal(memory.eval().log_prob(*seen)[0], memory_of(counts).log_prob(*seen)[0])


def test_contexts_end_at_the_borders_of_texts():
    memory = memory_of(count_ngrams(draw(0, 20, 12), CLASSES, ORDER))
    one, two = draw(1, 1, 6), draw(2, 1, 6)
    apart = torch.cat((memory.context_rows(one), memory.context_rows(two)), dim=1)
    together = torch.cat((one, two), dim=1)
    assert not torch.equal(memory.context_rows(together), apart)
    starts = torch.zeros(1, 12, dtype=torch.bool)
    starts[0, 6] = True
    assert torch.equal(memory.context_rows(together, starts), apart)
    padded = torch.cat((one, torch.tensor([[-1]]), two), dim=1)
    rows = memory.context_rows(padded)
    assert torch.equal(rows[:, [*range(6), *range(7, 13)]], apart)
    assert bool((rows[:, 6] == -1).all())


@pytest.mark.parametrize("cut", [1, 2, 5])
def test_contexts_go_on_from_earlier_tokens(cut):
    memory = memory_of(count_ngrams(draw(0, 20, 12), CLASSES, ORDER))
    class_BL = draw(1, 3, 8)
    whole = memory.context_rows(class_BL)
    first = memory.context_rows(class_BL[:, :cut])
    second = memory.context_rows(class_BL[:, cut:], earlier_BK=first[:, -1])
    assert torch.equal(torch.cat((first, second), dim=1), whole)


def test_a_unigram_memory_needs_no_context():
    class_NL = draw(0, 4, 9)
    memory = memory_of(count_ngrams(class_NL, CLASSES, order=1))
    rows = memory.context_rows(class_NL)
    assert rows.shape == (4, 9, 0)
    p_NC, facts = memory.probabilities(rows.flatten(0, 1), DOUBLE)
    assert facts.shape == (36, 0)
    reference = KneserNey(texts_of(class_NL), CLASSES, 1)
    expected = torch.tensor([reference.probability([], w) for w in range(CLASSES)], dtype=DOUBLE)
    torch.testing.assert_close(p_NC, expected.expand(36, -1))


def test_half_precision_keeps_the_counts_and_discounts():
    memory = NGramMemory.of(count_ngrams(draw(0, 20, 12), CLASSES, ORDER), d=8).eval()
    rows = memory.context_rows(draw(1, 3, 8)).flatten(0, 1)
    before, _ = memory.probabilities(rows, torch.float32)
    after, _ = memory.bfloat16().probabilities(rows, torch.float32)
    assert torch.equal(after, before)


def test_a_file_is_read_as_it_was_counted(tmp_path):
    counts = count_ngrams(draw(0, 20, 12), CLASSES, ORDER)
    named = {"keys": counts.keys, "counts": counts.counts, "totals": counts.totals}
    tensors = {
        f"{name}_{k}": tensor
        for name, each in named.items()
        for k, tensor in enumerate(each, start=1)
    }
    path = tmp_path / "ngrams.safetensors"
    facts = {"ngrams": json.dumps({"order": ORDER, "num_classes": CLASSES})}
    save_file({**tensors, "discounts": counts.discounts}, path, facts)
    again = NGramCounts.read(path)
    assert (again.order, again.num_classes) == (ORDER, CLASSES)
    for one, other in zip(memory_of(again).buffers(), memory_of(counts).buffers(), strict=True):
        assert torch.equal(one, other)
    save_file(tensors, path, {"ngrams": '{"order": 4}'})
    with pytest.raises(ValueError, match=r"without \['num_classes'\] in its metadata"):
        NGramCounts.read(path)


def test_what_cannot_be_counted_is_refused():
    with pytest.raises(ValueError, match="classes below 3, got 5"):
        count_ngrams(torch.tensor([[5]]), 3, 1)
    with pytest.raises(ValueError, match="from 1 to 65536, got 65537"):
        count_ngrams(torch.tensor([[5]]), 65537, 1)
    with pytest.raises(ValueError, match=r"of at least 3 tokens, got none of 3; .* up to order 2"):
        count_ngrams(torch.tensor([[1, 2, -1, 1]]), 3, 3)
    count_ngrams(torch.tensor([[1, 2, -1, 1]]), 3, 2)  # the remedy
    with pytest.raises(ValueError, match=r"shape \(N, L\), a text in each row, got \(2,\)"):
        count_ngrams(torch.tensor([1, 2]), 3, 1)
    with pytest.raises(ValueError, match="order must be at least 1, got 0"):
        count_ngrams(torch.tensor([[1, 2]]), 3, 0)


@pytest.mark.parametrize("dtype", [torch.int16, torch.int32])
def test_classes_may_be_of_any_integer_type(dtype):
    wide = torch.randint(9, (2, 40), generator=torch.Generator().manual_seed(0))
    narrow = count_ngrams(wide.to(dtype), 9, 3)
    for one, other in zip(count_ngrams(wide, 9, 3).keys, narrow.keys, strict=True):
        assert torch.equal(one, other)
