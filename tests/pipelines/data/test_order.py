import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.data.order import BatchPlan, SequenceOrder, evenly_spaced

SEEDS = st.integers(0, 2**32 - 1)


@given(num=st.integers(1, 700), seed=SEEDS, epoch=st.integers(0, 50))
def test_an_epoch_is_a_permutation(num: int, seed: int, epoch: int) -> None:
    positions = np.arange(epoch * num, (epoch + 1) * num)
    assert sorted(SequenceOrder(num, seed).sequence_at(positions)) == list(range(num))


@given(
    num=st.integers(1, 300),
    seed=SEEDS,
    step=st.integers(0, 40),
    division=st.sampled_from([(12, 1, 1), (4, 3, 1), (2, 3, 2), (1, 12, 1), (3, 2, 2), (1, 1, 12)]),
)
def test_the_step_is_the_same_for_every_division_of_the_work(num, seed, step, division) -> None:
    batch_size, world, micro = division
    plan = BatchPlan(SequenceOrder(num, seed), batch_size, world, micro)
    whole = BatchPlan(SequenceOrder(num, seed), 12, 1, 1).batch(step, 0, 0)
    parts = [plan.batch(step, m, rank) for m in range(micro) for rank in range(world)]
    np.testing.assert_array_equal(np.concatenate(parts), whole)


@given(num=st.integers(1, 200), epochs=st.integers(1, 4), batch=st.integers(1, 9))
def test_the_planned_steps_show_every_sequence_often_enough(num, epochs, batch) -> None:
    plan = BatchPlan(SequenceOrder(num, 0), batch, 2, 1)
    steps = plan.steps(epochs)
    seen = np.concatenate([plan.batch(step, 0, rank) for step in range(steps) for rank in (0, 1)])
    counts = np.bincount(seen, minlength=num)
    assert counts.min() >= epochs
    assert len(seen) - epochs * num < plan.sequences_per_step
    assert plan.epochs_at(steps) >= epochs


@pytest.mark.parametrize("stop", [0, 1, 13, 32])
def test_three_ranks_after_five_show_every_sequence_once(stop: int) -> None:
    order = SequenceOrder(33 * 60, 7)
    before, after = BatchPlan(order, 12, 5, 1), BatchPlan(order, 10, 3, 2)
    assert before.steps(1) == after.steps(1) == 33
    seen = [before.batch(step, 0, rank) for step in range(stop) for rank in range(5)]
    seen += [
        after.batch(step, part, rank)
        for step in range(stop, 33)
        for part in range(2)
        for rank in range(3)
    ]
    assert sorted(np.concatenate(seen)) == list(range(33 * 60))


def test_epochs_and_seeds_differ_and_look_random() -> None:
    num = 4000
    first = SequenceOrder(num, 0).sequence_at(np.arange(num))
    second = SequenceOrder(num, 0).sequence_at(np.arange(num, 2 * num))
    other = SequenceOrder(num, 1).sequence_at(np.arange(num))
    for one, two in [(first, second), (first, other), (first, np.arange(num))]:
        # Two random permutations agree at one position on average.
        assert np.sum(one == two) < 10
        assert abs(np.corrcoef(one, two)[0, 1]) < 0.1
    # Neighbours in the stream are not neighbours in the text.
    assert np.mean(np.abs(np.diff(first)) < 10) < 0.02


def test_a_billion_sequences_cost_no_memory() -> None:
    order = SequenceOrder(10**9, 7)
    got = order.sequence_at(np.array([0, 10**9 - 1, 5 * 10**9]))
    assert got.min() >= 0
    assert got.max() < 10**9


def test_no_sequences_are_refused() -> None:
    with pytest.raises(ValueError, match="at least one sequence"):
        SequenceOrder(0, 0)


@given(num=st.integers(0, 500), at_most=st.integers(1, 100))
def test_the_fixed_subset_spreads_without_repeats(num: int, at_most: int) -> None:
    subset = evenly_spaced(num, at_most)
    assert len(subset) == min(num, at_most)
    assert len(set(subset.tolist())) == len(subset)
    assert all(0 <= index < num for index in subset)
