"""What clean documents must be: unique, long enough, split as configured by cluster."""

from great_expectations import ExpectationSuite
from great_expectations import expectations as gxe

from expectations.columns import complete, zero
from expectations.splits import whole_splits

# One row per split.
COLUMNS = (
    "split",
    "documents",
    "files_changed",
    "null_ids",
    "repeated_ids",
    "null_texts",
    "shortest_characters",
    "clusters",
    "clusters_elsewhere",
    "configured_fraction",
    "fraction",
    "deviation_sigmas",
    "documents_fraction",
    "documents_deviation_sigmas",
    "characters_fraction",
    "characters_deviation_sigmas",
)
SIGMAS = ("deviation_sigmas", "documents_deviation_sigmas", "characters_deviation_sigmas")
WARN_SIGMAS = 3.0
MAX_SIGMAS = 5.0


def documents_suite(*, min_characters: int) -> ExpectationSuite:
    """The suite `documents`, over a table with one row per split.

    Args:
        min_characters: The fewest characters of a document.

    Returns:
        The suite. A hash assigns clusters to splits, so the observed fractions of clusters,
        documents and characters may differ from the configured one by a few standard
        deviations, which `documents_table` computes from the sizes of the clusters.
    """
    return ExpectationSuite(
        name="documents",
        expectations=[
            *complete(COLUMNS),
            *whole_splits(),
            gxe.ExpectColumnValuesToBeBetween(column="documents", min_value=1),
            *zero("files_changed", "null_ids", "repeated_ids", "null_texts", "clusters_elsewhere"),
            gxe.ExpectColumnValuesToBeBetween(
                column="shortest_characters", min_value=min_characters
            ),
            *(
                gxe.ExpectColumnValuesToBeBetween(
                    column=sigmas, min_value=-bound, max_value=bound, severity=severity
                )
                for sigmas in SIGMAS
                for bound, severity in ((MAX_SIGMAS, "critical"), (WARN_SIGMAS, "warning"))
            ),
        ],
    )
