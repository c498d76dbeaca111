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

{use}
"""

_WITH_CODE = """```python
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
```

The code is in this repository. With the package `enigma` installed, `import enigma.modeling_enigma`
takes the place of `trust_remote_code=True`."""

_WITHOUT_CODE = """With the package `enigma` installed:

```python
import enigma.modeling_enigma
from transformers import AutoModelForCausalLM

model = AutoModelForCausalLM.from_pretrained("{name}")
```"""

_TEMPLATE = "This model card has been automatically generated."
"""Stands in the card that transformers writes where a repository has none."""


def write_hub_card(
    directory: Path, num_parameters: int, *, name: str | None = None, with_code: bool = True
) -> Path:
    """Write `README.md` with the metadata that the Hub reads.

    An existing file is kept, unless it is the empty template of transformers; of that the tags
    are kept.

    Args:
        directory: holds the saved model.
        num_parameters: of the model.
        name: of the repository; None takes that of the directory.
        with_code: the directory holds the code of the model too.

    Returns:
        The file.
    """
    file = directory / "README.md"
    tags = ["enigma", "reversible-network", *(["custom_code"] if with_code else [])]
    if file.exists():
        card = ModelCard.load(file)
        if _TEMPLATE not in card.text:
            return file
        tags += [tag for tag in card.data.tags or () if tag not in tags]
    data = ModelCardData(
        language="zh",
        license="mit",
        library_name="transformers",
        pipeline_tag="text-generation",
        tags=tags,
    )
    name = name or directory.resolve().name
    text = _CARD.format(
        metadata=data.to_yaml(),
        name=name,
        parameters=num_parameters,
        use=(_WITH_CODE if with_code else _WITHOUT_CODE).format(name=name),
    )
    ModelCard(text).save(file)
    return file
