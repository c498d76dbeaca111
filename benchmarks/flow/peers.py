"""The flows that are compared: EnigmaFlow, and peers from zuko and normflows as they come.

Settings are the packages' defaults except for the number of transforms, the hidden widths, random
orders where the package offers them, and the domain of splines, [-5, 5] for all. EnigmaFlow is told
what its documentation asks for: whether the axes of the data have a meaning.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from enigma.jacobian_logdet import EnigmaFlow

Widths = tuple[int, int]
OURS = "EnigmaFlow"
SPLINES = ("zuko NSF autoregressive", "zuko NSF coupling", "normflows RQS + LU")


@dataclass(frozen=True)
class Model:
    """A flow behind one interface.

    Args:
        module: What holds the parameters.
        log_prob: (N, D) to nats (N,).
        to_base: (N, D) data to (N, D) of the standard normal.
        from_base: Its inverse.
        sample: A count to (count, D).
        prepare: Called with (N, D) training data before the first step.
    """

    module: nn.Module
    log_prob: Callable[[Tensor], Tensor]
    to_base: Callable[[Tensor], Tensor]
    from_base: Callable[[Tensor], Tensor]
    sample: Callable[[int], Tensor]
    prepare: Callable[[Tensor], None] = lambda _: None

    @property
    def parameters(self) -> int:
        """Number of learned parameters, without those that a mask disables."""
        masked = sum(
            int((~module.mask).sum())
            for module in self.module.modules()
            if isinstance(getattr(module, "mask", None), Tensor) and hasattr(module, "weight")
        )
        return sum(p.numel() for p in self.module.parameters() if p.requires_grad) - masked


Maker = Callable[[int, Widths], Model]


def make(name: str, dim: int, widths: Widths) -> Model:
    """Make a peer over `dim` channels with two hidden layers in each network.

    Where a package has one width for both (RQS + LU), the first is used.
    """
    return _PEERS[name](dim, widths)


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
    )


def _zuko(kind: str, **settings: Any) -> Maker:
    def build(dim: int, widths: Widths) -> Model:
        import zuko

        flow = getattr(zuko.flows, kind)(dim, hidden_features=widths, **settings)
        return Model(
            flow,
            lambda x: flow().log_prob(x),
            lambda x: flow().transform(x),
            lambda z: flow().transform.inv(z),  # noqa: PLW0108 - a new flow() each time
            lambda count: flow().sample((count,)),
        )

    return build


def _normflows(layers: Callable[[int, Widths], list[nn.Module]]) -> Maker:
    def build(dim: int, widths: Widths) -> Model:
        import normflows

        base = normflows.distributions.base.DiagGaussian(dim, trainable=False)
        flow = normflows.NormalizingFlow(base, layers(dim, widths))
        return Model(
            flow, flow.log_prob, flow.inverse, flow.forward, lambda count: flow.sample(count)[0]
        )

    return build


def _real_nvp(dim: int, widths: Widths) -> list[nn.Module]:
    import normflows

    layers: list[nn.Module] = []
    for _ in range(8):
        read = (dim + 1) // 2
        network = normflows.nets.MLP([read, *widths, 2 * (dim - read)], init_zeros=True)
        layers += [
            normflows.flows.AffineCouplingBlock(network),
            normflows.flows.Permute(dim, mode="swap" if dim == 2 else "shuffle"),
        ]
    return layers


def _rqs_lu(dim: int, widths: Widths) -> list[nn.Module]:
    import normflows

    layers: list[nn.Module] = []
    for _ in range(6):
        layers += [
            normflows.flows.CoupledRationalQuadraticSpline(dim, 1, widths[0], tail_bound=5.0),
            normflows.flows.LULinearPermute(dim),
        ]
    return layers


_PEERS: dict[str, Maker] = {
    "zuko NSF autoregressive": _zuko("NSF", transforms=3, randperm=True),
    "zuko NSF coupling": _zuko("NSF", transforms=8, passes=2, randperm=True),
    "zuko MAF": _zuko("MAF", transforms=5, randperm=True),
    "zuko NICE": _zuko("NICE", transforms=8, randmask=True),
    "normflows RealNVP": _normflows(_real_nvp),
    "normflows RQS + LU": _normflows(_rqs_lu),
}
MODELS = (OURS, *_PEERS)
