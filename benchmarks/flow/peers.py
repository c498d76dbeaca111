"""The flows that are compared: EnigmaFlow, and peers from zuko, normflows and nflows.

Settings are the packages' defaults except for the number of transforms, the hidden widths, random
orders where the package offers them, the domain of splines ([-5, 5] for all), the small networks of
NAF (its own are larger than all other models) and RealNVP's start at the identity. Each has two
shapes. For a peer they are its usual number of transforms, and half as many again with narrower
networks. EnigmaFlow is told what its documentation asks for: whether the axes of the data have a
meaning, and it is fitted to the marginals of the training data before the first step, which no peer
offers. Its second shape has a mixture of Gaussians as its prior, fitted before the first step too,
and networks so much narrower.
"""

import math
from bisect import bisect_left
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from enigma.density.mixture import GaussianMixture
from enigma.density.prior import log_density
from enigma.jacobian_logdet import EnigmaFlow

Widths = tuple[int, int]
OURS = "EnigmaFlow"
USUAL, DEEPER, CLUSTERS = "usual", "deeper", "clusters"
MIXTURE = "Gaussian mixture"
SPLINES = ("zuko NSF autoregressive", "zuko NSF coupling", "normflows RQS + LU")


@dataclass(frozen=True)
class Model:
    """A flow behind one interface.

    Args:
        module: What holds the parameters.
        log_prob: (N, D) to nats (N,).
        to_base: (N, D) data to (N, D) of the base.
        from_base: Its inverse.
        sample: A count to (count, D).
        prepare: Called with (N, D) training data before the first step.
        base_log_prob: (N, D) to nats (N,), the density of the base: the standard normal.
    """

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    to_base: Callable[[Tensor], Tensor]
    from_base: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    prepare: Callable[[Tensor], None] = lambda _: None
    base_log_prob: Callable[[Tensor], Tensor] = lambda z: log_density("gaussian", z)

    @property
    def parameters(self) -> int:
        """Number of learned parameters, without those that are not read."""
        unread = 0
        for module in self.module.modules():
            if isinstance(module, GaussianMixture) and module.trainable:  # above the diagonals
                unread += module.num_components * module.d * (module.d - 1) // 2
            elif isinstance(getattr(module, "mask", None), Tensor) and hasattr(module, "weight"):
                unread += int((~module.mask).sum())
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad) - unread


Maker = Callable[[int, Widths, int], Model]
"""Of channels, hidden widths and transforms."""


def make(name: str, dim: int, widths: Widths, shape: str = USUAL) -> Model:
    """Make a peer over `dim` channels, with the first width alone where a package has but one."""
    maker, transforms = _PEERS[name]
    return maker(dim, widths, transforms if shape == USUAL else math.ceil(1.5 * transforms))


def fitting(name: str, dim: int, parameters: int, shape: str = USUAL) -> Model:
    """Make a peer whose parameters are as close to so many as two hidden widths allow."""

    def size(width: int) -> int:
        return make(name, dim, (width, width), shape).parameters

    width = 1 + bisect_left(range(1, 4096), parameters, key=size)
    near = [(w, v) for w in (width - 1, width) for v in range(w - 3, w + 4) if min(w, v) > 0]
    found = [make(name, dim, widths, shape) for widths in near]
    return min(found, key=lambda model: abs(model.parameters - parameters))


def make_ours(dim: int, *, num_rev_blocks: int = 2, **settings: Any) -> Model:
    """Make an EnigmaFlow; the settings are those of `EnigmaFlow.build`."""
    flow = EnigmaFlow.build(dim, num_rev_blocks, **settings)
    return Model(
        flow,
        flow.log_prob,
        lambda x: flow(x)[0],
        lambda z: flow.inverse(z)[0],
        flow.sample,
        flow.standardise,
        lambda z: log_density(flow.prior, z),
    )


def _zuko(kind: str, **settings: Any) -> Maker:
    def build(dim: int, widths: Widths, transforms: int) -> Model:
        import zuko

        options = {"hidden_features": widths, "transforms": transforms, **settings}
        flow = getattr(zuko.flows, kind)(dim, **options)
        return Model(
            flow,
            lambda x: flow().log_prob(x),
            lambda x: flow().transform(x),
            lambda z: flow().transform.inv(z),  # noqa: PLW0108 - a new flow() each time
            lambda count: flow().sample((count,)),
        )

    return build


def _normflows(layers: Callable[[int, Widths, int], list[nn.Module]]) -> Maker:
    def build(dim: int, widths: Widths, transforms: int) -> Model:
        import normflows

        base = normflows.distributions.base.DiagGaussian(dim, trainable=False)
        flow = normflows.NormalizingFlow(base, layers(dim, widths, transforms))
        return Model(
            flow, flow.log_prob, flow.inverse, flow.forward, lambda count: flow.sample(count)[0]
        )

    return build


def _real_nvp(dim: int, widths: Widths, transforms: int) -> list[nn.Module]:
    import normflows

    layers: list[nn.Module] = []
    for _ in range(transforms):
        read = (dim + 1) // 2
        network = normflows.nets.MLP([read, *widths, 2 * (dim - read)], init_zeros=True)
        layers += [
            normflows.flows.AffineCouplingBlock(network),
            normflows.flows.Permute(dim, mode="swap" if dim == 2 else "shuffle"),
        ]
    return layers


def _rqs_lu(dim: int, widths: Widths, transforms: int) -> list[nn.Module]:
    import normflows

    layers: list[nn.Module] = []
    for _ in range(transforms):
        layers += [
            normflows.flows.CoupledRationalQuadraticSpline(dim, 1, widths[0], tail_bound=5.0),
            normflows.flows.LULinearPermute(dim),
        ]
    return layers


def _nflows_rqs(dim: int, widths: Widths, transforms: int) -> Model:
    """Make the RQ-NSF (C) of Durkan et al., "Neural Spline Flows", 2019, by the same authors.

    A random permutation and an LU layer stand in front of every spline coupling and at the end.
    """
    import nflows.distributions
    import nflows.flows
    import nflows.nn.nets
    import nflows.transforms

    def network(read: int, wanted: int) -> nn.Module:
        found: nn.Module = nflows.nn.nets.ResidualNet(read, wanted, widths[0], num_blocks=2)
        return found

    def linear() -> list[nn.Module]:
        lu = nflows.transforms.LULinear(dim, identity_init=True)
        return [nflows.transforms.RandomPermutation(dim), lu]

    steps: list[nn.Module] = []
    for number in range(transforms):
        mask = torch.arange(dim) % 2 == number % 2
        coupling = nflows.transforms.PiecewiseRationalQuadraticCouplingTransform(
            mask, network, tails="linear", tail_bound=5.0
        )
        steps += [*linear(), coupling]
    transform = nflows.transforms.CompositeTransform([*steps, *linear()])
    flow = nflows.flows.Flow(transform, nflows.distributions.StandardNormal([dim]))
    return Model(
        flow,
        flow.log_prob,
        flow.transform_to_noise,
        lambda z: transform.inverse(z)[0],
        flow.sample,
    )


_PEERS: dict[str, tuple[Maker, int]] = {
    "zuko NSF autoregressive": (_zuko("NSF", randperm=True), 3),
    "zuko NSF coupling": (_zuko("NSF", passes=2, randperm=True), 8),
    "zuko MAF": (_zuko("MAF", randperm=True), 5),
    "zuko NAF": (
        _zuko("NAF", randperm=True, signal=8, network={"hidden_features": (16, 16)}),
        2,
    ),
    "normflows RealNVP": (_normflows(_real_nvp), 8),
    "normflows RQS + LU": (_normflows(_rqs_lu), 6),
    "nflows RQ-NSF": (_nflows_rqs, 6),
}
"""With the usual number of transforms."""
LARGER = "zuko NAF"
"""Its parameters may be more than all others' where no width of its networks has as few."""
MODELS = (OURS, *(name for name in _PEERS if name != "zuko NSF coupling"))
"""Whose densities are compared. The coupling NSF of zuko is there for its speed: nflows has the
same with LU layers."""
Shapes = dict[str, tuple[str, ...]]
SHAPES: Shapes = {model: (USUAL, CLUSTERS if model == OURS else DEEPER) for model in MODELS}
"""What each model tries."""
