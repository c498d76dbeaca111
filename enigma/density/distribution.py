"""A flow, or a flow given a context, as a distribution of `torch.distributions`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.distributions import Distribution, constraints

from enigma.density.prior import draw, log_density

if TYPE_CHECKING:
    from enigma.jacobian_logdet import EnigmaFlow

__all__ = ["FlowDistribution"]


class FlowDistribution(Distribution):
    """The distribution of `(d,)` vectors that a flow gives, one per context.

    `EnigmaFlow` makes it: `flow(context)`, or `flow()` for a flow without a context. Samples can be
    differentiated by the parameters of the flow and by the context. If the prior is a mixture with
    weights that learn, drawing with gradient is refused.

    Args:
        flow: the flow.
        context: floating `(*batch_shape, C)`, or None for a flow without a context.
        validate_args: check what is scored, see `torch.distributions.Distribution`.

    Raises:
        ValueError: for a context that is missing, of another width, or not expected.
    """

    arg_constraints = {}  # noqa: RUF012 - as torch declares it
    has_rsample = True

    def __init__(
        self, flow: EnigmaFlow, context: Tensor | None = None, validate_args: bool | None = None
    ) -> None:
        flow.check_context(context)
        self.flow = flow
        self.context = context
        batch_shape = torch.Size() if context is None else context.shape[:-1]
        super().__init__(batch_shape, torch.Size((flow.d,)), validate_args)

    @property
    def support(self) -> Any:
        """All real vectors."""
        return constraints.real_vector

    def expand(self, batch_shape: Any, _instance: Any = None) -> FlowDistribution:
        """Return the same distribution for a larger batch; see the base class."""
        context = None if self.context is None else self.context.expand(*batch_shape, -1)
        larger = FlowDistribution(self.flow, context, self._validate_args)
        larger._batch_shape = torch.Size(batch_shape)
        return larger

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density of `value` `(..., *batch_shape, d)` in nats."""
        if self._validate_args:
            self._validate_sample(value)
        log_prob = self.flow.log_prob(value, self.context)
        return log_prob.broadcast_to(
            torch.broadcast_shapes(log_prob.shape, self.batch_shape)  # type: ignore[no-untyped-call]
        )

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw `(*sample_shape, *batch_shape, d)` with gradient; `sample` draws without."""
        return self.rsample_and_log_prob(sample_shape)[0]

    def rsample_and_log_prob(self, sample_shape: Any = ()) -> tuple[Tensor, Tensor]:
        """Draw with gradient, and return the log-density too: one pass instead of two."""
        shape = self._extended_shape(torch.Size(sample_shape))
        z = draw(self.flow.prior, tuple(shape), self.flow.scale)
        x, log_det = self.flow.inverse(z, self.context)
        return x, log_density(self.flow.prior, z) - log_det

    def __repr__(self) -> str:
        return f"FlowDistribution(d={self.flow.d}, batch_shape={tuple(self.batch_shape)})"
