"""The model card that is published beside a model."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import ModelCard, ModelCardData

__all__ = ["write_hub_card"]

_CARD = """---
{metadata}
---

# {name}

A causal language model for Chinese with {parameters:,} parameters. Its layers are reversible, and a
machine of rotors, reversible blocks and a reflector stands in the middle of its attention layers.

```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
```

The code is in this repository. With the package `enigma` installed, `import enigma.modeling_enigma`
takes the place of `trust_remote_code=True`.
"""


def write_hub_card(directory: Path, num_parameters: int) -> Path:
    """Write `README.md` with the metadata that the Hub reads; an existing file is kept.

    Args:
        directory: holds the saved model; its name stands for that of the repository.
        num_parameters: of the model.

    Returns:
        The file.
    """
    file = directory / "README.md"
    if not file.exists():
        data = ModelCardData(
            language="zh",
            license="mit",
            library_name="transformers",
            pipeline_tag="text-generation",
            tags=["enigma", "reversible-network", "custom_code"],
        )
        text = _CARD.format(
            metadata=data.to_yaml(), name=directory.resolve().name, parameters=num_parameters
        )
        ModelCard(text).save(file)
    return file
