"""What no two splits may share: a sequence, much of its wording, a document, a title."""

from great_expectations import ExpectationSuite
from great_expectations import expectations as gxe

from expectations.columns import complete, zero

# One row per pair of splits and method.
COLUMNS = (
    "pair",
    "method",
    "compared",
    "shared",
    "max_share",
    "p99_share",
    "mean_share",
    "example",
)
PAIRS = ("train/validation", "train/test", "validation/test")
METHODS = (
    "exact_sequence",
    "near_containment",
    "heldout_sequence",
    "heldout_document",
    "document_id",
    "title",
)


def overlap_suite(*, max_containment: float) -> ExpectationSuite:
    """The suite `overlap`, over a table with one row per pair of splits and method.

    Args:
        max_containment: The largest share of the windows of a sequence or document that the
            other split as a whole may have.

    Returns:
        The suite. It expects every pair with every method, and that each of them compared
        something: "nothing shared" is true of an empty table as well.
    """
    return ExpectationSuite(
        name="overlap",
        expectations=[
            *complete(COLUMNS),
            gxe.ExpectTableRowCountToEqual(value=len(PAIRS) * len(METHODS)),
            gxe.ExpectCompoundColumnsToBeUnique(column_list=["pair", "method"]),
            gxe.ExpectColumnDistinctValuesToEqualSet(column="pair", value_set=list(PAIRS)),
            gxe.ExpectColumnDistinctValuesToEqualSet(column="method", value_set=list(METHODS)),
            gxe.ExpectColumnValuesToBeBetween(column="compared", min_value=1),
            *zero("shared"),
            *(
                gxe.ExpectColumnValuesToBeBetween(
                    column=column, min_value=0.0, max_value=max_containment
                )
                for column in ("max_share", "p99_share", "mean_share")
            ),
        ],
    )
