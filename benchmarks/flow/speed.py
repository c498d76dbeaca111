"""How fast flows score, train and sample, from 2 to 64 dimensions.

    OMP_NUM_THREADS=1 python -m benchmarks.flow.speed       # about a quarter of an hour

EnigmaFlow with affine-spline couplings, two blocks each way and 24 hidden channels (in two
dimensions one block of 38), and flows of zuko and normflows with as many parameters, within 2 %,
whose widths are searched for. A training step is the loss of a batch and its gradients. All scoring
and sampling takes turns, and so do all training steps; a ratio is that of medians of processor
time. Peers are those with splines: flows that only shift and scale are faster and fit worse. Our
splines are compiled loops where numba is installed; peers run eagerly, as they come. Our weights
are declared constant for scoring and sampling (`enigma.bijections.constant_weights`), which no peer
offers.
"""

from collections.abc import Callable

import torch

from benchmarks.flow.peers import OURS, SPLINES, Model, fitting, make_ours
from benchmarks.peers import check_sizes
from benchmarks.record import median_times_s, row, write
from enigma.bijections.constant_weights import constant_weights
from pipelines.base.run_stage import progress, run_stage

DIMENSIONS, BATCHES = (2, 4, 6, 10, 16, 32, 64), (256, 8192)
REPEATS = {256: 41, 8192: 9}
TOLERANCE, MIN_SPEED, MIN_SAMPLING = 0.02, 1.0, 0.9
HIDDEN, FEWER_STEPS = 24, {2: {"num_rev_blocks": 1, "hidden_channels": 38}}
"""In two dimensions one block each way fits as well as two (docs/LOG.md)."""


def ours(dim: int) -> Model:
    """Make our flow."""
    return make_ours(dim, **FEWER_STEPS.get(dim, {"hidden_channels": HIDDEN}))


def jobs(model: Model, x_BD: torch.Tensor) -> dict[str, Callable[[], object]]:
    """Return what is timed."""

    def step() -> None:
        model.module.zero_grad()
        (-model.log_prob(x_BD).mean()).backward()  # type: ignore[no-untyped-call]

    def score() -> None:
        with torch.no_grad():
            model.log_prob(x_BD)

    def sample() -> None:
        with torch.no_grad():
            model.sample(len(x_BD))

    return {"scoring": score, "training step": step, "sampling": sample}


def measure(dim: int, batch: int) -> dict[str, dict[str, float]]:
    """Return vectors per second of each model, by what is timed."""
    torch.manual_seed(0)
    models = {OURS: ours(dim)}
    size = models[OURS].parameters
    models |= {name: fitting(name, dim, size) for name in SPLINES}
    check_sizes({name: model.parameters for name, model in models.items()}, "all", TOLERANCE)
    models[OURS].prepare(torch.randn(2000, dim))
    x_BD = torch.randn(batch, dim)
    found: dict[str, dict[str, float]] = {}
    for kinds in (("scoring", "sampling"), ("training step",)):
        for model in models.values():
            model.module.train(kinds == ("training step",))
        timed = [(kind, name) for kind in kinds for name in models]
        with constant_weights():
            times_s = median_times_s(
                [jobs(models[name], x_BD)[kind] for kind, name in timed], REPEATS[batch]
            )
        for (kind, name), time_s in zip(timed, times_s, strict=True):
            found.setdefault(kind, {})[name] = batch / time_s
    return found


def main() -> None:
    """Measure, print and write."""
    rows = []
    settings = [(dim, batch) for dim in DIMENSIONS for batch in BATCHES]
    for dim, batch in progress(settings, total=len(settings), unit="setting", label="speed"):
        found = measure(dim, batch)
        compared = [("sampling", "scoring", found["scoring"][OURS], MIN_SAMPLING)]
        for kind in ("scoring", "training step"):
            fastest = max(SPLINES, key=found[kind].__getitem__)
            compared.append((kind, fastest, found[kind][fastest], MIN_SPEED))
        for kind, beside, theirs, least in compared:
            rows.append(
                row(
                    f"{dim} wide, batch of {batch:,}: {kind}",
                    found[kind][OURS],
                    "1/s",
                    peer=beside,
                    peer_value=theirs,
                    target=f">= {least:g}x",
                    met=found[kind][OURS] >= least * theirs,
                )
            )
    write("flow_speed", rows, ("zuko", "normflows"))


if __name__ == "__main__":
    run_stage(main)
