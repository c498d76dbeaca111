"""The sentences of a passage, and the same sentences in other orders.

A text whose sentences were shuffled has sound sentences, the usual topic and nearly the usual loss.
What is lost is that one sentence prepares the next. A language model notices when it reads the same
sentences in another order too: in a sound text it then expects less of what comes, in a shuffled
one as much as before (Barzilay & Lapata, "Modeling Local Coherence: An Entity-Based Approach",
2008, rank texts against permutations of their own sentences to judge coherence).
"""

from collections.abc import Sequence
from dataclasses import dataclass

ENDS = "。！？…!?"
CLOSING = "”’」』）)"
MIN_SENTENCES = 3
"""To be put in another order; of two, either says little of how it prepares the other."""


@dataclass(frozen=True)
class SentenceEnds:
    """Where sentences end, in token ids.

    Args:
        ends: Ids of the marks that end a sentence.
        closing: Ids of the quotation marks and brackets that belong to the sentence before them.
    """

    ends: Sequence[int]
    closing: Sequence[int]

    @classmethod
    def of_tokens(cls, tokens: Sequence[str]) -> "SentenceEnds":
        """Find the marks in a vocabulary.

        Args:
            tokens: The text of every id.
        """
        ids = {token: number for number, token in enumerate(tokens)}
        return cls(*([ids[mark] for mark in marks if mark in ids] for marks in (ENDS, CLOSING)))

    def sentences(self, ids: Sequence[int]) -> list[Sequence[int]]:
        """Cut token ids after the end of every sentence.

        Examples:
            >>> SentenceEnds([1], [2]).sentences([7, 8, 1, 2, 9, 1, 7])
            [[7, 8, 1, 2], [9, 1], [7]]
        """
        found, start, ended = [], 0, False
        for place, token in enumerate(ids):
            if ended and token not in (*self.ends, *self.closing):
                found.append(ids[start:place])
                start = place
            ended = token in self.ends or (ended and token in self.closing)
        return [*found, ids[start:]]

    def other_orders(self, ids: Sequence[int]) -> list[list[int]]:
        """Return the ids with their sentences in two other orders, in which none follows its own.

        The first and the last stay where they are: a passage may begin and end within a sentence,
        and a text must not look odd because it does not. The orders depend on nothing but the
        number of sentences: a score is the same every time. There are none of fewer than
        `MIN_SENTENCES` between the first and the last.

        Examples:
            >>> SentenceEnds([1], []).other_orders([3, 1, 4, 1, 5, 1, 6, 1, 7, 1, 8])
            [[3, 1, 7, 1, 6, 1, 5, 1, 4, 1, 8], [3, 1, 5, 1, 7, 1, 4, 1, 6, 1, 8]]
        """
        first, *between = self.sentences(ids)
        if len(between) <= MIN_SENTENCES:
            return []
        last = between.pop()
        skipping = between[1::2] + between[::2]
        if len(between) % 2:  # the one before the last is at the end, and must not precede it
            skipping = [skipping.pop(), *skipping]
        orders = (between[::-1], skipping)
        return [
            [token for sentence in (first, *order, last) for token in sentence] for order in orders
        ]
