"""The machine is one list of passes, whichever way it is run."""

import pytest
import torch

from enigma.bijections.base import TokenContext
from enigma.bijections.machine import Enigma
from enigma.couplings.settings import COUPLINGS
from enigma.reversible import run_steps, undo_steps


@pytest.mark.parametrize("coupling", COUPLINGS)
@pytest.mark.parametrize("return_path", ["reversed", "untied", "inverse"])
@pytest.mark.parametrize("between", [False, True])
def test_every_way_of_running_it_gives_the_same_bits(coupling, return_path, between, stirred):
    machine = Enigma(
        8, 2, 2, 4, coupling=coupling, return_path=return_path, rotors_between_blocks=between
    )
    stirred(machine.double(), std=0.03)
    x = torch.randn(2, 5, 8, dtype=torch.float64)
    context = TokenContext.of(x, start=3)
    steps = machine.steps(context, stream=0)
    y = machine(x, context)
    expected = torch.autograd.grad(y.square().sum(), list(machine.parameters()))
    for memory in ("plain", "checkpoint", "reversible"):
        again = run_steps(steps, (x,), memory)
        assert torch.equal(again, y)
        grads = torch.autograd.grad(again.square().sum(), list(machine.parameters()))
        for grad, wanted in zip(grads, expected, strict=True):
            torch.testing.assert_close(grad, wanted, rtol=1e-8, atol=1e-8)
    with torch.no_grad():
        (back,) = undo_steps(steps, (y,))
        assert torch.equal(back, machine.inverse(y, context))
