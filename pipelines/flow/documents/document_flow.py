"""How typical a document is of the language model's training text.

A likelihood alone misranks: text simpler than the training text is more likely than it (Nalisnick
et al., "Do Deep Generative Models Know What They Don't Know?", 2019). So five deviations of a
document count together. Four are from held-out passages. In three both too high and too low are odd
(as in Nalisnick et al., "Detecting Out-of-Distribution Inputs to Deep Generative Models Using
Typicality", 2019): of the density of its mean state under a flow, which depends on its topic and
how much it varies; of the language model's loss, which depends on the order of its tokens; and of
its peak, the loss of the tenth of the tokens that were least expected, such as a misread character
or a foreign one. The next is of the loss less that of the same sentences in other orders, where
only too high is odd: then they do not follow one another
(`pipelines.flow.documents.sentence_order`). The last is of its length: a document shorter than a
passage is compared with beginnings of passages, and is as odd for its length as such documents are
rare (`pipelines.flow.documents.typical`).

Shape legend: P passages, D dimensions, K lengths.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from pipelines.base.artifacts import read_json, write_json
from pipelines.base.errors import UserError
from pipelines.data.shards import ShardReader
from pipelines.data.text.shard_vocabulary import ShardVocabulary
from pipelines.flow.documents.passages import (
    Floats,
    Passages,
    Reading,
    mean_states,
    read_beginnings,
)
from pipelines.flow.documents.sentence_order import SentenceEnds
from pipelines.flow.documents.typical import Counts, Typical, TypicalLength, lengths_up_to
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
MIN_ORDERED = 20
"""Passages with sentences, for a twentieth of them to be one."""


@dataclass(frozen=True)
class Scores:
    """Scores of documents, one value per document.

    Args:
        atypicality: How far from typical, in standard deviations of the five together; below 3
            for most normal documents, unbounded above.
        state_deviation: Deviation of -log density of the mean state, in standard deviations.
        loss_deviation: Deviation of the language model's loss, in standard deviations.
        peak_deviation: Deviation of the loss of the least expected tenth of the tokens, in standard
            deviations.
        order_deviation: How much less its sentences follow one another than is typical, in standard
            deviations; 0 where they do as usual or better, or are too few.
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
    order_deviation: Floats
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
        order: Typical loss less that of the same sentences in other orders; None where too few
            held-out passages have sentences, and then it does not count.
        length: Typical number of tokens.
        ends: Where sentences end; nowhere if their order does not count.
    """

    flow: StateFlow
    state: Typical
    loss: Typical
    peak: Typical
    order: Typical | None
    length: TypicalLength
    ends: SentenceEnds

    def score(self, passages: Passages, reading: Reading) -> Scores:
        """Score documents.

        Args:
            passages: The documents.
            reading: States and losses of them, from the language model under this flow, read with
                the `ends` of this flow.
        """
        num_dims = reading.states.shape[1]
        flow_P = self.flow.log_prob(reading.states).numpy() / num_dims
        gaussian_P = self.flow.gaussian.log_prob(reading.states).numpy() / num_dims
        tokens_P, mean = passages.num_tokens, passages.mean_by_document
        state = mean(self.state.deviations(-flow_P, tokens_P))
        loss = mean(self.loss.deviations(reading.loss_nats, tokens_P))
        peak = mean(self.peak.deviations(reading.peak_nats, tokens_P))
        order = mean(self._order_deviations(reading.order_nats, tokens_P)).clip(min=0)
        length = mean(self.length.deviations(tokens_P))
        # Fourth powers: one deviation that is far out counts for more than several that are not.
        together = sum(each**4 for each in (state, loss, peak, order, length)) ** 0.25
        ratio, loss_nats = mean(flow_P - gaussian_P), mean(reading.loss_nats)
        return Scores(together, state, loss, peak, order, length, ratio, loss_nats)

    def _order_deviations(self, order_P: Floats, tokens_P: Counts) -> Floats:
        if self.order is None:
            return np.zeros(len(order_P))
        return np.nan_to_num(self.order.deviations(order_P, tokens_P))

    def save(self, directory: Path) -> None:
        """Write the flow and the typical values."""
        self.flow.save(directory)
        typical = {
            "state": asdict(self.state),
            "loss": asdict(self.loss),
            "peak": asdict(self.peak),
            "order": self.order and asdict(self.order),
            "length": asdict(self.length),
            "ends": asdict(self.ends),
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
        missing = {"state", "loss", "peak", "order", "length", "ends"} - typical.keys()
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
            typical["order"] and Typical(**typical["order"]),
            TypicalLength(**typical["length"]),
            SentenceEnds(**typical["ends"]),
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
    ends = SentenceEnds.of_tokens(ShardVocabulary.read(shards).tokens)
    held_out = read_beginnings(
        model, Passages.of_split(readers["validation"], params.passages), ends, lengths
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
    num_dims = train_PD.shape[1]
    order = _typical_order(lengths, held_out)
    found = DocumentFlow(
        state_flow,
        Typical.of(
            lengths, [-state_flow.log_prob(read.states).numpy() / num_dims for read in held_out]
        ),
        Typical.of(lengths, [read.loss_nats for read in held_out]),
        Typical.of(lengths, [read.peak_nats for read in held_out]),
        order,
        TypicalLength.of(lengths[-1], readers["train"].document_lengths()),
        ends if order is not None else SentenceEnds([], []),
    )
    return found, result


def _typical_order(lengths: Sequence[int], held_out: Sequence[Reading]) -> Typical | None:
    """Measure the lengths at which enough held-out passages have sentences."""
    values_KP = [read.order_nats[np.isfinite(read.order_nats)] for read in held_out]
    enough = [k for k, values_P in enumerate(values_KP) if len(values_P) >= MIN_ORDERED]
    if not enough:
        return None
    return Typical.of([lengths[k] for k in enough], [values_KP[k] for k in enough])
