"""From the final hidden states of a language model to its prediction of the next token.

Legend: B batch, L tokens, V ids, C classes, D channels, K context lengths of the n-gram memory.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.language_model.ngram_counts import NGramCounts
from enigma.language_model.ngram_memory import NGramMemory
from enigma.language_model.reachable import ReachableVocabulary
from enigma.language_model.row_cache import earlier_rows, keep_rows
from enigma.token_embedding import TokenEmbedding

__all__ = ["Prediction"]


class Prediction(nn.Module):
    """What a language model has behind its network: the head, and what joins in its prediction.

    Attributes:
        embedding: of token ids.
        head: maps hidden states to the logits of all ids.
        reachable: the classes of the vocabulary; None if every id is one.
        ngrams: the n-gram memory, or None.
        num_key_slots: layers of a decoding cache that the network uses.
    """

    embedding: TokenEmbedding
    head: nn.Linear
    reachable: ReachableVocabulary | None
    ngrams: NGramMemory | None
    num_key_slots: int

    def allocate(self, num_reachable: int | None, ngram_sizes: list[list[int]] | None) -> None:
        """Make room for a reachable vocabulary and an n-gram memory, which a file then fills.

        Args:
            num_reachable: see `ReachableVocabulary`; None for every id.
            ngram_sizes: see `NGramMemory`; None for no memory.
        """
        d = self.embedding.tokens.embedding_dim
        self.reachable = self.ngrams = None
        if num_reachable is not None:
            self.reachable = ReachableVocabulary(self.vocab_size, num_reachable)
        if ngram_sizes is not None:
            self.ngrams = NGramMemory(ngram_sizes, self.num_classes, d)

    @property
    def vocab_size(self) -> int:
        """The number of token ids, V, also after `resize_token_embeddings` of transformers."""
        return self.embedding.tokens.num_embeddings

    @property
    def num_cache_slots(self) -> int:
        """Layers that a decoding cache needs; the n-gram memory has the last one."""
        return self.num_key_slots + (self.ngrams is not None)

    @property
    def num_classes(self) -> int:
        """The number of classes that the head tells apart, C: V without a reachable vocabulary."""
        return self.vocab_size if self.reachable is None else self.reachable.num_classes

    def classes(self, ids: Tensor) -> Tensor:
        """Return the classes of ids, int64 of the same shape."""
        return ids if self.reachable is None else self.reachable.class_of_id[ids]

    def set_ngrams(self, counts: NGramCounts | None, *, leave_one_out: bool = False) -> None:
        """Give the model an n-gram memory, or take it away.

        Args:
            counts: of the classes of a text, see `count_ngrams` and `NGramCounts.read`; None for no
                memory.
            leave_one_out: the model is about to be trained on the very text that was counted: take
                each target out of the counts meanwhile.

        Raises:
            ValueError: for counts of another number of classes.
        """
        if counts is not None and counts.num_classes != self.num_classes:
            raise ValueError(
                f"expected n-grams of {self.num_classes} classes, got {counts.num_classes}; to fix "
                "this: call set_reachable first, and count lm.classes(ids)"
            )
        self.ngrams = None
        if counts is not None:
            weight = self.embedding.tokens.weight
            self.ngrams = NGramMemory.of(counts, weight.shape[1]).to(weight.device, weight.dtype)
            self.ngrams.leave_one_out = leave_one_out

    def resize_classes(self) -> None:
        """Follow an embedding that was resized: ids that were added are reachable."""
        if self.reachable is not None:
            self.reachable = self.reachable.resized(self.vocab_size)
        if self.ngrams is not None:
            self.ngrams.renumber(self.num_classes, keep_last=self.reachable is not None)

    def logits(self, hidden: Tensor, context_rows: Tensor | None = None) -> Tensor:
        """Return the logits `(..., V)` of final hidden states `(..., D)`.

        Args:
            hidden: final hidden states.
            context_rows: int64 `(..., K)`, what `context_rows` returned for the same tokens; None
                for the network alone, without its n-gram memory.
        """
        scores = self.class_logits(hidden)
        if self.ngrams is not None and context_rows is not None:
            scores = self.ngrams.mix_logits(scores, hidden, context_rows)
        return scores if self.reachable is None else self.reachable.spread(scores)

    def class_logits(self, hidden: Tensor) -> Tensor:
        """Return the network's logits of the classes, `(..., C)`, of final hidden states."""
        if self.reachable is not None:
            return self.reachable.class_logits(self.head, hidden)
        scores: Tensor = self.head(hidden)
        return scores

    def nll_nats(self, hidden_BLD: Tensor, ids_BL: Tensor) -> Tensor:
        """Return the negative log-likelihoods of tokens 1 ... L - 1, `(B, L - 1)`, for scoring.

        What `logits` says of them, without the logits of the other ids, which cost most of it.

        Args:
            hidden_BLD: final hidden states of these tokens.
            ids_BL: int64 `(B, L)`, without padding.
        """
        hidden_ND, target_N = hidden_BLD[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten()
        cost_N = hidden_ND.new_zeros(len(target_N))
        if self.reachable is not None:
            target_N, cost_N = self.reachable.targets(target_N, torch.float32)
        scores_NC = self.class_logits(hidden_ND).float()
        nll_N = functional.cross_entropy(scores_NC, target_N, reduction="none")
        rows_BLK = self.context_rows(ids_BL)
        if self.ngrams is not None and rows_BLK is not None:
            rows_NK = rows_BLK[:, :-1].flatten(0, 1)
            log_ngram_N, facts_NF = self.ngrams.log_prob(rows_NK, target_N, nll_N.dtype)
            gate_N = self.ngrams.gate_logits(hidden_ND, facts_NF)
            nll_N = -self.ngrams.mix(-nll_N, log_ngram_N, gate_N)
        return (nll_N + cost_N).view(len(ids_BL), -1)

    def context_rows(
        self,
        ids_BL: Tensor | None,
        mask: Tensor | None = None,
        cache: Any = None,
        starts_BL: Tensor | None = None,
    ) -> Tensor | None:
        """Return what the n-gram memory needs of the tokens up to each one; None without a memory.

        Args:
            ids_BL: int64 `(B, L)`.
            mask: `(B, L)`, 0 at padding.
            cache: holds earlier tokens; these L are appended.
            starts_BL: bool `(B, L)`, where a text starts, beside the first token.

        Returns:
            int64 `(B, L, K)`.

        Raises:
            ValueError: without ids.
        """
        if self.ngrams is None:
            return None
        if ids_BL is None:
            raise ValueError(
                "expected ids in a model with an n-gram memory, got embeddings; to fix this: call "
                "set_ngrams(None), for the network alone"
            )
        class_BL = self.classes(ids_BL)
        if mask is not None:
            class_BL = class_BL.masked_fill(mask == 0, -1)
        slot = self.num_cache_slots - 1
        earlier_BK = None if cache is None else earlier_rows(cache, slot)
        rows_BLK = self.ngrams.context_rows(class_BL, starts_BL, earlier_BK)
        if cache is not None:
            keep_rows(cache, slot, rows_BLK)
        return rows_BLK

    def set_reachable(self, reachable_ids: Tensor, possible: Tensor) -> None:
        """Say which ids training reaches; the others that are possible share one logit.

        Training and decoding then compute fewer logits, while probabilities stay normalised over
        all ids. An id that is not reachable is read as a row that all such ids share.

        Args:
            reachable_ids: int64 `(R,)`, the ids that have a logit of their own.
            possible: bool `(V,)`, the ids that can occur; the others get the logit -inf.

        Raises:
            ValueError: for another number of ids than V; in a model with an n-gram memory; and
                see `ReachableVocabulary.of`.
        """
        if possible.shape != (self.vocab_size,):
            raise ValueError(
                f"possible must have the shape ({self.vocab_size},), got {tuple(possible.shape)}"
            )
        if self.ngrams is not None:
            raise ValueError(
                "expected no n-gram memory yet, whose counts are of the classes, got one; to fix "
                "this: call set_reachable before set_ngrams"
            )
        vocabulary = ReachableVocabulary.of(reachable_ids, possible)
        self.reachable = vocabulary.to(self.embedding.tokens.weight.device)
