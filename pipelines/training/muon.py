"""Muon that batches matrices of one shape, also for processors without bfloat16.

Shape legend: S matrices of one shape, M rows, N columns, M <= N.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed
from torch import Tensor
from torch.nn import functional


class Muon(torch.optim.Muon):
    """`torch.optim.Muon`, computed for all matrices of one shape at once.

    torch's version orthogonalises one matrix after the other, always in bfloat16. On a processor
    without instructions for it that took three times as long as the rest of a training step
    (docs/LOG.md). Here a CPU uses the dtype of the parameters, and every rank of a process group
    does a share of the matrices. Groups, state and arguments are torch's own, except
    `adjust_lr_fn`, which is always `match_rms_adamw`.

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
            parameters = [p for p in group["params"] if p.grad is not None]
            if parameters:
                self._update(parameters, group)
        return loss

    def _update(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        updates = _orthogonalised(self._directions(parameters, group), group)
        lr = group["lr"]
        # Liu et al., "Muon is scalable for LLM training", 2025, equation 4.
        # torch has no public names for its operations on lists, one launch for all of a list.
        torch._foreach_mul_(updates, [-lr * 0.2 * max(p.shape) ** 0.5 for p in parameters])
        torch._foreach_mul_(parameters, 1 - lr * group["weight_decay"])
        torch._foreach_add_(parameters, updates)

    def _directions(self, parameters: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
        """Update the momenta with the gradients; return them with Nesterov's look-ahead."""
        gradients = [p.grad for p in parameters if p.grad is not None]
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if "momentum_buffer" not in self.state[parameter]:
                self.state[parameter]["momentum_buffer"] = torch.zeros_like(gradient)
        momenta = [self.state[parameter]["momentum_buffer"] for parameter in parameters]
        torch._foreach_lerp_(momenta, gradients, 1 - group["momentum"])
        return list(torch._foreach_lerp(gradients, momenta, group["momentum"]))  # noqa: SLF001


def _orthogonalised(directions: list[Tensor], group: dict[str, Any]) -> list[Tensor]:
    """Orthogonalise matrices of any shapes, those of one shape at once."""
    of_one_shape = defaultdict(list)
    for number, direction in enumerate(directions):
        of_one_shape[direction.shape, direction.device, direction.dtype].append(number)
    # What the ranks have done of one shape travels while they work on the next.
    started = [
        _start(torch.stack([directions[number] for number in numbers]), group)
        for numbers in of_one_shape.values()
    ]
    updates = list(directions)
    for numbers, (updates_SMN, arrival) in zip(of_one_shape.values(), started, strict=True):
        if arrival is not None:
            arrival.wait()
        cast_SMN = updates_SMN.to(directions[numbers[0]].dtype)
        for number, update in zip(numbers, cast_SMN[: len(numbers)].unbind(), strict=True):
            updates[number] = update
    return updates


def _start(
    directions_SMN: Tensor, group: dict[str, Any]
) -> tuple[Tensor, torch.distributed.Work | None]:
    """Orthogonalise this rank's share of the matrices, and begin to gather what others did.

    All ranks have the same momenta, and the state is not divided: a checkpoint is the same for
    any number of ranks.

    Returns:
        The results of at least S matrices, and what to wait for before they are read.
    """
    settings = group["ns_coefficients"], group["ns_steps"], group["eps"]
    ranks = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if ranks == 1:
        return orthogonalise(directions_SMN, *settings), None
    share = -(-len(directions_SMN) // ranks)
    # Zero matrices stay zero.
    missing = ranks * share - len(directions_SMN)
    padded_SMN = functional.pad(directions_SMN, (0, 0, 0, 0, 0, missing))
    mine_SMN = padded_SMN.tensor_split(ranks)[torch.distributed.get_rank()]
    update_SMN = orthogonalise(mine_SMN, *settings).contiguous()
    all_SMN = update_SMN.new_empty(padded_SMN.shape)
    new = hasattr(torch.distributed, "all_gather_single")  # not in torch 2.11
    name = "all_gather_single" if new else "all_gather_into_tensor"
    arrival = getattr(torch.distributed, name)(all_SMN, update_SMN, async_op=True)
    return all_SMN, arrival


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
