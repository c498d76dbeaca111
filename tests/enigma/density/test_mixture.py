"""A mixture of normal distributions: against torch and SciPy, by its moments, behind a flow."""

import copy
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_normal
from torch import distributions

from enigma.density.mixture import GaussianMixture
from enigma.jacobian_logdet import EnigmaFlow, load_flow, save_flow


def parts(num_components, d, seed=0):
    """Weights, means, and covariances that are far from the identity, in float64."""
    draw = torch.Generator().manual_seed(seed)
    weights_K = torch.rand(num_components, generator=draw, dtype=torch.float64) + 0.1
    means_KD = 3 * torch.randn(num_components, d, generator=draw, dtype=torch.float64)
    mix_KDD = torch.randn(num_components, d, d, generator=draw, dtype=torch.float64)
    return weights_K, means_KD, mix_KDD @ mix_KDD.mT + 0.1 * torch.eye(d, dtype=torch.float64)


@given(
    num_components=st.sampled_from([1, 2, 5, 40]), d=st.integers(1, 6), seed=st.integers(0, 10_000)
)
def test_density_and_gradient_are_those_of_torch_and_scipy(num_components, d, seed):
    weights_K, means_KD, covariances_KDD = parts(num_components, d, seed)
    mixture = GaussianMixture.of(weights_K, means_KD, covariances_KDD)
    theirs = distributions.MixtureSameFamily(
        distributions.Categorical(weights_K),
        distributions.MultivariateNormal(means_KD, covariances_KDD),
    )
    generator = torch.Generator().manual_seed(seed)
    x = 4 * torch.randn(2, 3, d, generator=generator, dtype=torch.float64)
    x.requires_grad_()
    expected = theirs.log_prob(x)
    got = mixture.log_prob(x)
    torch.testing.assert_close(got, expected, rtol=1e-9, atol=1e-9)
    slopes = [torch.autograd.grad(value.sum(), x)[0] for value in (got, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-7, atol=1e-7)
    shares_K = (weights_K / weights_K.sum()).numpy()
    point = x[0, 0].detach().numpy()
    # By logarithms: far from every mean the density itself is 0 in float64.
    log_density = logsumexp(
        [
            math.log(share) + multivariate_normal(mean.numpy(), covariance.numpy()).logpdf(point)
            for share, mean, covariance in zip(shares_K, means_KD, covariances_KDD, strict=True)
        ]
    )
    assert got[0, 0].item() == pytest.approx(log_density, rel=1e-8, abs=1e-8)


def test_samples_have_the_mean_the_covariance_and_the_shares():
    weights_K, means_KD, covariances_KDD = parts(3, 2)
    mixture = GaussianMixture.of(weights_K, means_KD, covariances_KDD)
    x_ND = mixture.sample((200_000,), torch.Generator().manual_seed(0))
    shares_K = weights_K / weights_K.sum()
    mean_D = shares_K @ means_KD
    away_KD = means_KD - mean_D
    expected_DD = torch.einsum("k,kij->ij", shares_K, covariances_KDD) + torch.einsum(
        "k,ki,kj->ij", shares_K, away_KD, away_KD
    )
    torch.testing.assert_close(x_ND.mean(0), mean_D, rtol=0, atol=0.03)
    torch.testing.assert_close(torch.cov(x_ND.T), expected_DD, rtol=0.02, atol=0.05)
    # Cold samples are the means themselves, each as often as its weight says.
    cold_ND = mixture.sample((200_000,), torch.Generator().manual_seed(0), temperature=0.0)
    nearest_N = torch.cdist(cold_ND, means_KD).argmin(dim=1)
    torch.testing.assert_close(cold_ND, means_KD[nearest_N])
    found_K = nearest_N.bincount(minlength=3) / len(cold_ND)
    np.testing.assert_allclose(found_K, shares_K, atol=0.005)


def test_samples_are_a_function_of_the_seed_and_of_no_other_randomness():
    mixture = GaussianMixture.of(*parts(5, 3))
    first, again, other = (
        mixture.sample((2, 4), torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    torch.manual_seed(7)
    default = mixture.sample((3,))
    torch.manual_seed(7)
    assert torch.equal(default, mixture.sample((3,)))
    assert mixture.sample().shape == (3,)
    assert mixture.sample((0,)).shape == (0, 3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_dtype_is_kept_and_float32_is_near(dtype):
    exact = GaussianMixture.of(*parts(40, 6))
    mixture = GaussianMixture.of(*(part.to(dtype) for part in parts(40, 6)))
    x_ND = exact.sample((500,), torch.Generator().manual_seed(0))
    got = mixture.log_prob(x_ND.to(dtype))
    assert got.dtype == mixture.sample((2,)).dtype == dtype
    assert (got.double() - exact.log_prob(x_ND)).abs().max() < 1e-3
    assert not list(mixture.parameters()), "nothing of it is trained"


@pytest.mark.parametrize("trainable", [False, True])
@pytest.mark.parametrize("d", [1, 4])
def test_behind_a_flow_it_is_drawn_scored_and_saved(d, trainable, stirred, tmp_path):
    mixture = GaussianMixture.of(*parts(5, d), trainable=trainable)
    flow = stirred(EnigmaFlow.build(d, 1, hidden_channels=8, prior=mixture).double())
    with torch.no_grad():
        x, log_prob = flow().rsample_and_log_prob((6,))
    torch.testing.assert_close(log_prob, flow.log_prob(x), rtol=0, atol=1e-8)
    z, log_det = flow(x)
    torch.testing.assert_close(log_prob, mixture.log_prob(z) + log_det, rtol=0, atol=1e-8)
    save_flow(flow, tmp_path)
    again = load_flow(tmp_path)
    assert again.prior.trainable == trainable
    assert again.prior.means.dtype == torch.float64
    for name, value in flow.state_dict().items():
        assert torch.equal(again.state_dict()[name], value), name
    torch.testing.assert_close(again.log_prob(x), log_prob, rtol=0, atol=1e-9)
    drawn = [each.sample(9, torch.Generator().manual_seed(3)) for each in (flow, again)]
    torch.testing.assert_close(*drawn, rtol=0, atol=1e-9)


def test_autocast_changes_no_density():
    mixture = GaussianMixture.of(*parts(40, 5)).float()
    x = 3 * torch.randn(50, 5, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", torch.bfloat16):
        log_prob = mixture.log_prob(x)
    assert torch.equal(log_prob, mixture.log_prob(x))


def test_what_is_no_mixture_is_refused():
    weights_K, means_KD, covariances_KDD = parts(3, 2)
    with pytest.raises(ValueError, match=r"expected weights \(K,\).*got \(2,\), \(3, 2\)"):
        GaussianMixture.of(weights_K[:2], means_KD, covariances_KDD)
    flat_KDD = covariances_KDD.clone()
    flat_KDD[1] = torch.tensor([[1.0, 1.0], [1.0, 1.0]])
    with pytest.raises(ValueError, match=r"got component 1 without.*add a little to the diagonal"):
        GaussianMixture.of(weights_K, means_KD, flat_KDD)
    # What the message says to do:
    GaussianMixture.of(weights_K, means_KD, flat_KDD + 1e-6 * torch.eye(2))
    with pytest.raises(ValueError, match="got component 2 without"):
        GaussianMixture.of(torch.tensor([1.0, 1.0, 0.0]).double(), means_KD, covariances_KDD)
    skewed_KDD = covariances_KDD.clone()
    skewed_KDD[2, 0, 1] += 9
    with pytest.raises(ValueError, match=r"symmetric.*take the mean of the two"):
        GaussianMixture.of(weights_K, means_KD, skewed_KDD)
    GaussianMixture.of(weights_K, means_KD, (covariances_KDD + covariances_KDD.mT) / 2)
    for broken in (math.nan, math.inf):
        with pytest.raises(ValueError, match="expected finite"):
            GaussianMixture.of(weights_K, means_KD * broken, covariances_KDD)
        with pytest.raises(ValueError, match="expected finite"):
            GaussianMixture.of(weights_K * broken, means_KD, covariances_KDD)
        with pytest.raises(ValueError, match="got component 0 without"):
            GaussianMixture.of(weights_K, means_KD, covariances_KDD * broken)
    with pytest.raises(ValueError, match=r"floating means \(K, D\).*int64"):
        GaussianMixture.of(weights_K, means_KD.long(), covariances_KDD)
    with pytest.raises(ValueError, match=r"floating means \(K, D\)"):
        GaussianMixture.of(torch.ones(2), torch.zeros(2), torch.eye(2))
    with pytest.raises(ValueError, match="at least one component"):
        GaussianMixture(0, 2)
    with pytest.raises(ValueError, match=r"a prior over vectors of 4, got GaussianMixture.*d=2"):
        EnigmaFlow.build(4, 1, prior=GaussianMixture(3, 2))


def test_parts_with_a_graph_leave_no_graph_in_it():
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    mixture = GaussianMixture.of(*(scale * part for part in parts(3, 2)))
    assert not any(buffer.requires_grad for buffer in mixture.buffers())
    copy.deepcopy(mixture)
    flow = EnigmaFlow.build(2, 1, hidden_channels=8, prior=mixture).double()
    for _ in range(2):
        flow.log_prob(torch.zeros(1, 2, dtype=torch.float64)).sum().backward()
    assert scale.grad is None


def test_a_trainable_mixture_is_a_density_wherever_training_leads_it():
    """Weights that no longer add up to 1, a negative diagonal, and noise above the diagonal."""
    mixture = GaussianMixture.of(*parts(3, 2), trainable=True)
    with torch.no_grad():
        mixture.log_weights += torch.tensor([3.0, 0.0, -1.0]).double()
        mixture.factors[1, 0, 0] *= -1
        mixture.factors[:, 0, 1] = 5.0
    weights_K = mixture.log_weights.softmax(-1)
    lower_KDD = mixture.factors.tril()
    theirs = distributions.MixtureSameFamily(
        distributions.Categorical(weights_K),
        distributions.MultivariateNormal(mixture.means, precision_matrix=lower_KDD.mT @ lower_KDD),
    )
    x_ND = mixture.sample((20_000,), torch.Generator().manual_seed(0))
    torch.testing.assert_close(mixture.log_prob(x_ND), theirs.log_prob(x_ND))
    expected_D = (weights_K[:, None] * mixture.means).sum(0)
    torch.testing.assert_close(x_ND.mean(0), expected_D, rtol=0, atol=0.1)


def test_training_moves_a_trainable_mixture_to_its_data_and_a_fixed_one_not_at_all():
    weights_K, means_KD, covariances_KDD = parts(2, 2)
    wanted = GaussianMixture.of(weights_K, means_KD, covariances_KDD)
    x_ND = wanted.sample((2000,), torch.Generator().manual_seed(0))
    start = (torch.ones(2).double(), means_KD + 0.5, torch.eye(2).double().expand(2, 2, 2))
    made = [GaussianMixture.of(*start, trainable=flag) for flag in (True, False)]
    learned, fixed = (EnigmaFlow.build(2, 1, hidden_channels=4, prior=m).double() for m in made)
    assert not {name for name, _ in fixed.named_parameters() if name.startswith("prior")}
    ours = [p for name, p in learned.named_parameters() if name.startswith("prior")]
    assert len(ours) == 3
    optimiser = torch.optim.Adam(ours, lr=0.1)
    for _ in range(200):
        optimiser.zero_grad()
        (-made[0].log_prob(x_ND).mean()).backward()
        optimiser.step()
    gap_nats = float((wanted.log_prob(x_ND) - made[0].log_prob(x_ND)).mean().detach())
    assert gap_nats < 0.02
    # Frozen as it is, it is the same density.
    frozen = GaussianMixture(2, 2).double()
    frozen.load_state_dict(made[0].state_dict())
    torch.testing.assert_close(frozen.log_prob(x_ND), made[0].log_prob(x_ND).detach())
    assert frozen.log_weights.exp().sum().item() == pytest.approx(1)


def test_draws_whose_gradient_would_lack_the_weights_are_refused():
    """A fit by the reverse divergence would leave the weights where they are, without a word."""
    mixture = GaussianMixture.of(*parts(3, 2), trainable=True)
    flow = EnigmaFlow.build(2, 1, hidden_channels=4, prior=mixture).double()
    with pytest.raises(ValueError, match=r"log_weights\.requires_grad_\(False\)"):
        flow().rsample((4,))
    assert flow.sample(4).shape == flow().sample((4,)).shape == (4, 2)
    with torch.no_grad():
        flow().rsample((4,))
    flow.prior.log_weights.requires_grad_(False)
    flow().rsample((4,)).sum().backward()
    assert mixture.means.grad is not None
    alone = GaussianMixture.of(*parts(1, 2), trainable=True)
    EnigmaFlow.build(2, 1, hidden_channels=4, prior=alone).double()().rsample((4,))


def test_a_mixture_that_was_pickled_before_mixtures_could_learn_is_fixed():
    mixture = GaussianMixture.of(*parts(3, 2))
    x_ND = torch.zeros(4, 2, dtype=torch.float64)
    expected = mixture.log_prob(x_ND)
    del mixture.__dict__["trainable"]
    assert torch.equal(mixture.log_prob(x_ND), expected)
    assert "trainable" not in repr(mixture)
