"""Muon by hand; torch's own Muon beside ours: see test_recipe.py."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from pipelines.training.muon import Muon, orthogonalise
from tests.support import REPOSITORY

QUINTIC = (3.4445, -4.7750, 2.0315)


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def parameter(*shape: int, seed: int = 0) -> torch.nn.Parameter:
    made = torch.nn.Parameter(drawn(*shape, seed=seed))
    made.grad = drawn(*shape, seed=seed + 100)
    return made


@pytest.mark.parametrize("shape", [(2, 5, 5), (2, 4, 7), (2, 7, 4)])
def test_each_iteration_applies_the_polynomial_to_the_singular_values(
    shape: tuple[int, ...],
) -> None:
    matrices = drawn(*shape)
    u, values, vh = torch.linalg.svd(matrices, full_matrices=False)
    values = values / torch.linalg.vector_norm(values, dim=-1, keepdim=True)
    a, b, c = QUINTIC
    for steps in range(4):
        found = orthogonalise(matrices, QUINTIC, steps, 1e-7)
        torch.testing.assert_close(found, u @ torch.diag_embed(values) @ vh)
        values = a * values + b * values**3 + c * values**5


def test_a_gradient_of_zero_leaves_the_weight_decay() -> None:
    weight = parameter(3, 4)
    before = weight.detach().clone()
    weight.grad.zero_()
    Muon([weight], lr=0.1, weight_decay=0.5).step()
    torch.testing.assert_close(weight.detach(), before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("shape", [(6, 6), (4, 16), (16, 4)])
def test_an_update_is_as_large_as_one_of_adamw(shape: tuple[int, int]) -> None:
    """Liu et al., 2025: a root mean square of about 0.2 learning rates, whatever the shape."""
    weight = parameter(*shape)
    before = weight.detach().clone()
    Muon([weight], lr=0.1, weight_decay=0.0).step()
    size = (weight.detach() - before).square().mean().sqrt().item() / 0.1
    # Newton-Schulz leaves singular values between 0.7 and 1.2.
    assert 0.7 * 0.2 <= size <= 1.25 * 0.2


def test_matrices_of_one_shape_get_what_each_gets_alone() -> None:
    shapes = [(4, 6), (6, 4), (4, 6), (4, 6)]
    together = [parameter(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    alone = [parameter(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    together[2].grad = alone[2].grad = None
    unmoved = together[2].detach().clone()
    optimisers = [Muon(together, lr=0.1, weight_decay=0.1)]
    optimisers += [Muon([one], lr=0.1, weight_decay=0.1) for one in alone]
    for _ in range(3):
        for optimiser in optimisers:
            optimiser.step()
    for one, two in zip(together, alone, strict=True):
        torch.testing.assert_close(one, two)
    assert torch.equal(together[2], unmoved), "what has no gradient stays"


def test_a_closure_computes_gradients_and_its_loss_comes_back() -> None:
    weight = torch.nn.Parameter(drawn(3, 4))

    def loss() -> float:
        value = weight.square().sum()
        value.backward()
        return value.item()

    expected = weight.detach().square().sum().item()
    optimiser = Muon([weight], lr=0.01, weight_decay=0.0)
    assert optimiser.step(loss) == pytest.approx(expected)
    assert weight.detach().square().sum().item() < expected
    assert optimiser.step() is None


@pytest.mark.distributed
def test_two_ranks_share_the_work_of_one_and_exchange_gradients_in_bf16(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.pipelines.training.two_ranks", str(tmp_path)]
    ranks = [
        subprocess.Popen(
            [*command, str(rank)], cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        for rank in range(2)
    ]
    for rank in ranks:
        output = rank.communicate(timeout=600)[0].decode()
        assert rank.returncode == 0, output[-4000:]
        assert "shared and alone agree" in output
