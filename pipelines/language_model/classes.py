"""Which ids the language model predicts one by one: those that train has often enough.

All other ids that the tokenizer can produce share one class, "other", which stands for what
train has not shown. The ids that occur once are in it too: how often they occur says how often
a new one does (Good, "The population frequencies of species and the estimation of population
parameters", 1953). What the tokenizer cannot produce has probability 0.

Shape legend: V ids, R reachable ids, C classes.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.base.errors import UserError
from pipelines.data.text.shard_vocabulary import ShardVocabulary


@dataclass(frozen=True)
class TokenClasses:
    """The classes of ids, as `enigma.language_model.reachable` numbers them.

    Args:
        reachable_R: (R,) int64, rising; the classes 0 to R - 1.
        possible_V: (V,) bool, what the tokenizer can produce; the class R has those of it that
            are not reachable.
        train_count_V: (V,) int64, occurrences in train.
    """

    reachable_R: npt.NDArray[np.int64]
    possible_V: npt.NDArray[np.bool_]
    train_count_V: npt.NDArray[np.int64]

    @classmethod
    def of_shards(cls, shards: Path, min_count: int) -> "TokenClasses":
        """Find the classes of the final train split.

        Args:
            shards: The directory of the final shards.
            min_count: Occurrences that make an id reachable.

        Raises:
            UserError: If no id is reachable, or none is left for the class of all others.
        """
        vocabulary = ShardVocabulary.read(shards)
        reachable_V = vocabulary.possible_V & (vocabulary.train_count_V >= min_count)
        reachable_R = np.flatnonzero(reachable_V).astype(np.int64)
        classes = cls(reachable_R, vocabulary.possible_V, vocabulary.train_count_V)
        if not len(reachable_R) or not classes.num_other:
            raise UserError(
                f"{shards}: expected some ids that train has at least {min_count} times and some "
                f"that it has not, got {len(reachable_R)} of {classes.possible_V.sum()}",
                "change count_ngrams.min_token_count",
            )
        return classes

    @property
    def num_classes(self) -> int:
        """C = R + 1."""
        return len(self.reachable_R) + 1

    @property
    def num_other(self) -> int:
        """How many ids share the class of all others."""
        return int(self.possible_V.sum()) - len(self.reachable_R)

    @property
    def class_of_id(self) -> npt.NDArray[np.uint16]:
        """(V,) uint16."""
        class_V = np.full(len(self.possible_V), len(self.reachable_R), dtype=np.uint16)
        class_V[self.reachable_R] = np.arange(len(self.reachable_R))
        return class_V

    @property
    def train_count_C(self) -> npt.NDArray[np.int64]:  # noqa: N802 - the shape suffix
        """(C,) occurrences in train."""
        counts = np.bincount(self.class_of_id, weights=self.train_count_V)
        return counts.astype(np.int64)
