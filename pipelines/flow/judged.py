"""The test states that flows are judged on, and what a flow loses on each sequence of them.

Shape legend: N states, S sequences, D dimensions.
"""

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from torch import Tensor

from pipelines.data.shards import ShardReader
from pipelines.flow.hidden_states import Positions
from pipelines.flow.states import StateFlow, collect_states, with_noise
from pipelines.language_model.losses import Losses, documents_of
from pipelines.params import SampleFlowParams

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM


@dataclass(frozen=True)
class JudgedStates:
    """States of the split `test` with the noise that their density is defined with.

    Args:
        states: (N, D) float32, sequence after sequence.
        next_tokens: (N,) int64.
        positions: Where they were taken.
        reader: The split.
        noise: What decides about the noise.
    """

    states: Tensor
    next_tokens: Tensor
    positions: Positions
    reader: ShardReader
    noise: dict[str, float]

    @property
    def evaluation_set_sha256(self) -> str:
        """Names the states by tokens, places and noise, whatever the language model."""
        digest = hashlib.sha256(self.reader.gather(self.positions.sequences).tobytes())
        digest.update(self.positions.offsets.tobytes())
        digest.update(json.dumps(self.noise, sort_keys=True).encode())
        return digest.hexdigest()

    def log_likelihoods(self, state_flow: StateFlow) -> tuple[Tensor, Tensor]:
        """Log densities of the states in nats, (N,) by a flow and (N,) by its Gaussian."""
        return state_flow.log_prob(self.states), state_flow.gaussian.log_prob(self.states)

    def losses_of(self, flow_N: Tensor, gaussian_N: Tensor) -> Losses:
        """How much worse than the Gaussian a flow is, by sequence, in nats.

        States of another language model have another scale, which moves both densities
        alike: so flows are compared by what they gain over the Gaussian of their own states.

        Args:
            flow_N: (N,) as `log_likelihoods` gives them.
            gaussian_N: (N,) likewise.

        Returns:
            Losses spread over the dimensions of the states.
        """
        loss_S = (gaussian_N - flow_N).view(len(self.positions.sequences), -1).sum(dim=1)
        dimensions = float(self.positions.offsets.shape[1] * self.states.shape[1])
        return Losses(
            documents_of(self.reader, self.positions.sequences),
            np.full(len(loss_S), dimensions),
            loss_S.numpy(),
        )


def judged_states(
    model: "EnigmaForCausalLM", shards: Path, params: SampleFlowParams, *, noise_std: float
) -> JudgedStates:
    """Collect the states that the parameters ask for.

    Args:
        model: The language model in evaluation mode.
        shards: The directory of the final shards.
        params: How many, and the seed.
        noise_std: As the flow was fitted with.
    """
    collected = collect_states(
        model,
        shards,
        "test",
        states=params.samples,
        states_per_sequence=params.states_per_sequence,
        seed=params.seed,
    )
    return JudgedStates(
        with_noise(collected.states, noise_std=noise_std, split="test", seed=params.seed),
        collected.next_tokens,
        collected.positions,
        ShardReader(shards, "test"),
        {"noise_std": noise_std, "seed": params.seed},
    )
