"""What clean documents must be: unique, long enough, split as configured by cluster."""

from great_expectations import ExpectationSuite
from great_expectations import expectations as gxe

from expectations.columns import complete, zero
from expectations.splits import whole_splits

# One row per split.
COLUMNS = (
    "split",
    "documents",
    "null_ids",
    "repeated_ids",
    "null_texts",
    "shortest_characters",
    "clusters",
    "clusters_elsewhere",
    "configured_fraction",
    "fraction",
    "deviation_sigmas",
)
WARN_SIGMAS = 3.0
MAX_SIGMAS = 5.0


def documents_suite(*, min_characters: int) -> ExpectationSuite:
    """The suite `documents`, over a table with one row per split.

    Args:
        min_characters: The fewest characters of a document.

    Returns:
        The suite. A hash assigns clusters to splits, so their number is binomial: the
        observed fraction may differ by a few standard deviations.
    """
    sigmas = "deviation_sigmas"
    return ExpectationSuite(
        name="documents",
        expectations=[
            *complete(COLUMNS),
            *whole_splits(),
            gxe.ExpectColumnValuesToBeBetween(column="documents", min_value=1),
            *zero("null_ids", "repeated_ids", "null_texts", "clusters_elsewhere"),
            gxe.ExpectColumnValuesToBeBetween(
                column="shortest_characters", min_value=min_characters
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column=sigmas, min_value=-MAX_SIGMAS, max_value=MAX_SIGMAS
            ),
            gxe.ExpectColumnValuesToBeBetween(
                column=sigmas, min_value=-WARN_SIGMAS, max_value=WARN_SIGMAS, severity="warning"
            ),
        ],
    )
