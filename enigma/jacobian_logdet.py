"""A normalizing flow on the machine, and the brute-force log-determinant that checks it.

With z = f(x), log p(x) = log p(z) + log |det df/dx| (Rezende and Mohamed, "Variational
Inference with Normalizing Flows", 2015, equation 5).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Literal, cast, get_args

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from enigma.bijections.base import TokenContext
from enigma.bijections.machine import Enigma
from enigma.couplings.channel_splines import ChannelSplines
from enigma.couplings.settings import CouplingKind

__all__ = ["EnigmaFlow", "Prior", "jacobian_log_det", "load_flow", "save_flow"]

Prior = Literal["gaussian", "uniform"]

_MARGINAL_BINS = 32
_CONFIG_FILE = "flow_config.json"
_WEIGHTS_FILE = "flow.safetensors"


class EnigmaFlow(nn.Module):
    """A density over vectors `(..., d)`, which the machine maps to a simple prior.

    Every vector is enciphered as the first token of a text: its density does not depend on its
    neighbours in the batch.

    Args:
        enigma: the machine; `EnigmaFlow.build` makes a suitable one.
        prior: "gaussian" is the standard normal. "uniform" squashes the machine's output by the
            logistic function into the unit cube, where the prior is uniform.
        marginal_bins: bins of the splines that first bend every channel by itself
            (`enigma.couplings.channel_splines`), 0 for none.

    Raises:
        ValueError: for an unknown prior.

    Examples:
        >>> flow = EnigmaFlow.build(d=2, num_rev_blocks=2)
        >>> flow.log_prob(torch.zeros(5, 2)).shape, flow.sample((3,)).shape
        (torch.Size([5]), torch.Size([3, 2]))
    """

    shift: Tensor
    scale: Tensor

    def __init__(
        self, enigma: Enigma, prior: Prior = "gaussian", *, marginal_bins: int = 0
    ) -> None:
        super().__init__()
        if prior not in get_args(Prior):
            raise ValueError(f"prior must be one of {get_args(Prior)}, got {prior!r}")
        self.enigma = enigma
        self.prior = prior
        self.marginals = ChannelSplines(enigma.d, marginal_bins) if marginal_bins else None
        self.register_buffer("shift", torch.zeros(enigma.d))
        self.register_buffer("scale", torch.ones(enigma.d))

    @classmethod
    def build(
        cls,
        d: int,
        num_rev_blocks: int = 4,
        *,
        coupling: CouplingKind = "affine-spline",
        hidden_channels: int = 128,
        num_hidden_layers: int = 2,
        num_bins: int = 8,
        prior: Prior = "gaussian",
        axes_matter: bool = True,
        seed: int = 0,
    ) -> EnigmaFlow:
        """Make a flow with the settings that were best in measurements.

        Every block has its own rotor in front of it, so each block halves the channels in a
        different way. The way back has separate blocks. The coupling networks are smooth and
        residual, with biases (ADR 10, ADR 12, ADR 13). Call `standardise` before training.

        Args:
            d: width of the data, at least 2.
            num_rev_blocks: blocks on the way out; the way back has as many.
            coupling: "affine-spline" fits best; "affine" is faster, and fits the hidden states of
                a language model better.
            hidden_channels: width of the coupling networks.
            num_hidden_layers: depth of the coupling networks.
            num_bins: bins of a spline.
            prior: see the class.
            axes_matter: True where each channel has a meaning, like pixels and features: rotors
                then start at permutations, and splines bend the marginals first. False where the
                axes have no meaning, as after whitening: rotors then start at rotations.
            seed: of the plugboard.
        """
        enigma = Enigma(
            d,
            num_rev_blocks,
            num_rotors=1,
            dynamic=False,
            coupling=coupling,
            return_path="untied",
            rotors_between_blocks=True,
            own_rotors=True,
            hidden_channels=hidden_channels,
            num_hidden_layers=num_hidden_layers,
            activation="silu",
            normalise=False,
            bias=True,
            residual=True,
            start="permutation" if axes_matter else "rotation",
            num_bins=num_bins,
            seed=seed,
        )
        return cls(enigma, prior, marginal_bins=_MARGINAL_BINS if axes_matter else 0)

    def standardise(self, data_ND: Tensor) -> None:
        """Fit the flow's first step to training data: standardise and bend each channel.

        Args:
            data_ND: floating `(N, d)`, N at least 2.

        Raises:
            ValueError: for another shape, or a channel that is constant or not finite.
        """
        if data_ND.ndim != 2 or data_ND.shape[0] < 2 or data_ND.shape[1] != self.enigma.d:
            raise ValueError(
                f"expected at least 2 rows of {self.enigma.d}, got {tuple(data_ND.shape)}"
            )
        scale = data_ND.std(dim=0)
        if not bool((scale > 0).all()):
            constant = int((~(scale > 0)).nonzero()[0])
            raise ValueError(
                f"expected channels that vary, got channel {constant} constant or not finite; "
                "to fix this: drop it, or add noise"
            )
        self.shift.copy_(data_ND.mean(dim=0))
        self.scale.copy_(scale)
        if self.marginals is not None:
            self.marginals.fit((data_ND - self.shift) / self.scale)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return `(z, log_det)` of data `x`.

        Args:
            x: floating `(..., d)`.

        Returns:
            `z` `(..., d)` and `log |det dz/dx|` `(...)` in nats.
        """
        standard, log_det = (x - self.shift) / self.scale, -self.scale.log().sum()
        if self.marginals is not None:
            standard, change = self.marginals(standard)
            log_det = log_det + change
        flat_N1D = standard.reshape(-1, 1, self.enigma.d)
        z_N1D, log_det_N1 = self.enigma.forward_with_log_det(flat_N1D, TokenContext.of(flat_N1D))
        z, log_det = z_N1D.view(x.shape), log_det + log_det_N1.view(x.shape[:-1])
        if self.prior == "uniform":
            log_det = log_det + _log_squash_slope(z)
            z = z.sigmoid()
        return z, log_det

    def inverse(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """Return `(x, log_det)` of a point `z` `(..., d)` of the base; undoes `forward`."""
        log_det = self.scale.log().sum()
        if self.prior == "uniform":
            z = z.logit()
            log_det = log_det - _log_squash_slope(z)
        flat_N1D = z.reshape(-1, 1, self.enigma.d)
        x_N1D, log_det_N1 = self.enigma.inverse_with_log_det(flat_N1D, TokenContext.of(flat_N1D))
        standard, log_det = x_N1D.view(z.shape), log_det + log_det_N1.view(z.shape[:-1])
        if self.marginals is not None:
            standard, change = self.marginals.inverse(standard)
            log_det = log_det + change
        return standard * self.scale + self.shift, log_det

    def log_prob(self, x: Tensor) -> Tensor:
        """Return the log-density of `x` `(..., d)` in nats, `(...)`."""
        z, log_det = self(x)
        if self.prior == "uniform":
            return cast("Tensor", log_det)
        log_prior = -0.5 * (z.square().sum(-1) + self.enigma.d * math.log(2 * math.pi))
        return cast("Tensor", log_prior + log_det)

    def sample(
        self, shape: int | tuple[int, ...] = (), generator: torch.Generator | None = None
    ) -> Tensor:
        """Draw vectors.

        Args:
            shape: how many, n or (n, m, ...).
            generator: a source of randomness on the flow's device; None takes torch's default.

        Returns:
            floating `(*shape, d)`, without gradient.
        """
        size = (shape,) if isinstance(shape, int) else tuple(shape)
        draw = torch.randn if self.prior == "gaussian" else torch.rand
        with torch.no_grad():
            z = draw(
                (*size, self.enigma.d),
                generator=generator,
                dtype=self.scale.dtype,
                device=self.scale.device,
            )
            if self.prior == "uniform":
                tiny = torch.finfo(z.dtype).eps
                z = z.clamp(tiny, 1 - tiny)
            return self.inverse(z)[0]


def _log_squash_slope(z: Tensor) -> Tensor:
    """Return the log-determinant of the logistic function at `z` `(..., d)`."""
    return (functional.logsigmoid(z) + functional.logsigmoid(-z)).sum(-1)


def jacobian_log_det(function: Callable[[Tensor], Tensor], x_D: Tensor) -> Tensor:
    """Return log |det df/dx| from the whole Jacobian: a slow reference for tests.

    Args:
        function: maps `(d,)` to `(d,)`, differentiable.
        x_D: floating `(d,)`, the point.

    Returns:
        A scalar in nats.

    Examples:
        >>> round(float(jacobian_log_det(lambda x: 2 * x, torch.ones(3))), 4)
        2.0794
    """
    jacobian = torch.autograd.functional.jacobian(function, x_D)  # type: ignore[no-untyped-call]
    return cast("Tensor", torch.linalg.slogdet(jacobian).logabsdet)


def save_flow(flow: EnigmaFlow, directory: str | Path) -> None:
    """Write a flow as `flow_config.json` and `flow.safetensors`.

    Args:
        flow: what to write.
        directory: where to; created if it does not exist.
    """
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    marginal_bins = 0 if flow.marginals is None else flow.marginals.spline.num_bins
    config = {
        "prior": flow.prior,
        "marginal_bins": marginal_bins,
        "enigma": flow.enigma.settings,
    }
    (path / _CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({k: v.contiguous() for k, v in flow.state_dict().items()}, path / _WEIGHTS_FILE)


def load_flow(directory: str | Path) -> EnigmaFlow:
    """Read what `save_flow` wrote.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        RuntimeError: if the weights do not fit the configuration.
    """
    path = Path(directory)
    config = json.loads((path / _CONFIG_FILE).read_text(encoding="utf-8"))
    flow = EnigmaFlow(
        Enigma(**config["enigma"]),
        config["prior"],
        # Files written before flows had marginals do not name them.
        marginal_bins=config.get("marginal_bins", 0),
    )
    flow.load_state_dict(load_file(path / _WEIGHTS_FILE))
    return flow
