"""A linear layer and an embedding that define their own initialisation.

Every module that owns parameters has a `reset_parameters`: a model that was built on the meta
device, without memory, can be initialised later, part by part. These two are instances of torch's
own classes, whose `reset_parameters` is replaced: tools such as `quantize_dynamic` pass over
subclasses.
"""

from __future__ import annotations

import weakref
from typing import Any, TypeVar

from torch import nn

from enigma.layers.hooks import has_hooks

__all__ = ["Embedding", "Linear", "only_multiplies"]

_Layer = TypeVar("_Layer", nn.Linear, nn.Embedding)


def Linear(  # noqa: N802 - it makes a layer of that name
    in_features: int, out_features: int, *, zero: bool = False, bias: bool = False
) -> nn.Linear:
    """Return a linear layer, by default without a bias.

    Weights and biases are drawn from N(0, 1 / in_features).

    Args:
        in_features: input width.
        out_features: output width.
        zero: start at zero. For the last layer of a residual branch: every branch is then 0 at
            first, and the model starts as its token embedding.
        bias: add a learned constant.
    """
    std = 0.0 if zero else in_features**-0.5
    return _made(nn.Linear, std, in_features, out_features, bias=bias)


def Embedding(num_embeddings: int, embedding_dim: int) -> nn.Embedding:  # noqa: N802 - see above
    """Return an embedding that is initialised like the output head, to which it may be tied.

    The rows are drawn from N(0, 1 / D): their length is about 1. A normalised state has the length
    sqrt(D). So a fresh model, whose branches are zero, gives the token that it has just read a
    logit of sqrt(D) and all others about 1: its first loss is above that of guessing. Still it
    learns faster than from GPT-2's 0.02 (docs/LOG.md).
    """
    return _made(nn.Embedding, embedding_dim**-0.5, num_embeddings, embedding_dim)


class _Draw:
    """Draws the parameters of one layer from N(0, std^2).

    It does not keep the layer alive. Otherwise the two would keep each other, and the memory of a
    model that is no longer used would wait for Python's collector of cycles.
    """

    def __init__(self, layer: nn.Module, std: float) -> None:
        self._layer = weakref.ref(layer)
        self._std = std

    def __call__(self) -> None:
        for parameter in self._owner().parameters():
            if self._std:
                nn.init.normal_(parameter, std=self._std)
            else:
                nn.init.zeros_(parameter)

    def __reduce__(self) -> tuple[type[_Draw], tuple[nn.Module, float]]:
        """Copy and pickle with the layer: that of a copy draws for the copy."""
        return _Draw, (self._owner(), self._std)

    def _owner(self) -> nn.Module:
        layer = self._layer()
        if layer is None:
            raise ReferenceError("expected the layer to initialise, got one that is gone")
        return layer


def _made(kind: type[_Layer], std: float, *sizes: int, **options: Any) -> _Layer:
    layer = kind.__new__(kind)
    layer.reset_parameters = _Draw(layer, std)  # type: ignore[method-assign]
    layer.__init__(*sizes, **options)  # type: ignore[misc]  # it calls `reset_parameters`
    return layer


def only_multiplies(head: nn.Module) -> bool:
    """Whether calling the head is multiplying by its weight, and nobody watches the call."""
    # Offloading replaces `forward` in the instance.
    own = type(head).forward is nn.Linear.forward and "forward" not in vars(head)
    return own and getattr(head, "bias", None) is None and not has_hooks(head)
