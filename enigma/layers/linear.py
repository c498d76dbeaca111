"""A linear layer and an embedding that define their own initialisation.

Every module that owns parameters has a `reset_parameters`: a model that was built on the meta
device, without memory, can be initialised later, part by part.
"""

from __future__ import annotations

from torch import nn

__all__ = ["Embedding", "Linear"]


class Linear(nn.Linear):
    """A linear layer, by default without a bias.

    Args:
        in_features: input width.
        out_features: output width.
        zero: start at zero. For the last layer of a residual branch: every branch is then 0 at
            first, and the model starts as its token embedding.
        bias: add a learned constant.
    """

    def __init__(
        self, in_features: int, out_features: int, *, zero: bool = False, bias: bool = False
    ) -> None:
        self.zero = zero
        super().__init__(in_features, out_features, bias=bias)

    def reset_parameters(self) -> None:
        """Draw weights and biases from N(0, 1 / in_features), or set them to 0."""
        for parameter in self.parameters():
            if self.zero:
                nn.init.zeros_(parameter)
            else:
                nn.init.normal_(parameter, std=self.in_features**-0.5)


class Embedding(nn.Embedding):
    """An embedding that is initialised like the output head, to which it may be tied."""

    def reset_parameters(self) -> None:
        """Draw the rows from N(0, 1 / embedding_dim): their length is about 1.

        A normalised state has the length sqrt(D). So a fresh model, whose branches are zero,
        gives the token that it has just read a logit of sqrt(D) and all others about 1: its first
        loss is above that of guessing. Still it learns faster than from GPT-2's 0.02
        (docs/LOG.md).
        """
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)
