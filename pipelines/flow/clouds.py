"""A cloud: states that are compared with other states, in the three ways they are looked at.

Shape legend: N states, D dimensions.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from pipelines.base.errors import GateError
from pipelines.flow.decoding import Decoded, decode
from pipelines.flow.state_flow import StateFlow

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM


@dataclass(frozen=True)
class Cloud:
    """States, real or sampled.

    Args:
        states: (N, D) float32.
        white: (N, D) float64, whitened: no direction weighs more than another.
        decoded: What the language model's head reads from them.
    """

    states: Tensor
    white: Tensor
    decoded: Decoded


@dataclass(frozen=True)
class CloudReader:
    """Makes clouds of states, with the language model and the flow over its states."""

    model: "EnigmaForCausalLM"
    state_flow: StateFlow

    def read(self, states_ND: Tensor) -> Cloud:
        """Whiten and decode states, (N, D) float32."""
        white_ND = self.state_flow.gaussian.whiten(states_ND)
        return Cloud(states_ND, white_ND, decode(self.model, states_ND))

    def sample_gaussian(self, count: int, *, seed: int) -> Cloud:
        """Draw from the Gaussian under the flow."""
        return self.read(self.state_flow.gaussian.sample(count, seed=seed))

    def sample_flow(self, count: int, *, seed: int, temperature: float = 1.0) -> Cloud:
        """Draw from the flow.

        Raises:
            GateError: `flow_samples`.
        """
        sampled_ND = self.state_flow.sample(count, seed=seed, temperature=temperature)
        check_samples(sampled_ND)
        return self.read(sampled_ND)


def check_samples(sampled_ND: Tensor) -> None:
    """Refuse samples that are not numbers; they cannot be compared with anything.

    Raises:
        GateError: `flow_samples`.
    """
    broken = int((~sampled_ND.isfinite().all(dim=1)).sum())
    if broken:
        raise GateError(
            "flow_samples",
            f"expected finite samples, got NaN or infinity in {broken} of {len(sampled_ND)}",
            "lower train_flow.learning_rate and that of train_flow.mixture, or use fewer blocks "
            "(train_flow.num_blocks)",
        )
