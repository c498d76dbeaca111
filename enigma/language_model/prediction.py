"""From the final hidden states of a language model to its prediction of the next token.

Legend: B batch, L tokens, N tokens of a flattened batch, V ids, C classes, D channels.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.language_model.memory.evidence import Evidence
from enigma.language_model.memory.ngram_counts import NGramCounts
from enigma.language_model.memory.ngram_memory import NGramMemory
from enigma.language_model.memory.pointer import Pointer
from enigma.language_model.memory.token_facts import keep_facts, last_facts
from enigma.language_model.reachable import ReachableVocabulary
from enigma.token_embedding import TokenEmbedding, read_through

__all__ = ["Prediction"]


class Prediction(nn.Module):
    """What a language model has behind its network: the head, and what joins in its prediction.

    Attributes:
        embedding: of token ids.
        head: maps hidden states to the logits of all ids.
        reachable: the classes of the vocabulary; None if every id is one.
        ngrams: the n-gram memory, or None.
        pointer: to earlier places of the text, or None.
        num_key_slots: layers of a decoding cache that the network uses.
    """

    embedding: TokenEmbedding
    head: nn.Linear
    reachable: ReachableVocabulary | None
    ngrams: NGramMemory | None
    pointer: Pointer | None
    num_key_slots: int

    def allocate(
        self,
        num_reachable: int | None,
        ngram_sizes: list[list[int]] | None,
        pointer_channels: int,
    ) -> None:
        """Make room for a reachable vocabulary and memories, which a file then fills.

        Args:
            num_reachable: see `ReachableVocabulary`; None for every id.
            ngram_sizes: see `NGramMemory`; None for no memory.
            pointer_channels: see `Pointer`; 0 for no pointer.
        """
        d = self.embedding.tokens.embedding_dim
        self.ngrams = None
        self.use(
            None if num_reachable is None else ReachableVocabulary(self.vocab_size, num_reachable)
        )
        if ngram_sizes is not None:
            self.ngrams = NGramMemory(ngram_sizes, self.num_classes, d)
        self.pointer = Pointer(d, pointer_channels) if pointer_channels else None

    def use(self, vocabulary: ReachableVocabulary | None) -> None:
        """Take a vocabulary; None gives every id a class of its own.

        The embedding reads as the model does, also if it is called by itself, as prompt tuning
        does for its start and whoever passes embeddings in place of ids. So do copies that PEFT
        has made of it; a LoRA layer on it adds what it has for the ids as they are.
        """
        self.reachable = vocabulary
        for module in self.embedding.tokens.modules():
            if isinstance(module, nn.Embedding):
                read_through(module, vocabulary)

    @property
    def vocab_size(self) -> int:
        """The number of token ids, V, also after `resize_token_embeddings` of transformers."""
        return self.embedding.tokens.num_embeddings

    @property
    def num_cache_slots(self) -> int:
        """Layers that a decoding cache needs: the network's, the n-gram memory's, the pointer's."""
        slots = self._pointer_slot
        return slots if self.pointer is None else slots + self.pointer.num_cache_slots

    @property
    def _pointer_slot(self) -> int:
        return self.num_key_slots + (self.ngrams is not None)

    @property
    def reads_ids(self) -> bool:
        """Whether a prediction needs the ids of the text, beside the hidden states."""
        return self.ngrams is not None or self.pointer is not None

    @property
    def num_classes(self) -> int:
        """The number of classes that the head tells apart, C: V without a reachable vocabulary."""
        return self.vocab_size if self.reachable is None else self.reachable.num_classes

    def classes(self, ids: Tensor) -> Tensor:
        """Return the classes of ids, int64 of the same shape; a negative one is kept: no token."""
        return ids if self.reachable is None else self.reachable.classes(ids)

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
            self.ngrams.train(self.training).leave_one_out = leave_one_out

    def set_pointer(self, channels: int) -> None:
        """Give the model a pointer to earlier places of the text, to be trained; 0 takes it away.

        Args:
            channels: see `Pointer`.
        """
        weight = self.embedding.tokens.weight
        self.pointer = (
            Pointer(weight.shape[1], channels).to(weight.device, weight.dtype).train(self.training)
            if channels
            else None
        )

    def check_fewer(self, num_ids: int) -> None:
        """Raise a ValueError if the vocabulary cannot be cut to its first `num_ids` ids."""
        if self.ngrams is not None:
            raise ValueError(
                f"expected at least {self.vocab_size} ids in a model with an n-gram memory, got "
                f"{num_ids}; to fix this: call set_ngrams(None) first, and count afterwards"
            )
        if self.reachable is None:
            return
        first = int(self.reachable.class_ids[0])
        if num_ids <= first:
            raise ValueError(
                f"expected more than {first} ids, as that is the first reachable one, got {num_ids}"
            )
        self.reachable.resized(num_ids)  # raises before anything is cut

    def resize_classes(self) -> None:
        """Follow an embedding that was resized: ids that were added are reachable."""
        if self.reachable is not None:
            self.use(self.reachable.resized(self.vocab_size))
        if self.ngrams is not None:
            self.ngrams.renumber(self.num_classes, keep_last=self.reachable is not None)

    def logits(self, hidden: Tensor, evidence: Evidence | None = None) -> Tensor:
        """Return the logits `(..., V)` of final hidden states `(..., D)`.

        Args:
            hidden: final hidden states.
            evidence: what `evidence` returned for the same tokens; None for the network alone,
                without its memories.
        """
        scores = self.class_logits(hidden)
        if evidence is not None and self.ngrams is not None and evidence.rows_BLK is not None:
            scores = self.ngrams.mix_logits(scores, hidden, evidence.rows_BLK)
        if evidence is None or self.pointer is None or evidence.pointed is None:
            return scores if self.reachable is None else self.reachable.spread(scores)
        wide = torch.promote_types(scores.dtype, torch.float32)
        log_p = scores.to(wide).log_softmax(-1)
        log_p = log_p if self.reachable is None else self.reachable.spread(log_p)
        return self.pointer.mix_logits(log_p, hidden, evidence.pointed).to(scores.dtype)

    def class_logits(self, hidden: Tensor) -> Tensor:
        """Return the network's logits of the classes, `(..., C)`, of final hidden states."""
        if self.reachable is not None:
            return self.reachable.class_logits(self.head, hidden)
        scores: Tensor = self.head(hidden)
        return scores

    def refuse_counted_targets(self) -> None:
        """Raise a ValueError if training would find every target among the counts.

        A training loss takes each target out of them; logits alone do not say what it is.
        """
        counted = self.ngrams is not None and self.ngrams.leave_one_out
        if counted and self.training and torch.is_grad_enabled():
            raise ValueError(
                "expected labels in training with n-grams of the same text (leave_one_out=True), "
                "got none, so the logits know every target; to fix this: pass labels to "
                "EnigmaForCausalLM (label smoothing in Trainer passes none), or set "
                "model.lm.ngrams.leave_one_out = False"
            )

    def nll_nats(self, hidden_BLD: Tensor, ids_BL: Tensor) -> Tensor:
        """Return the negative log-likelihoods of tokens 1 ... L - 1, `(B, L - 1)`, for scoring.

        The same values as from `logits`, without computing a logit for every id; in float32, or
        float64 if the model is.

        Args:
            hidden_BLD: final hidden states of these tokens.
            ids_BL: int64 `(B, L)`, without padding.
        """
        evidence = self.evidence(hidden_BLD, ids_BL)
        hidden_ND, target_N = hidden_BLD[:, :-1].flatten(0, 1), ids_BL[:, 1:].flatten()
        wide = torch.promote_types(hidden_ND.dtype, torch.float32)
        class_N, cost_N = target_N, hidden_ND.new_zeros(len(target_N), dtype=wide)
        if self.reachable is not None:
            class_N, cost_N = self.reachable.targets(target_N, wide)
        scores_NC = self.class_logits(hidden_ND).to(wide)
        nll_N = functional.cross_entropy(scores_NC, class_N, reduction="none")
        if evidence is None:
            nll_N = nll_N + cost_N
        else:
            evidence = evidence.at(lambda each: each[:, :-1].flatten(0, 1))
            nll_N = self.mixed_nats(
                nll_N, hidden_ND, evidence, class_N=class_N, target_N=target_N, cost_N=cost_N
            )
        return nll_N.view(len(ids_BL), ids_BL.shape[1] - 1)

    def mixed_nats(
        self,
        network_N: Tensor,
        hidden_ND: Tensor,
        evidence: Evidence,
        *,
        class_N: Tensor,
        target_N: Tensor,
        cost_N: Tensor | None = None,
    ) -> Tensor:
        """Return what targets cost under the network and its memories, `(N,)` nats.

        Args:
            network_N: what their classes cost under the network alone.
            hidden_ND: final hidden states.
            evidence: of these N tokens.
            class_N: int64, the classes of the targets.
            target_N: int64, the targets, ids.
            cost_N: what an id costs beyond its class; None for nothing.
        """
        log_p_N = -network_N
        if self.ngrams is not None and evidence.rows_BLK is not None:
            log_p_N = self.ngrams.mix_target(log_p_N, hidden_ND, evidence.rows_BLK, class_N)
        if cost_N is not None:
            log_p_N = log_p_N - cost_N
        if self.pointer is not None and evidence.pointed is not None:
            log_p_N = self.pointer.mix_target(log_p_N, hidden_ND, evidence.pointed, target_N)
        return -log_p_N

    def evidence(
        self,
        hidden_BLD: Tensor,
        ids_BL: Tensor | None,
        mask: Tensor | None = None,
        cache: Any = None,
        *,
        starts_BL: Tensor | None = None,
        visible: Tensor | None = None,
        rows: Tensor | None = None,
    ) -> Evidence | None:
        """Return what the memories find for each token; None without a memory.

        Args:
            hidden_BLD: floating `(B, L, D)`, final hidden states.
            ids_BL: int64 `(B, L)`.
            mask: `(B, L)`, 0 at padding.
            cache: holds earlier tokens; these L are appended.
            starts_BL: bool `(B, L)`, where a text starts, beside the first token.
            visible: bool, which tokens a token sees, see `AttentionContext`.
            rows: int64 `(R,)`, the tokens whose evidence is wanted; None for all of them.

        Raises:
            ValueError: without ids.
        """
        if not self.reads_ids:
            return None
        if ids_BL is None:
            raise ValueError(
                "expected ids in a model with an n-gram memory or a pointer, got embeddings; to "
                "fix this: call set_ngrams(None) and set_pointer(0), for the network alone"
            )
        hidden_at = None if mask is None else mask == 0
        rows_BLK = pointed = None
        if self.ngrams is not None:
            class_BL = self.classes(ids_BL)
            if hidden_at is not None:
                class_BL = class_BL.masked_fill(hidden_at, -1)
            slot = self.num_key_slots
            earlier_BK = None if cache is None else last_facts(cache, slot)
            rows_BLK = self.ngrams.context_rows(class_BL, starts_BL, earlier_BK)
            if cache is not None:
                keep_facts(cache, slot, rows_BLK)
            rows_BLK = rows_BLK if rows is None else rows_BLK[:, rows]
        if self.pointer is not None:
            pointed = self.pointer(
                hidden_BLD,
                ids_BL if hidden_at is None else ids_BL.masked_fill(hidden_at, -1),
                starts_BL=starts_BL,
                visible=visible,
                cache=cache,
                slot=self._pointer_slot,
                rows=rows,
            )
        return Evidence(rows_BLK, pointed)

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
        self.use(vocabulary.to(self.embedding.tokens.weight.device))
