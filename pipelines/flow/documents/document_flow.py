"""How typical a document is of the language model's training text.

A likelihood alone misranks: text simpler than the training text is more likely than it (Nalisnick
et al., "Do Deep Generative Models Know What They Don't Know?", 2019). So four deviations of a
document count together. Three are from held-out passages, where both too high and too low are odd
(as in Nalisnick et al., "Detecting Out-of-Distribution Inputs to Deep Generative Models Using
Typicality", 2019): of the density of its mean state under a flow, which depends on its topic and
how much it varies; of the language model's loss, which depends on the order of its tokens; and of
its peak, the loss of the tenth of the tokens that were least expected, such as a misread character
or a foreign one. The fourth is of its length: a document shorter than a passage is compared with
beginnings of passages, and is as odd for its length as such documents are rare
(`pipelines.flow.documents.typical`).

Shape legend: P passages, D dimensions, K lengths.
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
from pipelines.flow.documents.passages import (
    Floats,
    Passages,
    Reading,
    mean_states,
    read_beginnings,
)
from pipelines.flow.documents.typical import Typical, TypicalLength, lengths_up_to
from pipelines.flow.fit import Evaluation, Fit, fit_state_flow
from pipelines.flow.hidden_states import with_noise
from pipelines.flow.state_flow import StateFlow
from pipelines.params import TrainFlowParams

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM

DIRECTORY = "documents"
TYPICAL_FILE = "typical.json"
NOISE_STD = 0.01
"""Added to mean states of RMS up to 1, whose narrowest axes are about as wide."""


@dataclass(frozen=True)
class Scores:
    """Scores of documents, one value per document.

    Args:
        atypicality: How far from typical, in standard deviations of the four together; below 3
            for most normal documents, unbounded above.
        state_deviation: Deviation of -log density of the mean state, in standard deviations.
        loss_deviation: Deviation of the language model's loss, in standard deviations.
        peak_deviation: Deviation of the loss of the least expected tenth of the tokens, in standard
            deviations.
        length_deviation: How far shorter than a typical document, in standard deviations; 0 from
            a whole passage on.
        likelihood_ratio_nats_per_dim: Log density of the mean state under the flow less that
            under the Gaussian: what the flow has learned beyond mean and covariance.
        loss_nats: The language model's loss per token.
    """

    atypicality: Floats
    state_deviation: Floats
    loss_deviation: Floats
    peak_deviation: Floats
    length_deviation: Floats
    likelihood_ratio_nats_per_dim: Floats
    loss_nats: Floats


@dataclass(frozen=True)
class DocumentFlow:
    """A flow over mean states, and the typical values of held-out passages.

    Args:
        flow: Fitted to states with `NOISE_STD` of noise; documents are scored without noise.
        state: Typical -log density in nats per dimension.
        loss: Typical loss of the language model in nats per token.
        peak: Typical loss of the least expected tenth of the tokens.
        length: Typical number of tokens.
    """

    flow: StateFlow
    state: Typical
    loss: Typical
    peak: Typical
    length: TypicalLength

    def score(self, passages: Passages, reading: Reading) -> Scores:
        """Score documents.

        Args:
            passages: The documents.
            reading: States and losses of them, from the language model under this flow.
        """
        num_dims = reading.states.shape[1]
        flow_P = self.flow.log_prob(reading.states).numpy() / num_dims
        gaussian_P = self.flow.gaussian.log_prob(reading.states).numpy() / num_dims
        tokens_P, mean = passages.num_tokens, passages.mean_by_document
        state = mean(self.state.deviations(-flow_P, tokens_P))
        loss = mean(self.loss.deviations(reading.loss_nats, tokens_P))
        peak = mean(self.peak.deviations(reading.peak_nats, tokens_P))
        length = mean(self.length.deviations(tokens_P))
        together = np.sqrt(state**2 + loss**2 + peak**2 + length**2)
        ratio, loss_nats = mean(flow_P - gaussian_P), mean(reading.loss_nats)
        return Scores(together, state, loss, peak, length, ratio, loss_nats)

    def save(self, directory: Path) -> None:
        """Write the flow and the typical values."""
        self.flow.save(directory)
        typical = {
            "state": asdict(self.state),
            "loss": asdict(self.loss),
            "peak": asdict(self.peak),
            "length": asdict(self.length),
        }
        write_json(directory / TYPICAL_FILE, typical)

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> "DocumentFlow":
        """Read what `save` wrote.

        Raises:
            UserError: If a file of the flow is missing, or was made before all of this counted.
        """
        flow = StateFlow.load(directory, device)
        typical = read_json(directory / TYPICAL_FILE)
        missing = {"state", "loss", "peak", "length"} - typical.keys()
        if missing:
            raise UserError(
                f"{directory / TYPICAL_FILE}: expected what is typical of a document, got a file "
                f"without {', '.join(sorted(missing))}, of an earlier version",
                "run `dvc repro train_flow`, then register and promote it",
            )
        return cls(
            flow,
            Typical(**typical["state"]),
            Typical(**typical["loss"]),
            Typical(**typical["peak"]),
            TypicalLength(**typical["length"]),
        )


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
    readers = {split: ShardReader(shards, split) for split in ("train", "validation")}
    train_PD = mean_states(model, Passages.of_split(readers["train"], params.passages))
    lengths = lengths_up_to(readers["validation"].sequence_length)
    held_out = read_beginnings(
        model, Passages.of_split(readers["validation"], params.passages), lengths
    )
    noisy_PD = with_noise(
        held_out[-1].states, noise_std=NOISE_STD, split="validation passages", seed=params.seed
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
    nll_KP = np.stack([-state_flow.log_prob(read.states).numpy() for read in held_out])
    found = DocumentFlow(
        state_flow,
        Typical.of(lengths, nll_KP / train_PD.shape[1]),
        Typical.of(lengths, np.stack([read.loss_nats for read in held_out])),
        Typical.of(lengths, np.stack([read.peak_nats for read in held_out])),
        TypicalLength.of(lengths[-1], readers["train"].document_lengths()),
    )
    return found, result
