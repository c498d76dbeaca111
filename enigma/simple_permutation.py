"""A learned permutation of the channels.

Source: Mena et al., "Learning Latent Permutations with Gumbel-Sinkhorn Networks" (2018),
equations 3 to 6. The forward pass always permutes exactly, so the map remains a bijection
during training; only its gradient is that of the relaxation (straight-through).
"""

from __future__ import annotations

from typing import Any

import torch
from scipy.optimize import linear_sum_assignment  # the Hungarian method; torch has none
from torch import Tensor, nn

from enigma.bijections.base import Bijection, TokenContext

__all__ = ["SimplePermutation", "sinkhorn"]

_START_SCORE = 1.0
_START_NOISE = 0.01


def sinkhorn(scores_DD: Tensor, num_iterations: int = 20) -> Tensor:
    """Return a nearly doubly stochastic matrix: rows and columns of exp(scores) made to sum to 1.

    Args:
        scores_DD: floating `(D, D)`, already divided by a temperature.
        num_iterations: how many times rows and columns are normalised.

    Examples:
        >>> p = sinkhorn(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        >>> torch.allclose(p.sum(0), torch.ones(2)), torch.allclose(p.sum(1), torch.ones(2))
        (True, True)
    """
    for _ in range(num_iterations):
        scores_DD = scores_DD.log_softmax(dim=1).log_softmax(dim=0)
    return scores_DD.exp()


class _StraightThrough(torch.autograd.Function):
    """The exact value of `hard` with the gradient of `soft`."""

    generate_vmap_rule = True

    @staticmethod
    def forward(soft: Tensor, hard: Tensor) -> Tensor:  # noqa: ARG004 - its gradient is wanted
        return hard.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:  # noqa: ARG004 - see above
        return grads[0], None


class SimplePermutation(Bijection):
    """Permute the channels by the best assignment under a learned table of scores.

    Channel i of the result is channel `order()[i]` of the input. At the start that is i.

    Args:
        num_channels: width D, at least 1.
        temperatures: temperatures of the relaxation at the start and at the end of training, both
            above 0.
        num_iterations: see `sinkhorn`.

    Raises:
        ValueError: for a width below 1 or a temperature that is not above 0.

    Examples:
        >>> permutation = SimplePermutation(num_channels=4)
        >>> permutation.order().tolist()
        [0, 1, 2, 3]
    """

    def __init__(
        self,
        num_channels: int,
        *,
        temperatures: tuple[float, float] = (1.0, 0.1),
        num_iterations: int = 20,
    ) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}")
        if min(temperatures) <= 0:
            raise ValueError(f"temperatures must be above 0, got {temperatures}")
        self.temperatures = temperatures
        self.num_iterations = num_iterations
        self.temperature = temperatures[0]
        self.scores = nn.Parameter(torch.empty(num_channels, num_channels))
        self._gumbel_DD: Tensor | None = None
        self._cached_order: tuple[tuple[object, ...], Tensor] | None = None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Prefer the identity, with a little noise to break ties."""
        nn.init.normal_(self.scores, std=_START_NOISE)
        with torch.no_grad():
            self.scores.diagonal().add_(_START_SCORE)

    def set_progress(self, fraction: float, seed: int | None = None) -> None:
        """Cool the relaxation geometrically and, with a seed, draw fresh Gumbel noise.

        The noise is drawn here and not in `forward`: between two calls the map does not change. It
        can be inverted and recomputed in the backward pass, and is the same on all ranks.

        Args:
            fraction: completed share of the training, in [0, 1].
            seed: seed of the noise that training adds to the scores; None for no noise.

        Raises:
            ValueError: for a fraction outside [0, 1].
        """
        if not 0 <= fraction <= 1:
            raise ValueError(f"fraction must be in [0, 1], got {fraction}")
        first, last = self.temperatures
        self.temperature = first * (last / first) ** fraction
        self._gumbel_DD = None
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            uniform_DD = torch.rand(self.scores.shape, generator=generator).clamp(min=1e-20)
            self._gumbel_DD = -(-uniform_DD.log()).log()

    def order(self) -> Tensor:
        """Return the permutation, int64 `(D,)`: exact, by the Hungarian method."""
        noisy = self._noisy_scores().detach()
        version = self.scores._version  # noqa: SLF001 - torch documents no public name for it
        key = (version, self.scores.data_ptr(), self.training, id(self._gumbel_DD))
        if self._cached_order is None or self._cached_order[0] != key:
            _, columns = linear_sum_assignment(noisy.double().cpu().numpy(), maximize=True)
            self._cached_order = (key, torch.as_tensor(columns, device=noisy.device))
        return self._cached_order[1]

    def _noisy_scores(self) -> Tensor:
        if self._gumbel_DD is None or not self.training:
            return self.scores
        return self.scores + self.temperature * self._gumbel_DD.to(self.scores)

    def _permute(self, x: Tensor, *, back: bool) -> Tensor:
        order = self.order()
        if not (torch.is_grad_enabled() and self.scores.requires_grad and self.training):
            return x.index_select(-1, order.argsort() if back else order)
        soft_DD = sinkhorn(self._noisy_scores() / self.temperature, self.num_iterations)
        hard_DD = torch.zeros_like(soft_DD).scatter_(1, order.unsqueeze(1), 1.0)
        matrix_DD: Tensor = _StraightThrough.apply(soft_DD, hard_DD)  # type: ignore[no-untyped-call]
        with torch.autocast(x.device.type, enabled=False):
            return x @ (matrix_DD if back else matrix_DD.T).to(x.dtype)

    def forward_with_log_det(
        self,
        x: Tensor,
        context: TokenContext | None = None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Permute; the log-determinant is 0. See the base class for shapes."""
        return self._permute(x, back=False), x.new_zeros(x.shape[:-1])

    def inverse_with_log_det(
        self,
        y: Tensor,
        context: TokenContext | None = None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Permute back; see the base class for shapes."""
        return self._permute(y, back=True), y.new_zeros(y.shape[:-1])
