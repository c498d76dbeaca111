"""What the mission costs: a step of `wiki-zh` on 5 RTX 4090, part by part, and disk and time.

    python -m benchmarks.language_model.budget                    # a few seconds

No GPU was available. What a step computes, launches and sends is counted; how fast a GPU does that
is assumed, and the assumptions are rows of the table. A step takes the longer of what the GPU has
to do (products, loss head and memory traffic in proportion, Muon) and what the host has to launch,
and then the part of the all-reduce that nothing hides: the gradient of the tied embedding, which is
complete only at the end of the backward pass. The tokens come from the manifest of
`data/wiki-zh/shards`; without one, both ends of what the full Chinese Wikipedia may hold are shown.
The published corpus has 305 M tokens. `python -m benchmarks.gpu` measures what is assumed here.
"""

import json
from pathlib import Path
from typing import Any

import torch

from benchmarks.record import RESULTS, row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.language_model.memory.ngram_memory import NGramMemory
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.base.run_stage import run_stage
from pipelines.base.workspace import Workspace
from pipelines.params import NGramParams, TrainParams, load_params
from pipelines.runs.hardware import PEAK_FLOPS, TRAINING_OVER_FORWARD, training_flops_per_token

PROFILE, GPU, LENGTH = "wiki-zh", "NVIDIA GeForce RTX 4090", 256
WITHOUT_MANIFEST = (305e6, 600e6, 900e6)
SHARE_OF_PEAK = 0.35
"""Of bf16 products of 512 to 2,048 channels, with the memory traffic between them."""
LAUNCH_S = 6e-6
"""Of one operation, on the host, through autograd."""
RANK_BYTES_PER_S = 8e9
"""Of an all-reduce over PCIe 4.0 without peer access, which these cards do not have."""
DISK_BYTES_PER_S = 200e6
BYTES_PER_TOKEN = {"raw text": 5.5, "documents": 5.0, "ids, twice": 4.0}
"""Measured on the sample of Chinese Wikipedia, rounded up."""
MUON_FLOPS_PER_PARAMETER = 5 * (4 * 512 + 2 * 512)
"""Newton-Schulz: five iterations of two products of M x M x N and one of M x M x M, M about 512."""


def step_rows(recipe: TrainParams, model: Any) -> tuple[list[dict[str, Any]], float]:
    """Return the parts of a step, and its length in seconds."""
    peak = SHARE_OF_PEAK * PEAK_FLOPS[GPU]
    tokens = recipe.batch_size * LENGTH
    parameters = {name: p.numel() for name, p in model.named_parameters()}
    embedding = parameters["lm.embedding.tokens.weight"]
    all_parameters = sum(parameters.values())
    launched = json.loads((RESULTS / "launches.json").read_text(encoding="utf-8"))["rows"]
    counts = {entry["name"]: entry["value"] for entry in launched}
    operations = sum(
        counts[name]
        for name in (
            "plain, with 5-grams, forward",
            "plain, with 5-grams, backward",
            "clipping and Muon with AdamW",
        )
    )
    bytes_each = 2 if recipe.gradient_precision == "bf16" else 4
    ring = 2 * (recipe.ranks - 1) / recipe.ranks * bytes_each / RANK_BYTES_PER_S
    products_s = tokens * training_flops_per_token(model, LENGTH) / peak
    muon_s = MUON_FLOPS_PER_PARAMETER * (all_parameters - embedding) / recipe.ranks / peak
    launch_s = operations * LAUNCH_S
    gather_s = (
        2 * (all_parameters - embedding) * (recipe.ranks - 1) / recipe.ranks / RANK_BYTES_PER_S
    )
    step_s = max(products_s + muon_s, launch_s) + ring * embedding + gather_s
    parts_ms = {
        "products": products_s,
        "Muon, a rank's share": muon_s,
        f"{operations:,.0f} launches": launch_s,
        "all-reduce, all gradients (mostly hidden)": ring * all_parameters,
        "all-reduce, tied embedding (not hidden)": ring * embedding,
        "gathering Muon's updates": gather_s,
    }
    rows = [
        row(f"step of {tokens:,} tokens per rank: {name}", 1e3 * s, "ms")
        for name, s in parts_ms.items()
    ]
    return [*rows, row("step", 1e3 * step_s, "ms")], step_s


def table_bytes(counting: NGramParams) -> int:
    """Return the size of the full n-gram table, of which each order has the same share."""
    share = counting.max_entries // counting.order
    with torch.device("meta"):
        memory = NGramMemory([(share, 1)] * counting.order, num_classes=1, d=1)
    return sum(buffer.nbytes for buffer in memory.buffers())


def run_rows(
    recipe: TrainParams, model: Any, checkpoint_bytes: int, tokens: float, step_s: float
) -> list[dict[str, Any]]:
    """Return time and disk of a whole run over so many tokens."""
    steps = tokens / (recipe.sequences_per_step * LENGTH) * recipe.epochs
    times = steps / recipe.evaluate_every_steps
    forward = training_flops_per_token(model, LENGTH) / TRAINING_OVER_FORWARD
    share = recipe.max_validation_sequences * LENGTH / recipe.ranks
    evaluations_s = times * share * forward / (SHARE_OF_PEAK * PEAK_FLOPS[GPU])
    checkpoints_s = times * checkpoint_bytes / DISK_BYTES_PER_S
    disk = tokens * sum(BYTES_PER_TOKEN.values()) + 4 * checkpoint_bytes
    name = f"{tokens / 1e6:,.0f} M tokens"
    return [
        row(f"{name}: steps", steps, ""),
        row(f"{name}: training", steps * step_s / 60, "minutes"),
        row(f"{name}: {times:.0f} evaluations", evaluations_s / 60, "minutes"),
        row(f"{name}: {times:.0f} checkpoints", checkpoints_s / 60, "minutes"),
        row(f"{name}: all", (steps * step_s + evaluations_s + checkpoints_s) / 60, "minutes"),
        row(f"{name}: disk", disk / 1e9, "GB"),
    ]


def corpus_tokens(directory: Path) -> tuple[float, ...]:
    """Return the tokens of train in the manifest of the final shards, or what they may be."""
    manifest = directory / "manifest.json"
    if not manifest.is_file():
        return WITHOUT_MANIFEST
    facts = json.loads(manifest.read_text(encoding="utf-8"))
    return (float(facts["sequences"]["train"] * facts["sequence_length"]),)


def main() -> None:
    """Count, project, print and write."""
    profile = load_params().profiles[PROFILE]
    settings = profile.model.model_dump(mode="json")
    model = EnigmaForCausalLM(EnigmaConfig(max_len=LENGTH, **settings))
    assumed = [
        row("assumed: share of the bf16 peak in products", SHARE_OF_PEAK, ""),
        row("assumed: host time of a launch", 1e6 * LAUNCH_S, "us"),
        row("assumed: all-reduce", RANK_BYTES_PER_S / 1e9, "GB/s"),
        row("assumed: disk", DISK_BYTES_PER_S / 1e6, "MB/s"),
    ]
    rows, step_s = step_rows(profile.train, model)
    # Weights and, for Muon, one moment; for AdamW, two.
    weights = 4 * 3 * sum(p.numel() for p in model.parameters())
    counted = table_bytes(profile.count_ngrams)
    rows += [
        row("checkpoint: weights and optimiser", weights / 1e9, "GB"),
        row("checkpoint: full n-gram table, as much of each order", counted / 1e9, "GB"),
    ]
    for tokens in corpus_tokens(Workspace(PROFILE).shards):
        rows += run_rows(profile.train, model, weights + counted, tokens, step_s)
    write("lm_budget", [*assumed, *rows])


if __name__ == "__main__":
    run_stage(main)
