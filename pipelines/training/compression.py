"""Gradients in bfloat16 between the ranks: half the bytes of DDP's all-reduce.

The sum loses all but 8 bits of each gradient's significand; weights and optimiser stay in float32.
torch's own `bf16_compress_hook` does the same on NCCL alone.
"""

from typing import Any

import torch
import torch.distributed
from accelerate.utils import DistributedDataParallelKwargs


class CompressedGradients(DistributedDataParallelKwargs):  # type: ignore[misc]  # untyped base
    """The settings of DDP, with gradients averaged in bfloat16."""

    def register_comm_hook(self, model: Any) -> None:
        """Register the hook; accelerate calls this when it has wrapped the model."""
        model.register_comm_hook(None, _average_in_bf16)


# DDP refuses another annotation than these two.
def _average_in_bf16(
    _: None,
    bucket: torch.distributed.GradBucket,  # type: ignore[name-defined]  # of c10d
) -> torch.futures.Future[torch.Tensor]:
    whole = bucket.buffer()
    halved = whole.to(torch.bfloat16).div_(torch.distributed.get_world_size())
    work = torch.distributed.all_reduce(halved, async_op=True)
    averaged: torch.futures.Future[torch.Tensor] = work.get_future().then(
        lambda arrived: whole.copy_(arrived.value()[0])
    )
    return averaged
