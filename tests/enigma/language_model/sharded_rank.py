"""What each rank of `test_sharding.py` does; torchrun starts it."""

import copy

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional

from enigma.language_model.sharding import shard
from enigma.model import EnigmaLM

STEPS = 3


def main() -> None:
    """Train sharded and whole on the same batches; both must be the same model."""
    distributed.init_process_group("gloo")
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    torch.manual_seed(0)
    # In float64, as AdamW makes a whole step of a gradient that is rounding and nothing else.
    lm = EnigmaLM(60, 16, 2, 2, 3, 2, 16, conv1x1_positions=4).double()
    with torch.no_grad():
        for parameter in lm.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    whole = copy.deepcopy(lm)
    shard(lm, init_device_mesh("cpu", (world_size,)))
    held = sum(parameter.to_local().numel() for parameter in lm.parameters())
    assert held < 0.6 * sum(parameter.numel() for parameter in whole.parameters())
    optimisers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (lm, whole)]
    for step in range(STEPS):
        ids = torch.randint(60, (world_size, 2, 16))  # the same draw on every rank
        for model, optimiser, batch in zip(
            (lm, whole), optimisers, (ids[rank], ids.flatten(0, 1)), strict=True
        ):
            logits = model(batch)[:, :-1].flatten(0, 1)
            functional.cross_entropy(logits, batch[:, 1:].flatten()).backward()
            optimiser.step()
            optimiser.zero_grad()
        for (name, ours), theirs in zip(lm.named_parameters(), whole.parameters(), strict=True):
            difference = (ours.full_tensor() - theirs).abs().max().item()
            assert difference < 1e-9, (step, name, difference)
    if rank == 0:
        print("sharded and whole agree")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
