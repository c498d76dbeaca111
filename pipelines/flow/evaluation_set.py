"""The test states that flows are evaluated on, and the loss of a flow on each sequence.

Shape legend: N states, S sequences, D dimensions.
"""

import hashlib
import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pipelines.base.errors import UserError
from pipelines.data.shards import ShardReader
from pipelines.flow.hidden_states import Positions, collect_states, with_noise
from pipelines.flow.state_flow import StateFlow
from pipelines.language_model.losses import Losses, documents_of
from pipelines.params import SampleFlowParams

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM

SAMPLES_PER_STATE = 4
"""Two thousand draws of one distribution differ in energy distance by as much as two distributions
do (0.003 of 0.025 for the Gaussian of the demo), and the gate `samples` compares them."""
LEAST_SEQUENCES, LEAST_STATES = 2, 8
"""Real states are compared in halves that share no sequence, by classifiers of two folds."""


@dataclass(frozen=True)
class EvaluationSet:
    """States of the split `test`, with the noise that their density needs.

    Args:
        states: (N, D) float32, sequence by sequence.
        next_tokens: (N,) int64.
        positions: Where they were read.
        reader: The split.
        noise: What determines the noise.
    """

    states: Tensor
    next_tokens: Tensor
    positions: Positions
    reader: ShardReader
    noise: dict[str, float]

    @property
    def sha256(self) -> str:
        """Identifies the states by tokens, positions and noise, whatever the language model."""
        digest = hashlib.sha256(self.reader.gather(self.positions.sequences).tobytes())
        digest.update(self.positions.offsets.tobytes())
        digest.update(json.dumps(self.noise, sort_keys=True).encode())
        return digest.hexdigest()

    def log_likelihoods(self, state_flow: StateFlow) -> tuple[Tensor, Tensor]:
        """Return log densities in nats, (N,) under a flow and (N,) under its Gaussian."""
        return state_flow.log_prob(self.states), state_flow.gaussian.log_prob(self.states)

    def losses_of(self, flow_N: Tensor, gaussian_N: Tensor) -> Losses:
        """Return how much worse than its Gaussian a flow is on each sequence, in nats.

        The states of another language model have another scale, which shifts both densities
        alike. So flows are compared by their gain over the Gaussian of their own states.

        Args:
            flow_N: (N,) from `log_likelihoods`.
            gaussian_N: (N,) likewise.

        Returns:
            Losses whose units are the dimensions of the states.
        """
        loss_S = (gaussian_N - flow_N).view(len(self.positions.sequences), -1).sum(dim=1)
        dimensions = float(self.positions.offsets.shape[1] * self.states.shape[1])
        return Losses(
            documents_of(self.reader, self.positions.sequences),
            np.full(len(loss_S), dimensions),
            loss_S.numpy(),
        )


def read_evaluation_set(
    model: "EnigmaForCausalLM",
    reader: ShardReader,
    params: SampleFlowParams,
    *,
    noise_std: float,
    read_as: ShardReader | None = None,
) -> EvaluationSet:
    """Collect the test states that the parameters ask for.

    Args:
        model: The language model in evaluation mode.
        reader: The split `test` of the final shards.
        params: Number of states, and the seed.
        noise_std: The noise that the flow was fitted with.
        read_as: The same split in the ids of the model, if these are others.

    Raises:
        UserError: If there are too few states to compare two halves of them.
    """
    collected = collect_states(
        model,
        read_as or reader,
        states=params.samples // SAMPLES_PER_STATE,
        states_per_sequence=params.states_per_sequence,
        seed=params.seed,
    )
    sequences, states = len(collected.positions.sequences), len(collected.states)
    if sequences < LEAST_SEQUENCES or states < LEAST_STATES:
        raise UserError(
            f"expected at least {LEAST_STATES} test states of {LEAST_SEQUENCES} sequences, got "
            f"{states} of {sequences}",
            f"raise sample_flow.samples ({SAMPLES_PER_STATE} for each state), lower "
            "sample_flow.states_per_sequence, or use a larger test split",
        )
    return EvaluationSet(
        with_noise(collected.states, noise_std=noise_std, split="test", seed=params.seed),
        collected.next_tokens,
        collected.positions,
        reader,
        {"noise_std": noise_std, "seed": params.seed},
    )
