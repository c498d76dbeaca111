"""How typical a document is of the language model's training text.

A likelihood alone misranks: text simpler than the training text is more likely than it (Nalisnick
et al., "Do Deep Generative Models Know What They Don't Know?", 2019). So two values of a document
are compared with those of held-out passages, and both too high and too low are odd (as in
Nalisnick et al., "Detecting Out-of-Distribution Inputs to Deep Generative Models Using
Typicality", 2019): the density of its mean state under a flow, which depends on its topic and how
much it varies, and the language model's loss, which depends on the order of its tokens.

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
"""Added to mean states of RMS up to 1, whose narrowest axes are about as wide."""
NORMAL_SPREAD = 1.4826
"""Ratio of standard deviation to median absolute deviation in a normal distribution."""


@dataclass(frozen=True)
class Typical:
    """The typical range of a value over held-out passages.

    Args:
        median: Its median.
        spread: Its median absolute deviation, scaled to a standard deviation.
    """

    median: float
    spread: float

    @classmethod
    def of(cls, values_P: Floats) -> "Typical":
        """Measure it.

        Raises:
            UserError: If more than half of the values are equal: there is no spread then.
        """
        median = float(np.median(values_P))
        spread = NORMAL_SPREAD * float(np.median(np.abs(values_P - median)))
        if not spread > 0:
            raise UserError(
                f"expected held-out passages that differ, got {len(values_P)} with a spread of "
                f"{spread}",
                "give the split `validation` more documents (params.yaml: clean.split)",
            )
        return cls(median, spread)

    def deviations(self, values: Floats) -> Floats:
        """Return the distance of values from the median, in spreads."""
        return (values - self.median) / self.spread


@dataclass(frozen=True)
class Scores:
    """Scores of documents, one value per document.

    Args:
        atypicality: How far from typical, in standard deviations of both values together;
            below 2 for most normal documents, unbounded above.
        state_deviation: Deviation of -log density of the mean state, in standard deviations.
        loss_deviation: Deviation of the language model's loss, in standard deviations.
        likelihood_ratio_nats_per_dim: Log density of the mean state under the flow less that
            under the Gaussian: what the flow has learned beyond mean and covariance.
        loss_nats: The language model's loss per token.
    """

    atypicality: Floats
    state_deviation: Floats
    loss_deviation: Floats
    likelihood_ratio_nats_per_dim: Floats
    loss_nats: Floats


@dataclass(frozen=True)
class DocumentFlow:
    """A flow over mean states, and the typical values of held-out passages.

    Args:
        flow: Fitted to states with `NOISE_STD` of noise; documents are scored without noise.
        state: Typical -log density in nats per dimension.
        loss: Typical loss of the language model in nats per token.
    """

    flow: StateFlow
    state: Typical
    loss: Typical

    def score(self, passages: Passages, reading: Reading) -> Scores:
        """Score documents.

        Args:
            passages: The documents.
            reading: States and losses of them, from the language model under this flow.
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
        """Write the flow and the typical values."""
        self.flow.save(directory)
        typical = {"state": asdict(self.state), "loss": asdict(self.loss)}
        write_json(directory / TYPICAL_FILE, typical)

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> "DocumentFlow":
        """Read what `save` wrote.

        Raises:
            UserError: If a file of the flow is missing.
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
        params: The recipe; `passages` is the number of passages to read.
        on_evaluation: Called with each row of the history.

    Returns:
        The flow with the typical values of validation passages, and the course of the fit.

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
        # This flow is for scoring; its samples are shown and not used. Means have no clusters.
        params=params.model_copy(
            update={"noise_std": NOISE_STD, "energy_weight": 0.0, "mixture": None}
        ),
        device=model.device,
        on_evaluation=on_evaluation,
    )
    nll_P = -state_flow.log_prob(held_out.states).numpy() / held_out.states.shape[1]
    found = DocumentFlow(state_flow, Typical.of(nll_P), Typical.of(held_out.loss_nats))
    return found, result
