"""The states that a flow is fitted to, and the published flow that knows its whitening.

The language model's final states are RMS-normalised: they lie on a sphere scaled by
the norm's gains, a surface on which a density over all dimensions is infinite. So
noise of a stated size is added, to train, held-out and test states alike (ADR 4).

Shape legend: N states, D dimensions.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from enigma.jacobian_logdet import EnigmaFlow, load_flow, save_flow
from pipelines.errors import UserError
from pipelines.gaussian import Gaussian
from pipelines.hidden_states import HiddenStates, choose_positions, collect
from pipelines.shards import ShardReader

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM

WHITENING_FILE = "whitening.safetensors"
BATCH_SIZE = 8


@dataclass(frozen=True)
class StateFlow:
    """A density over hidden states: a flow over whitened coordinates.

    Args:
        flow: The flow, fitted to `gaussian.whiten(states)`.
        gaussian: The full-covariance Gaussian of the training states.
    """

    flow: EnigmaFlow
    gaussian: Gaussian

    def log_prob(self, states_ND: Tensor) -> Tensor:
        """Log density in nats, (N,) float64."""
        with torch.no_grad():
            white_ND = self.gaussian.whiten(states_ND).float()
            return self.flow.log_prob(white_ND).double() - self.gaussian.log_det

    def sample(self, count: int, generator: torch.Generator) -> Tensor:
        """Draw states, (count, D) float32."""
        return self.gaussian.colour(self.flow.sample((count,), generator)).float()

    def round_trip_error(self, states_ND: Tensor) -> float:
        """Largest error of states -> base -> states, relative to the largest coordinate."""
        with torch.no_grad():
            white_ND = self.gaussian.whiten(states_ND).float()
            again_ND = self.flow.inverse(self.flow(white_ND)[0])[0]
            return float((again_ND - white_ND).abs().max() / white_ND.abs().max())

    def save(self, directory: Path) -> None:
        """Write flow and whitening as safetensors."""
        save_flow(self.flow, directory)
        whitening = {
            "mean": self.gaussian.mean.float().contiguous(),
            "factor": self.gaussian.factor.float().contiguous(),
        }
        save_file(whitening, directory / WHITENING_FILE)

    @classmethod
    def load(cls, directory: Path) -> "StateFlow":
        """Read what `save` wrote.

        Raises:
            UserError: If a file is missing.
        """
        try:
            flow = load_flow(directory)
            whitening = load_file(directory / WHITENING_FILE)
        except FileNotFoundError as error:
            raise UserError(
                f"expected a flow in {directory}: {error}",
                "run `dvc repro train_flow`, which makes it",
            ) from None
        gaussian = Gaussian(whitening["mean"].double(), whitening["factor"].double())
        return cls(flow.eval(), gaussian)


def noisy_states(
    model: "EnigmaForCausalLM",
    shards: Path,
    split: str,
    *,
    states: int,
    states_per_sequence: int,
    noise_std: float,
    seed: int,
) -> HiddenStates:
    """Collect final hidden states of a split and add the noise.

    Args:
        model: The language model in evaluation mode.
        shards: The directory of the final shards.
        split: Which split.
        states: States wanted.
        states_per_sequence: States taken of one sequence.
        noise_std: Standard deviation of the noise.
        seed: Of the choice of positions and of the noise.

    Returns:
        States (N, D) float32 with their next tokens; fewer than asked for where
        the split is small.
    """
    reader = ShardReader(shards, split)
    positions = choose_positions(
        seed=seed,
        num_sequences=len(reader),
        sequence_length=reader.sequence_length,
        states=states,
        states_per_sequence=states_per_sequence,
    )
    collected = collect(
        model.lm.hidden_states, reader, positions, batch_size=BATCH_SIZE, device=model.device
    )
    generator = torch.Generator().manual_seed(seed + 1)
    noise_ND = torch.randn(collected.states.shape, generator=generator)
    return HiddenStates(collected.states + noise_std * noise_ND, collected.next_tokens)
