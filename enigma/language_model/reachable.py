"""A vocabulary of which training reaches a part: logits for these ids and one for all others.

A tokenizer has ids that it never produces and ids that the training text does not contain. With a
logit each they would cost most of a training step of a small model, and learn nothing. So the ids
that training reaches are classes of their own, and all other ids that the tokenizer can produce
share one more class, "other", in equal parts: an honest probability for each that adds up to 1
over the vocabulary. What the tokenizer cannot produce has probability 0.

Legend: V ids, R reachable ids, C = R + 1 classes, U ids in the class "other", D channels.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.bijections.constant_weights import FormsOnce
from enigma.layers.linear import only_multiplies

__all__ = ["ReachableVocabulary"]


class ReachableVocabulary(FormsOnce):
    """Which ids are reachable; maps ids to classes and scores of classes to scores of ids.

    Classes 0 ... R - 1 are the reachable ids in rising order, class R is "other". Neither embedding
    nor head gets another shape: "other" uses the row of the first id that belongs to it.

    Args:
        vocab_size: number of ids, V.
        num_reachable: R, from 1 to V - 1. Until `of` or a state dict says which, the first ids are
            reachable and the others possible.

    Attributes:
        class_ids: int64 `(C,)`, the id whose row in embedding and head stands for each class.
        class_of_id: int64 `(V,)`; impossible ids are in "other" too.
        possible: bool `(V,)`, the ids that can occur.
        num_other: int64 `()`, U.

    Raises:
        ValueError: for a number out of range.

    Examples:
        >>> possible = torch.tensor([True, True, False, True, True])
        >>> vocabulary = ReachableVocabulary.of(torch.tensor([0, 3]), possible)
        >>> vocabulary.class_of_id.tolist(), vocabulary.class_ids.tolist()
        ([0, 2, 2, 1, 2], [0, 3, 1])
        >>> vocabulary.spread(torch.tensor([0.5, 0.3, 0.2]).log()).exp()
        tensor([0.5000, 0.1000, 0.0000, 0.3000, 0.1000])
    """

    class_ids: Tensor
    class_of_id: Tensor
    possible: Tensor
    num_other: Tensor

    def __init__(self, vocab_size: int, num_reachable: int) -> None:
        super().__init__()
        if not 1 <= num_reachable < vocab_size:
            raise ValueError(
                f"num_reachable must be from 1 to vocab_size - 1 = {vocab_size - 1}, got "
                f"{num_reachable}; to fix this: None gives every id a logit of its own"
            )
        self.register_buffer("class_ids", torch.empty(num_reachable + 1, dtype=torch.long))
        self.register_buffer("class_of_id", torch.empty(vocab_size, dtype=torch.long))
        self.register_buffer("possible", torch.empty(vocab_size, dtype=torch.bool))
        self.register_buffer("num_other", torch.empty((), dtype=torch.long))
        self.reset_parameters()

    @classmethod
    def of(cls, reachable_ids: Tensor, possible: Tensor) -> ReachableVocabulary:
        """Make the vocabulary of given ids.

        Args:
            reachable_ids: int64 `(R,)`, in any order.
            possible: bool `(V,)`, the ids that can occur: the reachable ones and at least one more.

        Raises:
            ValueError: for an id that is out of range, given twice or not possible; or if all
                possible ids are reachable.
        """
        num_ids = len(possible)
        ids = reachable_ids.to(possible.device).sort().values
        if len(ids) and not 0 <= int(ids[0]) <= int(ids[-1]) < num_ids:
            raise ValueError(
                f"expected reachable ids from 0 to {num_ids - 1}, got {int(ids[0])} to "
                f"{int(ids[-1])}"
            )
        twice = ids[1:][ids.diff() == 0]
        if len(twice):
            raise ValueError(f"expected every reachable id once, got {int(twice[0])} twice")
        if not bool(possible[ids].all()):
            wrong = int(ids[~possible[ids]][0])
            raise ValueError(f"expected reachable ids that are possible, got {wrong}, which is not")
        others = possible.clone()
        others[ids] = False
        if not bool(others.any()):
            raise ValueError(
                "expected a possible id that is not reachable, for the class of all others, got "
                "none; to fix this: leave the rarest id out"
            )
        made = cls(num_ids, len(ids)).to(possible.device)
        made.fill(ids, possible, others)
        return made

    def reset_parameters(self) -> None:
        """Make the first ids reachable and all others possible."""
        ids = torch.arange(len(self.class_ids) - 1, device=self.possible.device)
        possible = torch.ones_like(self.possible)
        others = possible.clone()
        others[: len(ids)] = False
        self.fill(ids, possible, others)

    def fill(self, ids: Tensor, possible: Tensor, others: Tensor) -> None:
        """Set the buffers, unchecked.

        Args:
            ids: int64 `(R,)`, the reachable ids in rising order.
            possible: bool `(V,)`.
            others: bool `(V,)`, the ids of the class "other".
        """
        self.class_ids[:-1] = ids
        self.class_ids[-1] = others.long().argmax()
        self.class_of_id.fill_(len(ids))
        self.class_of_id[ids] = torch.arange(len(ids), device=ids.device)
        self.possible.copy_(possible)
        self.num_other.copy_(others.sum())

    @property
    def num_classes(self) -> int:
        """C, the reachable ids and "other"."""
        return len(self.class_ids)

    def resized(self, vocab_size: int) -> ReachableVocabulary:
        """Return the vocabulary with ids added, which are reachable, or removed, at the end."""
        grown = max(0, vocab_size - len(self.possible))
        possible = functional.pad(self.possible, (0, grown), value=True)[:vocab_size]
        added = torch.arange(vocab_size - grown, vocab_size, device=possible.device)
        ids = torch.cat((self.class_ids[:-1], added))
        return ReachableVocabulary.of(ids[ids < vocab_size], possible)

    def classes(self, ids: Tensor) -> Tensor:
        """Return the classes of ids, int64 of the same shape; a negative one is kept: no token."""
        # A copy of an embedding, as PEFT and DataParallel make, may be on another device.
        class_of_id = self.class_of_id.to(ids.device)
        return torch.where(ids < 0, ids, class_of_id[ids.clamp(min=0)])

    def rows(self, ids: Tensor) -> Tensor:
        """Return the ids whose embeddings are read for `ids`: in "other" all have the same.

        A negative one is kept, for the embedding to refuse.
        """
        classes = self.classes(ids)
        rows = self.class_ids.to(ids.device)[classes.clamp(min=0)]
        return torch.where(ids < 0, ids, rows)

    def class_weight(self, head: nn.Module) -> Tensor:
        """Return the rows `(C, D)` of a plain head; once while weights are constant."""
        weight_VD = cast("nn.Linear", head).weight

        def class_weight() -> Tensor:
            return weight_VD.index_select(0, self.class_ids)

        return self.formed_once("class_weight", class_weight, weight_VD)

    def class_logits(self, head: nn.Module, hidden: Tensor) -> Tensor:
        """Return the logits `(..., C)` of hidden states `(..., D)`.

        Args:
            head: the output head over V ids. One that does more than multiply is called.
            hidden: final hidden states.
        """
        if only_multiplies(head):
            return functional.linear(hidden, self.class_weight(head))
        logits: Tensor = head(hidden)
        return logits.index_select(-1, self.class_ids)

    def spread(self, scores: Tensor) -> Tensor:
        """Return log-probabilities of ids `(..., V)`, up to the constant of those of classes."""
        other = scores[..., -1:] - self.num_other.to(scores.dtype).log()
        scores = torch.cat((scores[..., :-1], other), dim=-1)
        return scores.index_select(-1, self.class_of_id).masked_fill(~self.possible, -torch.inf)

    def targets(self, ids: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the classes of targets, and what each costs beyond its class, in nats.

        Args:
            ids: int64 `(N,)`; -100 is kept, at no cost.
            dtype: floating, of the cost.

        Returns:
            int64 `(N,)`, and `(N,)`: log U in "other", infinity for impossible ids, else 0.
        """
        classes = self.classes(ids)
        cost = self.num_other.to(dtype).log() * (classes == self.num_classes - 1)
        cost = cost.masked_fill(~self.possible[ids.clamp(min=0)], torch.inf)
        return classes, cost.masked_fill(ids < 0, 0.0)
