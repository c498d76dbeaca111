"""How well EnigmaLM predicts Chinese, compared with GPT-2 and Llama of the same cost.

    python -m benchmarks.language_model.quality data/wiki-zh/shards --tokens 153600

The three have the same parameters (within 1 %, with and without embeddings), tied embeddings,
shards, order, batch, tokens, schedule, no dropout, float32; Enigma trains in its reversible memory
mode. The learning rate of each is the best of one grid on validation at seed 0; two more seeds
follow; first all with AdamW, then all with Muon, whose updates are scaled to use the learning
rate of AdamW. Each model is initialised by its own class.
A complete run is one directory under `runs/lm_quality/` with its curve, scores and weights: after
an interruption the same command resumes. The directory's name depends on the data, the recipe and
the sizes of the model, not on the model's code: delete it if that changes. Bits per character are
those of `pipelines/language_model/scoring.py`. Seconds are processor seconds of training.
"""

import argparse
import copy
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedConfig,
    get_cosine_schedule_with_warmup,
)
from transformers.pytorch_utils import Conv1D

from benchmarks.enigma.memory import peak_bytes
from benchmarks.enigma.memory import step as memory_step
from benchmarks.language_model.quality_table import (
    LEARNING_RATES,
    MODELS,
    OPTIMISERS,
    SEEDS,
    best_lr,
    draw,
    table,
)
from benchmarks.peers import SPECIAL, check_sizes, gpt2_config, llama_config
from benchmarks.record import write
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.base.artifacts import read_json, read_manifest, write_json
from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress, run_stage
from pipelines.data.order import BatchPlan, SequenceOrder, evenly_spaced
from pipelines.data.shards import ShardReader
from pipelines.language_model.scoring import Score, Span, batches, sequence_nll_nats
from pipelines.training.optimisers import BETAS, make_optimiser

RUNS = Path(__file__).resolve().parents[2] / "runs" / "lm_quality"
VOCABULARY, WIDTH, HEADS, LENGTH, BATCH = 21128, 128, 4, 256, 4
CONFIGS: dict[str, Any] = {
    "enigma": EnigmaConfig(
        vocab_size=VOCABULARY,
        d=WIDTH,
        num_heads=HEADS,
        max_len=LENGTH,
        num_transformer_layers=9,
        num_rev_blocks=3,
        num_rotors=2,
        attention_dropout=0.0,
        memory="reversible",
        **SPECIAL,
    ),
    "gpt2": gpt2_config(VOCABULARY, WIDTH, HEADS, 10, LENGTH),
    "llama": llama_config(VOCABULARY, WIDTH, HEADS, 10, LENGTH, hidden=344),
}
CLASSES = {"enigma": EnigmaForCausalLM, "gpt2": GPT2LMHeadModel, "llama": LlamaForCausalLM}
RECIPE = {"weight_decay": 0.01, "warmup_fraction": 0.05, "max_gradient_norm": 1.0}
POINTS, CURVE_SEQUENCES, SCORED_SEQUENCES = 10, 16, 128
SPLITS = ("validation", "test")


def make(name: str, seed: int, config: PreTrainedConfig | None = None) -> Any:
    """Make a model, initialised by its own class, in training mode; by default of `CONFIGS`."""
    torch.manual_seed(seed)
    return CLASSES[name](copy.deepcopy(config or CONFIGS[name])).train()


def parameters(model: nn.Module) -> dict[str, int]:
    """Count parameters with embeddings (including those of positions) and without."""
    embeddings = {
        id(p): p.numel()
        for module in model.modules()
        if isinstance(module, nn.Embedding)
        for p in module.parameters()
    }
    total = sum(p.numel() for p in model.parameters())
    return {"all": total, "without embeddings": total - sum(embeddings.values())}


def peak_mib(name: str) -> float:
    """Measure the peak memory of a training step beyond parameters and gradients, in MiB."""
    model = make(name, 0)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ids_BL = torch.randint(VOCABULARY, (BATCH, LENGTH))
    return peak_bytes(lambda: memory_step(model, ids_BL)) / 2**20


def score(model: nn.Module, shards: Path, split: str, at_most: int) -> dict[str, Any]:
    """Score sequences evenly spaced over a split."""
    reader = ShardReader(shards, split)
    chosen = evenly_spaced(len(reader), at_most)
    nll_N = sequence_nll_nats(model, reader, batches(chosen, BATCH))
    return Score(Span.of(reader, chosen), float(nll_N.sum())).to_dict()


def train(model: Any, shards: Path, spec: dict[str, Any], tokens: int) -> dict[str, Any]:
    """Train a fresh model and score it.

    Args:
        model: The model; it is trained in place.
        shards: The directory of the final shards.
        spec: `optimiser`, `lr`, `seed`, and whatever else describes the run.
        tokens: Training tokens.

    Returns:
        `spec` with the curve and the scores, which are None where a loss is not finite.
    """
    steps = tokens // (BATCH * LENGTH)
    reader = ShardReader(shards, "train")
    plan = BatchPlan(SequenceOrder(len(reader), spec["seed"]), BATCH, 1, 1)
    optimiser = make_optimiser(
        spec["optimiser"],
        model,
        lr=spec["lr"],
        weight_decay=RECIPE["weight_decay"],
        # GPT-2 stores its linear layers transposed, which does not affect an orthogonalised update.
        linear=(nn.Linear, Conv1D),
    )
    warmup = int(RECIPE["warmup_fraction"] * steps)
    schedule = get_cosine_schedule_with_warmup(optimiser, warmup, steps)
    due = {round(steps * point / POINTS) for point in range(1, POINTS + 1)}
    curve, losses, training_s = [], [], 0.0
    label = " ".join(str(value) for value in spec.values())
    for step in progress(range(steps), total=steps, unit="step", label=label):
        start_s = time.process_time()
        ids_BL = torch.from_numpy(reader.gather(plan.batch(step, 0, 0)).astype(np.int64))
        loss = model(input_ids=ids_BL, labels=ids_BL).loss
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE["max_gradient_norm"])
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        training_s += time.process_time() - start_s
        if step + 1 in due:
            mean = float(np.mean(losses))
            curve.append(
                {
                    "tokens": (step + 1) * BATCH * LENGTH,
                    "processor_s": training_s,
                    "train_loss_nats": mean if np.isfinite(mean) else None,
                    "validation_loss_nats": score(model, shards, "validation", CURVE_SEQUENCES)[
                        "loss_nats"
                    ],
                }
            )
            losses = []
    scores = {split: score(model, shards, split, SCORED_SEQUENCES) for split in SPLITS}
    return {**spec, "curve": curve, **scores}


def all_runs(run: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Call `run` for every run, in order: the grid of all models, then the seeds."""
    best = {}
    for name in MODELS:
        common = {"model": name, "optimiser": "adamw", "seed": 0}
        best[name] = best_lr([run({**common, "lr": lr}) for lr in LEARNING_RATES])
    for optimiser in OPTIMISERS:
        for seed in SEEDS:
            for name in MODELS:
                run({"model": name, "optimiser": optimiser, "seed": seed, "lr": best[name]})


def kept_in(arguments: argparse.Namespace, runs: Path, config: PreTrainedConfig) -> Path:
    """Name the directory in which the runs of one model are kept.

    Args:
        arguments: `shards` and `tokens`.
        runs: The directory of a benchmark's runs.
        config: Configuration of the model.
    """
    what = {
        "root": read_manifest(arguments.shards)["root"],
        "recipe": {**RECIPE, "batch": BATCH, "points": POINTS, "betas": BETAS},
        "scored": [CURVE_SEQUENCES, SCORED_SEQUENCES],
        "config": config.to_dict(),
    }
    text = json.dumps(what, sort_keys=True, default=str)
    return runs / f"{arguments.tokens}-{hashlib.sha256(text.encode()).hexdigest()[:12]}"


def kept(directory: Path) -> list[dict[str, Any]]:
    """All complete runs of one model, each with its `directory`."""
    return [
        {**read_json(path), "directory": path.parent}
        for path in sorted(directory.glob("*/run.json"))
    ]


def run_once(
    arguments: argparse.Namespace,
    directory: Path,
    spec: dict[str, Any],
    make_model: Callable[[], Any],
) -> dict[str, Any]:
    """Return a run; train it if it is not kept yet.

    Args:
        arguments: `shards` and `tokens`.
        directory: See `kept_in`.
        spec: See `train`.
        make_model: Makes a fresh model.
    """
    values = (f"{value:g}" if isinstance(value, float) else str(value) for value in spec.values())
    path = directory / "-".join(values) / "run.json"
    if not path.is_file():
        model = make_model()
        found = train(model, arguments.shards, spec, arguments.tokens)
        model.save_pretrained(path.parent)
        write_json(path, found)
    return read_json(path)


def check_shards(shards: Path, tokens: int) -> None:
    """Check that the shards fit the models.

    Raises:
        UserError: If their sequences or vocabulary have other sizes, or `tokens` is below a batch.
    """
    manifest = read_manifest(shards)
    sizes = (manifest["sequence_length"], manifest["vocabulary_size"])
    if sizes != (LENGTH, VOCABULARY) or tokens < BATCH * LENGTH:
        raise UserError(
            f"{shards}: expected sequences of {LENGTH} of {VOCABULARY} tokens and --tokens of at "
            f"least {BATCH * LENGTH}, got {sizes} and {tokens}",
            "name the shards of a profile with these sizes, for example data/wiki-zh/shards",
        )


def arguments_of(doc: str | None) -> argparse.Namespace:
    """Parse the command line of the benchmarks that train language models."""
    parser = argparse.ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("shards", type=Path, help="directory of final shards, 256 tokens each")
    parser.add_argument("--tokens", type=int, required=True, help="training tokens of each run")
    arguments = parser.parse_args()
    check_shards(arguments.shards, arguments.tokens)
    return arguments


def main() -> None:
    """Train the runs that are not kept yet; then write and draw."""
    arguments = arguments_of(__doc__)
    counts = {name: parameters(make(name, 0)) for name in MODELS}
    for kind in ("all", "without embeddings"):
        check_sizes({name: count[kind] for name, count in counts.items()}, kind)
    directories = {name: kept_in(arguments, RUNS, CONFIGS[name]) for name in MODELS}

    def run(spec: dict[str, Any]) -> dict[str, Any]:
        name, seed = spec["model"], spec["seed"]
        return run_once(arguments, directories[name], spec, lambda: make(name, seed))

    try:
        all_runs(run)
    finally:
        runs = [found for directory in directories.values() for found in kept(directory)]
        write("lm_quality", table(runs, counts, {name: peak_mib(name) for name in MODELS}))
        draw(runs)


if __name__ == "__main__":
    run_stage(main)
