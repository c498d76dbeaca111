"""Training speed against GPT-2 and Llama of equal size, and where the time goes.

    OMP_NUM_THREADS=1 python -m benchmarks.training.speed       # about ten minutes on one core

Every model trains under transformers' own `Trainer` with its default optimiser: 8 x 256 tokens
per step, vocabulary 21,128, tied embeddings, no dropout, clipping at 1. The models take
turns of a few steps, several times over; the first step of a turn does not count. All run in
the precision that is faster for GPT-2 on this processor. Parameters must agree within 1 %.
"""

import tempfile
import time
from collections import Counter
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.data import Dataset
from transformers import (
    GPT2LMHeadModel,
    LlamaForCausalLM,
    PreTrainedModel,
    Trainer,
    TrainerCallback,
    TrainingArguments,
)

from benchmarks.peers import check_sizes, gpt2_config, llama_config
from benchmarks.record import row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM

VOCABULARY, LENGTH, TEXTS = 21128, 256, 8
TURNS, STEPS_PER_TURN = 3, 3
# Width, heads, layers of the peers, layers of Enigma, rotors, blocks.
SIZES = {"5 M": (160, 5, 6, 5, 2, 3), "30 M": (512, 8, 6, 5, 4, 2)}
TARGETS = {"plain": 1.2, "reversible": 1.0}
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
        ids_L = torch.randint(VOCABULARY, (LENGTH,), generator=generator)
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


def make_models(size: str) -> dict[str, PreTrainedModel]:
    """Make Enigma in two memory modes, and the peers."""
    width, heads, peer_layers, layers, rotors, blocks = SIZES[size]
    peer = (VOCABULARY, width, heads, peer_layers, LENGTH)
    makers: dict[str, Callable[[], PreTrainedModel]] = {
        f"Enigma, {memory}": lambda memory=memory: EnigmaForCausalLM(
            EnigmaConfig(
                vocab_size=VOCABULARY,
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
        for memory in TARGETS
    }
    makers["GPT-2"] = lambda: GPT2LMHeadModel(gpt2_config(*peer))
    # Three matrices of 8/3 the width have as many parameters as two of 4 times the width.
    makers["Llama"] = lambda: LlamaForCausalLM(llama_config(*peer, hidden=round(8 * width / 3)))
    models = {}
    for name, maker in makers.items():
        torch.manual_seed(0)
        models[name] = maker()
    check_sizes({name: model.num_parameters() for name, model in models.items()}, "all")
    return models


def train(model: PreTrainedModel, directory: str, *, bf16: bool) -> list[float]:
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


def bf16_is_faster(model: PreTrainedModel) -> bool:
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


def speed_rows(size: str, models: dict[str, PreTrainedModel], *, bf16: bool) -> list[Any]:
    """Train in turns; compare Enigma with the faster peer."""
    times_s: dict[str, list[float]] = {name: [] for name in models}
    with tempfile.TemporaryDirectory() as directory:
        for _ in range(TURNS):
            for name, model in models.items():
                times_s[name] += train(model, directory, bf16=bf16)
    rates = {name: TEXTS * LENGTH / median(times) for name, times in times_s.items()}
    peers = [name for name in models if not name.startswith("Enigma")]
    best = max(peers, key=rates.__getitem__)
    precision = "bf16" if bf16 else "float32"
    rows = []
    for memory, target in TARGETS.items():
        name = f"Enigma, {memory}"
        millions = models[name].num_parameters() / 1e6
        rows.append(
            row(
                f"{size} ({millions:.2f} M), {memory}, {precision}",
                rates[name],
                "tokens/s",
                peer=f"{best} ({models[best].num_parameters() / 1e6:.2f} M)",
                peer_value=rates[best],
                target=f">= {target:g}x",
                met=rates[name] >= target * rates[best],
            )
        )
    other = min(peers, key=rates.__getitem__)
    millions = models[other].num_parameters() / 1e6
    rows.append(
        row(
            f"{size}: {other} ({millions:.2f} M), {precision}",
            rates[other],
            "tokens/s",
            peer=best,
            peer_value=rates[best],
        )
    )
    return rows


def profile_rows(size: str, models: dict[str, PreTrainedModel]) -> list[Any]:
    """Profile a training step in float32; return the share of each kind of operator."""
    rows = []
    ids_BL = torch.randint(VOCABULARY, (TEXTS, LENGTH))
    for name, model in models.items():
        if name == "Llama":
            continue
        optimiser = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)
        with profile(activities=[ProfilerActivity.CPU]) as profiler:
            model(input_ids=ids_BL, labels=ids_BL).loss.backward()
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
            bf16 = bf16_is_faster(models["GPT-2"])
        rows += speed_rows(size, models, bf16=bf16)
        rows += profile_rows(size, models)
        write("train_speed", rows)


if __name__ == "__main__":
    main()
