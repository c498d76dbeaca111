"""Fitting a flow to whitened states by maximum likelihood.

Shape legend: N states, D dimensions.
"""

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from enigma.jacobian_logdet import EnigmaFlow
from pipelines.errors import GateError
from pipelines.params import TrainFlowParams
from pipelines.stage import progress

EVALUATION_BATCH = 1024


@dataclass(frozen=True)
class Evaluation:
    """One row of the history; nats a dimension, in the space the states came in.

    Args:
        step: Optimiser steps done.
        train_nll_nats_per_dim: On as many train states as there are held-out ones.
        validation_nll_nats_per_dim: On the held-out states.
    """

    step: int
    train_nll_nats_per_dim: float
    validation_nll_nats_per_dim: float


@dataclass(frozen=True)
class Fit:
    """What came of a fit; the flow holds the weights of `best`.

    Args:
        history: Evaluations in order; the first is before the first step.
        best: The evaluation with the lowest held-out likelihood.
        steps: Optimiser steps done.
    """

    history: list[Evaluation]
    best: Evaluation
    steps: int


def fit(
    flow: EnigmaFlow,
    train_ND: Tensor,
    validation_ND: Tensor,
    *,
    log_det: float,
    params: TrainFlowParams,
    on_evaluation: Callable[[Evaluation], None],
) -> Fit:
    """Train with AdamW, a cosine schedule, clipping and early stopping.

    Args:
        flow: Trained in place; it ends with the best weights, not with the last.
        train_ND: (N, D) float32, whitened.
        validation_ND: (N, D) float32, whitened by the same map.
        log_det: Log-determinant of the map back to the original space, in nats.
        params: The recipe.
        on_evaluation: Called with each row of the history.

    Returns:
        The history, and which evaluation was the best.

    Raises:
        GateError: `finite_flow_loss`, if a loss or a gradient is not finite.
    """
    optimiser = torch.optim.AdamW(
        flow.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=params.steps)
    generator = torch.Generator().manual_seed(params.seed)
    same_size_ND = train_ND[: len(validation_ND)]
    history: list[Evaluation] = []
    best_weights = copy.deepcopy(flow.state_dict())

    def evaluate(step: int) -> bool:
        """Add a row to the history; True while it pays to go on."""
        row = Evaluation(
            step,
            nll_nats_per_dim(flow, same_size_ND, log_det=log_det),
            nll_nats_per_dim(flow, validation_ND, log_det=log_det),
        )
        history.append(row)
        on_evaluation(row)
        best = best_of(history)
        if best is row:
            best_weights.update(copy.deepcopy(flow.state_dict()))
        return len(history) - 1 - history.index(best) < params.early_stopping_patience

    evaluate(0)
    done = 0
    for step in progress(range(1, params.steps + 1), total=params.steps, unit="step", label="flow"):
        rows_B = torch.randint(len(train_ND), (params.batch_size,), generator=generator)
        _step(flow, train_ND[rows_B.to(train_ND.device)], optimiser, step, params.max_gradient_norm)
        schedule.step()
        done = step
        if (step % params.evaluate_every_steps == 0 or step == params.steps) and not evaluate(step):
            break
    flow.load_state_dict(best_weights)
    return Fit(history, best_of(history), done)


def best_of(history: list[Evaluation]) -> Evaluation:
    """The row with the lowest held-out loss; the earlier of two equals."""
    return min(history, key=lambda row: row.validation_nll_nats_per_dim)


def nll_nats_per_dim(flow: EnigmaFlow, white_ND: Tensor, *, log_det: float) -> float:
    """Mean negative log-likelihood, in nats a dimension of the original space."""
    was_training = flow.training
    flow.eval()
    with torch.no_grad():
        total = math.fsum(
            float(flow.log_prob(white_ND[start : start + EVALUATION_BATCH]).double().sum())
            for start in range(0, len(white_ND), EVALUATION_BATCH)
        )
    flow.train(was_training)
    return (log_det - total / len(white_ND)) / white_ND.shape[1]


def _step(
    flow: EnigmaFlow,
    batch_BD: Tensor,
    optimiser: torch.optim.Optimizer,
    step: int,
    max_gradient_norm: float,
) -> None:
    loss_nats = -flow.log_prob(batch_BD).mean()
    optimiser.zero_grad(set_to_none=True)
    loss_nats.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(flow.parameters(), max_gradient_norm)
    if not (math.isfinite(loss_nats.item()) and math.isfinite(norm.item())):
        raise GateError(
            "finite_flow_loss",
            f"at step {step} the loss was {loss_nats.item()} nats and the gradient norm "
            f"{norm.item()}",
            "lower train_flow.learning_rate in params.yaml",
        )
    optimiser.step()
