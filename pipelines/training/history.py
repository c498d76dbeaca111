"""Decisions that follow from the history of a run alone.

The history is part of every checkpoint, so a resumed run decides the same: early
stopping has no counter of its own that a resume could lose.

A record is a flat dict with `step`; a training record has `train_loss_nats`, an
evaluation has `validation_loss_nats`.
"""

from collections.abc import Mapping, Sequence

Records = Sequence[Mapping[str, float]]


def evaluations(history: Records) -> list[Mapping[str, float]]:
    """Select the records of evaluations, in order."""
    return [record for record in history if "validation_loss_nats" in record]


def rise_nats(history: Records, record: Mapping[str, float]) -> float:
    """Measure how far a loss is above the lowest earlier one of its kind.

    Args:
        history: The earlier records.
        record: A training record or an evaluation.

    Returns:
        Nats per token; at most 0 for the lowest loss so far.

    Example:
        >>> history = [{"step": 1, "train_loss_nats": 6.0}, {"step": 2, "train_loss_nats": 4.0}]
        >>> rise_nats(history, {"step": 3, "train_loss_nats": 9.5})
        5.5
        >>> rise_nats(history, {"step": 3, "validation_loss_nats": 9.5})
        0.0
    """
    name = "validation_loss_nats" if "validation_loss_nats" in record else "train_loss_nats"
    earlier = [other[name] for other in history if name in other]
    return record[name] - min(earlier, default=record[name])


def best_step(history: Records) -> int | None:
    """The step of the lowest validation loss, the earliest on a tie; None without evaluations."""
    best = min(
        evaluations(history), key=lambda record: record["validation_loss_nats"], default=None
    )
    return None if best is None else int(best["step"])


def patience_is_over(history: Records, patience: int) -> bool:
    """Whether the last `patience` evaluations all failed to beat the best one before them."""
    after_best = [r for r in evaluations(history) if r["step"] > (best_step(history) or 0)]
    return len(after_best) >= patience
