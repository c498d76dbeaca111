"""The loss of Enigma over the head of any model: a peer then pays for its head what Enigma pays."""

from typing import NamedTuple

from torch import Tensor, nn

from enigma.language_model.memory.ngram_memory import NGramMemory
from enigma.language_model.memory.pointer import Pointer
from enigma.language_model.prediction import Prediction
from enigma.language_model.training_loss import training_loss


class Memories(NamedTuple):
    """What a head's prediction is mixed with, each None for nothing."""

    ngrams: NGramMemory | None = None
    pointer: Pointer | None = None


NO_MEMORIES = Memories()


class _Head(Prediction):
    """A head over classes that are ids, with memories or nothing beside it."""

    num_key_slots = 0

    def __init__(self, head: nn.Linear, memories: Memories) -> None:
        super().__init__()
        self.head = head
        self.ngrams, self.pointer = memories
        self.reachable = None


def head_loss(
    hidden_BLD: Tensor,
    head: nn.Linear,
    labels_BL: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    *,
    memories: Memories = NO_MEMORIES,
) -> Tensor:
    """Return the loss of hidden states under a head, see `training_loss`.

    Args:
        hidden_BLD: floating `(B, L, D)`, final hidden states.
        head: with the weight `(V, D)`.
        labels_BL: int64 `(B, L)`, shifted here; also the text that the memories read.
        num_items_in_batch: targets of an accumulated batch.
        memories: what the head's prediction is mixed with.
    """
    prediction = _Head(head, memories)
    return training_loss(
        hidden_BLD,
        prediction,
        labels_BL,
        num_items_in_batch=num_items_in_batch,
        evidence=prediction.evidence(hidden_BLD, labels_BL),
    )


def head_nats(hidden_BLD: Tensor, head: nn.Linear, ids_BL: Tensor, *, memories: Memories) -> Tensor:
    """Return the negative log-likelihoods of tokens 1 ... L - 1 in nats, `(B, L - 1)`."""
    return _Head(head, memories).nll_nats(hidden_BLD, ids_BL)
