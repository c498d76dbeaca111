"""Peak memory and time of a training step, by memory mode and depth.

    OMP_NUM_THREADS=1 python -m benchmarks.enigma.memory    # about eight minutes; draws the plot

A whole training step of `EnigmaForCausalLM`, loss included: 256 wide, 4 x 256 tokens, vocabulary
21,128, float32, attention dropout 0.1, as many reversible blocks of the machine as half the
attention layers, and a single one, as the profiles have. The peak counts everything allocated
during the step, beyond parameters and their gradients, from the allocation events of the profiler.
First the gradients of the modes are compared.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from torch.profiler import ProfilerActivity, profile

from benchmarks.record import median_times_s, row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM

WIDTH, HEADS, VOCABULARY, TEXTS, LENGTH = 256, 8, 21128, 4, 256
DEPTHS, MODES = (2, 4, 8, 16, 32, 64), ("plain", "checkpoint", "reversible")
MAX_GROWTH = 1.02
"""Of the peak in reversible mode, from depth 4 to the largest."""
ONE_BLOCK = "reversible, one block"
REPEATS = 5
COLOURS = {"plain": "#888888", "checkpoint": "#3465a4", "reversible": "#b5482a"}
PLOT = Path(__file__).resolve().parents[2] / "docs" / "images" / "memory.png"
GRADIENT_BOUNDS = {"float64": 1e-10, "float32": 1e-5, "exact mode": 0.0, "exact mode, bf16": 0.0}


def make(depth: int, memory: str, **changes: Any) -> EnigmaForCausalLM:
    """A model in training mode, with gradients allocated and noise in every parameter."""
    torch.manual_seed(0)
    settings = {
        "vocab_size": VOCABULARY,
        "d": WIDTH,
        "num_heads": HEADS,
        "num_transformer_layers": depth,
        "num_rev_blocks": depth // 2,
        "attention_dropout": 0.1,
        "memory": memory,
        **changes,
    }
    model = EnigmaForCausalLM(EnigmaConfig(**settings)).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
            parameter.grad = torch.zeros_like(parameter)
    return model


def step(model: EnigmaForCausalLM, ids_BL: torch.Tensor, *, bf16: bool = False) -> None:
    """Forward and backward; gradients accumulate in place."""
    torch.manual_seed(1)
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        loss = model(ids_BL, labels=ids_BL).loss
    loss.backward()


def peak_bytes(function: Callable[[], None]) -> int:
    """Peak allocation while `function` ran, beyond what was allocated before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        function()
    events = profiler.profiler.kineto_results.events()
    held = peak = 0
    for event in sorted(
        (event for event in events if event.name() == "[memory]"),
        key=lambda event: event.start_ns(),
    ):
        held += event.nbytes()
        peak = max(peak, held)
    return peak


def gradient_rows(ids_BL: torch.Tensor) -> list[dict[str, Any]]:
    """The largest difference of the reversible gradients, relative to each parameter's largest."""
    rows = []
    for name, bound in GRADIENT_BOUNDS.items():
        exact = name.startswith("exact")
        changes = {"exact": True, "rotor_form": "lifting"} if exact else {}
        gradients = []
        for memory in ("plain", "reversible"):
            model = make(8, memory, **changes)
            model = model.double() if name == "float64" else model
            step(model, ids_BL[:1], bf16=name.endswith("bf16"))
            gradients.append([parameter.grad for parameter in model.parameters()])
        worst = max(
            float((again - plain).abs().max() / plain.abs().max().clamp(min=1e-30))
            for plain, again in zip(*gradients, strict=True)
        )
        rows.append(
            row(
                f"gradients, reversible against plain, {name}",
                worst,
                "relative",
                target=f"<= {bound:g}",
                met=worst <= bound,
            )
        )
    return rows


def memory_rows(peaks_mib: dict[str, dict[int, float]]) -> list[dict[str, Any]]:
    """Growth with depth, and reversible against plain."""
    rows = []
    for mode, by_depth in peaks_mib.items():
        target = MAX_GROWTH if mode.startswith("reversible") else None
        rows.append(
            row(
                f"peak, {mode}, depth {DEPTHS[-1]}",
                by_depth[DEPTHS[-1]],
                "MiB",
                peer="depth 4",
                peer_value=by_depth[4],
                target=target and f"<= {target}x",
                met=target and by_depth[DEPTHS[-1]] <= target * by_depth[4],
            )
        )
    for mode in ("plain", "checkpoint"):
        value, peer = peaks_mib["reversible"][16], peaks_mib[mode][16]
        aimed = mode == "plain"
        rows.append(
            row(
                "peak, reversible, depth 16",
                value,
                "MiB",
                peer=mode,
                peer_value=peer,
                target="<= 0.1x" if aimed else None,
                met=value <= 0.1 * peer if aimed else None,
            )
        )
    return rows


def time_rows(ids_BL: torch.Tensor) -> list[dict[str, Any]]:
    """Step times at depth 16, alternated."""
    rows = []
    # bfloat16 is not timed: it takes ten times as long on a processor without instructions for it.
    models = {mode: make(16, mode) for mode in MODES}
    times = median_times_s(
        [lambda model=model: step(model, ids_BL) for model in models.values()], REPEATS
    )
    ms = {mode: 1000 * time_s for mode, time_s in zip(models, times, strict=True)}
    for mode, peer, bound in (
        ("reversible", "plain", 1.25),
        ("reversible", "checkpoint", 1.0),
        ("checkpoint", "plain", None),
    ):
        rows.append(
            row(
                f"step, {mode}, depth 16",
                ms[mode],
                "ms",
                peer=peer,
                peer_value=ms[peer],
                target=bound and f"<= {bound:g}x",
                met=bound and ms[mode] <= bound * ms[peer],
            )
        )
    return rows


def draw(peaks_mib: dict[str, dict[int, float]]) -> None:
    """Draw peak memory against depth, one line per mode."""
    figure = Figure(figsize=(6.4, 4))
    axes = figure.subplots()
    for mode, by_depth in peaks_mib.items():
        axes.plot(list(by_depth), list(by_depth.values()), "o-", color=COLOURS[mode], label=mode)
        axes.annotate(
            f"{by_depth[DEPTHS[-1]]:,.0f} MiB",
            (DEPTHS[-1], by_depth[DEPTHS[-1]]),
            textcoords="offset points",
            xytext=(8, 0),
            va="center",
            color=COLOURS[mode],
        )
    axes.set(
        xlabel="attention layers (and half as many reversible blocks)",
        ylabel="peak memory of a training step, MiB",
        title=f"{WIDTH} wide, {TEXTS} x {LENGTH} tokens, float32",
        xticks=DEPTHS,
        xlim=(0, 1.2 * DEPTHS[-1]),
        ylim=0,
    )
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=130)


def main() -> None:
    """Compare gradients, measure memory and time, print, write and draw."""
    ids_BL = torch.randint(VOCABULARY, (TEXTS, LENGTH))
    rows = gradient_rows(ids_BL)
    peaks_mib: dict[str, dict[int, float]] = {mode: {} for mode in MODES}
    for mode, by_depth in peaks_mib.items():
        for depth in DEPTHS:
            model = make(depth, mode)
            by_depth[depth] = peak_bytes(lambda model=model: step(model, ids_BL)) / 2**20
    draw(peaks_mib)
    peaks_mib[ONE_BLOCK] = {}
    for depth in (4, DEPTHS[-1]):
        model = make(depth, "reversible", num_rev_blocks=1)
        peaks_mib[ONE_BLOCK][depth] = peak_bytes(lambda model=model: step(model, ids_BL)) / 2**20
    rows += memory_rows(peaks_mib)
    write("memory", rows)  # the timing takes longest, and a busy machine spoils only that
    write("memory", [*rows, *time_rows(ids_BL)])


if __name__ == "__main__":
    main()
