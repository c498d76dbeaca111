"""Operations that a GPU launches in a training step of `wiki-zh`, counted without a GPU.

    python -m benchmarks.training.launches                        # about half a minute

A launch takes some 5 us of the host, whatever it computes, so a small model on a fast GPU is bound
by their number. The step runs on a made-up device (`benchmarks.training.fake_gpu`): forward,
backward, clipping and optimiser, in bfloat16 autocast. Attention and RMS-norm count as the one
operation that they are on CUDA, the loss head as what it does for each chunk of tokens, counted on
the CPU. A host read would end the benchmark. Counts of earlier code are in docs/LOG.md.
"""

import math
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile

from benchmarks.ngrams import with_ngrams
from benchmarks.record import row, write
from benchmarks.training.fake_gpu import DEVICE, Operations, fake_gpu, onto_fake_gpu
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.params import load_params
from pipelines.training.optimisers import make_optimiser

PROFILE, LENGTH, TEXTS = "wiki-zh", 256, 12
CHUNKS = {"before": 256, "now": 4096}


def step_counts(model: Any, optimiser: torch.optim.Optimizer, length: int) -> dict[str, int]:
    """Count the operations of one training step of a model on the made-up device, by part."""
    ids_BL = torch.zeros((TEXTS, length), dtype=torch.int64, device=DEVICE)
    with Operations() as forward, torch.autocast(DEVICE, torch.bfloat16):
        loss = model(input_ids=ids_BL, labels=ids_BL).loss
    with Operations() as backward:
        loss.backward()
    with Operations() as update:
        # On CUDA these are the default.
        nn.utils.clip_grad_norm_(model.parameters(), 1.0, foreach=True)
        optimiser.step()
    optimiser.zero_grad()
    return {
        "forward": forward.total,
        "backward": backward.total,
        "clipping and Muon with AdamW": update.total,
    }


def loss_head_count(chunk: int) -> int:
    """Count the operations of the loss head in chunks of as many tokens."""
    hidden_ND = torch.randn(TEXTS * LENGTH, 8, requires_grad=True)
    weight_VD = torch.randn(16, 8, requires_grad=True)
    target_N = torch.zeros(TEXTS * LENGTH, dtype=torch.int64)
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        nn.functional.linear_cross_entropy(
            hidden_ND,
            weight_VD,
            target_N,
            options=nn.LinearCrossEntropyOptions(batch_chunk_size=chunk),
        ).backward()
    names = ("mm", "sub", "div", "exp", "sum", "amax", "log", "gather", "scatter", "add", "mul")
    return sum(
        event.name.removeprefix("aten::").rstrip("_") in names for event in profiler.events()
    )


def main() -> None:
    """Count, print and write."""
    profile_ = load_params().profiles[PROFILE]
    settings = profile_.model.model_dump(mode="json")
    if profile_.count_ngrams is None:
        raise ValueError(f"expected {PROFILE} to train with n-grams")
    models = {
        memory: EnigmaForCausalLM(EnigmaConfig(max_len=LENGTH, **settings, memory=memory)).train()
        for memory in ("plain", "checkpoint", "reversible")
    }
    for memory in ("plain", "reversible"):
        config = EnigmaConfig(max_len=LENGTH, **settings, memory=memory)
        models[f"{memory}, with {profile_.count_ngrams.order}-grams"] = with_ngrams(
            EnigmaForCausalLM(config).train(), profile_.count_ngrams.order
        )
    rows = []
    with fake_gpu():
        for memory, model in models.items():
            optimiser = make_optimiser("muon", onto_fake_gpu(model), lr=1e-3, weight_decay=0.01)
            for part, count in step_counts(model, optimiser, LENGTH).items():
                if part in {"forward", "backward"}:
                    rows.append(row(f"{memory}, {part}", count, "operations"))
                elif memory == "reversible":
                    rows.append(row(part, count, "operations"))
    heads = {when: loss_head_count(chunk) for when, chunk in CHUNKS.items()}
    chunks = math.ceil(TEXTS * LENGTH / CHUNKS["now"])
    rows.append(
        row(
            f"loss head, {chunks} chunk of {CHUNKS['now']:,} tokens, both directions",
            heads["now"],
            "operations",
            peer=f"chunks of {CHUNKS['before']}",
            peer_value=heads["before"],
        )
    )
    write("launches", rows)


if __name__ == "__main__":
    main()
