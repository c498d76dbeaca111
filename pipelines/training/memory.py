"""The memory mode of a run: plain where its activations fit on the device, otherwise reversible.

Plain training is the faster one, and keeps all activations. They are measured, not estimated: a
forward pass of one sequence and one of two, with the kernels of the device, say how many bytes each
sequence adds.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Literal

import torch

from pipelines.runs.hardware import MIB, device_bytes
from pipelines.training.ranks import any_rank

STATE_BYTES = 20
"""Per parameter: value, gradient, two moments, and DDP's copy of the gradient, in float32."""
SHARE = 0.8
"""Of the device's memory; the rest is for the loss head, communication and fragmentation."""

logger = logging.getLogger(__name__)


def choose_memory(
    model: Any, *, batch_size: int, length: int, bf16: bool, ranks_here: int
) -> Literal["plain", "reversible"]:
    """Choose the memory mode of a model on its device; all ranks choose the same.

    Args:
        model: An `EnigmaForCausalLM` in memory mode "plain", on the device of this rank.
        batch_size: Sequences of a micro-batch.
        length: Tokens per sequence.
        bf16: Train under bfloat16 autocast.
        ranks_here: Ranks that share the memory of this machine, if the device is its processor.
    """
    device = next(model.parameters()).device
    activations = activation_bytes(model, batch_size, length, bf16=bf16)
    state = STATE_BYTES * sum(parameter.numel() for parameter in model.parameters())
    available = device_bytes(device, ranks_here)
    fits = fits_plain(activations, state, available)
    chosen: Literal["plain", "reversible"] = "reversible" if any_rank(not fits) else "plain"
    logger.info(
        "memory: %s; activations of plain training %.0f MiB, weights and optimiser %.0f MiB, "
        "device %.0f MiB", chosen, activations / MIB, state / MIB, available / MIB,
    )  # fmt: skip
    return chosen


def fits_plain(activations: int, state: int, available: int) -> bool:
    """Whether activations and state fit in `SHARE` of the memory, all in bytes.

    Example:
        >>> fits_plain(activations=3 * 2**30, state=2**30, available=24 * 2**30)
        True
        >>> fits_plain(activations=30 * 2**30, state=2**30, available=24 * 2**30)
        False
    """
    return activations + state <= SHARE * available


def activation_bytes(model: Any, batch_size: int, length: int, *, bf16: bool) -> int:
    """Measure what a training step of a model keeps for its backward pass, without parameters."""
    one, two = (_kept_bytes(model, sequences, length, bf16=bf16) for sequences in (1, 2))
    return one + (batch_size - 1) * (two - one)


def _kept_bytes(model: Any, sequences: int, length: int, *, bf16: bool) -> int:
    device = next(model.parameters()).device
    ids_BL = torch.zeros((sequences, length), dtype=torch.int64, device=device)
    was_training = model.training
    with _kept_tensors(model) as kept, torch.autocast(device.type, torch.bfloat16, enabled=bf16):
        # The loss holds the graph, and the graph what is counted.
        loss = model.train()(input_ids=ids_BL, labels=ids_BL).loss
    model.train(was_training)
    del loss
    return sum(kept.values())


@contextmanager
def _kept_tensors(model: Any) -> Iterator[dict[int, int]]:
    """Collect the bytes of every storage that autograd keeps, by its address."""
    known = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in known:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        yield kept
