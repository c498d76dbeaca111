"""A linear layer that knows how it is initialised.

Everything in the model that owns parameters has a `reset_parameters`, so that a model built
without memory (on the meta device) can be filled in later, part by part.
"""

from __future__ import annotations

from torch import nn

__all__ = ["Embedding", "Linear"]


class Linear(nn.Linear):
    """A linear layer, without a bias unless asked for one.

    Args:
        in_features: input width.
        out_features: output width.
        zero: start at zero. For the last layer of a residual branch: every branch is then
            absent at first and the model starts as its token embedding.
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
    """An embedding that is initialised as the output head that it may be tied to."""

    def reset_parameters(self) -> None:
        """Draw the rows from N(0, 1 / embedding_dim), so that they have a length of about 1.

        A normalised state has the length sqrt(D). So a fresh model, whose branches are zero,
        gives the token it has just read a logit of sqrt(D) and all others one of about 1: its
        first loss is above that of guessing. It learns faster all the same than from GPT-2's
        0.02 (docs/LOG.md).
        """
        nn.init.normal_(self.weight, std=self.embedding_dim**-0.5)
