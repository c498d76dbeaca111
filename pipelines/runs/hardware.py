"""What the hardware under a training run can do, and how much of it the run uses."""

import os
import resource
import sys
from pathlib import Path

import psutil
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipelines.base.errors import UserError

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
    "NVIDIA H200": 989.4e12,
    "NVIDIA L40S": 362.05e12,
}
# The backward pass multiplies twice what the forward pass does: by inputs and by weights.
TRAINING_OVER_FORWARD = 3
ROOT = Path("/")
HIDDEN = ("", "-1")
"""Values of CUDA_VISIBLE_DEVICES that hide every GPU."""


def refuse_idle_gpus() -> None:
    """Refuse to work on the CPU of a machine whose GPUs torch cannot use.

    A driver that is too old, or a torch without CUDA, would otherwise turn minutes into weeks.

    Raises:
        UserError: If the driver sees a GPU and torch none, unless CUDA_VISIBLE_DEVICES hides all.
    """
    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    if torch.cuda.is_available() or (hidden is not None and hidden.split(",")[0] in HIDDEN):
        return
    found = _gpus_of_driver()
    if not found:
        return
    cuda = torch.version.cuda
    wrong = (
        "install a build of torch with CUDA: this one has none"
        if cuda is None
        else f"update the driver to one for CUDA {cuda}, or install a torch for an older CUDA"
    )
    raise UserError(
        f"expected torch to use the GPU of this machine ({found}), but torch {torch.__version__} "
        f"(CUDA {cuda or 'none'}) sees none",
        f"{wrong}; in a container, start it with the GPUs; or use the CPU on purpose: "
        "CUDA_VISIBLE_DEVICES=-1",
    )


def _gpus_of_driver() -> str:
    """Return what NVML, or without it the kernel's driver, says of the GPUs; empty for none."""
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        version = ROOT / "proc/driver/nvidia/version"
        devices = sorted(path.name for path in (ROOT / "dev").glob("nvidia[0-9]*"))
        if not devices or not version.is_file():
            return ""
        return f"{', '.join(devices)}; {version.read_text(encoding='utf-8').splitlines()[0]}"
    try:
        names = [
            str(pynvml.nvmlDeviceGetName(pynvml.nvmlDeviceGetHandleByIndex(index)))
            for index in range(pynvml.nvmlDeviceGetCount())
        ]
        driver, cuda = pynvml.nvmlSystemGetDriverVersion(), pynvml.nvmlSystemGetCudaDriverVersion()
    finally:
        pynvml.nvmlShutdown()
    if not names:
        return ""
    return f"{', '.join(names)}; driver {driver} for CUDA {cuda // 1000}.{cuda % 1000 // 10}"


def describe_device() -> dict[str, str]:
    """Return what this process trains on: the device, torch's version, and that of CUDA."""
    on_gpu = torch.cuda.is_available()
    return {
        "device": torch.cuda.get_device_name() if on_gpu else "cpu",
        "torch": str(torch.__version__),
        "cuda": torch.version.cuda or "none",
    }


def device_bytes(device: torch.device, ranks_here: int) -> int:
    """Return the memory of a GPU, or this rank's share of that of the machine or its container."""
    if device.type == "cuda":
        return int(torch.cuda.get_device_properties(device).total_memory)
    limit = ROOT / "sys/fs/cgroup/memory.max"
    text = limit.read_text(encoding="utf-8").strip() if limit.is_file() else "max"
    total = psutil.virtual_memory().total
    return (total if text == "max" else min(total, int(text))) // ranks_here


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


def finish_queued_work(device: torch.device) -> None:
    """Wait until a GPU has done what it was told; a CPU has."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def peak_memory_mib(device: torch.device) -> float:
    """The peak memory of this process: allocated on a GPU, or resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / MIB
    # Linux counts in KiB, macOS in bytes.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / MIB
