"""A normalizing flow on the machine, and the brute-force log-determinant that checks it.

With z = f(x), log p(x) = log p(z) + log |det df/dx| (Rezende and Mohamed, "Variational
Inference with Normalizing Flows", 2015, equation 5). A conditional flow is p(x | c): the context c
enters every coupling and the base (Winkler et al., "Learning Likelihoods with Conditional
Normalizing Flows", 2019).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast, get_args, overload

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from enigma.bijections.base import TokenContext
from enigma.bijections.machine import Enigma
from enigma.couplings.channel_splines import ChannelSplines
from enigma.couplings.conditional_base import ConditionalBase
from enigma.couplings.settings import CouplingKind, CouplingSettings
from enigma.density.distribution import FlowDistribution
from enigma.density.mixture import GaussianMixture
from enigma.density.moments import moments
from enigma.density.prior import Prior, PriorName, check_prior, draw, log_density, squash, unsquash

__all__ = ["EnigmaFlow", "Prior", "jacobian_log_det", "load_flow", "save_flow"]

_Map: TypeAlias = Callable[[Tensor, Tensor | None], tuple[Tensor, Tensor]]
_MARGINAL_BINS = 32
_CONFIG_FILE = "flow_config.json"
_WEIGHTS_FILE = "flow.safetensors"


class EnigmaFlow(nn.Module):
    """A density over vectors `(..., d)`, which the machine maps to a simple prior.

    Every vector is enciphered as the first token of a text: its density does not depend on its
    neighbours in the batch. With conditioning features it is a density for every context:
    `flow(context)` is a distribution of `torch.distributions`, as is `flow()` without a context.

    Args:
        enigma: the machine; `EnigmaFlow.build` makes a suitable one. Its `context_features` are
            the width of the context. A density of one channel has no machine, whose blocks halve
            the channels: give the settings of its only transform.
        prior: "gaussian" is the standard normal. "uniform" squashes the machine's output by the
            logistic function into the unit cube, where the prior is uniform. A `GaussianMixture`
            has clusters, and is saved with the flow. Or a distribution with event shape `(d,)`, or
            a module that returns one; a module may have parameters and moves with the flow, a bare
            distribution does not.
        marginal_bins: bins of the splines that first bend every channel by itself
            (`enigma.couplings.channel_splines`), 0 for none.

    Raises:
        ValueError: for an unknown prior, or one of another shape.

    Examples:
        >>> flow = EnigmaFlow.build(d=2, num_rev_blocks=2)
        >>> flow.log_prob(torch.zeros(5, 2)).shape, flow.sample(3).shape
        (torch.Size([5]), torch.Size([3, 2]))
        >>> flow = EnigmaFlow.build(d=2, num_rev_blocks=2, context_features=4)
        >>> posterior = flow(torch.zeros(5, 4))
        >>> x, log_prob = posterior.rsample_and_log_prob((3,))
        >>> x.shape, log_prob.shape
        (torch.Size([3, 5, 2]), torch.Size([3, 5]))
    """

    shift: Tensor
    scale: Tensor
    context_shift: Tensor
    context_scale: Tensor

    def __init__(
        self,
        enigma: Enigma | CouplingSettings,
        prior: Prior = "gaussian",
        *,
        marginal_bins: int = 0,
    ) -> None:
        super().__init__()
        machine, settings = (
            (enigma, enigma.coupling_settings) if isinstance(enigma, Enigma) else (None, enigma)
        )
        self.d = 1 if machine is None else machine.d
        self.context_features = settings.context_features
        self.settings = settings
        self.enigma = machine
        self.prior = prior
        check_prior(prior, self.d)
        self.marginals = ChannelSplines(self.d, marginal_bins) if marginal_bins else None
        self.register_buffer("shift", torch.zeros(self.d))
        self.register_buffer("scale", torch.ones(self.d))
        self.base = None
        if self.context_features or machine is None:
            self.base = ConditionalBase(self.d, settings)
        if self.context_features:
            self.register_buffer("context_shift", torch.zeros(self.context_features))
            self.register_buffer("context_scale", torch.ones(self.context_features))

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
        context_features: int = 0,
        seed: int = 0,
    ) -> EnigmaFlow:
        """Make a flow with the settings that were best in measurements.

        Every block has its own rotor in front of it, so each block halves the channels in a
        different way. The way back has separate blocks. The coupling networks are smooth and
        residual, with biases (ADR 10, ADR 12, ADR 13). Call `standardise` before training.

        Args:
            d: width of the data; a single channel has no blocks, and is bent by splines alone.
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
            context_features: width of the context of a conditional density, 0 for none.
            seed: of the plugboard.
        """
        settings = CouplingSettings(
            kind=coupling,
            hidden_channels=hidden_channels,
            num_hidden_layers=num_hidden_layers,
            activation="silu",
            normalise=False,
            bias=True,
            residual=True,
            num_bins=num_bins,
            context_features=context_features,
        )
        marginal_bins = _MARGINAL_BINS if axes_matter else 0
        if d == 1:
            return cls(settings, prior, marginal_bins=marginal_bins)
        enigma = Enigma(
            d,
            num_rev_blocks,
            num_rotors=1,
            dynamic=False,
            coupling=settings,
            return_path="untied",
            rotors_between_blocks=True,
            own_rotors=True,
            start="permutation" if axes_matter else "rotation",
            seed=seed,
        )
        return cls(enigma, prior, marginal_bins=marginal_bins)

    @torch.no_grad()
    def standardise(self, data_ND: Tensor, context_NC: Tensor | None = None) -> None:
        """Fit the flow's first step to training data: standardise and bend each channel.

        Args:
            data_ND: floating `(N, d)`, N at least 2.
            context_NC: floating `(N, C)`, the contexts of a conditional flow; standardised too.

        Raises:
            ValueError: for another shape, or a channel that is constant or not finite.
        """
        self.check_context(context_NC)
        mean, scale = moments(data_ND, self.d, "channel")
        if context_NC is not None:
            context_moments = moments(context_NC, self.context_features, "context channel")
            self.context_shift.copy_(context_moments[0])
            self.context_scale.copy_(context_moments[1])
        self.shift.copy_(mean)
        self.scale.copy_(scale)
        if self.marginals is not None:
            self.marginals.fit((data_ND - self.shift) / self.scale)

    if TYPE_CHECKING:

        @overload
        def __call__(self) -> FlowDistribution: ...
        @overload
        def __call__(
            self, x: Tensor, context: Tensor | None = None, *, run: _Map
        ) -> tuple[Tensor, Tensor]: ...
        @overload
        def __call__(self, x: Tensor) -> Any: ...  # which of the two `forward` says
        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            """Call `forward` and the hooks."""

    def forward(
        self, x: Tensor | None = None, context: Tensor | None = None, *, run: _Map | None = None
    ) -> tuple[Tensor, Tensor] | FlowDistribution:
        """Return the distribution given a context, or `(z, log_det)` of data.

        Args:
            x: the context `(..., C)` of a conditional flow. Otherwise data `(..., d)`, or None for
                the distribution.
            context: for `run` alone.
            run: called with `x` and `context` instead. `transform` and `inverse` are such calls,
                so that hooks fire, and whatever gathers or loads weights by hooks finds every use.

        Returns:
            A distribution with batch shape `(...)`; for data what `transform` returns.
        """
        if run is not None and x is not None:
            return run(x, context)
        if context is not None:
            calls = "flow.log_prob(x, context), flow.transform(x, context) or flow(context)"
            raise ValueError(f"expected one argument, got two; to fix this: call {calls}")
        if x is None or self.context_features:
            return FlowDistribution(self, x)
        return self._transform(x, None)

    def transform(self, x: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `(z, log_det)` of data `x`.

        Args:
            x: floating `(..., d)`.
            context: floating `(..., C)` for a conditional flow; leading dimensions broadcast.

        Returns:
            `z` `(..., d)` and `log |det dz/dx|` `(...)` in nats.
        """
        return self(x, context, run=self._transform)

    def inverse(self, z: Tensor, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return `(x, log_det)` of a point `z` `(..., d)` of the base; undoes `transform`."""
        return self(z, context, run=self._inverse)

    def _transform(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        x, features_N1C = self._with_features(x, context)
        standard, log_det = (x - self.shift) / self.scale, -self.scale.log().sum()
        if self.marginals is not None:
            standard, change = self.marginals(standard)
            log_det = log_det + change
        z_N1D = standard.reshape(-1, 1, self.d)
        if self.enigma is not None:
            where = replace(TokenContext.of(z_N1D), features=features_N1C)
            z_N1D, log_det_N1 = self.enigma.forward_with_log_det(z_N1D, where)
            log_det = log_det + log_det_N1.view(x.shape[:-1])
        if self.base is not None:
            z_N1D, log_det_N1 = self.base(z_N1D, features_N1C, inverse=True)
            log_det = log_det + log_det_N1.view(x.shape[:-1])
        z = z_N1D.view(x.shape)
        if self.prior == "uniform":
            z, change = squash(z)
            log_det = log_det + change
        return z, log_det

    def _inverse(self, z: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor]:
        z, features_N1C = self._with_features(z, context)
        log_det = self.scale.log().sum()
        if self.prior == "uniform":
            z, change = unsquash(z)
            log_det = log_det + change
        x_N1D = z.reshape(-1, 1, self.d)
        if self.base is not None:
            x_N1D, log_det_N1 = self.base(x_N1D, features_N1C)
            log_det = log_det + log_det_N1.view(z.shape[:-1])
        if self.enigma is not None:
            where = replace(TokenContext.of(x_N1D), features=features_N1C)
            x_N1D, log_det_N1 = self.enigma.inverse_with_log_det(x_N1D, where)
            log_det = log_det + log_det_N1.view(z.shape[:-1])
        standard = x_N1D.view(z.shape)
        if self.marginals is not None:
            standard, change = self.marginals.inverse(standard)
            log_det = log_det + change
        return standard * self.scale + self.shift, log_det

    def log_prob(self, x: Tensor, context: Tensor | None = None) -> Tensor:
        """Return the log-density in nats, `(...)`, of `x` `(..., d)` given `context` `(..., C)`."""
        z, log_det = self.transform(x, context)
        return log_density(self.prior, z) + log_det

    def sample(
        self,
        num_samples: int | tuple[int, ...] = (),
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """Draw vectors; `flow().rsample` draws with gradient, and `flow(context)` given a context.

        Args:
            num_samples: how many, n or (n, m, ...).
            generator: a source of randomness on the flow's device; None takes torch's default.

        Returns:
            floating `(*num_samples, d)`, without gradient.

        Raises:
            ValueError: for a conditional flow, or a generator with a prior of one's own.
        """
        self.check_context(None)
        size = (num_samples,) if isinstance(num_samples, int) else tuple(num_samples)
        with torch.no_grad():
            z = draw(self.prior, (*size, self.d), self.scale, generator)
            return self.inverse(z)[0]

    def check_context(self, context: Tensor | None) -> None:
        """Raise a ValueError unless `context` is what the flow is conditioned on."""
        width = 0 if context is None else sum(context.shape[-1:])  # 0-d has no width
        if width != self.context_features or (context is not None and not width):
            got = width if width or context is None else "an empty context"
            call = f"flow({'context' if self.context_features else ''})"
            raise ValueError(
                f"expected {self.context_features} context features, got {got}; to fix this: use "
                f"{call}, or build the flow with context_features={width}"
            )

    def _with_features(self, x: Tensor, context: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Return `x` of the shape that data and contexts share, and the features `(N, 1, C)`."""
        self.check_context(context)
        if x.shape[-1:] != (self.d,):
            raise ValueError(f"expected (..., {self.d}), got {tuple(x.shape)}")
        if context is None:
            return x, None
        shape = torch.broadcast_shapes(x.shape[:-1], context.shape[:-1])  # type: ignore[no-untyped-call]
        features = (context - self.context_shift) / self.context_scale
        features = features.expand(*shape, -1).reshape(-1, 1, self.context_features)
        return x.expand(*shape, -1), features


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

    Raises:
        ValueError: for a prior of one's own, which no file can describe.
    """
    prior: Any = flow.prior
    if isinstance(prior, GaussianMixture):
        prior = {"num_components": prior.num_components, "trainable": prior.trainable}
    elif prior not in get_args(PriorName):
        raise ValueError(
            f"expected a prior of {get_args(PriorName)} or a mixture, got {prior!r}; to fix this: "
            "save flow.state_dict() and build the flow again with the same prior"
        )
    path = Path(directory)
    path.mkdir(parents=True, exist_ok=True)
    marginal_bins = 0 if flow.marginals is None else flow.marginals.spline.num_bins
    machine = flow.settings.to_arguments() if flow.enigma is None else flow.enigma.settings
    config = {"prior": prior, "marginal_bins": marginal_bins, "enigma": machine}
    (path / _CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    save_file({k: v.contiguous() for k, v in flow.state_dict().items()}, path / _WEIGHTS_FILE)


def load_flow(directory: str | Path, map_location: str | torch.device = "cpu") -> EnigmaFlow:
    """Read what `save_flow` wrote, in the dtype in which it was written.

    Args:
        directory: where the two files are.
        map_location: the device of the flow.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        RuntimeError: if the weights do not fit the configuration.
    """
    path = Path(directory)
    config = json.loads((path / _CONFIG_FILE).read_text(encoding="utf-8"))
    machine, prior = config["enigma"], config["prior"]
    if isinstance(prior, dict):
        prior = GaussianMixture(**prior, d=machine.get("d", 1))  # older files: not trainable
    core = Enigma(**machine) if "d" in machine else CouplingSettings.of(**machine)
    # Files written before flows had marginals do not name them.
    flow = EnigmaFlow(core, prior, marginal_bins=config.get("marginal_bins", 0))
    flow.load_state_dict(load_file(path / _WEIGHTS_FILE, device=str(map_location)), assign=True)
    return flow
