"""The loss of Enigma over the head of any model: a peer then pays for its head what Enigma pays."""

from torch import Tensor, nn

from enigma.language_model.prediction import Prediction
from enigma.language_model.training_loss import training_loss


class _Head(Prediction):
    """A head with nothing beside it."""

    def __init__(self, head: nn.Linear) -> None:
        super().__init__()
        self.head = head
        self.reachable = self.ngrams = None


def head_loss(
    hidden_BLD: Tensor,
    head: nn.Linear,
    labels_BL: Tensor,
    num_items_in_batch: Tensor | int | None = None,
) -> Tensor:
    """Return the loss of hidden states under a head, see `training_loss`.

    Args:
        hidden_BLD: floating `(B, L, D)`, final hidden states.
        head: with the weight `(V, D)`.
        labels_BL: int64 `(B, L)`, shifted here.
        num_items_in_batch: targets of an accumulated batch.
    """
    return training_loss(hidden_BLD, _Head(head), labels_BL, num_items_in_batch=num_items_in_batch)
