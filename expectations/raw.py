"""What raw parquet must be: `id`, `url`, `title`, `text`, ids unique, nothing missing."""

from great_expectations import ExpectationSuite
from great_expectations import expectations as gxe

from expectations.columns import complete, zero

# One row per parquet file.
COLUMNS = (
    "file",
    "schema",
    "documents",
    "files_changed",
    "null_ids",
    "repeated_ids",
    "null_texts",
    "empty_texts",
)
SCHEMA = "id: string, url: string, title: string, text: string"


def raw_suite() -> ExpectationSuite:
    """The suite `raw`, over a table with one row per parquet file."""
    return ExpectationSuite(
        name="raw",
        expectations=[
            *complete(COLUMNS),
            gxe.ExpectTableRowCountToBeBetween(min_value=1),
            gxe.ExpectColumnValuesToBeUnique(column="file"),
            gxe.ExpectColumnValuesToBeInSet(column="schema", value_set=[SCHEMA]),
            gxe.ExpectColumnValuesToBeBetween(column="documents", min_value=1),
            *zero("files_changed", "null_ids", "repeated_ids", "null_texts"),
            # `clean` drops them; many of them are a sign of a faulty extractor.
            gxe.ExpectColumnValuesToBeBetween(
                column="empty_texts", min_value=0, max_value=0, severity="warning"
            ),
        ],
    )
