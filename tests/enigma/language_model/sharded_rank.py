"""What each rank of `test_sharding.py` does; torchrun starts it."""

import copy

import torch
from torch import distributed
from torch.distributed.device_mesh import init_device_mesh
from torch.nn import functional

from enigma.configuration_enigma import EnigmaConfig
from enigma.language_model.sharding import shard
from enigma.model import EnigmaLM
from enigma.modeling_enigma import EnigmaForCausalLM

STEPS = 3
SIZES = {
    "vocab_size": 60,
    "d": 16,
    "num_rev_blocks": 2,
    "num_rotors": 2,
    "num_transformer_layers": 3,
    "num_heads": 2,
    "max_len": 16,
    "conv1x1_positions": 4,
}


def logits_loss(model, ids):
    """The loss of an `EnigmaLM`, from its logits."""
    logits = model(ids)[:, :-1].flatten(0, 1)
    return functional.cross_entropy(logits, ids[:, 1:].flatten())


def own_loss(model, ids):
    """The loss of an `EnigmaForCausalLM`, which never holds all logits."""
    return model(input_ids=ids, labels=ids).loss


def train_both(whole, loss) -> None:
    """Train a model sharded and whole on the same batches; both must remain the same model."""
    rank, world_size = distributed.get_rank(), distributed.get_world_size()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    # In float64, as AdamW makes a whole step of a gradient that is rounding and nothing else.
    whole = whole.double().train()
    sharded = copy.deepcopy(whole)
    shard(sharded, init_device_mesh("cpu", (world_size,)))
    held = sum(parameter.to_local().numel() for parameter in sharded.parameters())
    assert held < 1.1 * sum(p.numel() for p in whole.parameters()) / world_size
    optimisers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (sharded, whole)]
    for step in range(STEPS):
        ids = torch.randint(60, (world_size, 2, 16))  # the same draw on every rank
        for model, optimiser, batch in zip(
            (sharded, whole), optimisers, (ids[rank], ids.flatten(0, 1)), strict=True
        ):
            loss(model, batch).backward()
            optimiser.step()
            optimiser.zero_grad()
        for (name, ours), theirs in zip(
            sharded.named_parameters(), whole.parameters(), strict=True
        ):
            difference = (ours.full_tensor() - theirs).abs().max().item()
            assert difference < 1e-9, (step, name, difference)


def main() -> None:
    """Train both classes, in both memory modes that can be sharded."""
    distributed.init_process_group("gloo")
    torch.manual_seed(0)
    train_both(EnigmaLM(**SIZES), logits_loss)
    for memory in ("plain", "checkpoint"):
        config = EnigmaConfig(**SIZES, memory=memory, attention_dropout=0.0, bos_token_id=1)
        train_both(EnigmaForCausalLM(config), own_loss)
    if distributed.get_rank() == 0:
        print("sharded and whole agree")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
