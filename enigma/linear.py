"""A linear layer that knows how it is initialised.

Everything in the model that owns parameters has a `reset_parameters`, so that a model built
without memory (on the meta device) can be filled in later, part by part.
"""

from __future__ import annotations

from torch import nn

__all__ = ["Embedding", "Linear"]

_STD = 0.02
"""Standard deviation of GPT-2's initialisation (Radford et al., 2019)."""


class Linear(nn.Linear):
    """A bias-free linear layer.

    Args:
        in_features: input width.
        out_features: output width.
        zero: start at zero. For the last layer of a residual branch: every branch is then
            absent at first and the model starts as its token embedding.
    """

    def __init__(self, in_features: int, out_features: int, *, zero: bool = False) -> None:
        self.zero = zero
        super().__init__(in_features, out_features, bias=False)

    def reset_parameters(self) -> None:
        """Draw the weights from N(0, 1 / in_features), or set them to 0."""
        if self.zero:
            nn.init.zeros_(self.weight)
        else:
            nn.init.normal_(self.weight, std=self.in_features**-0.5)


class Embedding(nn.Embedding):
    """An embedding whose rows start small enough to serve as a tied output head."""

    def reset_parameters(self) -> None:
        """Draw the rows from N(0, 0.02^2)."""
        nn.init.normal_(self.weight, std=_STD)
