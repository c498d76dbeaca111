"""A flow over states is the same in memory and in a file."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from enigma.density.mixture import GaussianMixture
from enigma.jacobian_logdet import EnigmaFlow
from pipelines.base.artifacts import sha256_file
from pipelines.base.errors import UserError
from pipelines.flow.gaussian import Gaussian
from pipelines.flow.state_flow import StateFlow, check_language_model


@pytest.fixture(params=["Gaussian", "mixture"])
def state_flow(request: pytest.FixtureRequest) -> StateFlow:
    """A flow with random weights over a Gaussian, or from two clusters."""
    states_ND = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    flow = EnigmaFlow.build(4, 1, coupling="affine", hidden_channels=8)
    if request.param == "mixture":
        flow.prior = GaussianMixture.of(
            torch.tensor([1.0, 2.0]), torch.ones(2, 4), torch.eye(4).repeat(2, 1, 1)
        )
    for parameter in flow.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return StateFlow(flow.eval(), Gaussian.fit(3 + 2 * states_ND, noise_std=0.1))


def test_a_flow_is_the_same_after_a_file(state_flow: StateFlow, tmp_path: Path) -> None:
    state_flow.save(tmp_path / "flow")
    after = StateFlow.load(tmp_path / "flow", torch.device("cpu"))
    states_ND = torch.randn(50, 4)
    assert torch.equal(after.log_prob(states_ND), state_flow.log_prob(states_ND))
    assert torch.equal(after.sample(9, seed=4), state_flow.sample(9, seed=4))
    (tmp_path / "flow" / "whitening.safetensors").unlink()
    with pytest.raises(UserError, match="expected a flow"):
        StateFlow.load(tmp_path / "flow", torch.device("cpu"))


def test_samples_are_a_function_of_the_seed_and_lie_closer_when_cooler(
    state_flow: StateFlow,
) -> None:
    samples_ND = state_flow.sample(500, seed=5)
    assert torch.equal(samples_ND, state_flow.sample(500, seed=5))
    assert not torch.equal(samples_ND, state_flow.sample(500, seed=4))
    assert state_flow.sample(500, seed=5, temperature=0.5).std() < 0.8 * samples_ND.std()


def test_the_round_trip_error_is_relative_and_sees_a_nan(state_flow: StateFlow) -> None:
    states_ND = 1000 * torch.randn(50, 4)
    assert 0 < state_flow.round_trip_error(states_ND) < 1e-5
    states_ND[3, 1] = torch.nan
    assert not state_flow.round_trip_error(states_ND) >= 0


def test_another_language_model_is_refused(tmp_path: Path) -> None:
    weights = tmp_path / "model.safetensors"
    save_file({"w": torch.zeros(1)}, weights)
    check_language_model(tmp_path, sha256_file(weights))
    with pytest.raises(UserError, match="run `dvc repro train_flow`"):
        check_language_model(tmp_path, "0" * 64)
