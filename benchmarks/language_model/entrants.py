"""The models that `benchmarks.language_model.quality` trains, by name and size.

An entrant is a network, the way it starts, and its head: over the classes of
`benchmarks.language_model.classes`, or over all ids, which is how the peers come. Parameters
without embeddings agree within 2 % in each size.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import GPT2LMHeadModel, LlamaForCausalLM

from benchmarks.machine_parts import PLUGBOARD, REFLECTOR, WAY_BACK, take_away
from benchmarks.modern import ModernConfig, ModernGPT
from benchmarks.peers import SPECIAL, THEIR_STD, gpt2_config, llama_config
from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM

LENGTH, HEADS, TOLERANCE = 256, 4, 0.02


@dataclass(frozen=True)
class Size:
    """The sizes of all networks of about as many parameters.

    Args:
        width: Channels.
        layers: Layers of the peers.
        machine: The settings of Enigma with its machine.
        llama_hidden: Width of Llama's networks, which have three matrices.
    """

    width: int
    layers: int
    machine: dict[str, int]
    llama_hidden: int


def _machine(layers: int, blocks: int, rotors: int) -> dict[str, int]:
    return {"num_transformer_layers": layers, "num_rev_blocks": blocks, "num_rotors": rotors}


SIZES = {
    "1M": Size(128, 5, _machine(4, 3, 1), 344),
    "2M": Size(128, 10, _machine(9, 3, 2), 344),
    "10M": Size(288, 10, _machine(9, 3, 2), 776),
}


@dataclass(frozen=True)
class Entrant:
    """A network as it enters.

    Args:
        network: "enigma", "modern", "llama" or "gpt2".
        reachable: Whether its head is over the reachable classes instead of all ids.
        std: Standard deviation of the initial weights times sqrt(width); None for that of
            transformers. Of GPT-2 and Llama only.
        options: Of the network's configuration.
        without: Of `benchmarks.machine_parts.PARTS`, those that no setting removes.
        more_layers: Attention layers that Enigma has instead of what it lacks.
        memory: Whether the n-grams of its training text are part of its prediction, as in the
            pipeline (ADR 18).
        pointer: Channels of a pointer to earlier places of the text (ADR 23); 0 for none.
    """

    network: str
    reachable: bool = True
    std: float | None = 1.0
    options: dict[str, Any] = field(default_factory=dict)
    without: tuple[str, ...] = ()
    more_layers: int = 0
    memory: bool = False
    pointer: int = 0


NO_MACHINE = Entrant(
    "enigma",
    options={"num_rev_blocks": 0, "num_rotors": 0},
    without=(PLUGBOARD, REFLECTOR),
    more_layers=1,
)
DRIVEN = {"num_driven_rotors": 1}
ENTRANTS = {
    "enigma": Entrant("enigma"),
    "no machine": NO_MACHINE,
    "modern": Entrant("modern"),
    "llama": Entrant("llama"),
    "gpt2": Entrant("gpt2"),
}
AS_THEY_COME = {
    f"{name}, all ids": replace(ENTRANTS[name], reachable=False, std=None)
    for name in ("modern", "llama", "gpt2")
}
WITH_MEMORY = {f"{name}, memory": replace(made, memory=True) for name, made in ENTRANTS.items()}
WITH_POINTER = {
    f"{name} and pointer": replace(made, pointer=32) for name, made in WITH_MEMORY.items()
}
OF_ENIGMA = {
    "no plugboard": Entrant("enigma", without=(PLUGBOARD,)),
    "no rotors": Entrant("enigma", options={"num_rotors": 0}),
    "no reflector": Entrant("enigma", without=(REFLECTOR,)),
    "no way back": Entrant("enigma", without=(WAY_BACK,)),
    "no blocks": Entrant("enigma", options={"num_rev_blocks": 0}, more_layers=1),
    "driven rotor": Entrant("enigma", options=DRIVEN | {"rotor_reflections": 2}, more_layers=-1),
    "driven rotor, no machine": replace(
        NO_MACHINE, options=NO_MACHINE.options | DRIVEN, more_layers=0
    ),
}
"""Enigma with one part taken away or put in; a layer of attention makes up for parameters."""
PARTS = OF_ENIGMA | {
    "modern, own head": Entrant("modern", options={"tied": False}),
    "modern, no skip": Entrant("modern", options={"skip": False}),
    "modern, value embeddings": Entrant("modern", options={"value_embeddings": 2}),
    "modern, soft cap": Entrant("modern", options={"soft_cap": 15.0}),
}
ALL = ENTRANTS | AS_THEY_COME | WITH_MEMORY | WITH_POINTER | PARTS


def make(name: str, size: str, classes: int, seed: int) -> Any:
    """Make a fresh network in training mode.

    Args:
        name: Of an entrant.
        size: Of `SIZES`.
        classes: How many it predicts.
        seed: Of its initial weights.
    """
    torch.manual_seed(seed)
    entrant = ALL[name]
    return _MAKERS[entrant.network](entrant, SIZES[size], classes).train()


def _enigma(entrant: Entrant, size: Size, classes: int) -> EnigmaForCausalLM:
    settings = size.machine | entrant.options
    settings["num_transformer_layers"] += entrant.more_layers
    model = EnigmaForCausalLM(
        EnigmaConfig(
            vocab_size=classes,
            d=size.width,
            num_heads=HEADS,
            max_len=LENGTH,
            attention_dropout=0.0,
            **settings,
            **SPECIAL,
        )
    )
    for part in entrant.without:
        take_away(model.lm.core, part)
    return model


def _modern(entrant: Entrant, size: Size, classes: int) -> ModernGPT:
    return ModernGPT(ModernConfig(classes, size.width, HEADS, size.layers, **entrant.options))


def _std(entrant: Entrant, size: Size) -> float:
    return THEIR_STD if entrant.std is None else entrant.std * size.width**-0.5


def _llama(entrant: Entrant, size: Size, classes: int) -> LlamaForCausalLM:
    config = llama_config(
        classes,
        size.width,
        HEADS,
        size.layers,
        LENGTH,
        hidden=size.llama_hidden,
        std=_std(entrant, size),
    )
    return LlamaForCausalLM(config)


def _gpt2(entrant: Entrant, size: Size, classes: int) -> GPT2LMHeadModel:
    config = gpt2_config(classes, size.width, HEADS, size.layers, LENGTH, std=_std(entrant, size))
    return GPT2LMHeadModel(config)


_MAKERS: dict[str, Callable[[Entrant, Size, int], nn.Module]] = {
    "enigma": _enigma,
    "modern": _modern,
    "llama": _llama,
    "gpt2": _gpt2,
}


def hidden_states(model: Any, ids_BL: Tensor) -> Tensor:
    """Return what the head of any of them reads, `(B, L, D)`."""
    if isinstance(model, EnigmaForCausalLM):
        return model.lm.hidden_states(ids_BL)
    if isinstance(model, ModernGPT):
        return model.hidden_states(ids_BL)
    states: Tensor = model.base_model(input_ids=ids_BL, use_cache=False).last_hidden_state
    return states


def parameters(model: nn.Module) -> dict[str, int]:
    """Count parameters with embeddings (including those of positions and values) and without."""
    embeddings = {
        id(p): p.numel()
        for module in (*(m for m in model.modules() if isinstance(m, nn.Embedding)), _head(model))
        for p in module.parameters()
    }
    total = sum(p.numel() for p in model.parameters())
    return {"all": total, "without embeddings": total - sum(embeddings.values())}


def _head(model: Any) -> nn.Module:
    head: nn.Module = model.get_output_embeddings()
    return head
