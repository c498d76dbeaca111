"""Fitting a flow to states, over the Gaussian that it has to beat.

States form clusters, and a flow does not tear one Gaussian into clusters: it starts from a mixture,
fitted behind the fresh flow, and keeps a step only if held-out states confirm it (ADR 22).

Likelihood alone does not make samples look like states: in 128 dimensions a flow may gain a nat
per dimension and still draw all its samples where no state is, because correcting them is worth
only a few nats in total (Theis et al., "A note on the evaluation of generative models", 2016,
section 3.2). So the energy distance between samples and states is part of the loss (ADR 11), on
held-out states too.

Every batch gets fresh noise: the flow is fitted to the density of noisy states and not to one
draw of it, which is worth several times as many states (ADR 4).

Shape legend: N states, B states of a batch, H half a batch, D dimensions.
"""

import copy
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from torch import Tensor, nn

from enigma.density.mixture import GaussianMixture
from enigma.jacobian_logdet import EnigmaFlow
from pipelines.base.errors import GateError
from pipelines.base.run_stage import progress
from pipelines.flow.energy import energy_distance
from pipelines.flow.gaussian import Gaussian
from pipelines.flow.mixture import fit_mixture
from pipelines.flow.state_flow import StateFlow, base_points, in_batches
from pipelines.params import MixtureParams, TrainFlowParams


@dataclass(frozen=True)
class Evaluation:
    """One row of the history, in nats per dimension of the space before whitening.

    Args:
        step: Optimiser steps so far.
        train_nll_nats_per_dim: On about as many training states as there are held-out ones.
        validation_nll_nats_per_dim: On the held-out states.
        validation_loss_nats_per_dim: The same, and the weighted energy distance between the
            held-out states and as many samples.
    """

    step: int
    train_nll_nats_per_dim: float
    validation_nll_nats_per_dim: float
    validation_loss_nats_per_dim: float


@dataclass
class Fit:
    """The course of a fit.

    Args:
        history: Evaluations in order; the first is before the first step.
        weights: The weights at the best evaluation.
    """

    history: list[Evaluation] = field(default_factory=list)
    weights: dict[str, Tensor] = field(default_factory=dict)

    @property
    def best(self) -> Evaluation:
        """The evaluation with the lowest held-out loss, the earliest in a tie."""
        return min(self.history, key=lambda row: row.validation_loss_nats_per_dim)

    @property
    def evaluations_since_best(self) -> int:
        """Number of evaluations after the best one."""
        return len(self.history) - 1 - self.history.index(self.best)

    def add(self, row: Evaluation, flow: EnigmaFlow) -> None:
        """Add an evaluation; keep a copy of the weights if it is the best."""
        self.history.append(row)
        if self.best is row:
            self.weights = copy.deepcopy(flow.state_dict())


def fit_state_flow(
    train_ND: Tensor,
    validation_ND: Tensor,
    *,
    params: TrainFlowParams,
    device: torch.device,
    on_evaluation: Callable[[Evaluation], None],
) -> tuple[StateFlow, Fit]:
    """Fit the Gaussian of the states, a mixture in its coordinates, and the flow between them.

    Args:
        train_ND: (N, D) float32 states without noise.
        validation_ND: (N, D) float32 states with noise.
        params: The recipe.
        device: Where the flow is trained.
        on_evaluation: Called with each row of the history.

    Returns:
        The flow in evaluation mode, and the course of the fit.

    Raises:
        GateError: `finite_flow_loss`, if a loss, held-out too, or a gradient is not finite.
        UserError: If there are too few states for a covariance.
    """
    gaussian = Gaussian.fit(train_ND, noise_std=params.noise_std)
    torch.manual_seed(params.seed)
    flow = EnigmaFlow.build(
        train_ND.shape[1],
        params.num_blocks,
        coupling=params.coupling,
        hidden_channels=params.hidden_channels,
        # The axes of whitened states have no meaning of their own.
        axes_matter=False,
        seed=params.seed,
    )
    if params.mixture is not None:
        flow.prior = _mixture_behind(StateFlow(flow, gaussian), train_ND, params.mixture, params)
        steps, rate = params.mixture.steps, params.mixture.learning_rate
        params = params.model_copy(update={"steps": steps, "learning_rate": rate})
    flow.to(device)
    result = fit(
        flow, gaussian, train_ND, validation_ND, params=params, on_evaluation=on_evaluation
    )
    return StateFlow(flow.eval(), gaussian), result


def _mixture_behind(
    state_flow: StateFlow, train_ND: Tensor, mixture: MixtureParams, params: TrainFlowParams
) -> GaussianMixture:
    """Fit a mixture to where a fresh flow, which is still affine, puts states and their noise."""
    points_ND, _ = state_flow.to_base(train_ND)
    mean_1D = state_flow.gaussian.mean[None]
    moved_DD = mean_1D + params.noise_std * torch.eye(mean_1D.shape[1])
    noise_DD = state_flow.to_base(moved_DD)[0] - state_flow.to_base(mean_1D)[0]
    return fit_mixture(points_ND, noise_DD.T @ noise_DD, mixture, seed=params.seed)


def fit(
    flow: EnigmaFlow,
    gaussian: Gaussian,
    train_ND: Tensor,
    validation_ND: Tensor,
    *,
    params: TrainFlowParams,
    on_evaluation: Callable[[Evaluation], None],
) -> Fit:
    """Train with AdamW, a cosine schedule, clipping and early stopping on the held-out loss.

    Args:
        flow: Trained in place; it ends with the best weights, not with the last.
        gaussian: Whitens the states for the flow.
        train_ND: (N, D) float32 states without noise.
        validation_ND: (N, D) float32 states with noise.
        params: The recipe.
        on_evaluation: Called with each row of the history.

    Returns:
        The history and the best weights.

    Raises:
        GateError: `finite_flow_loss`, if a loss, held-out too, or a gradient is not finite.
    """
    optimiser = torch.optim.AdamW(
        flow.parameters(), lr=params.learning_rate, weight_decay=params.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, T_max=params.steps)
    batches = _batches(gaussian, train_ND, params)
    held_out_ND = gaussian.whiten(validation_ND).float()
    seen_ND = torch.cat(list(islice(batches, math.ceil(len(held_out_ND) / params.batch_size))))
    base = torch.Generator().manual_seed(params.seed)
    result = Fit()

    def evaluate(step: int) -> None:
        seen, held_out = (_nll_nats_per_dim(flow, gaussian, x) for x in (seen_ND, held_out_ND))
        distance = 0.0
        if params.energy_weight:
            sampled_ND = StateFlow(flow, gaussian).sample(len(held_out_ND), seed=params.seed)
            white_ND = gaussian.whiten(sampled_ND)
            distance = float(energy_distance(held_out_ND.double(), white_ND))
        row = Evaluation(step, seen, held_out, held_out + params.energy_weight * distance)
        _check_finite(row.validation_loss_nats_per_dim, f"a held-out loss at step {step}")
        result.add(row, flow)
        on_evaluation(row)

    evaluate(0)
    for step in progress(range(1, params.steps + 1), total=params.steps, unit="step", label="flow"):
        white_BD = next(batches).to(flow.scale.device)
        loss = loss_nats(flow, white_BD, base, params.energy_weight)
        _step(flow, loss, optimiser, step, params.max_gradient_norm)
        schedule.step()
        if step % params.evaluate_every_steps == 0 or step == params.steps:
            evaluate(step)
            if result.evaluations_since_best >= params.early_stopping_patience:
                break
    flow.load_state_dict(result.weights)
    return result


def _batches(gaussian: Gaussian, train_ND: Tensor, params: TrainFlowParams) -> Iterator[Tensor]:
    """Yield whitened states with fresh noise, (B, D) float32, endlessly."""
    generator = torch.Generator().manual_seed(params.seed)
    white_ND = gaussian.whiten(train_ND).float()
    num_dims = white_ND.shape[1]
    noise_DD = gaussian.whiten_difference(params.noise_std * torch.eye(num_dims)).float()
    while True:
        rows_B = torch.randint(len(white_ND), (params.batch_size,), generator=generator)
        noise_BD = torch.randn(params.batch_size, num_dims, generator=generator) @ noise_DD
        yield white_ND[rows_B] + noise_BD


def _nll_nats_per_dim(flow: EnigmaFlow, gaussian: Gaussian, white_ND: Tensor) -> float:
    """Return the mean negative log-likelihood in nats per dimension of the original space."""
    was_training = flow.training
    flow.eval()
    log_prob = in_batches(flow, flow.log_prob, white_ND)
    total = sum(float(log_prob_B.double().sum()) for log_prob_B in log_prob)
    flow.train(was_training)
    return (gaussian.log_det - total / len(white_ND)) / white_ND.shape[1]


def loss_nats(
    flow: EnigmaFlow, white_BD: Tensor, base: torch.Generator, energy_weight: float
) -> Tensor:
    """Return the loss that `fit` minimises, a scalar in nats.

    Args:
        flow: The flow.
        white_BD: (B, D) whitened states with noise, on the flow's device.
        base: CPU generator of the samples' base points.
        energy_weight: Nats per dimension per unit of energy distance; 0 for likelihood alone.
    """
    nll_nats: Tensor = -flow.log_prob(white_BD).mean()
    if not energy_weight:
        return nll_nats
    # Half as many samples as states are enough, and an inverse pass is not free.
    sampled_HD, _ = flow.inverse(base_points(flow, len(white_BD) // 2, base))
    distance = energy_distance(white_BD[: len(sampled_HD)], sampled_HD)
    return nll_nats + energy_weight * white_BD.shape[1] * distance


def _step(
    flow: EnigmaFlow,
    loss: Tensor,
    optimiser: torch.optim.Optimizer,
    step: int,
    max_gradient_norm: float,
) -> None:
    optimiser.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    norm = nn.utils.clip_grad_norm_(flow.parameters(), max_gradient_norm)
    _check_finite(loss.item(), f"a loss at step {step}")
    _check_finite(norm.item(), f"a norm of the gradient at step {step}")
    optimiser.step()


def _check_finite(value: float, what: str) -> None:
    if not math.isfinite(value):
        raise GateError(
            "finite_flow_loss",
            f"expected a finite number, got {value} as {what}",
            "lower train_flow.learning_rate and that of train_flow.mixture in params.yaml",
        )
