"""Fully sharded training, for a model that does not fit on one GPU.

Plain data parallelism keeps the weights, gradients and optimiser state of the whole model on
every rank. FSDP2 (`torch.distributed.fsdp.fully_shard`) keeps a share of each, and gathers the
weights of one layer just before they are used.
"""

from __future__ import annotations

from typing import cast

from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

from enigma.attention import AttentionLayer
from enigma.model import EnigmaLM

__all__ = ["shard"]


def shard(
    model: nn.Module, mesh: DeviceMesh, precision: MixedPrecisionPolicy | None = None
) -> None:
    """Shard a language model in place over the ranks of a mesh.

    Build the optimiser afterwards: its state is then sharded like the parameters. The machine
    (whose blocks are used twice in the tied return path), the embedding and the head stay gathered
    while the model computes, its loss included; the two branches of each attention layer are
    gathered separately.

    Args:
        model: an `EnigmaLM`, or an `EnigmaForCausalLM` or `EnigmaModel`, the same on every rank.
            What is sharded is called as a whole: with `EnigmaForCausalLM`, take its loss.
        mesh: 1-D, from `torch.distributed.device_mesh.init_device_mesh`.
        precision: dtypes of computation and of gradient reduction; None keeps the parameters'.

    Raises:
        TypeError: for another model.
        ValueError: for `memory="reversible"`, which computes gradients of parameters that are
            sharded again by then; "checkpoint" is the mode that saves memory here.
    """
    lm = getattr(model, "lm", model)
    if not isinstance(lm, EnigmaLM):
        raise TypeError(
            f"expected an EnigmaLM or a model that holds one as lm, got {type(model).__name__}"
        )
    if lm.memory == "reversible":
        raise ValueError("a sharded model needs memory='plain' or 'checkpoint', got 'reversible'")
    policy = MixedPrecisionPolicy() if precision is None else precision
    for module in lm.layers:
        layer = cast("AttentionLayer", module)
        # FSDP casts the inputs of what it wraps to the precision of the policy, and the streams
        # must keep theirs: not a layer is wrapped, but what its two branches call.
        fully_shard(layer.attention, mesh=mesh, mp_policy=policy)
        fully_shard([layer.mlp_up, layer.mlp_down], mesh=mesh, mp_policy=policy)
    # The whole model is the root, so that the head is still gathered where the loss reads it.
    fully_shard(model, mesh=mesh, mp_policy=policy)
