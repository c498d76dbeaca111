"""Every split has one row."""

from great_expectations import expectations as gxe
from great_expectations.expectations.expectation import Expectation

SPLITS = ("train", "validation", "test")


def whole_splits() -> list[Expectation]:
    """Expect one row for each split in the column `split`, and no other row."""
    return [
        gxe.ExpectTableRowCountToEqual(value=len(SPLITS)),
        gxe.ExpectColumnDistinctValuesToEqualSet(column="split", value_set=list(SPLITS)),
    ]
