"""A reversible layer over two streams: mix the tokens, then transform each one."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

from enigma.bijections.base import Run
from enigma.bijections.step_groups import StepGroup
from enigma.layers.linear import Linear
from enigma.layers.norm import rms_normalise
from enigma.layers.squared_relu import squared_relu
from enigma.reversible import CouplingStep
from enigma.reversible.steps import Branch

__all__ = ["MixingLayer"]


class MixingLayer(nn.Module):
    """y1 = x1 + mix(norm(x2)), y2 = x2 + network(norm(y1)), with a squared-ReLU network.

    The network is 4 D wide: the layer has as many parameters and products as a plain one, but it
    can be undone. Subclasses own what mixes the tokens.

    Sources: two streams, Kitaev et al., "Reformer" (2020), equation 9; squared ReLU, So et al.,
    "Primer" (2021).

    Args:
        d: width D.
        hidden_dropout: probability of dropping a channel of each branch in training.
        exact: add on the grid of exact mode, where both streams must lie; the layer can then
            be undone bit for bit.
    """

    def __init__(self, d: int, *, hidden_dropout: float = 0.0, exact: bool = False) -> None:
        super().__init__()
        self.exact = exact
        self.mlp_up = Linear(d, 4 * d)
        self.mlp_down = Linear(4 * d, d, zero=True)
        self.hidden_dropout = hidden_dropout

    def forward(self, x1_BLD: Tensor, x2_BLD: Tensor, run: Run) -> tuple[Tensor, ...]:
        """Return both streams after the layer, as `run` of its step computes them.

        The layer is a module call only so that its hooks fire and its weights are at hand.
        """
        return run(x1_BLD, x2_BLD)

    def step_with(self, mix: Branch, owner: nn.Module) -> StepGroup:
        """Return the layer as a step over two streams `(B, L, D)`, in a call of the layer.

        Args:
            mix: maps normalised tokens to what the first stream gets.
            owner: the module that owns the parameters of `mix`.
        """

        def mixed(x_BLD: Tensor) -> Tensor:
            return self._drop(mix(rms_normalise(x_BLD)))

        step = CouplingStep(
            (mixed, (owner,)),
            (self._transform, (self.mlp_up, self.mlp_down)),
            stream_numbers=(0, 1),
            exact=self.exact,
            owner=self,
        )
        return StepGroup([step], step.stream_numbers, self)

    def _transform(self, x_BLD: Tensor) -> Tensor:
        hidden = squared_relu(self.mlp_up(rms_normalise(x_BLD)))
        transformed: Tensor = self.mlp_down(hidden)
        return self._drop(transformed)

    def _drop(self, x_BLD: Tensor) -> Tensor:
        if not self.training:
            return x_BLD
        return functional.dropout(x_BLD, self.hidden_dropout)
