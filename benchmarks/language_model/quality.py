"""How well EnigmaLM predicts Chinese, compared with peers of the same cost and with counting.

    OMP_NUM_THREADS=1 python -m benchmarks.language_model.quality data/wiki-zh/shards 1M-983k

All networks (`benchmarks.language_model.entrants`) have the same parameters without embeddings,
the same sequences in the same order, batch, tokens, schedule and optimiser (Muon for the matrices,
AdamW for the rest), no dropout, float32 (matrix products of 10 M in bfloat16 where the processor
has them; sums stay float32). The learning rate of each is swept at seed 0 and at the
final length, by factors of two until the best is inside the grid; two more seeds follow at the best
rate. Kneser-Ney models count the same tokens. An entrant "..., memory", ours or a peer, has
the 5-gram of them as a part of its prediction and is trained with it, as in the pipeline (ADR 18);
one "... and pointer" has the pointer too (ADR 23). Bits per character are those of
`pipelines/language_model/scoring.py`.

A finished job writes one file under `benchmarks/results/language_model/`, so an interrupted command
resumes with the next job, on another machine too. Choices read one half of the validation sequences
alone. The other half ("held out") and test are scored with the job, but nothing prints them before
the sweep of an entrant is complete: see `benchmarks.language_model.quality_table`. Seconds are
processor seconds of training.
"""

import argparse
import hashlib
import json
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_model
from torch import Tensor, nn
from transformers import get_cosine_schedule_with_warmup
from transformers.pytorch_utils import Conv1D

from benchmarks.head_loss import Memories, head_loss, head_nats
from benchmarks.language_model.classes import PredictedClasses
from benchmarks.language_model.entrants import (
    ALL,
    LENGTH,
    SIZES,
    TOLERANCE,
    hidden_states,
    make,
    parameters,
)
from benchmarks.language_model.quality_table import (
    COMPARED,
    COUNTED,
    FULL,
    SETTINGS,
    Job,
    next_rate,
    path_of,
    results,
)
from benchmarks.peers import check_sizes
from enigma.bijections.constant_weights import constant_weights
from enigma.language_model.memory.ngram_counts import NGramCounts, count_ngrams
from enigma.language_model.memory.ngram_memory import NGramMemory
from enigma.language_model.memory.pointer import Pointer
from pipelines.base.artifacts import read_json, read_manifest, write_json
from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress, run_stage
from pipelines.base.workspace import SPLITS
from pipelines.data.order import BatchPlan, Indices, SequenceOrder, evenly_spaced
from pipelines.data.shards import ShardReader
from pipelines.language_model.scoring import Score, Span, batches
from pipelines.training.optimisers import BETAS, make_optimiser

WEIGHTS = Path(__file__).resolve().parents[2] / "runs" / "lm_quality"
VOCABULARY, BATCH = 21128, 4
RECIPE = {"weight_decay": 0.01, "warmup_fraction": 0.05, "max_gradient_norm": 1.0}
POINTS, CURVE_SEQUENCES, SCORED_SEQUENCES = 10, 32, 512
WEIGHTS_OF_MIXTURE = np.linspace(0.0, 0.95, 20)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Data:
    """The sequences of one directory of shards, as classes.

    Args:
        shards: The directory.
        classes: What is predicted.
    """

    shards: Path
    classes: PredictedClasses

    @cached_property
    def readers(self) -> dict[str, ShardReader]:
        """The sequences of each split."""
        return {split: ShardReader(self.shards, split) for split in SPLITS}

    def gather(self, split: str, indices_N: Indices) -> npt.NDArray[np.int64]:
        """Read sequences of a split, (N, L)."""
        return self.classes.class_of_id_V[self.readers[split].gather(indices_N)]

    def train_indices(self, seed: int, steps: int) -> list[Indices]:
        """Name the sequences of every step; all entrants of one seed read the same."""
        order = SequenceOrder(len(self.readers["train"]), seed)
        plan = BatchPlan(order, BATCH, 1, 1)
        return [plan.batch(step, 0, 0) for step in range(steps)]

    def parts(self) -> dict[str, tuple[str, Indices]]:
        """What is scored: one half of validation for choices, the other half, and test."""
        validation = np.arange(len(self.readers["validation"]))
        test = np.arange(len(self.readers["test"]))
        whole = {"validation": validation[::2], "held out": validation[1::2], "test": test}
        return {
            name: (name if name != "held out" else "validation", _at_most(indices))
            for name, indices in whole.items()
        }

    def score(self, split: str, indices_N: Indices, nll_NL: Floats) -> dict[str, Any]:
        """Score the losses of tokens 1..L-1, in nats per class, `(N, L - 1)`."""
        extra_NL = self.classes.extra_nats(self.gather(split, indices_N)[:, 1:])
        span = Span.of(self.readers[split], indices_N)
        return Score(span, float(nll_NL.sum() + extra_NL.sum())).to_dict()


def _at_most(indices: Indices) -> Indices:
    return indices[evenly_spaced(len(indices), SCORED_SEQUENCES)]


def token_nll(model: Any, classes_NL: npt.NDArray[np.int64]) -> Floats:
    """Nats of tokens 1..L-1 given those before them, `(N, L - 1)`."""
    model.eval()
    found = []
    with torch.no_grad(), constant_weights():
        for rows in batches(np.arange(len(classes_NL)), BATCH):
            ids_BL = torch.from_numpy(classes_NL[rows])
            nats_NL = head_nats(*_predicting(model, ids_BL), memories=memories_of(model))
            found.append(nats_NL.double().numpy())
    model.train()
    return np.concatenate(found)


def loss_of(model: Any, ids_BL: Tensor) -> Tensor:
    """Return the training loss; the head is computed in the same way for all."""
    return head_loss(*_predicting(model, ids_BL), memories=memories_of(model))


def _predicting(model: Any, ids_BL: Tensor) -> tuple[Tensor, nn.Linear, Tensor]:
    return hidden_states(model, ids_BL), model.get_output_embeddings(), ids_BL


def memories_of(model: Any) -> Memories:
    """Return the memories that a network of the benchmark was given."""
    return Memories(getattr(model, "ngrams", None), getattr(model, "pointer", None))


def train(model: Any, data: Data, job: Job) -> list[dict[str, Any]]:
    """Train a fresh model in place.

    Returns:
        The curve: tokens, processor seconds, training and validation loss in nats per class, None
        where they are not finite.
    """
    steps = job.tokens // (BATCH * LENGTH)
    optimiser = make_optimiser(
        "muon",
        model,
        lr=job.rate,
        weight_decay=RECIPE["weight_decay"],
        # GPT-2 stores its linear layers transposed, which does not affect an orthogonalised update.
        linear=(nn.Linear, Conv1D),
    )
    schedule = get_cosine_schedule_with_warmup(
        optimiser, int(RECIPE["warmup_fraction"] * steps), steps
    )
    due = {round(steps * point / POINTS) for point in range(1, POINTS + 1)}
    watched = data.gather(*_first(data.parts()["validation"]))
    curve, losses, training_s = [], [], 0.0
    indices = data.train_indices(job.seed, steps)
    for step, index_B in enumerate(
        progress(indices, total=steps, unit="step", label=f"{job.entrant} {job.rate:g}"), 1
    ):
        start_s = time.process_time()
        loss = loss_of(model, torch.from_numpy(data.gather("train", index_B)))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), RECIPE["max_gradient_norm"])
        optimiser.step()
        schedule.step()
        optimiser.zero_grad()
        losses.append(loss.item())
        training_s += time.process_time() - start_s
        if step in due:
            found = {"train": np.mean(losses), "validation": token_nll(model, watched).mean()}
            curve.append(
                {
                    "tokens": step * BATCH * LENGTH,
                    "processor_s": training_s,
                    **{
                        f"{name}_nats": float(value) if np.isfinite(value) else None
                        for name, value in found.items()
                    },
                }
            )
            losses = []
    return curve


def _first(part: tuple[str, Indices]) -> tuple[str, Indices]:
    split, indices = part
    return split, indices[evenly_spaced(len(indices), CURVE_SEQUENCES)]


def counted(data: Data, job: Job, order: int) -> NGramCounts:
    """Count the tokens that a network of the same seed trains on."""
    indices = np.concatenate(data.train_indices(job.seed, job.tokens // (BATCH * LENGTH)))
    classes_NL = torch.from_numpy(data.gather("train", indices))
    return count_ngrams(classes_NL, data.classes.count, order)


def counted_nll(model: NGramMemory, classes_NL: npt.NDArray[np.int64]) -> Floats:
    """Nats of tokens 1..L-1, `(N, L - 1)`."""
    classes = torch.from_numpy(classes_NL)
    rows_NK = model.context_rows(classes)[:, :-1].flatten(0, 1)
    log_p_N, _ = model.log_prob(rows_NK, classes[:, 1:].flatten(), torch.float64)
    nats_NL: Floats = -log_p_N.view(len(classes), -1).numpy()
    return nats_NL


def mixtures(network: dict[str, Floats], counting: dict[str, Floats]) -> tuple[float, Any]:
    """Mix the probabilities of a network and of counting; validation chooses the weight.

    Args:
        network: Nats by part.
        counting: Nats by part.

    Returns:
        The weight of counting, and the nats of the mixture by part.
    """

    def mixed(part: str, weight: float) -> Floats:
        both = np.exp(-network[part]) * (1 - weight), np.exp(-counting[part]) * weight
        return -np.log(both[0] + both[1])

    best = min(WEIGHTS_OF_MIXTURE, key=lambda weight: mixed("validation", weight).sum())
    return float(best), {part: mixed(part, best) for part in network}


def run(data: Data, job: Job) -> dict[str, Any]:
    """Do a job; return its record."""
    parts = data.parts()
    texts = {name: data.gather(*part) for name, part in parts.items()}

    def scores(nats: dict[str, Floats]) -> dict[str, Any]:
        return {name: data.score(*parts[name], nll) for name, nll in nats.items()}

    order = COUNTED.get(job.entrant, max(COUNTED.values()))
    counts = counted(data, job, order)
    counting = NGramMemory.of(counts, 1).eval()
    nats = {name: counted_nll(counting, text) for name, text in texts.items()}
    if job.entrant in COUNTED:
        return {**asdict(job), "scores": scores(nats)}
    model = make(job.entrant, job.size, data.classes.count, job.seed)
    entrant, width = ALL[job.entrant], SIZES[job.size].width
    if entrant.memory:
        model.ngrams = NGramMemory.of(counts, width)
        model.ngrams.leave_one_out = True
    if entrant.pointer:
        model.pointer = Pointer(width, entrant.pointer)
    curve = train(model, data, job)
    network = {name: token_nll(model, text) for name, text in texts.items()}
    weights_of(job).parent.mkdir(parents=True, exist_ok=True)
    save_model(model, str(weights_of(job)))
    found = {
        **asdict(job),
        "classes": data.classes.count,
        "parameters": parameters(model),
        "curve": curve,
        "scores": scores(network),
    }
    if not entrant.memory:
        weight, mixed = mixtures(network, nats)
        found["mixed"] = {"weight": weight, "scores": scores(mixed)}
    return found


def weights_of(job: Job) -> Path:
    """Return the file of a trained network's weights."""
    return (WEIGHTS / job.setting / path_of(job).name).with_suffix(".safetensors")


def fingerprint(shards: Path, products: str = FULL) -> str:
    """Name the data and the recipe of a result."""
    recipe = {**RECIPE, "batch": BATCH, "betas": BETAS, "scored": SCORED_SEQUENCES}
    if products != FULL:
        recipe["products"] = products
    what = {"root": read_manifest(shards)["root"], "recipe": recipe}
    return hashlib.sha256(json.dumps(what, sort_keys=True).encode()).hexdigest()[:16]


def check_kept(found: list[dict[str, Any]], mark: str) -> None:
    """Check that the results of earlier jobs come from the same data and recipe.

    Raises:
        UserError: If one does not.
    """
    for result in found:
        if result["fingerprint"] != mark:
            raise UserError(
                f"{result['path']}: expected a result of these shards and this recipe "
                f"({mark}), got one of {result['fingerprint']}",
                "delete the results of the setting, or name the shards that they were made from",
            )


def due_jobs(setting: str, entrants: list[str], *, seeds: bool) -> Iterator[Job]:
    """Yield the next job of a setting until none is left, judging by the files of those done."""
    tokens, size = SETTINGS[setting].tokens, SETTINGS[setting].size
    for order in COUNTED:
        for seed in SETTINGS[setting].seeds:
            yield Job(setting, size, order, 0.0, seed, tokens)
    waiting = True
    while waiting:
        waiting = False
        for entrant in entrants:  # by turns, so that all are as far when the command is stopped
            rate, _ = next_rate(results(setting), entrant)
            if rate is not None:
                waiting = True
                yield Job(setting, size, entrant, rate, 0, tokens)
    for seed in SETTINGS[setting].seeds[1:] if seeds else ():
        for entrant in entrants:
            _, best = next_rate(results(setting), entrant)
            yield Job(setting, size, entrant, best, seed, tokens)


def check_shards(shards: Path) -> None:
    """Check that the shards fit the models.

    Raises:
        UserError: If their sequences or vocabulary have other sizes.
    """
    manifest = read_manifest(shards)
    sizes = (manifest["sequence_length"], manifest["vocabulary_size"])
    if sizes != (LENGTH, VOCABULARY):
        raise UserError(
            f"{shards}: expected sequences of {LENGTH} of {VOCABULARY} ids, got {sizes}",
            "name the shards of a profile with these sizes, for example data/wiki-zh/shards",
        )


def arguments_of() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("shards", type=Path, help="directory of final shards, 256 tokens each")
    parser.add_argument("setting", choices=SETTINGS, help="size and tokens")
    parser.add_argument("--entrants", nargs="+", choices=ALL, default=COMPARED)
    parser.add_argument("--jobs", type=int, help="stop after this many trainings")
    parser.add_argument("--sweep-only", action="store_true", help="leave out the other seeds")
    arguments = parser.parse_args()
    check_shards(arguments.shards)
    return arguments


def main() -> None:
    """Do the jobs that are not done yet."""
    arguments = arguments_of()
    products = SETTINGS[arguments.setting].products
    torch.set_float32_matmul_precision(products)
    mark = fingerprint(arguments.shards, products)
    check_kept(results(arguments.setting), mark)
    reachable = PredictedClasses.reachable(arguments.shards)
    counts = {
        name: parameters(make(name, SETTINGS[arguments.setting].size, 8, 0))["without embeddings"]
        for name in arguments.entrants
    }
    check_sizes(counts, "without embeddings", TOLERANCE)
    trained = 0
    for job in due_jobs(arguments.setting, arguments.entrants, seeds=not arguments.sweep_only):
        if path_of(job).is_file():
            continue
        if job.entrant not in COUNTED and trained == arguments.jobs:
            break
        entrant = ALL.get(job.entrant)
        whole = entrant is not None and not entrant.reachable
        data = Data(arguments.shards, PredictedClasses.all_ids(VOCABULARY) if whole else reachable)
        write_json(path_of(job), {"fingerprint": mark, **run(data, job)})
        trained += job.entrant not in COUNTED
        shown = read_json(path_of(job))["scores"]["validation"]["bits_per_character"]
        print(f"{job.setting} {job.entrant} {job.rate:g} seed {job.seed}: validation {shown:.3f}")


if __name__ == "__main__":
    run_stage(main)
