"""Training speed against GPT-2, Llama and a modern GPT of equal size, and where the time goes.

    OMP_NUM_THREADS=1 python -m benchmarks.training.speed       # about twenty minutes on one core

Every model trains under transformers' own `Trainer` with its default optimiser: 8 x 256 tokens
per step, tied embeddings, no dropout, clipping at 1. The models take turns of a few steps, several
times over; the first step of a turn does not count. All run in the precision that is faster for
GPT-2 on this processor. Parameters without embeddings must agree within 2 %. Peers run twice: with
the same head as Enigma (as many classes, the same loss, see `benchmarks.language_model.classes`),
and as they come, over all 21,128 ids with their own loss.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.head_loss import head_loss
from benchmarks.language_model.entrants import TOLERANCE, hidden_states, parameters
from benchmarks.modern import ModernConfig, ModernGPT
from benchmarks.peers import check_sizes, gpt2_config, llama_config
from benchmarks.record import row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM

VOCABULARY, CLASSES, LENGTH, TEXTS = 21128, 10118, 256, 8
"""Ids, and classes of Enigma's head: those of the Wikipedia sample (benchmarks.language_model)."""
TURNS, STEPS_PER_TURN = 3, 3
# Width, heads, layers of the peers, layers of Enigma, rotors, blocks.
SIZES = {"5 M": (160, 5, 6, 5, 2, 3), "30 M": (512, 8, 6, 5, 4, 2)}
MEMORY_MODES = ("plain", "reversible")
SAME_HEAD, AS_THEY_COME = "same head", "as it comes"
TARGETS = {  # of the reversible mode, against the fastest peer
    SAME_HEAD: {"5 M": 1.0, "30 M": 1.0},
    AS_THEY_COME: {"5 M": 1.5, "30 M": 1.1},
}
PROFILED = ("Enigma, reversible", f"modern, {SAME_HEAD}", f"GPT-2, {AS_THEY_COME}")
KINDS = {  # the first one with a part that occurs in the operator's name
    "loss head": ("linear_cross_entropy", "log_softmax", "nll_loss"),
    "attention kernel": ("scaled_dot_product", "flash_attention"),
    "matrix products": ("mm",),
    "optimiser and clipping": ("adamw", "foreach", "norm"),
}


class RandomTexts(Dataset[dict[str, torch.Tensor]]):
    """Texts of random ids, as many as one turn needs."""

    def __len__(self) -> int:
        return TEXTS * STEPS_PER_TURN

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        generator = torch.Generator().manual_seed(index)
        ids_L = torch.randint(CLASSES, (LENGTH,), generator=generator)
        return {"input_ids": ids_L, "labels": ids_L}


class StepTimes(TrainerCallback):  # type: ignore[misc]  # untyped base
    """Measures processor seconds of whole steps: data, forward, backward, optimiser."""

    def __init__(self) -> None:
        self.times_s: list[float] = []
        self._start_s = 0.0

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        """Start the first step's clock."""
        self._start_s = time.process_time()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        """Stop a step's clock and start the next one's."""
        now_s = time.process_time()
        self.times_s.append(now_s - self._start_s)
        self._start_s = now_s


class SameHead(nn.Module):
    """A peer with the loss of Enigma in place of its own.

    Args:
        model: The peer.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, input_ids: Tensor, labels: Tensor, num_items_in_batch: Tensor | int | None = None
    ) -> dict[str, Tensor]:
        """Return the loss; see `head_loss`."""
        hidden_BLD = hidden_states(self.model, input_ids)
        head = self.model.get_output_embeddings()
        return {"loss": head_loss(hidden_BLD, head, labels, num_items_in_batch)}


def make_models(size: str) -> dict[str, nn.Module]:
    """Make Enigma in two memory modes, and the peers with both heads."""
    width, heads, peer_layers, layers, rotors, blocks = SIZES[size]
    models: dict[str, nn.Module] = {
        f"Enigma, {memory}": EnigmaForCausalLM(
            EnigmaConfig(
                vocab_size=CLASSES,
                d=width,
                num_heads=heads,
                num_transformer_layers=layers,
                num_rotors=rotors,
                num_rev_blocks=blocks,
                attention_dropout=0.0,
                hidden_dropout=0.0,
                memory=memory,
            )
        )
        for memory in MEMORY_MODES
    }
    # Three matrices of 8/3 the width have as many parameters as two of 4 times the width.
    hidden = round(8 * width / 3)
    makers: dict[str, Callable[[int], nn.Module]] = {
        "GPT-2": lambda ids: GPT2LMHeadModel(gpt2_config(ids, width, heads, peer_layers, LENGTH)),
        "Llama": lambda ids: LlamaForCausalLM(
            llama_config(ids, width, heads, peer_layers, LENGTH, hidden=hidden)
        ),
        "modern": lambda ids: ModernGPT(ModernConfig(ids, width, heads, peer_layers)),
    }
    counts = {name: parameters(model)["without embeddings"] for name, model in models.items()}
    for name, maker in makers.items():
        models[f"{name}, {AS_THEY_COME}"] = maker(VOCABULARY)
        peer = maker(CLASSES)
        counts[name] = parameters(peer)["without embeddings"]
        models[f"{name}, {SAME_HEAD}"] = SameHead(peer)
    check_sizes(counts, "without embeddings", TOLERANCE)
    return models


def train(model: nn.Module, directory: str, *, bf16: bool) -> list[float]:
    """Train for a turn and return the step times without the first."""
    clock = StepTimes()
    arguments = TrainingArguments(
        output_dir=directory,
        max_steps=STEPS_PER_TURN,
        per_device_train_batch_size=TEXTS,
        use_cpu=True,
        bf16=bf16,
        max_grad_norm=1.0,
        save_strategy="no",
        logging_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    trainer = Trainer(model=model, args=arguments, train_dataset=RandomTexts(), callbacks=[clock])
    trainer.train()
    return clock.times_s[1:]


def bf16_is_faster(model: nn.Module) -> bool:
    """Whether one short step under bfloat16 autocast takes less time than in float32."""
    ids_BL = torch.randint(VOCABULARY, (1, 64))
    times_s = []
    for bf16 in (False, True):
        for counts in (False, True):
            start_s = time.process_time()
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = model(input_ids=ids_BL, labels=ids_BL).loss
            loss.backward()
            if counts:
                times_s.append(time.process_time() - start_s)
    model.zero_grad()
    return times_s[1] < times_s[0]


def speed_rows(size: str, models: dict[str, nn.Module], *, bf16: bool) -> list[Any]:
    """Train in turns; compare Enigma with the fastest peer with each head."""
    times_s: dict[str, list[float]] = {name: [] for name in models}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(TURNS):
            for name, model in models.items():
                times_s[name] += train(model, directory, bf16=bf16)
    rates = {name: TEXTS * LENGTH / median(times) for name, times in times_s.items()}
    precision = "bf16" if bf16 else "float32"
    rows = [
        row(f"{size}: {name}, {precision}", rate, "tokens/s")
        for name, rate in rates.items()
        if not name.startswith("Enigma")
    ]
    for head, targets in TARGETS.items():
        best = max((name for name in rates if name.endswith(head)), key=rates.__getitem__)
        for memory in MEMORY_MODES:
            ours = rates[f"Enigma, {memory}"]
            has_target = memory == "reversible"
            rows.append(
                row(
                    f"{size}, {memory}, {precision}, against peers, {head}",
                    ours,
                    "tokens/s",
                    peer=best,
                    peer_value=rates[best],
                    target=f">= {targets[size]:g}x" if has_target else None,
                    met=ours >= targets[size] * rates[best] if has_target else None,
                )
            )
    return rows


def profile_rows(size: str, models: dict[str, nn.Module]) -> list[Any]:
    """Profile a training step in float32; return the share of each kind of operator."""
    rows = []
    ids_BL = torch.randint(CLASSES, (TEXTS, LENGTH))
    for name in PROFILED:
        model = models[name]
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            model(input_ids=ids_BL, labels=ids_BL)["loss"].backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
        spent_us: Counter[str] = Counter()
        for event in profiler.key_averages():
            kind = next(
                (kind for kind, parts in KINDS.items() if any(p in event.key for p in parts)),
                "elementwise, copies and the rest",
            )
            spent_us[kind] += event.self_cpu_time_total
        total_us = sum(spent_us.values())
        rows += [
            row(f"{size}, {name}, share of {kind}", 100 * us / total_us, "%")
            for kind, us in spent_us.most_common()
        ]
    return rows


def main() -> None:
    """Measure both sizes, print and write."""
    rows: list[Any] = []
    bf16 = None
    for size in SIZES:
        models = make_models(size)
        if bf16 is None:
            bf16 = bf16_is_faster(models[f"GPT-2, {AS_THEY_COME}"])
        rows += speed_rows(size, models, bf16=bf16)
        rows += profile_rows(size, models)
        write("train_speed", rows)


if __name__ == "__main__":
    main()
