"""One of two gloo ranks: accumulate two micro-batches under DDP and save the gradients.

torchrun --nproc-per-node 2 tests/enigma/ddp_gradients.py DIRECTORY
"""

import os
import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.parallel import DistributedDataParallel

from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM

SIZES = {
    "vocab_size": 60,
    "d": 16,
    "num_rev_blocks": 2,
    "num_rotors": 2,
    "num_transformer_layers": 3,
    "num_heads": 2,
    "conv1x1_positions": 4,
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
    ids = torch.randint(60, (2, 2, 9))
    with parallel.no_sync(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        first = parallel(ids[0], labels=ids[0]).loss
        first.backward()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        second = parallel(ids[1], labels=ids[1]).loss
    second.backward()
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
    torch.distributed.destroy_process_group()
