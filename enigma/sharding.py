"""Fully sharded training, for a model that does not fit on one GPU.

Plain data parallelism keeps the weights, gradients and optimiser state of the whole model on
every rank. FSDP2 (`torch.distributed.fsdp.fully_shard`) keeps a share of each, and gathers the
weights of one layer just before it computes.
"""

from __future__ import annotations

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from enigma.model import EnigmaLM

__all__ = ["shard"]


def shard(lm: EnigmaLM, mesh: DeviceMesh, precision: MixedPrecisionPolicy | None = None) -> None:
    """Shard a language model in place over the ranks of a mesh.

    Build the optimiser afterwards: its state is then sharded like the parameters. The machine
    (its blocks are used twice in the tied return path), embedding and head stay gathered
    together while the model computes; each attention layer is gathered by itself.

    Args:
        lm: the model, the same on every rank.
        mesh: 1-D, as of `torch.distributed.device_mesh.init_device_mesh`.
        precision: dtypes of computation and of gradient reduction; None keeps the parameters'.
    """
    policy = MixedPrecisionPolicy() if precision is None else precision
    for layer in lm.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(lm, mesh=mesh, mp_policy=policy)
