"""The sections of `benchmarks.gpu`: each measures one thing on a GPU and returns rows."""

import collections
import copy
import itertools
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile
from transformers import GPT2LMHeadModel

from benchmarks.ngrams import with_ngrams
from benchmarks.peers import gpt2_config
from benchmarks.record import row
from enigma.bijections.round_trip import core_round_trip_error
from enigma.causality import prove_causality
from enigma.configuration_enigma import EnigmaConfig
from enigma.jacobian_logdet import EnigmaFlow
from enigma.layers import linear_cross_entropy
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.training.muon import orthogonalise
from pipelines.training.optimisers import make_optimiser

Rows = list[dict[str, Any]]
MIB = 2**20
KINDS = {
    "plain": {"memory": "plain"},
    "reversible": {"memory": "reversible"},
    "plain with 5-grams": {"memory": "plain", "ngrams": True},
}
"""Models whose whole step is looked at; `wiki-zh` trains with 5-grams."""
BUDGET_MIB = 24_000
"""Of an RTX 4090, whatever the GPU of the benchmark holds."""
TINY = {
    "vocab_size": 97,
    "d": 32,
    "num_heads": 4,
    "num_transformer_layers": 2,
    "num_rev_blocks": 1,
    "num_rotors": 2,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
QUINTIC = ((3.4445, -4.7750, 2.0315), 5, 1e-7)


@dataclass(frozen=True)
class Machine:
    """Where the sections run: a GPU at the size of `wiki-zh`, or a tiny trial on the CPU."""

    tiny: bool

    @property
    def device(self) -> str:
        """Name of torch's device."""
        return "cpu" if self.tiny else "cuda"

    def wait(self) -> None:
        """Wait until the GPU has done all that is queued."""
        if not self.tiny:
            torch.cuda.synchronize()

    def model(
        self, memory: str = "reversible", *, ngrams: bool = False, **changes: Any
    ) -> EnigmaForCausalLM:
        """Make a model whose branches all count, on the device, in training mode."""
        torch.manual_seed(0)
        sizes = TINY if self.tiny else {}
        model = EnigmaForCausalLM(EnigmaConfig(**{**sizes, "memory": memory, **changes}))
        if ngrams:
            with_ngrams(model, order=5)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.02 * torch.randn_like(parameter))
        return model.to(self.device).train()

    def ids(self, texts: int = 12, length: int = 256) -> Tensor:
        """Draw token ids `(texts, length)`."""
        if self.tiny:
            texts, length = min(texts, 2), min(length, 16)
        return torch.randint(3, 97 if self.tiny else 21128, (texts, length), device=self.device)

    def step(self, model: nn.Module, ids_BL: Tensor, *, bf16: bool = True) -> Tensor:
        """Forward and backward; return the loss."""
        torch.manual_seed(1)
        with torch.autocast(self.device, torch.bfloat16, enabled=bf16):
            loss: Tensor = model(input_ids=ids_BL, labels=ids_BL).loss
        loss.backward()
        return loss.detach()

    def seconds(self, function: Callable[[], object]) -> float:
        """Return the median time of a call, after three that do not count."""
        times_s = []
        for _ in range(4 if self.tiny else 13):
            self.wait()
            start_s = time.perf_counter()
            function()
            self.wait()
            times_s.append(time.perf_counter() - start_s)
        return statistics.median(times_s[3:])

    def peak_mib(self, function: Callable[[], object]) -> float:
        """Return the most memory that was allocated during a call; 0 on a CPU."""
        if self.tiny:
            function()
            return 0.0
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
        function()
        return float(torch.cuda.max_memory_allocated() / MIB)

    def update(self, model: EnigmaForCausalLM) -> Callable[[Tensor], None]:
        """Return a whole training step with clipping and Muon."""
        optimiser = make_optimiser("muon", model, lr=1e-4, weight_decay=0.01)

        def step(ids_BL: Tensor) -> None:
            self.step(model, ids_BL)
            nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimiser.step()
            optimiser.zero_grad()

        return step


def flat_gradient(model: nn.Module) -> Tensor:
    """Return all gradients as one float64 vector."""
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])


def gradients(machine: Machine) -> Rows:
    """The memory modes against plain, with dropout; plain against itself is the noise floor."""
    ids_BL, rows = machine.ids(), []
    for bf16 in (False, True):
        found = {}
        for name in ("plain", "plain again", "checkpoint", "reversible"):
            model = machine.model(name.split()[0], attention_dropout=0.15)
            machine.step(model, ids_BL, bf16=bf16)
            found[name] = flat_gradient(model)
        base = found.pop("plain")
        floor = float((found["plain again"] - base).norm() / base.norm())
        bound = max(3 * floor, 3e-2 if bf16 else 1e-5)
        for name, gradient in found.items():
            error = float((gradient - base).norm() / base.norm())
            title = f"gradients, {'bf16' if bf16 else 'fp32'}, {name} against plain"
            target = f"<= {bound:.1g}"
            rows.append(row(title, error, "relative", target=target, met=error <= bound))
    return rows


def kernels(machine: Machine) -> Rows:
    """Which attention kernel runs, how many launches a step has, and how busy they keep the GPU."""
    activities = [ProfilerActivity.CPU, *([] if machine.tiny else [ProfilerActivity.CUDA])]
    rows = []
    for kind, changes in KINDS.items():
        model = machine.model(**changes, attention_dropout=0.15)
        step, ids_BL = machine.update(model), machine.ids()
        wall_ms = 1e3 * machine.seconds(lambda step=step, ids=ids_BL: step(ids))
        with profile(activities=activities) as profiler:
            step(ids_BL)
            machine.wait()
        on_gpu = [e for e in profiler.events() if str(e.device_type).endswith("CUDA")]
        busy_us = sum(e.self_device_time_total for e in on_gpu)
        fused = {e.name for e in on_gpu if "flash" in e.name.lower() or "fmha" in e.name.lower()}
        rows += [
            row(f"step, {kind}", wall_ms, "ms"),
            row(f"step, {kind}: GPU busy", busy_us / 1e3, "ms"),
            row(f"step, {kind}: launches", len(on_gpu), ""),
            row(
                f"step, {kind}: fused attention kernels ({', '.join(sorted(fused))[:80]})",
                len(fused), "", target=">= 1", met=None if machine.tiny else bool(fused),
            ),
        ]  # fmt: skip
    return rows


def synchronisation(machine: Machine) -> Rows:
    """The lines of forward, backward, clipping and optimiser at which the host waits."""
    rows = []
    for kind, changes in KINDS.items():
        model = machine.model(**changes, attention_dropout=0.15)
        step, ids_BL = machine.update(model), machine.ids()
        step(ids_BL)
        lines: collections.Counter[str] = collections.Counter()
        if not machine.tiny:
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as seen:
                warnings.simplefilter("always")
                step(ids_BL)
            torch.cuda.set_sync_debug_mode("default")
            lines.update(
                f"{Path(w.filename).name}:{w.lineno}"
                for w in seen
                if "synchroniz" in str(w.message)
            )
        where = f" ({', '.join(lines)})" if lines else ""
        count = lines.total()
        rows.append(row(f"host waits, {kind}{where}", count, "", target="0", met=count == 0))
    return rows


def speed(machine: Machine) -> Rows:
    """Tokens/s and peak memory by memory mode, batch and chunk of the loss head, against GPT-2."""
    rows = []
    sizes = (12, 48, 96, 192)
    for texts, memory, chunk in itertools.product(sizes, ("plain", "reversible"), (256, 4096)):
        if chunk == 256 and texts > sizes[1]:
            continue
        with mock.patch.object(linear_cross_entropy, "_CHUNK_ON_GPU", chunk):
            step = machine.update(machine.model(memory, attention_dropout=0.15))
            ids_BL = machine.ids(texts)
            peak = machine.peak_mib(lambda step=step, ids=ids_BL: step(ids))
            took_s = machine.seconds(lambda step=step, ids=ids_BL: step(ids))
        name = f"batch {texts}, {memory}, chunk {chunk}"
        rows.append(row(f"{name}", ids_BL.numel() / took_s, "tokens/s"))
        rows.append(row(f"{name}: peak", peak, "MiB"))
    for texts in sizes[:2]:
        peer, ids_BL = gpt2(machine, 256), machine.ids(texts)
        took_s = machine.seconds(lambda peer=peer, ids=ids_BL: machine.step(peer, ids))
        rows.append(
            row(f"batch {texts}, GPT-2 of the same width", ids_BL.numel() / took_s, "tokens/s")
        )
    return rows


def gpt2(machine: Machine, length: int) -> nn.Module:
    """Make GPT-2 with the width, heads and about the parameters of the published size."""
    sizes = (97, 32, 4, 2, length) if machine.tiny else (21128, 512, 8, 7, length)
    return GPT2LMHeadModel(gpt2_config(*sizes)).to(machine.device).train()


def longest(machine: Machine) -> Rows:
    """The longest text whose training step stays within the memory of an RTX 4090."""
    rows = []
    lengths = (16,) if machine.tiny else tuple(2**power for power in range(12, 19))
    makers: dict[str, Callable[[int], nn.Module]] = {
        "plain": lambda _: machine.model("plain"),
        "reversible": lambda _: machine.model("reversible"),
        "GPT-2": lambda length: gpt2(machine, length),
    }
    for name, make in makers.items():
        best = 0
        for length in lengths:
            try:
                model, ids_BL = make(length), machine.ids(1, length)
                peak = machine.peak_mib(lambda model=model, ids=ids_BL: machine.step(model, ids))
            except torch.OutOfMemoryError:
                break
            if peak > BUDGET_MIB:
                break
            best = length
        rows.append(row(f"longest text within {BUDGET_MIB:,} MiB, {name}", best, "tokens"))
    return rows


def optimisers(machine: Machine) -> Rows:
    """Newton-Schulz in bf16, the time of Muon, and a state that loads onto the GPU."""
    matrices = torch.randn(3, 64, 256, device=machine.device)
    values = torch.linalg.svdvals(orthogonalise(matrices, *QUINTIC).float())
    model, ids_BL = machine.model("plain"), machine.ids()
    first = make_optimiser("muon", model, lr=1e-3, weight_decay=0.01)
    for _ in range(2):
        machine.step(model, ids_BL)
        first.step()
        first.zero_grad()
    again = copy.deepcopy(model)
    second = make_optimiser("muon", again, lr=1e-3, weight_decay=0.01)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    for each, optimiser in ((model, first), (again, second)):
        machine.step(each, ids_BL)
        optimiser.step()
    pairs = zip(model.parameters(), again.parameters(), strict=True)
    worst = max(float((one - two).detach().abs().max()) for one, two in pairs)
    low, high = float(values.min()), float(values.max())
    return [
        row("Muon, smallest singular value", low, "", target=">= 0.3", met=low >= 0.3),
        row("Muon, largest singular value", high, "", target="<= 1.5", met=high <= 1.5),
        row("Muon with AdamW, one update", 1e3 * machine.seconds(first.step), "ms"),
        row(
            "weights after a step from a loaded state",
            worst,
            "",
            target="<= 1e-2",
            met=worst <= 1e-2,
        ),
    ]


def proofs(machine: Machine) -> Rows:
    """Causality on trained weights, and the round trip of the machine."""
    model, ids_BL = machine.model("plain"), machine.ids()
    step = machine.update(model)
    for _ in range(3 if machine.tiny else 20):
        step(ids_BL)
    report = prove_causality(model.eval(), 8 if machine.tiny else 32)
    trip = core_round_trip_error(model.lm, 256)
    return [
        row("causal on this device", report.is_causal, "", target="1", met=report.is_causal),
        row(
            "round trip, float32",
            trip.float32,
            "relative",
            target="<= 1e-5",
            met=trip.float32 <= 1e-5,
        ),
        row(
            "round trip, float64",
            trip.float64,
            "relative",
            target="<= 1e-12",
            met=trip.float64 <= 1e-12,
        ),
    ]


def generation(machine: Machine) -> Rows:
    """Logits with the cache against logits without, and the speed of generating."""
    model, ids_BL = machine.model("plain").eval(), machine.ids(2, 16)
    with torch.no_grad():
        whole = model(input_ids=ids_BL, use_cache=False).logits[:, -1]
        cache = None
        for index in range(ids_BL.shape[1]):
            out = model(ids_BL[:, index : index + 1], past_key_values=cache, use_cache=True)
            cache = out.past_key_values
    difference = float((out.logits[:, -1] - whole).abs().max())
    new = 4 if machine.tiny else 64
    took_s = machine.seconds(
        lambda: model.generate(ids_BL, max_new_tokens=new, min_new_tokens=new, do_sample=False)
    )
    return [
        row(
            "logits, cached against whole", difference, "", target="<= 1e-2", met=difference <= 1e-2
        ),
        row("generation, batch of 2", 2 * new / took_s, "tokens/s"),
    ]


def flow(machine: Machine) -> Rows:
    """A training step of the flow over hidden states, and its round trip."""
    width, states = (16, 32) if machine.tiny else (512, 512)
    torch.manual_seed(0)
    model = EnigmaFlow.build(
        width, 2 if machine.tiny else 8, coupling="affine", hidden_channels=width
    )
    model = model.to(machine.device)
    optimiser = torch.optim.AdamW(model.parameters(), lr=1e-3)
    x_ND = torch.randn(states, width, device=machine.device)

    def step() -> None:
        optimiser.zero_grad()
        (-model.log_prob(x_ND).mean()).backward()
        optimiser.step()

    took_s = machine.seconds(step)
    with torch.no_grad():
        z_ND, _ = model(x_ND)
        error = float((model.inverse(z_ND)[0] - x_ND).abs().max())
    return [
        row("flow, step", 1e3 * took_s, "ms"),
        row("flow, round trip", error, "", target="<= 1e-3", met=error <= 1e-3),
    ]


def determinism(machine: Machine) -> Rows:
    """Whether equal steps give equal bits, without and with deterministic algorithms; the cost."""
    ids_BL, rows = machine.ids(), []
    for on in (False, True):
        torch.use_deterministic_algorithms(on)
        found = []
        for _ in range(2):
            model = machine.model(attention_dropout=0.15)
            machine.step(model, ids_BL)
            found.append(flat_gradient(model))
        equal = torch.equal(*found)
        took_s = machine.seconds(lambda model=model: machine.step(model, ids_BL))
        how = f"deterministic: {str(on).lower()}"
        rows.append(
            row(
                f"{how}, equal bits",
                equal,
                "",
                target="1" if on else None,
                met=equal if on else None,
            )
        )
        rows.append(row(f"{how}, step", 1e3 * took_s, "ms"))
    torch.use_deterministic_algorithms(False)
    return rows
