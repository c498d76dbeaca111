"""A learned permutation of the channels.

Source: Mena et al., "Learning Latent Permutations with Gumbel-Sinkhorn Networks" (2018),
equations 3 to 6. The forward pass always permutes exactly, so the map remains a bijection
during training; only its gradient is that of the relaxation (straight-through).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from enigma.bijections.base import Bijection, TokenContext
from enigma.bijections.constant_weights import FormsOnce

__all__ = ["SimplePermutation", "sinkhorn"]

_START_SCORE = 1.0
_START_NOISE = 0.01
_NUM_ITERATIONS = 20


def sinkhorn(scores_DD: Tensor) -> Tensor:
    """Return a nearly doubly stochastic matrix: rows and columns of exp(scores) made to sum to 1.

    Args:
        scores_DD: floating `(D, D)`, already divided by a temperature.

    Examples:
        >>> p = sinkhorn(torch.tensor([[2.0, 0.0], [0.0, 2.0]]))
        >>> torch.allclose(p.sum(0), torch.ones(2)), torch.allclose(p.sum(1), torch.ones(2))
        (True, True)
    """
    for _ in range(_NUM_ITERATIONS):
        scores_DD = scores_DD.log_softmax(dim=1).log_softmax(dim=0)
    return scores_DD.exp()


@torch.library.custom_op("enigma::best_assignment", mutates_args=())
def _best_assignment(scores_DD: Tensor) -> Tensor:
    """Return the permutation with the largest sum of scores, by the Hungarian method."""
    try:
        from scipy.optimize import linear_sum_assignment  # noqa: PLC0415 - torch has none
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "a learned permutation needs the package scipy; to fix this: pip install scipy",
            name="scipy",
        ) from error
    _, columns = linear_sum_assignment(scores_DD.double().cpu().numpy(), maximize=True)
    return torch.as_tensor(columns, device=scores_DD.device)


@_best_assignment.register_fake
def _(scores_DD: Tensor) -> Tensor:
    return scores_DD.new_empty(len(scores_DD), dtype=torch.int64)


@_best_assignment.register_vmap
def _(_info: Any, in_dims: tuple[int], scores_DD: Tensor) -> tuple[Tensor, int]:
    return torch.stack([_best_assignment(each) for each in scores_DD.movedim(in_dims[0], 0)]), 0


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

    @staticmethod
    def jvp(ctx: Any, *tangents: Any) -> Tensor:  # noqa: ARG004 - see above
        soft: Tensor = tangents[0]
        return soft.clone()


class SimplePermutation(FormsOnce, Bijection):
    """Permute the channels by the best assignment under a learned table of scores.

    Channel i of the result is channel `order()[i]` of the input. At the start that is i.

    Args:
        num_channels: width D, at least 1.
        temperatures: temperatures of the relaxation at the start and at the end of training, both
            above 0.

    Raises:
        ValueError: for a width below 1 or a temperature that is not above 0.

    Examples:
        >>> permutation = SimplePermutation(num_channels=4)
        >>> permutation.order().tolist()
        [0, 1, 2, 3]
    """

    def __init__(
        self, num_channels: int, *, temperatures: tuple[float, float] = (1.0, 0.1)
    ) -> None:
        super().__init__()
        if num_channels < 1:
            raise ValueError(f"num_channels must be at least 1, got {num_channels}")
        if min(temperatures) <= 0:
            raise ValueError(f"temperatures must be above 0, got {temperatures}")
        self.num_channels = num_channels
        self.temperatures = temperatures
        self.temperature = temperatures[0]
        self.scores = nn.Parameter(torch.empty(num_channels, num_channels))
        self._gumbel_DD: Tensor | None = None
        self.noise = "none"  # a recomputation checks that it is that of the first pass
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
        self.noise = "none" if seed is None else f"seed {seed}"
        if seed is not None:
            generator = torch.Generator().manual_seed(seed)
            uniform_DD = torch.rand(self.scores.shape, generator=generator).clamp(min=1e-20)
            self._gumbel_DD = -(-uniform_DD.log()).log()

    def order(self) -> Tensor:
        """Return the permutation, int64 `(D,)`: exact, by the Hungarian method."""
        return self._kept_order().clone()

    def _kept_order(self) -> Tensor:
        if self.training:  # temperature and noise decide it, too
            return self._form_order()
        return self.formed_once("order", self._form_order, self.scores)

    def _form_order(self) -> Tensor:
        order: Tensor = _best_assignment(self._noisy_scores().detach())
        return order

    def _noisy_scores(self) -> Tensor:
        if self._gumbel_DD is None or not self.training:
            return self.scores
        return self.scores + self.temperature * self._gumbel_DD.to(self.scores)

    def _permute(self, x: Tensor, *, back: bool) -> Tensor:
        order = self._kept_order()
        if not (torch.is_grad_enabled() and self.scores.requires_grad and self.training):
            return x.index_select(-1, order.argsort() if back else order)
        soft_DD = sinkhorn(self._noisy_scores() / self.temperature)
        hard_DD = torch.zeros_like(soft_DD).scatter_(1, order.unsqueeze(1), 1.0)
        matrix_DD: Tensor = _StraightThrough.apply(soft_DD, hard_DD)  # type: ignore[no-untyped-call]
        with torch.autocast(x.device.type, enabled=False):
            return x @ (matrix_DD if back else matrix_DD.T).to(x.dtype)

    def _forward(
        self,
        x: Tensor,
        context: TokenContext | None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Permute; the log-determinant is 0."""
        return self._permute(x, back=False), x.new_zeros(x.shape[:-1])

    def _inverse(
        self,
        y: Tensor,
        context: TokenContext | None,  # noqa: ARG002 - the same at every token
    ) -> tuple[Tensor, Tensor]:
        """Permute back."""
        return self._permute(y, back=True), y.new_zeros(y.shape[:-1])
