"""How well a model predicts text: nats per token, perplexity, bits per character.

Tokens depend on a vocabulary; characters do not. Bits per character are all bits
spent on the predicted tokens, divided by the characters of the source text behind
them. [UNK] would make text cheap, since it hides characters without predicting
them; each hidden character is therefore charged as if it were drawn uniformly from
all assigned Unicode characters.

Shape legend: N sequences, L length, B batch, V vocabulary.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from pipelines.data.order import Indices
from pipelines.data.shards import ShardReader

if TYPE_CHECKING:
    from torch import Tensor

# The Unicode Standard, Version 16.0.0 (unicode.org/versions/Unicode16.0.0): "154,998 characters".
ASSIGNED_CHARACTERS = 154_998
UNK_CHARGE_BITS = math.log2(ASSIGNED_CHARACTERS)

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Span:
    """What is predicted: tokens 1..L-1 of some sequences, and the text behind them.

    Args:
        tokens: Predicted tokens.
        characters: Characters of the source text behind them.
        unk_characters: How many of them [UNK] hides.
    """

    tokens: int
    characters: int
    unk_characters: int

    @classmethod
    def of(cls, reader: ShardReader, indices: Indices) -> "Span":
        """Sum the columns that `decontaminate` wrote next to the shards."""
        table = reader.sequences().take(indices)
        return cls(
            tokens=len(indices) * (reader.sequence_length - 1),
            characters=pc.sum(table["characters"]).as_py() or 0,
            unk_characters=pc.sum(table["unk_characters"]).as_py() or 0,
        )


@dataclass(frozen=True)
class Score:
    """A negative log-likelihood and the span that it covers.

    Args:
        span: What was predicted.
        nll_nats: Sum over the tokens of the span.
    """

    span: Span
    nll_nats: float

    @property
    def loss_nats(self) -> float:
        """Mean negative log-likelihood per token."""
        return self.nll_nats / self.span.tokens

    @property
    def perplexity(self) -> float:
        """exp(loss_nats); infinite where that overflows."""
        return math.exp(self.loss_nats) if self.loss_nats < 700 else math.inf

    @property
    def bits_per_character(self) -> float:
        """All bits, including those charged for [UNK], per character of the source text."""
        bits = self.nll_nats / math.log(2) + self.span.unk_characters * UNK_CHARGE_BITS
        return bits / self.span.characters if self.span.characters else math.inf

    def to_dict(self) -> dict[str, Any]:
        """The figures for JSON; those that are not finite become None."""
        numbers = {
            "loss_nats": self.loss_nats,
            "perplexity": self.perplexity,
            "bits_per_character": self.bits_per_character,
        }
        return {
            **{name: value if math.isfinite(value) else None for name, value in numbers.items()},
            "tokens": self.span.tokens,
            "characters": self.span.characters,
            "unk_characters": self.span.unk_characters,
        }


def batches(indices: Indices, batch_size: int) -> list[Indices]:
    """Cut indices into batches; the last one may be smaller."""
    return [indices[start : start + batch_size] for start in range(0, len(indices), batch_size)]


def sequence_nll_nats(model: Any, reader: ShardReader, index_batches: Iterable[Indices]) -> Floats:
    """A causal model's negative log-likelihood of each sequence, over tokens 1..L-1.

    Args:
        model: A causal language model of Hugging Face, or an `EnigmaLM`; its mode (training or
            not) is restored.
        reader: The split.
        index_batches: Which sequences, batch by batch.

    Returns:
        (N,) float64, in nats, in the order of the indices.
    """
    import torch

    from enigma.bijections.constant_weights import constant_weights

    was_training = model.training
    device = next(model.parameters()).device
    model.eval()
    found = [np.empty(0)]
    with torch.no_grad(), constant_weights():
        for index_B in index_batches:
            tokens_BL = reader.gather(index_B).astype(np.int64)
            ids_BL = torch.from_numpy(tokens_BL).to(device)
            found.append(_token_nll_nats(model, ids_BL).double().sum(dim=1).cpu().numpy())
    model.train(was_training)
    return np.concatenate(found)


def _token_nll_nats(model: Any, ids_BL: "Tensor") -> "Tensor":
    """The loss of tokens 1..L-1, (B, L - 1)."""
    from torch.nn.functional import cross_entropy

    from enigma.model import EnigmaLM

    lm = getattr(model, "lm", model)
    if isinstance(lm, EnigmaLM):
        # A tenth of the time of all logits.
        return lm.nll_nats(lm.hidden_states(ids_BL), ids_BL)
    logits_BLV = model(input_ids=ids_BL, use_cache=False).logits
    loss_N: Tensor = cross_entropy(
        logits_BLV[:, :-1].flatten(0, 1).float(), ids_BL[:, 1:].flatten(), reduction="none"
    )
    return loss_N.view(len(ids_BL), -1)


def model_nll_nats(model: Any, reader: ShardReader, index_batches: Iterable[Indices]) -> float:
    """The sum of `sequence_nll_nats`."""
    return float(sequence_nll_nats(model, reader, index_batches).sum())
