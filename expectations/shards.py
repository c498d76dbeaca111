"""What the final shards must be: enough whole sequences of valid, known tokens."""

from collections.abc import Mapping

from great_expectations import ExpectationSuite
from great_expectations import expectations as gxe
from great_expectations.expectations.row_conditions import Column

from expectations.columns import complete, zero
from expectations.splits import whole_splits

# One row per split.
COLUMNS = (
    "split",
    "sequences",
    "sequence_length",
    "manifest_sequences_off",
    "side_rows_off",
    "files_changed",
    "smallest_id",
    "largest_id",
    "documents_ended",
    "impossible_tokens",
    "miscounted_ids",
    "unk_rate",
    "duplicate_rate",
    "drift_bits",
    "fraction",
    "characters_fraction",
    "fraction_ratio",
)
# Validation and test may grow against train by decontamination, but not to twice their share.
MAX_FRACTION_RATIO = 2.0
MAX_DUPLICATE_RATE = 0.01


def shards_suite(
    *,
    min_sequences: Mapping[str, int],
    sequence_length: int,
    vocabulary_size: int,
    max_unk_rate: float,
    max_drift_bits: float,
) -> ExpectationSuite:
    """The suite `shards`, over a table with one row per split.

    Args:
        min_sequences: The fewest sequences of each split.
        sequence_length: Tokens per sequence.
        vocabulary_size: Every id must be below it.
        max_unk_rate: The largest share of tokens that are [UNK], in [0, 1].
        max_drift_bits: The largest Jensen-Shannon divergence between the tokens of a split
            and those of train, in [0, 1]. In Chinese nearly every token is a character.

    Returns:
        The suite.
    """
    return ExpectationSuite(
        name="shards",
        expectations=[
            *complete(COLUMNS),
            *whole_splits(),
            *(
                gxe.ExpectColumnValuesToBeBetween(
                    column="sequences",
                    min_value=fewest,
                    row_condition=Column("split") == split,
                )
                for split, fewest in min_sequences.items()
            ),
            gxe.ExpectColumnValuesToBeInSet(column="sequence_length", value_set=[sequence_length]),
            *zero("manifest_sequences_off", "side_rows_off", "files_changed"),
            gxe.ExpectColumnValuesToBeBetween(column="smallest_id", min_value=0),
            gxe.ExpectColumnValuesToBeBetween(column="largest_id", max_value=vocabulary_size - 1),
            # A language model gives the impossible no probability, and uses the counts of train.
            *zero("impossible_tokens", "miscounted_ids"),
            # Without a [SEP] the model never learns to end.
            gxe.ExpectColumnValuesToBeBetween(column="documents_ended", min_value=1),
            gxe.ExpectColumnValuesToBeBetween(
                column="unk_rate", min_value=0.0, max_value=max_unk_rate
            ),
            # One sequence that occurs twice in its split is a curiosity, many are a fault.
            gxe.ExpectColumnValuesToBeBetween(
                column="duplicate_rate", min_value=0.0, max_value=MAX_DUPLICATE_RATE
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="duplicate_rate", min_value=0.0, max_value=0.0, severity="warning"
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="drift_bits", min_value=0.0, max_value=max_drift_bits
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column="fraction_ratio", min_value=0.0, max_value=MAX_FRACTION_RATIO
            ),
        ],
    )
