"""A walk from one state to another through the base of a flow.

A straight line would pass closer to the centre than any state lies (White, "Sampling Generative
Networks", 2016). Through the base of the flow the distance from the centre is kept.

Shape legend: K steps of a walk, D dimensions.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from pipelines.flow.state_flow import StateFlow

WALK_STEPS = 9


@dataclass(frozen=True)
class Walk:
    """The path between two states.

    Args:
        shares: (K,) float64, the share of the way: 0 is the first state, 1 the second.
        states: (K, D) float32, the path through the base of the flow.
        nll_nats_per_dim: (K,) negative log density on it.
        straight_nll_nats_per_dim: (K,) the same on the straight line between the states.
    """

    shares: Tensor
    states: Tensor
    nll_nats_per_dim: Tensor
    straight_nll_nats_per_dim: Tensor


def walk_between(flow: StateFlow, ends_2D: Tensor, steps: int = WALK_STEPS) -> Walk:
    """Walk from one state to another through the base of a flow.

    Args:
        flow: The flow.
        ends_2D: (2, D) float32.
        steps: Number of states, both ends included.
    """
    shares_K = torch.linspace(0, 1, steps, dtype=torch.float64)
    base_2D, _ = flow.to_base(ends_2D)
    states_KD = flow.from_base(slerp(base_2D[0], base_2D[1], shares_K))
    straight_KD = torch.lerp(ends_2D[0], ends_2D[1], shares_K[:, None].float())
    num_dims = ends_2D.shape[1]
    return Walk(
        shares_K,
        states_KD,
        -flow.log_prob(states_KD) / num_dims,
        -flow.log_prob(straight_KD) / num_dims,
    )


def slerp(start_D: Tensor, end_D: Tensor, shares_K: Tensor) -> Tensor:
    """Rotate one vector into another at constant speed; its length changes linearly.

    Args:
        start_D: (D,), not 0.
        end_D: (D,), not 0 and not opposite to `start_D`.
        shares_K: (K,) shares of the way.

    Returns:
        (K, D).
    """
    lengths_2 = torch.stack((start_D.norm(), end_D.norm()))
    start_unit_D, end_unit_D = start_D / lengths_2[0], end_D / lengths_2[1]
    angle = torch.arccos((start_unit_D @ end_unit_D).clamp(-1, 1))
    share_K1 = shares_K[:, None].to(start_D)
    if angle < 1e-6:
        direction_KD = torch.lerp(start_unit_D, end_unit_D, share_K1)
    else:
        turned_KD = (angle * (1 - share_K1)).sin() * start_unit_D
        direction_KD = (turned_KD + (angle * share_K1).sin() * end_unit_D) / angle.sin()
    return direction_KD * torch.lerp(lengths_2[0], lengths_2[1], share_K1)
