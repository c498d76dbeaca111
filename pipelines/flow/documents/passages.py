"""Documents as points in the space of hidden states: the mean of a passage's final states.

A passage has the length that the language model was trained on; a document is cut into as many
whole passages as it holds, or is one short passage. What is left at the end of a longer document is
read with what comes before it, as one more whole passage.

Shape legend: P passages, B passages of a batch, L length, D dimensions, K lengths, O other orders.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from enigma.bijections.constant_weights import constant_weights
from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress
from pipelines.data.order import Indices, evenly_spaced
from pipelines.data.shards import ShardReader
from pipelines.flow.documents.sentence_order import SentenceEnds
from pipelines.language_model.scoring import batches

if TYPE_CHECKING:
    from enigma.modeling_enigma import EnigmaForCausalLM

PASSAGES_PER_BATCH = 8
MAX_REORDERED = 1024
"""Enough for what is typical: at every length, reading other orders costs twice as much again."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Reading:
    """Mean states and losses of passages under a language model.

    Args:
        states: (P, D) float32, the mean final hidden state.
        loss_nats: (P,) float64, the mean loss per token. A passage of one token predicts
            nothing; its loss is that of a uniform guess.
        peak_nats: (P,) float64, the mean loss of the tenth of the tokens that were least expected.
        order_nats: (P,) float64, `loss_nats` less that of the same sentences in other orders; NaN
            of a passage with too few sentences.
    """

    states: Tensor
    loss_nats: Floats
    peak_nats: Floats
    order_nats: Floats


def token_ids(tokenizer: Any, text: str) -> list[int]:
    """Return the tokens of a text as the training shards have them.

    Names of special tokens are text: an article about BERT may contain "[MASK]", and the model has
    never seen the id of that name and gives it no probability.
    """
    encoded = tokenizer(text, add_special_tokens=False, split_special_tokens=True, verbose=False)
    found: list[int] = encoded["input_ids"]
    return found


@dataclass(frozen=True)
class Passages:
    """Documents as passages of token ids.

    Args:
        ids: P passages of 1 to L token ids.
        documents: (P,) int64, the document of each.
        num_documents: Number of documents.
    """

    ids: list[list[int]]
    documents: npt.NDArray[np.int64]
    num_documents: int

    @property
    def num_tokens(self) -> npt.NDArray[np.int64]:
        """Tokens of each passage, (P,) int64."""
        return np.array([len(ids) for ids in self.ids], np.int64)

    @classmethod
    def of_texts(cls, tokenizer: Any, texts: Sequence[str], length: int) -> "Passages":
        """Cut texts into passages of `length` tokens.

        Raises:
            UserError: If a document has no token.
        """
        ids: list[list[int]] = []
        documents: list[int] = []
        for number, text in enumerate(texts):
            tokens = token_ids(tokenizer, text)
            if not tokens:
                raise UserError(
                    f"document {number + 1} of {len(texts)}: expected text, got none",
                    "remove documents that are empty or only white space",
                )
            starts = [*range(0, max(1, len(tokens) - length + 1), length)]
            if starts[-1] + length < len(tokens):
                starts.append(len(tokens) - length)
            ids += [tokens[start : start + length] for start in starts]
            documents += [number] * len(starts)
        return cls(ids, np.array(documents, np.int64), len(texts))

    @classmethod
    def of_split(cls, reader: ShardReader, at_most: int) -> "Passages":
        """Take evenly spaced sequences of a split, each as a document of one passage."""
        chosen: Indices = evenly_spaced(len(reader), at_most)
        return cls(reader.gather(chosen).tolist(), np.arange(len(chosen)), len(chosen))

    def mean_by_document(self, values_P: Floats) -> Floats:
        """Average values of passages over each document."""
        sums = np.bincount(self.documents, weights=values_P, minlength=self.num_documents)
        means: Floats = sums / np.bincount(self.documents, minlength=self.num_documents)
        return means


@torch.no_grad()
@constant_weights()
def read_passages(
    model: "EnigmaForCausalLM", passages: Passages, ends: SentenceEnds, *, quiet: bool = False
) -> Reading:
    """Run the language model over passages; the result of one does not depend on the others.

    Args:
        model: The language model in evaluation mode.
        passages: The passages to read.
        ends: Where their sentences end; they are read in other orders too.
        quiet: Whether to show no progress, for a caller that shows its own.
    """
    states_PD = torch.empty(len(passages.ids), model.config.d)
    loss_P, peak_P = np.empty(len(passages.ids)), np.empty(len(passages.ids))
    for index, states_LD in _states(model, passages.ids, None if quiet else "passages"):
        states_PD[index] = _mean(states_LD)
        loss_P[index], peak_P[index] = _losses(_nats(model, states_LD, passages.ids[index]))
    order_P = _order_nats(model, passages.ids, loss_P, ends, quiet=quiet)
    return Reading(states_PD, loss_P, peak_P, order_P)


@torch.no_grad()
@constant_weights()
def read_beginnings(
    model: "EnigmaForCausalLM", passages: Passages, ends: SentenceEnds, lengths: Sequence[int]
) -> list[Reading]:
    """Run the language model over passages, and return what it says of their beginnings.

    No state depends on later tokens, so each is what `read_passages` returns of so short a passage,
    and one run is enough for all but the other orders. These are read of at most `MAX_REORDERED`
    passages, evenly spaced; `order_nats` of the rest is NaN.

    Args:
        model: The language model in evaluation mode.
        passages: The passages to read.
        ends: Where their sentences end.
        lengths: K numbers of tokens from 2 to the length of the shortest passage.
    """
    states_KPD = torch.empty(len(lengths), len(passages.ids), model.config.d)
    loss_KP, peak_KP = np.empty(states_KPD.shape[:2]), np.empty(states_KPD.shape[:2])
    for index, states_LD in _states(model, passages.ids):
        nats_L = _nats(model, states_LD, passages.ids[index])
        for k, length in enumerate(lengths):
            states_KPD[k, index] = _mean(states_LD[:length])
            loss_KP[k, index], peak_KP[k, index] = _losses(nats_L[: length - 1])
    chosen: Indices = evenly_spaced(len(passages.ids), MAX_REORDERED)
    order_KP = np.full_like(loss_KP, np.nan)
    for k, length in enumerate(lengths):
        beginnings = [passages.ids[index][:length] for index in chosen]
        order_KP[k, chosen] = _order_nats(model, beginnings, loss_KP[k, chosen], ends)
    return [Reading(*each) for each in zip(states_KPD, loss_KP, peak_KP, order_KP, strict=True)]


def _order_nats(
    model: "EnigmaForCausalLM",
    ids_P: Sequence[list[int]],
    loss_P: Floats,
    ends: SentenceEnds,
    *,
    quiet: bool = False,
) -> Floats:
    """Return losses less those of the same sentences in other orders, NaN where there are none."""
    orders = [ends.other_orders(ids) for ids in ids_P]
    ids_O = [ids for each in orders for ids in each]
    passage_O = np.repeat(np.arange(len(ids_P)), [len(each) for each in orders])
    loss_O = np.empty(len(ids_O))
    for index, states_LD in _states(model, ids_O, None if quiet else "other orders"):
        loss_O[index] = float(_nats(model, states_LD, ids_O[index]).mean())
    counts_P = np.bincount(passage_O, minlength=len(ids_P)).astype(np.float64)
    counts_P[counts_P == 0] = np.nan
    found: Floats = loss_P - np.bincount(passage_O, loss_O, len(ids_P)) / counts_P
    return found


@torch.no_grad()
@constant_weights()
def mean_states(model: "EnigmaForCausalLM", passages: Passages) -> Tensor:
    """Return the states of `read_passages`, (P, D) float32, without the cost of the losses.

    With a vocabulary of 21,128 the logits cost more than the states.
    """
    states_PD = torch.empty(len(passages.ids), model.config.d)
    for index, states_LD in _states(model, passages.ids):
        states_PD[index] = _mean(states_LD)
    return states_PD


def _states(
    model: "EnigmaForCausalLM", ids_P: Sequence[list[int]], label: str | None = "passages"
) -> Iterator[tuple[int, Tensor]]:
    """Yield the index and the final states (L, D) of every passage, shortest first.

    With the label None no progress is shown.
    """
    # Passages of similar length share a batch, and no state sees the padding behind it.
    order: Indices = np.argsort([len(ids) for ids in ids_P], kind="stable")
    by_length = batches(order, PASSAGES_PER_BATCH)
    steps: Iterable[Indices] = by_length
    if label is not None:
        steps = progress(by_length, total=len(by_length), unit="batch", label=label)
    for batch in steps:
        ids = [torch.tensor(ids_P[index]) for index in batch]
        ids_BL = torch.nn.utils.rnn.pad_sequence(ids, batch_first=True).to(model.device)
        states_BLD = model.lm.hidden_states(ids_BL)
        for index, ids_L, states_LD in zip(batch, ids, states_BLD, strict=True):
            yield int(index), states_LD[: len(ids_L)]


def _mean(states_LD: Tensor) -> Tensor:
    return states_LD.float().mean(dim=0).cpu()


def _losses(nats_L: Tensor) -> tuple[float, float]:
    """Return the mean of losses, and that of the highest tenth."""
    highest = nats_L.topk(max(1, len(nats_L) // 10)).values
    return float(nats_L.mean()), float(highest.mean())


def _nats(model: "EnigmaForCausalLM", states_LD: Tensor, ids: list[int]) -> Tensor:
    """Return the losses of all tokens but the first, or of a uniform guess at the only one."""
    if len(ids) == 1:
        return torch.full((1,), math.log(model.config.vocab_size))
    ids_L = torch.tensor(ids, device=model.device)
    return model.lm.nll_nats(states_LD[None], ids_L[None])[0]
