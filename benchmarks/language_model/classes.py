"""The classes that a network predicts: the ids that train has, and one for all others.

Most of the 21,128 ids of bert-base-chinese never occur in a small training set, and a head over all
of them is most of a step. An id is reachable if train has it at least `MIN_COUNT` times. Class c is
the c-th reachable id; the last class is every other id that the tokenizer can produce, each equally
likely. Ids that occur once in train stand for those that it lacks (Good, 1953). Probabilities over
ids stay normalised, so bits per character compare with those of a head over all ids.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from pipelines.language_model.classes import TokenClasses

MIN_COUNT = 2

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True)
class PredictedClasses:
    """A map from ids to classes.

    Args:
        class_of_id_V: (V,) int64.
        possible_V: (V,) bool, which ids the tokenizer can produce.
        count: How many classes there are.
        others: Over how many ids the last class is spread; 0 if it is an id like every class.
    """

    class_of_id_V: Integers
    possible_V: npt.NDArray[np.bool_]
    count: int
    others: int

    @classmethod
    def all_ids(cls, vocabulary_size: int) -> Self:
        """One class per id."""
        possible_V = np.ones(vocabulary_size, dtype=np.bool_)
        return cls(np.arange(vocabulary_size), possible_V, vocabulary_size, 0)

    @classmethod
    def reachable(cls, shards: Path) -> Self:
        """The classes of a directory of final shards."""
        classes = TokenClasses.of_shards(shards, MIN_COUNT)
        return cls(
            classes.class_of_id.astype(np.int64),
            classes.possible_V,
            classes.num_classes,
            classes.num_other,
        )

    def extra_nats(self, classes: Integers) -> npt.NDArray[np.float64]:
        """What naming the id costs beyond naming its class."""
        spread = np.log(self.others) if self.others else 0.0
        return np.where(classes == self.count - 1, spread, 0.0)
