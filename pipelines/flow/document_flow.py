"""How typical a document is of what the language model was trained on.

A likelihood alone misranks: what is simpler than the training text is likelier than it (Nalisnick
et al., "Do Deep Generative Models Know What They Don't Know?", 2019). So two figures of a document
are compared with those of held-out passages, and both too high and too low are odd (as in
Nalisnick et al., "Detecting Out-of-Distribution Inputs to Deep Generative Models Using
Typicality", 2019): the density of its mean state under a flow, which sees what a document is
about and how much it varies, and the language model's loss, which sees the order of its tokens.

Shape legend: P passages, D dimensions.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipelines.base.artifacts import read_json, write_json
from pipelines.base.errors import UserError
from pipelines.data.shards import ShardReader
from pipelines.flow.fit import Evaluation, Fit, fit_state_flow
from pipelines.flow.hidden_states import with_noise
from pipelines.flow.passages import Floats, Passages, Reading, mean_states, read_passages
from pipelines.flow.state_flow import StateFlow
from pipelines.params import TrainFlowParams

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM

DIRECTORY = "documents"
TYPICAL_FILE = "typical.json"
NOISE_STD = 0.01
"""Added to mean states of RMS up to 1; their narrowest axes are about as wide."""
NORMAL_SPREAD = 1.4826
"""Standard deviation of a normal distribution over its median absolute deviation."""


@dataclass(frozen=True)
class Typical:
    """Where a figure lies over held-out passages.

    Args:
        median: Its median.
        spread: Its median absolute deviation as a standard deviation.
    """

    median: float
    spread: float

    @classmethod
    def of(cls, values_P: Floats) -> "Typical":
        """Measure it.

        Raises:
            UserError: If more than half of the values are equal, so that there is no spread.
        """
        median = float(np.median(values_P))
        spread = NORMAL_SPREAD * float(np.median(np.abs(values_P - median)))
        if not spread > 0:
            raise UserError(
                f"expected held-out passages that differ, got {len(values_P)} of spread {spread}",
                "give the split `validation` more documents (params.yaml: clean.split)",
            )
        return cls(median, spread)

    def deviations(self, values: Floats) -> Floats:
        """How many spreads values lie from the median."""
        return (values - self.median) / self.spread


@dataclass(frozen=True)
class Scores:
    """One row per document.

    Args:
        atypicality: How far from typical, in standard deviations of both figures together;
            below 2 for most normal documents, without a limit above.
        state_deviation: Of -log density of the mean state, in standard deviations.
        loss_deviation: Of the language model's loss, in standard deviations.
        likelihood_ratio_nats_per_dim: How much likelier the flow finds the mean state than the
            Gaussian does: what the flow has learned beyond mean and covariance.
        loss_nats: The language model's loss of a token.
    """

    atypicality: Floats
    state_deviation: Floats
    loss_deviation: Floats
    likelihood_ratio_nats_per_dim: Floats
    loss_nats: Floats


@dataclass(frozen=True)
class DocumentFlow:
    """A flow over mean states, and what is typical of held-out passages.

    Args:
        flow: Over states with `NOISE_STD` of noise; scored without.
        state: Of -log density in nats per dimension.
        loss: Of the language model's loss in nats.
    """

    flow: StateFlow
    state: Typical
    loss: Typical

    def score(self, passages: Passages, reading: Reading) -> Scores:
        """Score documents.

        Args:
            passages: The documents.
            reading: What the language model under this flow makes of them.
        """
        num_dims = reading.states.shape[1]
        flow_P = self.flow.log_prob(reading.states).numpy() / num_dims
        gaussian_P = self.flow.gaussian.log_prob(reading.states).numpy() / num_dims
        state = self.state.deviations(passages.mean_by_document(-flow_P))
        loss_nats = passages.mean_by_document(reading.loss_nats)
        loss = self.loss.deviations(loss_nats)
        ratio = passages.mean_by_document(flow_P - gaussian_P)
        return Scores(np.hypot(state, loss), state, loss, ratio, loss_nats)

    def save(self, directory: Path) -> None:
        """Write it."""
        self.flow.save(directory)
        typical = {"state": asdict(self.state), "loss": asdict(self.loss)}
        write_json(directory / TYPICAL_FILE, typical)

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> "DocumentFlow":
        """Read what `save` wrote.

        Raises:
            UserError: If it is not there.
        """
        flow = StateFlow.load(directory, device)
        typical = read_json(directory / TYPICAL_FILE)
        return cls(flow, Typical(**typical["state"]), Typical(**typical["loss"]))


def fit_document_flow(
    model: "EnigmaForCausalLM",
    shards: Path,
    params: TrainFlowParams,
    on_evaluation: Callable[[Evaluation], None],
) -> tuple[DocumentFlow, Fit]:
    """Fit a flow to the mean states of training passages.

    Args:
        model: The language model in evaluation mode.
        shards: The final shards.
        params: The recipe; `passages` says how many are read.
        on_evaluation: Called with each row of the history.

    Returns:
        The flow with what is typical of validation passages, and the course of the fit.

    Raises:
        UserError: If there are too few passages for a covariance.
    """
    train, validation = (
        Passages.of_split(ShardReader(shards, split), params.passages)
        for split in ("train", "validation")
    )
    train_PD = mean_states(model, train)
    held_out = read_passages(model, validation)
    noisy_PD = with_noise(
        held_out.states, noise_std=NOISE_STD, split="validation passages", seed=params.seed
    )
    state_flow, result = fit_state_flow(
        train_PD,
        noisy_PD,
        # It scores; what it draws is looked at and not used.
        params=params.model_copy(update={"noise_std": NOISE_STD, "energy_weight": 0.0}),
        device=model.device,
        on_evaluation=on_evaluation,
    )
    nll_P = -state_flow.log_prob(held_out.states).numpy() / held_out.states.shape[1]
    found = DocumentFlow(state_flow, Typical.of(nll_P), Typical.of(held_out.loss_nats))
    return found, result
