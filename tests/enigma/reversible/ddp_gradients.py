"""One of two gloo ranks: accumulate two micro-batches under DDP and save the gradients.

First those of the language model, then those of pairs of networks that serve more than once, here
and in the common recipe for reversible layers.

torchrun --nproc-per-node 2 tests/enigma/reversible/ddp_gradients.py DIRECTORY
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from enigma.reversible import ReversibleSequence

SIZES = {
    "vocab_size": 60,
    "d": 16,
    "num_rev_blocks": 2,
    "num_rotors": 2,
    "num_transformer_layers": 3,
    "num_heads": 2,
    "conv1x1_positions": 4,
    "pointer_channels": 4,
    "attention_dropout": 0.2,
    "hidden_dropout": 0.2,
}
CASES = {
    "float64": {"dtype": torch.float64},
    "exact": {"exact": True, "rotor_form": "lifting"},
    "exact-bf16": {"exact": True, "rotor_form": "lifting", "autocast": True},
    "exact-unused": {"exact": True, "rotor_form": "lifting", "find_unused": True},
}


def gradients(memory: str, rank: int, **case) -> dict[str, torch.Tensor]:
    """Gradients after two micro-batches, with dropout that differs by rank."""
    dtype, autocast = case.pop("dtype", torch.float32), case.pop("autocast", False)
    find_unused = case.pop("find_unused", False)
    torch.manual_seed(0)
    model = EnigmaForCausalLM(EnigmaConfig(**SIZES, **case, memory=memory)).to(dtype).train()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    parallel = DistributedDataParallel(model, find_unused_parameters=find_unused)
    torch.manual_seed(rank)
    # Texts that repeat themselves, for the pointer.
    ids = torch.randint(60, (2, 2, 3)).repeat(1, 1, 3)
    with parallel.no_sync(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        first = parallel(ids[0], labels=ids[0]).loss
        first.backward()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        second = parallel(ids[1], labels=ids[1]).loss
    second.backward()
    return {name: value.grad for name, value in model.named_parameters()}


class CommonRecipe(torch.autograd.Function):
    """A pair that calls `backward` inside its backward pass, which adds to `.grad` at once."""

    @staticmethod
    def forward(ctx, x1, x2, f, g):
        y1 = x1 + f(x2)
        y2 = x2 + g(y1)
        ctx.networks = f, g
        ctx.save_for_backward(y1, y2)
        return y1, y2

    @staticmethod
    def backward(ctx, grad1, grad2):
        (f, g), (y1, y2) = ctx.networks, ctx.saved_tensors
        with torch.enable_grad():
            y1 = y1.detach().requires_grad_()
            change = g(y1)
            change.backward(grad2)
            x2 = (y2 - change).detach().requires_grad_()
            grad1 = grad1 + y1.grad
            f(x2).backward(grad1)
        return grad1, grad2 + x2.grad, None, None


class Tied(nn.Module):
    """Two networks that serve in three pairs, and a layer in front that wants a gradient."""

    def __init__(self, memory):
        super().__init__()
        self.first = nn.Linear(3, 6)
        f, g = (nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 3)) for _ in range(2))
        self.body = ReversibleSequence([(f, g), (g, f), (f, g)], memory="plain")
        self.memory = memory

    def forward(self, x):
        streams = self.first(x).chunk(2, dim=-1)
        if self.memory != "common recipe":
            self.body.memory = self.memory
            return self.body(*streams)
        for f, g in self.body.pairs:
            streams = CommonRecipe.apply(*streams, f, g)
        return streams


def tied_gradients(memory: str, rank: int) -> dict[str, torch.Tensor]:
    """Gradients of shared networks after two micro-batches, the first without synchronisation."""
    torch.manual_seed(0)
    model = Tied(memory).double()
    parallel = DistributedDataParallel(model)
    torch.manual_seed(rank)
    batches = torch.randn(2, 4, 3, dtype=torch.float64)
    with parallel.no_sync():
        sum(y.sin().sum() for y in parallel(batches[0])).backward()
    sum(y.sin().sum() for y in parallel(batches[1])).backward()
    return {name: value.grad for name, value in model.named_parameters()}


if __name__ == "__main__":
    torch.distributed.init_process_group("gloo")
    here = int(os.environ["RANK"])
    for name, changes in CASES.items():
        for mode in ("plain", "reversible"):
            save_file(
                gradients(mode, here, **changes),
                Path(sys.argv[1]) / f"{name}-{mode}-{here}.safetensors",
            )
    for mode in ("plain", "reversible", "common recipe"):
        where = Path(sys.argv[1])
        try:
            save_file(tied_gradients(mode, here), where / f"tied-{mode}-{here}.safetensors")
        except RuntimeError as error:
            (where / f"tied-{mode}-{here}.txt").write_text(str(error))
    torch.distributed.destroy_process_group()
