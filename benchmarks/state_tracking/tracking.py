"""Which models can follow a state: driven rotors and attention on four tasks.

    OMP_NUM_THREADS=1 python -m benchmarks.state_tracking.tracking a5

Peers have two layers; Enigma has two layers of attention and, narrower, one of driven rotors. All
have the same parameters within 10 %, and make the steps of the task, of 1,536 tokens (beside the
keys of the machine) however short the texts are, by AdamW with a rate chosen from two at seed 0 by
its training loss; two more seeds follow. Word problems go from level to level
(`benchmarks.state_tracking.tasks`) whenever eight of ten answers are right, up to 64 tokens:
without that no model learns them. What is reported is the share of right answers on fresh texts of
up to four times that length, with all permutations.

A finished job writes one file under `benchmarks/results/state_tracking/`, so an interrupted command
resumes; `benchmarks.state_tracking.table` makes the table and the plot of them.
"""

import argparse
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from transformers import GPT2LMHeadModel, LlamaForCausalLM
from transformers.utils import logging

from benchmarks.language_model.entrants import hidden_states, parameters
from benchmarks.modern import ModernConfig, ModernGPT
from benchmarks.peers import check_sizes, gpt2_config, llama_config
from benchmarks.record import RESULTS
from benchmarks.state_tracking.tasks import NO_ANSWER, TASKS, TRAINED_LENGTH, Level, Task
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.base.artifacts import read_json, write_json
from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress, run_stage

KEPT = RESULTS / "state_tracking"
WIDTH, ATTENTION_WIDTH, PEER_WIDTH, HEADS, LAYERS = 56, 68, 72, 4, 2
BATCH_TOKENS = 1536
RIGHT_ENOUGH, PATIENCE = 0.8, 10
TESTED_LENGTHS = (32, 64, 128, 256)
TESTED_TEXTS = 64
RATES = (1e-3, 3e-3)
SEEDS = (0, 1, 2)
TOLERANCE = 0.1
LONGEST = 320


def _enigma(tokens: int, width: int, driven: int) -> EnigmaForCausalLM:
    config = EnigmaConfig(
        vocab_size=tokens,
        d=width,
        num_heads=HEADS,
        num_rev_blocks=1,
        num_rotors=1,
        num_transformer_layers=LAYERS,
        num_driven_rotors=driven,
        max_len=TRAINED_LENGTH,
        attention_dropout=0.0,
        pad_token_id=None,
        bos_token_id=None,
        eos_token_id=None,
    )
    return EnigmaForCausalLM(config)


ENTRANTS = {
    "enigma": lambda tokens: _enigma(tokens, WIDTH, driven=1),
    "enigma, attention only": lambda tokens: _enigma(tokens, ATTENTION_WIDTH, driven=0),
    "modern": lambda tokens: ModernGPT(ModernConfig(tokens, PEER_WIDTH, HEADS, LAYERS)),
    "llama": lambda tokens: LlamaForCausalLM(
        llama_config(
            tokens,
            PEER_WIDTH,
            HEADS,
            LAYERS,
            LONGEST,
            hidden=8 * PEER_WIDTH // 3,
            std=PEER_WIDTH**-0.5,
        )
    ),
    "gpt2": lambda tokens: GPT2LMHeadModel(
        gpt2_config(tokens, PEER_WIDTH, HEADS, LAYERS, LONGEST, std=PEER_WIDTH**-0.5)
    ),
}


@dataclass(frozen=True)
class Job:
    """One training.

    Args:
        task: Of `TASKS`.
        entrant: Of `ENTRANTS`.
        rate: Highest learning rate.
        seed: Of weights and texts.
    """

    task: str
    entrant: str
    rate: float
    seed: int

    @property
    def path(self) -> Path:
        """The file of its result."""
        name = f"{self.entrant.replace(', ', '-').replace(' ', '-')}-{self.rate:g}-{self.seed}"
        return KEPT / self.task / f"{name}.json"


def answer(model: Any, ids_BL: torch.Tensor) -> torch.Tensor:
    """Return the logits of the answers `(B, L, tokens)`."""
    logits: torch.Tensor = model.get_output_embeddings()(hidden_states(model, ids_BL))
    return logits


def right(logits_BLV: torch.Tensor, answers_BL: torch.Tensor) -> float:
    """Return the share of right answers."""
    asked = answers_BL != NO_ANSWER
    return float((logits_BLV.argmax(-1) == answers_BL)[asked].double().mean())


def train(model: Any, task: Task, job: Job) -> dict[str, Any]:
    """Train a fresh model in place; return the level reached, the loss and the seconds."""
    generator = torch.Generator().manual_seed(job.seed)
    optimiser = torch.optim.AdamW(
        model.parameters(), lr=job.rate, betas=(0.9, 0.95), weight_decay=0.0
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimiser, lambda step: min(1.0, (step + 1) / 50, 2 * (task.steps - step) / task.steps)
    )
    number, passed, losses, start_s = 0, 0, [], time.process_time()
    for _ in progress(
        range(task.steps), total=task.steps, unit="step", label=f"{job.task} {job.entrant}"
    ):
        level = task.levels[number]
        ids_BL, answers_BL = task.draw(BATCH_TOKENS // level.length, level, generator)
        logits_BLV = answer(model, ids_BL)
        loss = functional.cross_entropy(logits_BLV.flatten(0, 1), answers_BL.flatten())
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        schedule.step()
        losses.append(loss.item())
        passed = passed + 1 if right(logits_BLV, answers_BL) > RIGHT_ENOUGH else 0
        if passed >= PATIENCE and number + 1 < len(task.levels):
            number, passed = number + 1, 0
    return {
        "level": number + 1,
        "loss_nats": sum(losses[-50:]) / 50,
        "processor_s": time.process_time() - start_s,
    }


def test(model: Any, task: Task) -> dict[int, float]:
    """Return the share of right answers by length."""
    model.eval()
    found = {}
    with torch.no_grad():
        for length in TESTED_LENGTHS:
            ids_BL, answers_BL = task.draw(
                TESTED_TEXTS, Level(length), torch.Generator().manual_seed(length)
            )
            found[length] = right(answer(model, ids_BL), answers_BL)
    return found


def recipe(task: Task) -> dict[str, Any]:
    """Return what all entrants of a task share, and what a record must have been made by."""
    return {
        "steps": task.steps,
        "batch_tokens": BATCH_TOKENS,
        "levels": [list(level) for level in task.levels],
        "widths": [WIDTH, ATTENTION_WIDTH, PEER_WIDTH],
    }


def run(job: Job) -> dict[str, Any]:
    """Do a job; return its record."""
    task = TASKS[job.task]
    torch.manual_seed(job.seed)
    model: Any = ENTRANTS[job.entrant](task.num_tokens).train()
    trained = train(model, task, job)
    return {
        **asdict(job),
        "recipe": recipe(task),
        "parameters": parameters(model),
        **trained,
        "right": test(model, task),
    }


def done(job: Job) -> dict[str, Any]:
    """Return the record of a job, which is done if it was not before.

    Raises:
        UserError: If the record was made by another recipe.
    """
    if not job.path.is_file():
        write_json(job.path, run(job))
    return kept(job)


def kept(job: Job) -> dict[str, Any]:
    """Read the record of a job that is done; see `done`."""
    record = read_json(job.path)
    if record.get("recipe") != recipe(TASKS[job.task]):
        raise UserError(
            f"{job.path}: expected a record of this recipe, got one of another",
            f"delete the records of the task: rm -r {job.path.parent}",
        )
    return record


def best_rate(swept: list[dict[str, Any]]) -> float:
    """Return the rate of the record that got to the highest level, and there the lowest loss."""
    best = min(swept, key=lambda record: (-record["level"], record["loss_nats"]))
    return float(best["rate"])


def main() -> None:
    """Train every entrant on the tasks that the command line names."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("tasks", nargs="+", choices=TASKS)
    parser.add_argument("--entrants", nargs="+", choices=ENTRANTS, default=list(ENTRANTS))
    arguments = parser.parse_args()
    logging.set_verbosity_error()  # the ids of bert-base-chinese mean nothing here
    for task in arguments.tasks:
        sizes = {
            name: parameters(make(TASKS[task].num_tokens))["without embeddings"]
            for name, make in ENTRANTS.items()
        }
        check_sizes(sizes, "without embeddings", TOLERANCE)
        for entrant in arguments.entrants:
            swept = [done(Job(task, entrant, rate, SEEDS[0])) for rate in RATES]
            for seed in SEEDS[1:]:
                done(Job(task, entrant, best_rate(swept), seed))


if __name__ == "__main__":
    run_stage(main)
