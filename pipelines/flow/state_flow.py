"""The published flow over hidden states, together with its whitening.

Shape legend: N states, D dimensions.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from enigma.bijections.constant_weights import constant_weights
from enigma.density.mixture import GaussianMixture
from enigma.jacobian_logdet import EnigmaFlow, load_flow, save_flow
from pipelines.base.artifacts import sha256_file
from pipelines.base.errors import UserError
from pipelines.flow.gaussian import Gaussian

T = TypeVar("T")

WHITENING_FILE = "whitening.safetensors"
STATES_PER_BATCH = 1024


@dataclass(frozen=True)
class StateFlow:
    """A density over hidden states: a flow over whitened coordinates.

    Results are on the CPU, wherever the flow is.

    Args:
        flow: The flow, fitted to `gaussian.whiten(states)`.
        gaussian: The full-covariance Gaussian of the training states.
    """

    flow: EnigmaFlow
    gaussian: Gaussian

    def to_base(self, states_ND: Tensor) -> tuple[Tensor, Tensor]:
        """Map states to the base of the flow.

        Args:
            states_ND: (N, D) of any floating dtype.

        Returns:
            `z` (N, D) float32, and `log |det dz/dx|` (N,) float64 in nats.
        """
        white_ND = self.gaussian.whiten(states_ND).float()
        base, log_det = zip(*in_batches(self.flow, self.flow.transform, white_ND), strict=True)
        return torch.cat(base).cpu(), torch.cat(log_det).cpu().double() - self.gaussian.log_det

    def from_base(self, base_ND: Tensor) -> Tensor:
        """Invert `to_base`: (N, D) float32 to states (N, D) float32."""
        white = [white_BD for white_BD, _ in in_batches(self.flow, self.flow.inverse, base_ND)]
        return self.gaussian.colour(torch.cat(white).cpu()).float()

    def log_prob(self, states_ND: Tensor) -> Tensor:
        """Return log densities in nats, (N,) float64."""
        white_ND = self.gaussian.whiten(states_ND).float()
        log_prob = torch.cat(in_batches(self.flow, self.flow.log_prob, white_ND))
        return log_prob.cpu().double() - self.gaussian.log_det

    def sample(self, count: int, *, seed: int, temperature: float = 1.0) -> Tensor:
        """Draw states, the same for the same seed on every device.

        Args:
            count: Number of states.
            seed: Seed of the draw.
            temperature: Scales the standard deviation of the base, of each cluster if it has
                clusters; below 1 the states are more typical of the flow (Kingma and Dhariwal,
                "Glow", 2018, section 6).

        Returns:
            (count, D) float32.
        """
        generator = torch.Generator().manual_seed(seed)
        return self.from_base(base_points(self.flow, count, generator, temperature))

    def round_trip_error(self, states_ND: Tensor) -> float:
        """Measure how exactly the flow inverts, in the worse of both directions.

        Args:
            states_ND: (N, D) states.

        Returns:
            The largest error of a coordinate in x -> z -> x and in z -> x -> z, relative
            to the largest coordinate. NaN if any value is NaN.
        """
        base_ND, _ = self.to_base(states_ND)
        back_ND = self.from_base(base_ND)
        again_ND, _ = self.to_base(back_ND)
        errors = torch.stack(
            [
                (back_ND - states_ND).abs().max() / states_ND.abs().max(),
                (again_ND - base_ND).abs().max() / base_ND.abs().max(),
            ]
        )
        return float(errors.max())

    def save(self, directory: Path) -> None:
        """Write flow and whitening as safetensors."""
        save_flow(self.flow, directory)
        whitening = {
            "mean": self.gaussian.mean.float().contiguous(),
            "factor": self.gaussian.factor.float().contiguous(),
        }
        save_file(whitening, directory / WHITENING_FILE)

    @classmethod
    def load(cls, directory: Path, device: torch.device) -> "StateFlow":
        """Read what `save` wrote, with the flow on `device`.

        Raises:
            UserError: If a file is missing.
        """
        try:
            flow = load_flow(directory)
            whitening = load_file(directory / WHITENING_FILE)
        except FileNotFoundError as error:
            raise UserError(
                f"expected a flow in {directory}, got none: {error}",
                "run `dvc repro train_flow`",
            ) from None
        gaussian = Gaussian(whitening["mean"].double(), whitening["factor"].double())
        return cls(flow.eval().to(device), gaussian)


def in_batches(flow: EnigmaFlow, method: Callable[[Tensor], T], points_ND: Tensor) -> list[T]:
    """Return what a method of a flow returns of batches of points, on its device.

    Args:
        flow: The flow.
        method: `flow.transform`, `flow.inverse` or `flow.log_prob`.
        points_ND: (N, D), on any device.
    """
    with torch.no_grad(), constant_weights():
        return [
            method(batch_BD.to(flow.scale.device))
            for batch_BD in torch.split(points_ND, STATES_PER_BATCH)
        ]


def base_points(
    flow: EnigmaFlow, count: int, generator: torch.Generator, temperature: float = 1.0
) -> Tensor:
    """Draw points of the base, (count, D) float32 on the flow's device.

    Args:
        flow: A flow whose prior is a `GaussianMixture`, or the standard normal.
        count: Number of points.
        generator: On the CPU: the points are then the same on every device.
        temperature: Scales the standard deviation.
    """
    if isinstance(flow.prior, GaussianMixture):
        return flow.prior.sample((count,), generator, temperature=temperature)
    return temperature * torch.randn(count, flow.d, generator=generator).to(flow.scale.device)


def check_language_model(directory: Path, weights_sha256: str) -> None:
    """Refuse a language model that is not the one under the flow.

    Raises:
        UserError: With both hashes.
    """
    got = sha256_file(directory / "model.safetensors")
    if got != weights_sha256:
        raise UserError(
            f"{directory}: expected the language model that the flow was fitted to, with the "
            f"weights {weights_sha256[:12]}..., got {got[:12]}...",
            "run `dvc repro train_flow`, which fits the flow to this model",
        )
