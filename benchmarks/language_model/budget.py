"""What the mission costs: time and memory of `wiki-zh` on 5 RTX 4090, as a projection.

    OMP_NUM_THREADS=1 python -m benchmarks.language_model.budget      # about two minutes

A training step of the profile's model and batch runs here, in its memory mode and in float32. Its
peak memory and its processor time are measured, and so is the speed of this core in one large
matrix product. The share of that speed that the step reaches (useful operations, without
recomputation) is taken as the share of the GPU's bfloat16 peak that it would reach there. No GPU
was available: memory traffic may dominate a small model on a fast GPU, so the projection is also
made at a tenth of the peak.
"""

import time
from collections.abc import Callable

import torch

from benchmarks.enigma.memory import peak_bytes
from benchmarks.enigma.memory import step as training_step
from benchmarks.record import row, write
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.base.run_stage import run_stage
from pipelines.params import load_params
from pipelines.runs.hardware import PEAK_FLOPS, training_flops_per_token

PROFILE, GPU, LENGTH, TOKENS = "wiki-zh", "NVIDIA GeForce RTX 4090", 256, 305e6
PRODUCT, REPEATS = 2048, 3
CAUTIOUS_SHARE = 0.1
STATE_BYTES = 16
"""Per parameter in float32: the value, its gradient, and the two moments of AdamW."""


def processor_s(function: Callable[[], object]) -> float:
    """Measure the shortest processor time of a call."""
    times_s = []
    for _ in range(REPEATS):
        start_s = time.process_time()
        function()
        times_s.append(time.process_time() - start_s)
    return min(times_s)


def main() -> None:
    """Measure a step, project, print and write."""
    profile = load_params().profiles[PROFILE]
    settings = profile.model.model_dump(mode="json")
    config = EnigmaConfig(max_len=LENGTH, **settings, memory=profile.train.memory)
    model = EnigmaForCausalLM(config).train()
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    ids_BL = torch.randint(config.vocab_size, (profile.train.batch_size, LENGTH))
    a, b = torch.randn(PRODUCT, PRODUCT), torch.randn(PRODUCT, PRODUCT)

    flops = training_flops_per_token(model, LENGTH)
    reached_here = 2 * PRODUCT**3 / processor_s(lambda: a @ b)
    tokens_per_s = ids_BL.numel() / processor_s(lambda: training_step(model, ids_BL))
    share = flops * tokens_per_s / reached_here
    peak = peak_bytes(lambda: training_step(model, ids_BL))
    state = STATE_BYTES * sum(p.numel() for p in model.parameters())
    rows = [
        row("training operations per token", flops / 1e6, "MFLOP"),
        row("one core here, one large matrix product", reached_here / 1e9, "GFLOP/s"),
        row("one core here, training", tokens_per_s, "tokens/s"),
        row("share of that speed reached in training", share, ""),
        row("weights, gradients and moments of a rank", state / 2**20, "MiB"),
        row(f"peak beyond them, batch of {len(ids_BL)} x {LENGTH}, float32", peak / 2**20, "MiB"),
    ]
    for name, reached in (("the measured share", share), ("a tenth", CAUTIOUS_SHARE)):
        speed = profile.train.ranks * reached * PEAK_FLOPS[GPU] / flops
        rows += [
            row(f"projection at {name} of the peak, {profile.train.ranks} GPUs", speed, "tokens/s"),
            row(f"projection at {name} of the peak, 305 M tokens", TOKENS / speed / 60, "minutes"),
        ]
    write("lm_budget", rows)


if __name__ == "__main__":
    run_stage(main)
