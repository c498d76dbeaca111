"""Whether one model is better than another, or whether chance could have made it look so.

A paired bootstrap (Efron and Tibshirani, "An Introduction to the Bootstrap", 1993,
chapter 13): both models were scored on the same items, items are drawn again with
replacement, and the spread of the difference over the draws is its uncertainty. Sequences
of one document are alike, so documents are what is drawn; with few documents that says
nothing about the spread, and sequences are drawn instead (ADR 5).
"""

from dataclasses import dataclass

import numpy as np

from pipelines.language_model.losses import Floats, Losses

CONFIDENCE = 0.95
RESAMPLES = 9999
# Below it the bootstrap over clusters is known to give intervals that are too narrow.
MIN_DOCUMENTS = 30
NATS_PER_BIT = float(np.log(2.0))


@dataclass(frozen=True)
class Comparison:
    """The difference candidate minus champion, lower is better.

    Args:
        difference: In bits or nats per unit, over the whole evaluation set.
        low: Lower end of the 95 % interval.
        high: Upper end.
        drawn: What was drawn, with its number ("412 documents").
        unit: Of the difference ("bits per character").
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
        champion: Its losses.
        candidate: Losses on the same items in the same order.
        unit: Name of what the difference is given in.
        nats_per_unit: How many nats it has (ln 2 for bits).

    Returns:
        The difference and its interval; the same for the same input.

    Raises:
        ValueError: If the items differ.
    """
    from scipy.stats import bootstrap

    same = np.array_equal(champion.document, candidate.document)
    if not (same and np.array_equal(champion.units, candidate.units)):
        msg = "expected losses of the same items, got different ones"
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
    """Add items up by document, where there are enough documents."""
    names, number = np.unique(losses.document.astype(str), return_inverse=True)
    if len(names) < MIN_DOCUMENTS:
        return "sequences", delta_N, losses.units
    summed_D, units_D = (
        np.bincount(number, weights=values).astype(np.float64) for values in (delta_N, losses.units)
    )
    return "documents", summed_D, units_D
