"""What each of the two ranks of `test_sharding.py` does."""

import copy
import sys

import torch
from torch import distributed
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.nn import functional

from enigma.configuration_enigma import EnigmaConfig
from enigma.language_model.memory.ngram_counts import count_ngrams
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
    "pointer_channels": 4,
}


def logits_loss(model, ids):
    """The loss of an `EnigmaLM`, from its logits."""
    logits = model(ids)[:, :-1].flatten(0, 1)
    return functional.cross_entropy(logits, ids[:, 1:].flatten())


def own_loss(model, ids):
    """The loss of an `EnigmaForCausalLM`, which never holds all logits."""
    return model(input_ids=ids, labels=ids).loss


def train_both(whole, loss, mesh) -> None:
    """Train a model sharded and whole on the same batches; both must remain the same model."""
    rank, ranks = mesh.get_local_rank(), mesh.size()
    with torch.no_grad():
        for parameter in whole.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    # In float64, as AdamW makes a whole step of a gradient that is rounding and nothing else.
    whole = whole.double().train()
    sharded = copy.deepcopy(whole)
    shard(sharded, mesh)
    held = sum(parameter.to_local().numel() for parameter in sharded.parameters())
    assert held < 1.1 * sum(p.numel() for p in whole.parameters()) / ranks
    optimisers = [torch.optim.AdamW(model.parameters(), lr=1e-2) for model in (sharded, whole)]
    for step in range(STEPS):
        ids = torch.randint(60, (ranks, 2, 16))  # the same draw on every rank
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


def made(memory) -> EnigmaForCausalLM:
    """Make a model of the Hugging Face class."""
    return EnigmaForCausalLM(
        EnigmaConfig(**SIZES, memory=memory, attention_dropout=0.0, bos_token_id=1)
    )


def made_with_ngrams() -> EnigmaForCausalLM:
    """Make one with a head over 50 classes and a memory of n-grams."""
    model = made("plain")
    model.set_reachable(torch.arange(50), torch.ones(60, dtype=torch.bool))
    counted = model.lm.classes(torch.randint(60, (30, 16)))
    model.set_ngrams(count_ngrams(counted, model.lm.num_classes, order=3), leave_one_out=True)
    return model


def main() -> None:
    """Train both classes, in both memory modes that can be sharded, on one rank and on two."""
    distributed.init_process_group(
        "gloo", init_method=sys.argv[1], rank=int(sys.argv[2]), world_size=2
    )
    alone, _ = distributed.new_subgroups(group_size=1)
    for mesh in (DeviceMesh.from_group(alone, "cpu"), init_device_mesh("cpu", (2,))):
        torch.manual_seed(0)
        train_both(EnigmaLM(**SIZES), logits_loss, mesh)
        train_both(made("checkpoint"), own_loss, mesh)
        train_both(made_with_ngrams(), own_loss, mesh)
    distributed.destroy_process_group()
    print("sharded and whole agree")


if __name__ == "__main__":
    main()
