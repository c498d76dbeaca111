"""What each rank of `test_muon.py` does: share the work of Muon, and exchange gradients in bf16."""

import copy
import sys
from pathlib import Path

import torch

from pipelines.training.compression import CompressedGradients
from pipelines.training.muon import Muon

SHAPES = [(4, 6), (6, 4), (4, 6), (4, 6), (5, 5)]
STEPS = 3


def made() -> list[torch.nn.Parameter]:
    """Parameters of several shapes; no number of equal ones is divisible by two."""
    generator = torch.Generator().manual_seed(0)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in SHAPES]


def trained(steps: int, state: Path, *, resumed: bool = False) -> list[torch.Tensor]:
    """Take steps with gradients that depend on the step alone; save or load after the first."""
    parameters = made()
    optimiser = Muon(parameters, lr=0.1, weight_decay=0.1)
    if resumed:
        weights, states = torch.load(state)
        for parameter, weight in zip(parameters, weights, strict=True):
            parameter.data.copy_(weight)
        optimiser.load_state_dict(states)
    for step in range(int(resumed), steps):
        generator = torch.Generator().manual_seed(100 + step)
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        optimiser.step()
        if step == 0 and not resumed:
            torch.save(([p.detach() for p in parameters], optimiser.state_dict()), state)
    return [parameter.detach() for parameter in parameters]


def check_compression(rank: int) -> None:
    """Averages in bfloat16 are those in float32 but for rounding, and the same on both ranks."""
    torch.manual_seed(0)
    whole = torch.nn.Linear(7, 5)
    halved = copy.deepcopy(whole)
    x = torch.randn(4, 7, generator=torch.Generator().manual_seed(rank))
    gradients = []
    for model, compress in ((whole, False), (halved, True)):
        parallel = torch.nn.parallel.DistributedDataParallel(model)
        if compress:
            CompressedGradients().register_comm_hook(parallel)
        parallel(x).square().sum().backward()
        gradients.append(model.weight.grad)
    assert gradients[1].dtype == torch.float32
    assert not torch.equal(*gradients), "nothing was compressed"
    torch.testing.assert_close(gradients[1], gradients[0], rtol=2**-6, atol=1e-2)
    other = gradients[1].clone()
    torch.distributed.broadcast(other, 0)
    assert torch.equal(other, gradients[1]), "ranks diverge"


if __name__ == "__main__":
    directory = Path(sys.argv[1])
    alone = trained(STEPS, directory / f"alone-{sys.argv[2]}.pt")
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{directory / 'meet'}", rank=int(sys.argv[2]), world_size=2
    )
    together = trained(STEPS, directory / f"together-{sys.argv[2]}.pt")
    # A checkpoint of one process resumes on two.
    resumed = trained(STEPS, directory / f"alone-{sys.argv[2]}.pt", resumed=True)
    for ways in zip(alone, together, resumed, strict=True):
        torch.testing.assert_close(ways[1], ways[0], rtol=0, atol=1e-6)
        torch.testing.assert_close(ways[2], ways[0], rtol=0, atol=1e-6)
    check_compression(int(sys.argv[2]))
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()
    print("shared and alone agree")
