"""Expectations that every evidence table must meet before its values have a meaning."""

from great_expectations import expectations as gxe
from great_expectations.expectations.expectation import Expectation


def complete(columns: tuple[str, ...]) -> list[Expectation]:
    """Expect exactly these columns, without a null.

    All other expectations on values skip nulls and pass on an empty table, so a suite
    needs these and an expectation on the number of rows.

    Args:
        columns: Names of the columns, in order.

    Returns:
        The expectations.
    """
    return [
        gxe.ExpectTableColumnsToMatchOrderedList(column_list=list(columns)),
        *(gxe.ExpectColumnValuesToNotBeNull(column=column) for column in columns),
    ]


def zero(*columns: str) -> list[Expectation]:
    """Expect every value of these columns to be 0."""
    return [
        gxe.ExpectColumnValuesToBeBetween(column=column, min_value=0, max_value=0)
        for column in columns
    ]
