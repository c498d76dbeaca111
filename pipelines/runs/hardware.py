"""What the hardware under a training run can do, and how much of it the run uses."""

import resource
import sys

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

MIB = 2**20
# Dense bf16 matrix multiplication with fp32 accumulation, in FLOP/s, from NVIDIA's data
# sheets (without sparsity). A GPU that is not listed gets no MFU rather than a guess.
PEAK_FLOPS = {
    "NVIDIA GeForce RTX 4090": 165.2e12,
    "NVIDIA GeForce RTX 3090": 71.0e12,
    "NVIDIA A100-SXM4-40GB": 312e12,
    "NVIDIA A100-SXM4-80GB": 312e12,
    "NVIDIA A100 80GB PCIe": 312e12,
    "NVIDIA H100 80GB HBM3": 989.4e12,
    "NVIDIA H100 PCIe": 756e12,
    "NVIDIA L40S": 362.05e12,
}
# The backward pass multiplies twice what the forward pass does: by inputs and by weights.
TRAINING_OVER_FORWARD = 3


def peak_flops(device: torch.device) -> float | None:
    """The bf16 peak of a GPU in FLOP/s; None for a CPU or a GPU that is not listed."""
    if device.type != "cuda":
        return None
    return PEAK_FLOPS.get(torch.cuda.get_device_name(device))


def training_flops_per_token(model: nn.Module, length: int) -> float:
    """Count the matrix multiplications that training on one token takes.

    Recomputed activations are not counted: MFU is about useful work (Chowdhery et al.,
    "PaLM", 2022, appendix B). Tied weights count as often as they multiply.

    Args:
        model: A causal language model, called with `input_ids`.
        length: Tokens per training sequence.

    Returns:
        FLOPs; a multiplication and an addition count as two.
    """
    device = next(model.parameters()).device
    ids_BL = torch.zeros((1, length), dtype=torch.int64, device=device)
    was_training = model.training
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        model.eval()(input_ids=ids_BL)
    model.train(was_training)
    return float(TRAINING_OVER_FORWARD * counter.get_total_flops() / length)


def peak_memory_mib(device: torch.device) -> float:
    """The peak memory of this process: allocated on a GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
