"""The token embedding, where the stream starts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from enigma.layers.linear import Embedding
from enigma.layers.norm import rms_normalise

if TYPE_CHECKING:
    from enigma.language_model.reachable import ReachableVocabulary

__all__ = ["TokenEmbedding", "read_through"]


def read_through(embedding: nn.Embedding, vocabulary: ReachableVocabulary | None) -> None:
    """Let an embedding read ids as a vocabulary does, whoever calls it; None ends that.

    A copy of the embedding does the same, with a copy of the vocabulary.
    """
    if not hasattr(embedding, "read_as"):
        embedding.register_forward_pre_hook(_look_up_rows, with_kwargs=True)
    # In a tuple: as a part of the embedding its tensors would be in every file twice.
    embedding.read_as = (vocabulary,)  # type: ignore[assignment]  # torch: tensors, modules


def _look_up_rows(
    embedding: nn.Module, arguments: tuple[Any, ...], keywords: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    (vocabulary,) = cast("tuple[ReachableVocabulary | None]", embedding.read_as)
    if vocabulary is None:
        return arguments, keywords
    if not arguments:
        return (), {**keywords, "input": vocabulary.rows(keywords["input"])}
    return (vocabulary.rows(arguments[0]), *arguments[1:]), keywords


class TokenEmbedding(nn.Module):
    """Embed token ids and normalise every embedding.

    The RMS-norm gives the stream a scale of 1 for rows of any length, which a tied head trains.

    Args:
        vocab_size: number of ids, V.
        d: width D.
        num_positions: rows of a learned position embedding; 0 for none, with ALiBi.
    """

    def __init__(self, vocab_size: int, d: int, num_positions: int = 0) -> None:
        super().__init__()
        self.tokens: nn.Embedding = Embedding(vocab_size, d)
        self.positions = Embedding(num_positions, d) if num_positions else None

    def forward(
        self, ids_BL: Tensor | None, index: Tensor, rows_BLD: Tensor | None = None
    ) -> Tensor:
        """Return the stream.

        Args:
            ids_BL: int64 `(B, L)` in [0, V).
            index: int64 `(L,)` or `(B, L)`, the index of each token in its text, from 0.
            rows_BLD: floating `(B, L, D)`, rows to use instead of those of `ids_BL`.

        Returns:
            floating `(B, L, D)`.

        Raises:
            ValueError: if a learned position embedding has no row for a token. Not on a GPU, which
                the check would make wait; there the look-up itself fails.
        """
        x_BLD = self.tokens(ids_BL) if rows_BLD is None else rows_BLD
        if self.positions is not None:
            known = index.device.type == "cpu" and not torch.compiler.is_compiling()
            if known and index.numel() and int(index.max()) >= self.positions.num_embeddings:
                raise ValueError(
                    f"expected at most max_len={self.positions.num_embeddings} tokens with learned "
                    f"positions, got {int(index.max()) + 1}; to fix this: shorten the text, or "
                    "train with use_alibi=True, which has no such bound"
                )
            x_BLD = x_BLD + self.positions(index)
        return rms_normalise(x_BLD)
