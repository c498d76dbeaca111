"""A published language model in plain torch: transformers takes longer to import than to run it."""

from __future__ import annotations

import json
from inspect import signature
from pathlib import Path

from safetensors.torch import load_model
from torch import nn

from enigma.model import EnigmaLM

__all__ = ["load_lm"]


def load_lm(directory: str | Path) -> EnigmaLM:
    """Load what `EnigmaForCausalLM.save_pretrained` has written, without transformers.

    Args:
        directory: with `config.json` and `model.safetensors`.

    Returns:
        The model in evaluation mode, in float32 on the CPU.

    Raises:
        FileNotFoundError: if one of the two files is missing.
        RuntimeError: if the weights do not fit; the message names them.

    Examples:
        >>> lm = load_lm("models/sanguo/lm")  # doctest: +SKIP
    """
    directory = Path(directory)
    config = json.loads((directory / "config.json").read_text(encoding="utf-8"))
    # The file names the weights as the model of transformers does.
    holder = nn.Module()
    lm = EnigmaLM(
        **{name: config[name] for name in signature(EnigmaLM).parameters if name in config}
    )
    holder.lm = lm
    load_model(holder, directory / "model.safetensors")
    return lm.eval()
