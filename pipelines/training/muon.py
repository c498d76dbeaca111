"""Muon that batches matrices of one shape, also for processors without bfloat16.

Shape legend: S matrices of one shape, M rows, N columns, M <= N.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, computed for all matrices of one shape at once.

    torch's version orthogonalises one matrix after the other, always in bfloat16. On a processor
    without instructions for it that took three times as long as the rest of a training step
    (docs/LOG.md). Here a CPU uses the dtype of the parameters. Groups, state and arguments are
    torch's own, except `adjust_lr_fn`, which is always `match_rms_adamw`.

    Args:
        params: 2-D parameters.
        lr: Learning rate.
        weight_decay: Decoupled weight decay.
    """

    def __init__(self, params: list[torch.nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Recomputes the loss, as for any optimiser.

        Returns:
            What `closure` returned; None without one.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            of_one_shape = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    of_one_shape[parameter.shape, parameter.device].append(parameter)
            for parameters in of_one_shape.values():
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        directions = torch.stack(
            [self._direction(p, p.grad, group) for p in parameters if p.grad is not None]
        )
        updates = orthogonalise(
            directions, group["ns_coefficients"], group["ns_steps"], group["eps"]
        )
        lr = group["lr"]
        # Liu et al., "Muon is scalable for LLM training", 2025, equation 4.
        scale = 0.2 * max(directions.shape[-2:]) ** 0.5
        for parameter, update in zip(parameters, updates, strict=True):
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(update.to(parameter.dtype), alpha=-lr * scale)

    def _direction(self, parameter: Tensor, gradient: Tensor, group: dict[str, Any]) -> Tensor:
        """Update the momentum with a gradient; return it with Nesterov's look-ahead."""
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(gradient)
        momentum: Tensor = state["momentum_buffer"]
        momentum.lerp_(gradient, 1 - group["momentum"])
        return gradient.lerp(momentum, group["momentum"])


def orthogonalise(
    matrices: Tensor, coefficients: tuple[float, float, float], steps: int, epsilon: float
) -> Tensor:
    """Bring the singular values of matrices near 1 by Newton-Schulz iterations.

    Source: Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024.

    Args:
        matrices: `(S, rows, columns)`, floating.
        coefficients: a, b and c of X <- a X + (b X X^T + c (X X^T)^2) X.
        steps: Iterations.
        epsilon: Lower bound of the norm that a matrix is divided by.

    Returns:
        A tensor of the shape of `matrices`; bfloat16 on a GPU, otherwise of their dtype.
    """
    a, b, c = coefficients
    tall = matrices.shape[-2] > matrices.shape[-1]
    x_SMN = matrices.mT if tall else matrices
    if x_SMN.device.type != "cpu":
        x_SMN = x_SMN.bfloat16()
    x_SMN = x_SMN / torch.linalg.matrix_norm(x_SMN, keepdim=True).clamp(min=epsilon)
    for _ in range(steps):
        gram_SMM = x_SMN @ x_SMN.mT
        polynomial_SMM = torch.baddbmm(gram_SMM, gram_SMM, gram_SMM, beta=b, alpha=c)
        x_SMN = torch.baddbmm(x_SMN, polynomial_SMM, x_SMN, beta=a)
    return x_SMN.mT if tall else x_SMN
