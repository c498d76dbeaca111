"""The loss of Enigma over the head of any model: a peer then pays for its head what Enigma pays."""

from torch import Tensor, nn

from enigma.language_model.ngram_memory import NGramMemory
from enigma.language_model.prediction import Prediction
from enigma.language_model.training_loss import training_loss


class _Head(Prediction):
    """A head over classes that are ids, with an n-gram memory or nothing beside it."""

    num_key_slots = 0

    def __init__(self, head: nn.Linear, ngrams: NGramMemory | None) -> None:
        super().__init__()
        self.head, self.ngrams = head, ngrams
        self.reachable = None


def head_loss(
    hidden_BLD: Tensor,
    head: nn.Linear,
    labels_BL: Tensor,
    num_items_in_batch: Tensor | int | None = None,
    *,
    ngrams: NGramMemory | None = None,
) -> Tensor:
    """Return the loss of hidden states under a head, see `training_loss`.

    Args:
        hidden_BLD: floating `(B, L, D)`, final hidden states.
        head: with the weight `(V, D)`.
        labels_BL: int64 `(B, L)`, shifted here; the contexts of the memory are read off them.
        num_items_in_batch: targets of an accumulated batch.
        ngrams: what the head's prediction is mixed with; None for nothing.
    """
    prediction = _Head(head, ngrams)
    return training_loss(
        hidden_BLD,
        prediction,
        labels_BL,
        num_items_in_batch=num_items_in_batch,
        context_rows_BLK=prediction.context_rows(labels_BL),
    )


def head_nats(
    hidden_BLD: Tensor, head: nn.Linear, ids_BL: Tensor, *, ngrams: NGramMemory | None = None
) -> Tensor:
    """Return the negative log-likelihoods of tokens 1 ... L - 1 in nats, `(B, L - 1)`."""
    return _Head(head, ngrams).nll_nats(hidden_BLD, ids_BL)
