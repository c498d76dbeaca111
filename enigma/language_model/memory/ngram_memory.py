"""What counting knows: an n-gram model inside the language model, mixed in by a learned gate.

The model predicts p = g p_network + (1 - g) p_ngram over the classes of its vocabulary, where
p_ngram is interpolated Kneser-Ney smoothing of the training text (see `ngram_counts`) and the gate
g = sigmoid(w . features) reads the network's final state and what the counts tell of the context:
whether they have it, how often, how many different tokens follow, how much is left for shorter
contexts. Both parts add up to 1 for any g, and so does the mixture. (Khandelwal et al.,
"Generalization through Memorization", 2020, equation 3, with n-grams as the memory.)

While the network trains on the counted text itself, `leave_one_out` takes the target's own
occurrence out of the counts. Else every target would be found in the memory, and the gate would
learn to trust it more than it deserves on other text.

Legend: B batch, L tokens, N tokens of a flattened batch, C classes, K = n - 1 context lengths,
M_k n-grams of order k, W most continuations of a context, F features.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple, cast

import torch
from torch import Tensor, nn
from torch.nn import functional

from enigma.language_model.memory.gate import gate_logits, mix
from enigma.language_model.memory.ngram_counts import CLASS_BITS, NGramCounts
from enigma.layers.linear import Linear

__all__ = ["Context", "NGramMemory", "interpolate", "sizes_of"]

_KINDS = 3
_FACTS = 4
_NO_KEY = torch.iinfo(torch.long).max


class Context(NamedTuple):
    """What is known of the continuations of N contexts, in one order.

    Attributes:
        total: int64 `(N,)`, the sum of their counts; 0 for an unknown context.
        kept: int64 `(N,)`, the sum of those that the table holds.
        kinds: int64 `(N, 3)`, how many of these are 1, 2 and at least 3.
    """

    total: Tensor
    kept: Tensor
    kinds: Tensor

    def without(self, count_N: Tensor, taken_N: Tensor) -> Context:
        """Take 1 from continuations that have these counts; 0 for one that the table lacks."""
        found_N = taken_N * (count_N > 0)
        before, after = (
            functional.one_hot(c.clamp(max=_KINDS), _KINDS + 1)[:, 1:]
            for c in (count_N, count_N - found_N)
        )
        kept = self.kept - found_N
        return Context(torch.maximum(self.total - taken_N, kept), kept, self.kinds + after - before)


class _Order(nn.Module):
    """The n-grams of one order, see `NGramCounts`.

    Args:
        num_ngrams: M_k.
        num_contexts: M_{k-1}.
        width: W, the most continuations of a context.
    """

    keys: Tensor
    counts: Tensor
    totals: Tensor
    kept: Tensor
    kinds: Tensor

    def __init__(self, num_ngrams: int, num_contexts: int, width: int) -> None:
        super().__init__()
        self.width = width
        # Behind the keys stands one that nothing equals: every search then ends inside.
        self.register_buffer("keys", torch.full((num_ngrams + 1,), _NO_KEY))
        self.register_buffer("counts", torch.zeros(num_ngrams + 1, dtype=torch.int32))
        # The last row, which -1 picks, is that of a context of which nothing is known.
        self.register_buffer("totals", torch.zeros(num_contexts + 1, dtype=torch.long))
        self.register_buffer("kept", torch.zeros(num_contexts + 1, dtype=torch.long))
        self.register_buffer("kinds", torch.zeros(num_contexts + 1, _KINDS, dtype=torch.int32))

    def reset_parameters(self) -> None:
        """Know nothing."""
        for buffer in self.buffers():
            buffer.zero_()
        self.keys.fill_(_NO_KEY)

    def fill(self, keys: Tensor, counts: Tensor, totals: Tensor) -> None:
        """Take the counts of an order."""
        self.keys[:-1] = keys
        self.counts[:-1] = counts
        self.totals[:-1] = totals
        context = keys >> CLASS_BITS
        self.kept.zero_().index_add_(0, context, counts.to(self.kept))
        kind = functional.one_hot(counts.long().clamp(max=_KINDS) - 1, _KINDS)
        self.kinds.zero_().index_add_(0, context, kind.to(self.kinds))

    def find(self, context_: Tensor, last: Tensor) -> Tensor:
        """Return the rows of n-grams, -1 where there is none.

        Args:
            context_: int64 `(...)`, rows in the order below; negative for none.
            last: int64 `(...)`, classes; negative for none.
        """
        key = context_ << CLASS_BITS | last
        place = torch.searchsorted(self.keys, key)
        found = (self.keys[place] == key) & (context_ >= 0) & (last >= 0)
        return torch.where(found, place, -1)

    def context(self, row_N: Tensor) -> Context:
        """Return what is known of contexts, by their rows; -1 for an unknown one."""
        return Context(self.totals[row_N], self.kept[row_N], self.kinds[row_N].long())

    def continuations(self, row_N: Tensor) -> tuple[Tensor, Tensor]:
        """Return the classes that follow contexts, and their counts, 0 beyond the last one.

        Returns:
            int64 `(N, W)` and int64 `(N, W)`. The width is the same for all contexts: the shape of
            nothing depends on what is found, so a decoding step can be compiled, and no GPU waits.
        """
        first_N = torch.searchsorted(self.keys, row_N << CLASS_BITS)
        place_NW = first_N.unsqueeze(-1) + torch.arange(self.width, device=row_N.device)
        place_NW = place_NW.clamp(max=len(self.keys) - 1)
        key_NW = self.keys[place_NW]
        mine_NW = key_NW >> CLASS_BITS == row_N.unsqueeze(-1)
        last_NW = (key_NW & ((1 << CLASS_BITS) - 1)) * mine_NW
        return last_NW, self.counts[place_NW].long() * mine_NW


class NGramMemory(nn.Module):
    """An n-gram model of classes, and the gate that mixes it with a network.

    The parameters of this module are those of the gate alone, see `memory.gate`.

    Args:
        sizes: for each order the numbers M_k and W.
        num_classes: C.
        d: width D of the network.

    Attributes:
        leave_one_out: take the target's own occurrence out of the counts in training. True only
            while the network trains on the counted texts; not saved.
    """

    discount_bits: Tensor

    def __init__(self, sizes: Sequence[Sequence[int]], num_classes: int, d: int) -> None:
        super().__init__()
        self.num_classes = num_classes
        contexts = [1, *(size for size, _ in sizes)]
        self.orders = nn.ModuleList(
            _Order(size, num_contexts, width)
            for (size, width), num_contexts in zip(sizes, contexts, strict=False)
        )
        # The bits of float64, which no cast of the model to half precision rounds.
        self.register_buffer("discount_bits", torch.zeros(len(sizes), _KINDS, dtype=torch.long))
        # It starts in the middle, where the network learns as much as it would alone.
        self.gate = Linear(d + _FACTS * (len(sizes) - 1), 1, zero=True, bias=True)
        self.leave_one_out = False

    @classmethod
    def of(cls, counts: NGramCounts, d: int) -> NGramMemory:
        """Make the memory of counts, with a gate in the middle.

        Args:
            counts: of a text.
            d: width D of the network.
        """
        memory = cls(sizes_of(counts), counts.num_classes, d)
        tables = zip(counts.keys, counts.counts, counts.totals, strict=True)
        for order, table in zip(memory._each_order(), tables, strict=True):
            order.fill(*table)
        memory.discount_bits.copy_(counts.discounts.double().view(torch.long))
        return memory

    def _each_order(self) -> Iterator[_Order]:
        return (cast("_Order", order) for order in self.orders)

    @property
    def num_contexts(self) -> int:
        """K, the context lengths from 1 on."""
        return len(self.orders) - 1

    def context_rows(
        self,
        class_BL: Tensor,
        starts_BL: Tensor | None = None,
        earlier_BK: Tensor | None = None,
    ) -> Tensor:
        """Return the rows of the contexts that end at each token.

        Args:
            class_BL: int64 `(B, L)`; negative at padding, where contexts end.
            starts_BL: bool `(B, L)`, where a text starts, beside the first token; None for nowhere.
            earlier_BK: int64 `(B, K)`, what this returned for the token before; None without one.

        Returns:
            int64 `(B, L, K)`: entry k is the row of the last k + 1 tokens, or -1.
        """
        rows: list[Tensor] = []
        for k, order in enumerate(list(self._each_order())[:-1]):
            before_BL = torch.zeros_like(class_BL)
            if k:
                none_B1 = class_BL.new_full((class_BL.shape[0], 1), -1)
                first_B1 = none_B1 if earlier_BK is None else earlier_BK[:, k - 1 : k]
                before_BL = torch.cat((first_B1, rows[-1]), dim=1)[:, : class_BL.shape[1]]
                if starts_BL is not None:
                    before_BL = before_BL.masked_fill(starts_BL, -1)
            rows.append(order.find(before_BL, class_BL))
        empty = class_BL.new_empty((*class_BL.shape, 0))
        return torch.stack(rows, dim=-1) if rows else empty

    def log_prob(
        self, rows_NK: Tensor, target_N: Tensor, dtype: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        """Return the log-probabilities of targets, without those of other classes.

        Args:
            rows_NK: what `context_rows` returned.
            target_N: int64 `(N,)` in [0, C).
            dtype: floating, of the result.

        Returns:
            `(N,)` in nats, and the facts `(N, F)` that the gate reads.
        """
        taken_N = torch.full_like(target_N, int(self.training and self.leave_one_out))
        found = []
        for order, row_N in reversed(
            list(zip(self._each_order(), self._rows(rows_NK), strict=True))
        ):
            place_N = order.find(row_N, target_N)
            count_N = order.counts[place_N.clamp(min=0)].long() * (place_N >= 0)
            found.append(
                (count_N - taken_N * (count_N > 0), order.context(row_N).without(count_N, taken_N))
            )
            # What is not in the table was left out as rare: it counts as seen once.
            taken_N = taken_N * (count_N <= 1)
        p_N = torch.full(target_N.shape, 1 / self.num_classes, dtype=dtype, device=target_N.device)
        facts = []
        for discount_K, (count_N, context) in zip(
            self._discounts(dtype), reversed(found), strict=True
        ):
            seen_N, rest_N = interpolate(discount_K, count_N, context)
            p_N = seen_N + rest_N * p_N
            facts.append(_facts(context, rest_N))
        return p_N.log(), torch.cat([p_N.new_empty((p_N.shape[0], 0)), *facts[1:]], dim=-1)

    def probabilities(self, rows_NK: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Return the distributions `(N, C)` after contexts, and the facts `(N, F)`.

        Args:
            rows_NK: what `context_rows` returned.
            dtype: floating, of the result.
        """
        p_NC = torch.full(
            (1, self.num_classes), 1 / self.num_classes, dtype=dtype, device=rows_NK.device
        )
        facts = []
        orders = zip(self._each_order(), self._discounts(dtype), self._rows(rows_NK), strict=True)
        for k, (order, discount_K, row_N) in enumerate(orders):
            row_N = row_N if k else row_N.new_zeros(1)  # noqa: PLW2901 - one context for all
            context = order.context(row_N)
            class_NW, count_NW = order.continuations(row_N)
            seen_NW, rest_N = interpolate(discount_K, count_NW, context)
            p_NC = (rest_N.unsqueeze(-1) * p_NC).scatter_add(1, class_NW, seen_NW)
            facts.append(_facts(context, rest_N))
        p_NC = p_NC.expand(rows_NK.shape[0], -1)
        return p_NC, torch.cat([p_NC.new_empty((p_NC.shape[0], 0)), *facts[1:]], dim=-1)

    def mix_target(
        self, log_network_N: Tensor, hidden_ND: Tensor, rows_NK: Tensor, target_N: Tensor
    ) -> Tensor:
        """Return the log-probabilities of targets, `(N,)`.

        Args:
            log_network_N: the network's.
            hidden_ND: the hidden states that they come from.
            rows_NK: what `context_rows` returned.
            target_N: int64 `(N,)` in [0, C).
        """
        log_ngram_N, facts_NF = self.log_prob(rows_NK, target_N, log_network_N.dtype)
        return mix(log_network_N, log_ngram_N, gate_logits(self.gate, hidden_ND, facts_NF))

    def mix_logits(self, scores: Tensor, hidden: Tensor, context_rows: Tensor) -> Tensor:
        """Return log-probabilities of classes, `(..., C)`.

        Args:
            scores: `(..., C)`, the network's logits.
            hidden: `(..., D)`, the hidden states that they come from.
            context_rows: int64 `(..., K)`, see `context_rows`.
        """
        wide = torch.promote_types(scores.dtype, torch.float32)
        p_NC, facts = self.probabilities(context_rows.flatten(0, -2), wide)
        gate_N1 = gate_logits(self.gate, hidden.flatten(0, -2), facts).unsqueeze(-1)
        log_network = scores.to(wide).log_softmax(-1)
        mixed_NC = mix(log_network.flatten(0, -2), p_NC.log(), gate_N1)
        return mixed_NC.view(scores.shape).to(scores.dtype)

    def renumber(self, num_classes: int, *, keep_last: bool) -> None:
        """Make room for more classes, in place.

        Args:
            num_classes: C from now on, not less than before.
            keep_last: the last class, "other", stays the last.
        """
        if num_classes > 1 << CLASS_BITS:
            raise ValueError(f"expected at most {1 << CLASS_BITS} classes, got {num_classes}")
        if keep_last:
            for order in self._each_order():
                keys = order.keys[:-1]
                is_last = (keys & ((1 << CLASS_BITS) - 1)) == self.num_classes - 1
                keys.add_(is_last * (num_classes - self.num_classes))
        self.num_classes = num_classes

    def _discounts(self, dtype: torch.dtype) -> Tensor:
        """Return the discounts of counts of 0, 1, 2 and more, `(n, 4)`."""
        return functional.pad(self.discount_bits.view(torch.double), (1, 0)).to(dtype)

    @staticmethod
    def _rows(rows_NK: Tensor) -> list[Tensor]:
        """Return the rows of the contexts of each order; that of unigrams is the root, 0."""
        return [rows_NK.new_zeros(rows_NK.shape[0]), *rows_NK.unbind(-1)]


def sizes_of(counts: NGramCounts) -> list[list[int]]:
    """Return for each order how many n-grams there are, and how many follow one context at most."""
    following = [
        torch.unique_consecutive(keys >> CLASS_BITS, return_counts=True)[1] for keys in counts.keys
    ]
    return [[int(each.sum()), int(each.max()) if len(each) else 0] for each in following]


def interpolate(discount_K: Tensor, count: Tensor, context: Context) -> tuple[Tensor, Tensor]:
    """Return what counts give to classes, and what is left for the shorter context.

    Args:
        discount_K: floating `(4,)`, of counts of 0, 1, 2 and more.
        count: int64 `(N,)` or `(N, W)`.
        context: of N contexts.

    Returns:
        Probabilities of the shape of the counts, and `(N,)`: 1 for an unknown context. Of a table
        that was pruned, the rest has what was left out too, so that all adds up to 1.
    """
    total = context.total.to(discount_K.dtype)
    given = context.kept - context.kinds.to(discount_K.dtype) @ discount_K[1:]
    rest = torch.where(context.total > 0, (total - given) / total.clamp(min=1), 1.0)
    seen = count - discount_K[count.clamp(max=_KINDS)]
    total = total.clamp(min=1)
    return seen / (total if count.ndim == 1 else total.unsqueeze(-1)), rest


def _facts(context: Context, rest_N: Tensor) -> Tensor:
    """Return what the gate reads of contexts, `(N, 4)`.

    Nothing of it depends on the target, except that `leave_one_out` has taken it out of the counts.
    """
    total = context.total.to(rest_N.dtype)
    types = context.kinds.sum(-1) / total.clamp(min=1)
    return torch.stack((total.clamp(max=1), total.log1p(), types, rest_N), dim=-1)
