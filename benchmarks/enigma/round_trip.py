"""Exactness of the machine's inverse and log-determinant, fresh and trained.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.round_trip          # about 15 minutes on one core
    OMP_NUM_THREADS=1 python -m benchmarks.enigma.round_trip lifting  # only these forms

The core has the published size (768 wide, 6 blocks, 4 rotors of 16 positions). It is trained
inside a bigram model of a random Markov chain, with the published optimiser (AdamW, learning
rate 2e-4, weight decay 0.01). The log-determinants are those of smaller machines, trained by
maximum likelihood, against `slogdet` of the autograd Jacobian at every position of a rotor.
"""

import json
import sys

import torch
from torch import nn
from torch.nn import functional

from benchmarks.record import RESULTS, row, write
from enigma.bijections.base import TokenContext
from enigma.bijections.machine import Enigma
from enigma.bijections.round_trip import RoundTripReport, core_round_trip_error
from enigma.couplings.settings import COUPLINGS
from enigma.jacobian_logdet import jacobian_log_det
from enigma.layers.linear import Embedding
from enigma.rev_block import RevBlock

WIDTH, BLOCKS, ROTORS, POSITIONS = 768, 6, 4, 16
VOCABULARY, LENGTH, STEPS, LEARNING_RATE = 512, 64, 1000, 2e-4
TARGET_FLOAT32, TARGET_FLOAT64, TARGET_BLOCK, TARGET_LOG_DET = 1e-6, 1e-12, 1e-8, 1e-8
LOG_DET_WIDTH = 16
FORMS = {
    "PLU rotors": {"rotor_form": "plu"},
    "lifting rotors": {"rotor_form": "lifting"},
    "lifting rotors, exact mode": {"rotor_form": "lifting", "exact": True},
}


class Bigram(nn.Module):
    """An embedding, the core and the tied head."""

    def __init__(self, core: Enigma) -> None:
        super().__init__()
        self.embedding = Embedding(VOCABULARY, WIDTH)
        self.norm = nn.RMSNorm(WIDTH)
        self.core = core

    def forward(self, ids_BL: torch.Tensor) -> torch.Tensor:
        """Return the mean loss in nats."""
        y_BLD = self.norm(self.core(self.norm(self.embedding(ids_BL))))
        logits_BLV = y_BLD @ self.embedding.weight.T
        return functional.cross_entropy(logits_BLV[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten())


def train(core: Enigma) -> float:
    """Train in place for `STEPS` steps and return the last loss."""
    torch.manual_seed(1)
    model = Bigram(core).train()
    next_of = torch.randint(VOCABULARY, (VOCABULARY, 4))
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=LEARNING_RATE, weight_decay=0.01, fused=True
    )
    loss = torch.tensor(float("nan"))
    for _ in range(STEPS):
        ids = [torch.randint(VOCABULARY, (1,))]
        for choice in torch.randint(4, (LENGTH - 1, 1)):
            ids.append(next_of[ids[-1], choice])
        loss = model(torch.stack(ids, dim=1))
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
    return loss.item()


def rows_of(what: str, report: RoundTripReport) -> list[dict[str, object]]:
    """Return the errors of f^-1(f(x)) against x and of f(f^-1(y)) against y, in both dtypes."""
    exact = "exact" in what
    errors = (
        ("float32, x to y to x", report.float32, TARGET_FLOAT32),
        ("float32, y to x to y", report.float32_reversed, TARGET_FLOAT32),
        ("float64, x to y to x", report.float64, TARGET_FLOAT64),
        ("float64, y to x to y", report.float64_reversed, TARGET_FLOAT64),
    )
    return [
        row(
            f"core, {what}, {direction}",
            error,
            "relative",
            target="= 0" if exact else f"<= {target:g}",
            met=error <= (0.0 if exact else target),
        )
        for direction, error, target in errors
    ]


def block_rows() -> list[dict[str, object]]:
    """Return the errors of one reversible block (the published claim), with noisy weights."""
    rows = []
    for coupling in COUPLINGS:
        torch.manual_seed(0)
        block = RevBlock(WIDTH, coupling)
        with torch.no_grad():
            for parameter in block.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        for dtype, target in ((torch.float64, TARGET_BLOCK), (torch.float32, None)):
            machine = block.to(dtype)
            x = torch.randn(2, LENGTH, WIDTH, dtype=dtype)
            with torch.no_grad():
                error = ((machine.inverse(machine(x)) - x).abs().max() / x.abs().max()).item()
            name = f"block, {coupling}, {str(dtype).removeprefix('torch.')}"
            met = None if target is None else error <= target
            rows.append(row(name, error, "relative", target=target and "<= 1e-8", met=met))
    return rows


def log_det_rows() -> list[dict[str, object]]:
    """Return the largest error of a log-determinant over the positions, for every coupling."""
    rows = []
    for form in ("plu", "lifting"):
        for coupling in COUPLINGS:
            torch.manual_seed(0)
            core = Enigma(LOG_DET_WIDTH, 2, 2, 4, rotor_form=form, coupling=coupling).double()
            for when, steps in (("fresh", 0), (f"{STEPS} steps", STEPS)):
                fit_density(core, steps)
                error = log_det_error(core)
                rows.append(
                    row(
                        f"log-det, {coupling}, {form} rotors, {when}, float64",
                        error,
                        "absolute",
                        target="<= 1e-8",
                        met=error <= TARGET_LOG_DET,
                    )
                )
    return rows


def fit_density(core: Enigma, steps: int) -> None:
    """Fit the density of correlated, skewed vectors by maximum likelihood, in place."""
    generator = torch.Generator().manual_seed(2)
    mixing = torch.randn(LOG_DET_WIDTH, LOG_DET_WIDTH, dtype=torch.double, generator=generator)
    optimiser = torch.optim.AdamW(core.parameters(), lr=1e-3)
    for _ in range(steps):
        seeds = torch.randn(8, 16, LOG_DET_WIDTH, dtype=torch.double, generator=generator)
        z, log_det = core.forward_with_log_det(torch.tanh(seeds @ mixing) + 0.1 * seeds)
        loss = (z.square().sum(-1) / 2 - log_det).mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()


def log_det_error(core: Enigma) -> float:
    """Return the largest difference from `slogdet` of the Jacobian over 16 settings of 2 rotors."""
    x_LD = torch.randn(16, LOG_DET_WIDTH, dtype=torch.double)
    errors = []
    for index, x_D in enumerate(x_LD):
        context = TokenContext(torch.tensor([index]))
        _, log_det = core.forward_with_log_det(x_D[None, None], context)
        reference = jacobian_log_det(lambda v, t=context: core(v[None, None], t)[0, 0], x_D)
        errors.append(abs((log_det[0, 0] - reference).item()))
    return max(errors)


def merged(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    """Return the new rows, and the rows of the results file that were not measured again."""
    path = RESULTS / "round_trip.json"
    old = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.is_file() else []
    new_names = {entry["name"] for entry in rows}
    return rows + [entry for entry in old if entry["name"] not in new_names]


def main(beginnings: list[str]) -> None:
    """Measure, print and write."""
    rows = block_rows() + log_det_rows()
    for form, settings in FORMS.items():
        if not form.startswith(tuple(beginnings) or ""):
            continue
        torch.manual_seed(0)
        core = Enigma(WIDTH, BLOCKS, ROTORS, POSITIONS, **settings)
        rows += rows_of(f"{form}, fresh", core_round_trip_error(core, 256))
        loss = train(core)
        report = core_round_trip_error(core, 256)
        sys.stderr.write(f"{form}: {loss:.3f} nats, {report}\n")
        rows += rows_of(f"{form}, {STEPS} steps", report)
        write("round_trip", merged(rows))


if __name__ == "__main__":
    main(sys.argv[1:])
