"""Whether one model is better than another, or whether chance could explain the difference.

A paired bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13): both models are scored on the same items, the items are resampled with
replacement, and the spread of the difference over the resamples is its uncertainty.
Sequences of one document are alike, so whole documents are drawn; too few documents say
little about the spread, and sequences are drawn instead (ADR 5).
"""

from dataclasses import dataclass

import numpy as np

from pipelines.language_model.losses import Floats, Losses

CONFIDENCE = 0.95
RESAMPLES = 9999
# With fewer clusters the bootstrap is known to give intervals that are too narrow.
MIN_DOCUMENTS = 30
NATS_PER_BIT = float(np.log(2.0))


@dataclass(frozen=True)
class Comparison:
    """The difference candidate minus champion; lower is better.

    Args:
        difference: In bits or nats per unit, over the whole evaluation set.
        low: Lower end of the 95 % interval.
        high: Upper end.
        drawn: What was drawn, and how many ("412 documents").
        unit: Unit of the difference ("bits per character").
    """

    difference: float
    low: float
    high: float
    drawn: str
    unit: str

    @property
    def better(self) -> bool:
        """Whether the candidate is better, and chance does not explain it."""
        return self.high < 0.0

    @property
    def worse(self) -> bool:
        """Whether the candidate is worse, and chance does not explain it."""
        return self.low > 0.0

    def __str__(self) -> str:
        return (
            f"{self.difference:+.4f} {self.unit} against the champion, 95 % interval "
            f"[{self.low:+.4f}, {self.high:+.4f}], paired bootstrap over {self.drawn}"
        )


def compare(champion: Losses, candidate: Losses, *, unit: str, nats_per_unit: float) -> Comparison:
    """Compare two models item by item.

    Args:
        champion: The champion's losses.
        candidate: The candidate's losses on the same items, in the same order.
        unit: Unit in which the difference is given.
        nats_per_unit: Nats in one unit (ln 2 for bits).

    Returns:
        The difference and its interval; deterministic.

    Raises:
        ValueError: If the items differ, or a loss is not finite.
    """
    from scipy.stats import bootstrap

    same = np.array_equal(champion.document, candidate.document)
    if not (same and np.array_equal(champion.units, candidate.units)):
        msg = "expected losses of the same items, got different ones"
        raise ValueError(msg)
    for name, losses in (("champion", champion), ("candidate", candidate)):
        bad = len(losses.loss_nats) - int(np.isfinite(losses.loss_nats).sum())
        if bad:
            # Infinite for the champion, it would make any candidate better.
            msg = f"expected finite losses of the {name}, got {bad} that are not"
            raise ValueError(msg)
    delta_N = (candidate.loss_nats - champion.loss_nats) / nats_per_unit
    kind, delta_N, units_N = _clusters(candidate, delta_N)

    def ratio(delta: Floats, units: Floats, axis: int = -1) -> Floats:
        return np.asarray(delta.sum(axis=axis) / units.sum(axis=axis))

    difference = float(ratio(delta_N, units_N))
    drawn = f"{len(delta_N)} {kind}"
    if len(delta_N) < 2:
        return Comparison(difference, -np.inf, np.inf, drawn, unit)
    interval = bootstrap(
        (delta_N, units_N), ratio, paired=True, vectorized=True, n_resamples=RESAMPLES,
        batch=max(1, 4_000_000 // len(delta_N)), confidence_level=CONFIDENCE,
        method="percentile", rng=np.random.default_rng(0),
    ).confidence_interval  # fmt: skip
    return Comparison(difference, float(interval.low), float(interval.high), drawn, unit)


def _clusters(losses: Losses, delta_N: Floats) -> tuple[str, Floats, Floats]:
    """Sum items by document if there are enough documents."""
    names, number = np.unique(losses.document.astype(str), return_inverse=True)
    if len(names) < MIN_DOCUMENTS:
        return "sequences", delta_N, losses.units
    summed_D, units_D = (
        np.bincount(number, weights=values).astype(np.float64) for values in (delta_N, losses.units)
    )
    return "documents", summed_D, units_D
