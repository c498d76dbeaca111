"""A permutation that is learned stays a permutation while it is learned."""

import pytest
import torch

from enigma.plugboard import Plugboard
from enigma.simple_permutation import SimplePermutation, sinkhorn


def test_it_learns_a_planted_permutation():
    torch.manual_seed(0)
    planted = torch.randperm(8)
    assert (planted != torch.arange(8)).any()
    permutation = SimplePermutation(8)
    optimiser = torch.optim.Adam(permutation.parameters(), lr=0.1)
    steps = 200
    for step in range(steps):
        permutation.set_progress(step / steps, seed=step if step < steps // 2 else None)
        x = torch.randn(32, 8)
        loss = (permutation(x) - x[:, planted]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    permutation.eval()
    assert torch.equal(permutation.order(), planted)
    x = torch.randn(4, 8)
    assert torch.equal(permutation(x), x[:, planted])


def test_training_with_noise_is_still_a_bijection():
    permutation = SimplePermutation(6).train()
    permutation.set_progress(0.0, seed=3)
    x = torch.randn(5, 6)
    y = permutation(x)
    assert sorted(permutation.order().tolist()) == list(range(6))
    assert torch.equal(y.sort().values, x.sort().values)
    assert torch.equal(permutation.inverse(y), x)
    assert not torch.equal(permutation.order(), permutation.eval().order())


def test_the_gradient_is_that_of_the_relaxation():
    permutation = SimplePermutation(4).train()
    x = torch.randn(3, 4)
    weight = torch.randn(3, 4)
    (permutation(x) * weight).sum().backward()
    scores = permutation.scores.detach().clone().requires_grad_()
    ((x @ sinkhorn(scores / permutation.temperature).T) * weight).sum().backward()
    torch.testing.assert_close(permutation.scores.grad, scores.grad)


def test_the_schedule_is_geometric():
    permutation = SimplePermutation(2, temperatures=(1.0, 0.01))
    for fraction, expected in ((0.0, 1.0), (0.5, 0.1), (1.0, 0.01)):
        permutation.set_progress(fraction)
        assert permutation.temperature == pytest.approx(expected)


def test_a_learned_plugboard_keeps_its_cables():
    torch.manual_seed(0)
    board = Plugboard(26, learnable=True).eval()
    with torch.no_grad():
        board.permutation.scores.normal_()
    wiring = board(torch.arange(26.0)).long()
    assert int((wiring != torch.arange(26)).sum()) == 20
    assert torch.equal(wiring[wiring], torch.arange(26))
    assert not torch.equal(wiring, board.partner)
