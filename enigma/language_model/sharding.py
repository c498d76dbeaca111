"""Fully sharded training, for a model that does not fit on one GPU.

Plain data parallelism keeps the weights, gradients and optimiser state of the whole model on
every rank. FSDP2 (`torch.distributed.fsdp.fully_shard`) keeps a share of each, and gathers the
weights of one layer just before they are used.
"""

from __future__ import annotations

from typing import cast

from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from enigma.attention import AttentionLayer
from enigma.model import EnigmaLM

__all__ = ["shard"]


def shard(lm: EnigmaLM, mesh: DeviceMesh, precision: MixedPrecisionPolicy | None = None) -> None:
    """Shard a language model in place over the ranks of a mesh.

    Build the optimiser afterwards: its state is then sharded like the parameters. The machine
    (whose blocks are used twice in the tied return path), the embedding and the head stay gathered
    while the model computes; the two branches of each attention layer are gathered separately.

    Args:
        lm: the model, the same on every rank.
        mesh: 1-D, from `torch.distributed.device_mesh.init_device_mesh`.
        precision: dtypes of computation and of gradient reduction; None keeps the parameters'.

    Raises:
        ValueError: for `memory="reversible"`, which computes gradients of parameters that are
            sharded again by then; "checkpoint" is the mode that saves memory here.
    """
    if lm.memory == "reversible":
        raise ValueError("a sharded model needs memory='plain' or 'checkpoint', got 'reversible'")
    policy = MixedPrecisionPolicy() if precision is None else precision
    for module in lm.layers:
        layer = cast("AttentionLayer", module)
        # FSDP casts the inputs of what it wraps to the precision of the policy, and the streams
        # must keep theirs: not a layer is wrapped, but what its two branches call.
        fully_shard(layer.attention, mesh=mesh, mp_policy=policy)
        fully_shard([layer.mlp_up, layer.mlp_down], mesh=mesh, mp_policy=policy)
    fully_shard(lm, mesh=mesh, mp_policy=policy)
