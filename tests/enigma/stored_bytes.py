"""What the graph of a forward pass holds for its backward pass."""

from collections.abc import Callable

import torch
from torch import Tensor, nn


def stored_bytes(module: nn.Module, compute: Callable[[], Tensor]) -> int:
    """Bytes of the tensors that are saved while something is computed, beside the parameters."""
    parameters = {parameter.data_ptr() for parameter in module.parameters()}
    sizes = {}

    def pack(x: Tensor) -> Tensor:
        if x.data_ptr() not in parameters:
            sizes[x.data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        computed = compute()
    assert computed.requires_grad
    return sum(sizes.values())
