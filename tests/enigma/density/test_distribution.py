"""Flows as distributions: conditional densities that are known, samples with gradient, priors."""

import math

import pytest
import torch
from torch import distributions, nn
from torch.distributions import constraints

from enigma.bijections.base import TokenContext
from enigma.bijections.machine import Enigma
from enigma.couplings.conditional_base import ConditionalBase
from enigma.couplings.settings import CouplingSettings
from enigma.density.distribution import FlowDistribution
from enigma.jacobian_logdet import EnigmaFlow, jacobian_log_det, load_flow, save_flow

WIDTHS = [1, 4]


@pytest.fixture(autouse=True)
def seeded():
    """Draw the same initial weights in every run."""
    torch.manual_seed(0)


def conditional(d, stirred, **options):
    flow = EnigmaFlow.build(d, 1, hidden_channels=8, context_features=3, **options).double()
    # Little noise: where the logistic function rounds to 1 it has no inverse.
    return stirred(flow, std=0.05)


def draw(*shape):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("prior", ["gaussian", "uniform"])
@pytest.mark.parametrize("coupling", ["additive", "affine", "spline", "affine-spline"])
@pytest.mark.parametrize("d", WIDTHS)
def test_round_trip_and_log_det_given_a_context(d, coupling, prior, stirred):
    flow = conditional(d, stirred, coupling=coupling, prior=prior)
    x, context = draw(5, d), draw(5, 3)
    flow.standardise(2 * x + 1, 3 * context - 1)
    z, log_det = flow.transform(x, context)
    again, log_det_back = flow.inverse(z, context)
    torch.testing.assert_close(again, x, rtol=0, atol=1e-8)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-8)
    reference = jacobian_log_det(lambda v: flow.transform(v, context[0])[0], x[0])
    assert abs(reference - log_det[0]).item() <= 1e-8
    other = flow.log_prob(x, context.roll(1, 0))
    assert not torch.isclose(other, flow.log_prob(x, context)).any()


@pytest.mark.parametrize("coupling", ["additive", "affine", "spline", "affine-spline"])
def test_under_autocast_the_base_of_a_context_is_inverted_and_its_log_det_right(coupling, stirred):
    settings = CouplingSettings(kind=coupling, hidden_channels=8, context_features=3)
    base = stirred(ConditionalBase(4, settings), std=0.5)
    x, features = draw(64, 4).float(), draw(64, 3).float()
    with torch.autocast("cpu", torch.bfloat16):
        z, log_det = base(x, features)
        again, log_det_back = base(z, features, inverse=True)
        reference = jacobian_log_det(lambda v: base(v, features[0])[0], x[0])
    assert log_det.dtype == z.dtype == torch.float32
    torch.testing.assert_close(again, x, rtol=0, atol=1e-3)
    torch.testing.assert_close(log_det_back, -log_det, rtol=0, atol=1e-3)
    assert abs(reference - log_det[0]).item() <= 1e-4


@pytest.mark.parametrize("d", WIDTHS)
def test_shapes_and_what_torch_asks_of_a_distribution(d, stirred):
    flow = conditional(d, stirred)
    given = flow(draw(2, 5, 3))
    assert isinstance(given, distributions.Distribution)
    assert (given.batch_shape, given.event_shape) == ((2, 5), (d,))
    assert given.has_rsample
    assert given.support is constraints.real_vector
    x = given.sample((7,))
    assert x.shape == (7, 2, 5, d)
    assert not x.requires_grad
    assert given.log_prob(x).shape == (7, 2, 5)
    torch.testing.assert_close(given.log_prob(x)[3, 1], flow(draw(2, 5, 3)[1]).log_prob(x[3, 1]))
    one = flow(draw(3))
    assert one.log_prob(draw(6, d)).shape == (6,)
    larger = one.expand((4, 2))
    assert larger.batch_shape == (4, 2)
    assert larger.sample((3,)).shape == (3, 4, 2, d)
    torch.testing.assert_close(larger.log_prob(draw(d))[2, 1], one.log_prob(draw(d)))
    rows = distributions.Independent(given, 1)
    torch.testing.assert_close(rows.log_prob(x), given.log_prob(x).sum(-1))
    # torch.compile turns the checks off for the rest of the process.
    checked = FlowDistribution(flow, draw(3), validate_args=True)
    with pytest.raises(ValueError, match="to be within the support"):
        checked.log_prob(torch.full((d,), math.nan))
    with pytest.raises(ValueError, match="right-most size"):
        checked.log_prob(draw(6, d + 1))


def test_without_a_context(stirred):
    flow = stirred(EnigmaFlow.build(3, 1, hidden_channels=8).double(), std=0.2)
    x = draw(6, 3)
    torch.testing.assert_close(flow().log_prob(x), flow.log_prob(x), rtol=0, atol=0)
    assert flow().batch_shape == ()
    assert flow().expand((4,)).log_prob(x[0]).shape == (4,)
    moved = distributions.TransformedDistribution(
        flow(), [distributions.transforms.AffineTransform(1.0, 2.0, event_dim=1)]
    )
    torch.testing.assert_close(
        moved.log_prob(2 * x + 1), flow.log_prob(x) - 3 * math.log(2), rtol=0, atol=1e-9
    )


@pytest.mark.parametrize("prior", ["gaussian", "uniform"])
@pytest.mark.parametrize("d", WIDTHS)
def test_samples_carry_gradients_and_their_own_density(d, prior, stirred):
    flow = conditional(d, stirred, prior=prior)
    context = draw(5, 3).requires_grad_()
    x, log_prob = flow(context).rsample_and_log_prob((4,))
    torch.testing.assert_close(log_prob, flow(context).log_prob(x), rtol=0, atol=1e-8)
    x.sum().backward()
    assert bool((context.grad != 0).any())
    assert all(p.grad is not None for p in flow.parameters())
    # Along the path of one base point: the derivative of a sample by the context.
    z, one = draw(d), draw(3).requires_grad_()
    assert torch.autograd.gradcheck(lambda c: flow.inverse(z, c)[0], one)


@pytest.mark.parametrize("context", [False, True])
@pytest.mark.parametrize("d", [1, 2])
def test_every_density_integrates_to_one(d, context, stirred):
    torch.manual_seed(0)
    flow = EnigmaFlow.build(
        d, 1, hidden_channels=8, context_features=3 * context, axes_matter=False
    ).double()
    stirred(flow, std=0.05)
    step = 0.05
    line = torch.arange(-9, 9, step, dtype=torch.float64)
    points = torch.cartesian_prod(line, line) if d == 2 else line[:, None]
    with torch.no_grad():
        given = flow(draw(3)) if context else flow()
        mass = given.log_prob(points).exp().sum() * step**d
    assert abs(mass.item() - 1) < 1e-3


def fit(flow, loss, steps, learning_rate=1e-2):
    optimiser = torch.optim.Adam(flow.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, learning_rate, total_steps=steps)
    for _ in range(steps):
        optimiser.zero_grad()
        loss().backward()
        optimiser.step()
        schedule.step()


@pytest.mark.slow
@pytest.mark.parametrize(("d", "coupling"), [(1, "affine"), (2, "affine"), (2, "affine-spline")])
def test_a_known_conditional_density_is_learned(d, coupling):
    """x | c ~ N(A c, diag exp(c)): the divergence from the truth, in nats, averaged over c."""
    torch.manual_seed(0)
    mix = torch.randn(d, d)

    def truth(context):
        normal = distributions.Normal(context @ mix.T, (context / 2).exp())
        return distributions.Independent(normal, 1)

    flow = EnigmaFlow.build(
        d, 1, coupling=coupling, hidden_channels=32, context_features=d, axes_matter=False
    )
    context = torch.randn(4000, d)
    flow.standardise(truth(context).sample(), context)

    def loss():
        context = torch.randn(256, d)
        return -flow(context).log_prob(truth(context).sample()).mean()

    fit(flow, loss, 300)
    context = torch.randn(20_000, d)
    x = truth(context).sample()
    with torch.no_grad():
        divergence = (truth(context).log_prob(x) - flow(context).log_prob(x)).mean().item()
        blind = -flow(context.roll(1, 0)).log_prob(x).mean() + truth(context).log_prob(x).mean()
    print(f"divergence from the truth, d={d}, {coupling}: {divergence:.4f} nats")
    assert -0.01 < divergence < 0.03
    assert blind.item() > 0.5, "with the contexts of others it would be no such density"


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 2])
def test_the_reverse_divergence_is_fitted_by_the_gradient_of_samples(d):
    torch.manual_seed(0)
    scale_tril = torch.tensor([[0.5, 0.0], [0.6, 0.3]])[:d, :d]
    target = distributions.MultivariateNormal(torch.tensor([1.0, -0.5])[:d], scale_tril=scale_tril)
    flow = EnigmaFlow.build(d, 1, coupling="affine", hidden_channels=32, axes_matter=False)

    def divergence(count=256):
        x, log_prob = flow().rsample_and_log_prob((count,))
        return (log_prob - target.log_prob(x)).mean()

    before = divergence(4000).item()
    fit(flow, divergence, 200, learning_rate=3e-2)
    after = divergence(4000).item()
    print(f"reverse divergence, d={d}: {before:.3f} -> {after:.4f} nats")
    assert before > 1
    assert abs(after) < 0.02


class Learned(nn.Module):
    """A normal prior whose mean and scale are learned, a distribution when called."""

    def __init__(self, d):
        super().__init__()
        self.mean = nn.Parameter(torch.zeros(d, dtype=torch.float64))
        self.log_scale = nn.Parameter(torch.zeros(d, dtype=torch.float64))

    def forward(self):
        normal = distributions.Normal(self.mean, self.log_scale.exp())
        return distributions.Independent(normal, 1)


def laplace(d):
    zeros = torch.zeros(d, dtype=torch.float64)
    return distributions.Independent(distributions.Laplace(zeros, torch.ones_like(zeros)), 1)


@pytest.mark.parametrize("make", [laplace, Learned])
@pytest.mark.parametrize("d", [1, 2])
def test_a_prior_of_ones_own(d, make, stirred, tmp_path):
    flow = stirred(EnigmaFlow.build(d, 1, hidden_channels=8, prior=make(d)).double(), std=0.1)
    x, log_prob = flow().rsample_and_log_prob((6,))
    torch.testing.assert_close(log_prob, flow.log_prob(x), rtol=0, atol=1e-9)
    z, log_det = flow(x)
    own = flow.prior() if make is Learned else flow.prior
    torch.testing.assert_close(log_prob, own.log_prob(z) + log_det, rtol=0, atol=1e-9)
    assert flow.sample(4).shape == (4, d)
    if make is Learned:
        flow().rsample((3,)).square().sum().backward()
        assert bool((flow.prior.log_scale.grad != 0).all())
    with pytest.raises(ValueError, match=r"no generator with a prior of your own.*manual_seed"):
        flow.sample(4, torch.Generator())
    with pytest.raises(ValueError, match=r"save flow.state_dict\(\)"):
        save_flow(flow, tmp_path)
    # What the message says to do:
    again = EnigmaFlow.build(d, 1, hidden_channels=8, prior=make(d)).double()
    again.load_state_dict(flow.state_dict())
    torch.testing.assert_close(again.log_prob(x), flow.log_prob(x), rtol=0, atol=0)


@pytest.mark.parametrize("features", [0, 3])
@pytest.mark.parametrize("d", WIDTHS)
def test_files_restore_conditional_flows_and_single_channels(d, features, tmp_path, stirred):
    flow = stirred(EnigmaFlow.build(d, 1, hidden_channels=8, context_features=features).double())
    context = draw(9, 3) if features else None
    flow.standardise(3 * draw(9, d), context)
    save_flow(flow, tmp_path)
    again = load_flow(tmp_path)
    for name, value in flow.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    # Weights from a file are laid out otherwise in memory, and a product may differ by an ulp.
    torch.testing.assert_close(
        again.log_prob(draw(9, d), context), flow.log_prob(draw(9, d), context), rtol=0, atol=1e-12
    )


def test_a_flow_without_a_context_has_the_weights_that_it_always_had():
    names = EnigmaFlow.build(4, 1, hidden_channels=8).state_dict()
    assert not [
        name for name in names if name.startswith(("base", "context")) or "features" in name
    ]


def test_errors_say_what_was_expected(stirred):
    flow = conditional(2, stirred)
    with pytest.raises(
        ValueError, match=r"expected 3 context features, got 0.*use flow\(context\)"
    ):
        flow.sample(5)
    with pytest.raises(ValueError, match="expected 3 context features, got 2"):
        flow(draw(5, 2))
    with pytest.raises(ValueError, match="expected 3 context features, got 0"):
        flow()
    with pytest.raises(ValueError, match="expected 3 context features, got an empty context"):
        flow(torch.tensor(1.0))
    for one in (flow, EnigmaFlow.build(2, 1, hidden_channels=8)):
        for x in (draw(5, 2), None):
            with pytest.raises(ValueError, match=r"got two; .*flow.log_prob\(x, context\)"):
                one(x, draw(5, 3))
    with pytest.raises(ValueError, match=r"expected \(..., 2\), got \(\)"):
        flow.log_prob(torch.tensor(1.0), draw(3))
    with pytest.raises(ValueError, match="expected at least 2 rows of 3"):
        flow.standardise(draw(5, 2), draw(1, 3))
    with pytest.raises(ValueError, match="got context channel 1 constant"):
        flow.standardise(draw(5, 2), draw(5, 3) * torch.tensor([1.0, 0.0, 1.0]))
    blind = EnigmaFlow.build(2, 1, hidden_channels=8)
    with pytest.raises(ValueError, match=r"0 context features, got 3.*with context_features=3"):
        blind.log_prob(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"a prior over vectors of 2.*Independent"):
        EnigmaFlow(blind.enigma, distributions.Normal(torch.zeros(2), torch.ones(2)))
    machine = Enigma(4, 1, 1, 4, coupling=CouplingSettings(context_features=2))
    with pytest.raises(ValueError, match=r"2 conditioning features, got none.*TokenContext"):
        machine(torch.zeros(1, 3, 4), TokenContext.of(torch.zeros(1, 3, 4)))
