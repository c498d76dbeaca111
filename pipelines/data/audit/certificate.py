"""The certificate: what was judged, by which definitions, and the result."""

from importlib.metadata import version
from typing import Any

from pipelines.base.artifacts import read_manifest
from pipelines.base.workspace import SPLITS, Workspace
from pipelines.data.audit.comparison import MIN_WINDOWS
from pipelines.data.audit.keys import MARK_CHARACTERS, MARK_HAN, VARIANTS
from pipelines.data.audit.suites import SuiteResult

VERSIONED = ("great-expectations", "pyarrow", "transformers", "duckdb", "opencc")
# Methods whose figures are shares of windows; of the others there is only a count.
SHARES = ("near_containment", "heldout_sequence", "heldout_document")


def make_certificate(
    workspace: Workspace,
    results: list[SuiteResult],
    *,
    window_characters: int,
    max_containment: float,
    title_windows: int,
) -> dict[str, Any]:
    """State what was judged, by what, and the result; without a timestamp.

    Args:
        workspace: Where the files are.
        results: The suites with their evidence.
        window_characters: Characters per window.
        max_containment: The largest share of its windows that a unit may have in another split.
        title_windows: Windows that a document shares with those of its title, for the title to
            count as shared.

    Returns:
        The content of `certificate.json`.
    """
    evidence = {result.name: result.evidence for result in results}
    sequences = evidence["shards"].set_index("split")["sequences"]
    overlap: dict[str, dict[str, int]] = {}
    shares: dict[str, dict[str, Any]] = {}
    for row in evidence["overlap"].to_dict("records"):
        overlap.setdefault(row["pair"], {})[row["method"]] = row["shared"]
        if row["method"] in SHARES:
            figures = ("compared", "max_share", "p99_share", "mean_share")
            shares.setdefault(row["pair"], {})[row["method"]] = {
                name: row[name] for name in figures
            }
    return {
        "passed": not any(check.refuses for result in results for check in result.checks),
        "profile": workspace.profile,
        "raw_root": read_manifest(workspace.raw)["root"],
        "documents_root": read_manifest(workspace.documents)["root"],
        "shards_root": read_manifest(workspace.shards)["root"],
        "sequences": {split: int(sequences[split]) for split in SPLITS},
        "measured": measured(window_characters, max_containment, title_windows),
        "overlap": overlap,
        "shares": shares,
        "suites": [
            {
                "name": result.name,
                "sha256": result.sha256,
                "evaluated": len(result.checks),
                "failed": sum(check.refuses for check in result.checks),
                "warnings": sum(
                    not check.success and not check.critical for check in result.checks
                ),
            }
            for result in results
        ],
        "versions": {name: version(name) for name in VERSIONED},
    }


def measured(window_characters: int, max_containment: float, title_windows: int) -> dict[str, str]:
    """Say in words what the figures of the overlap mean.

    Args:
        window_characters: Characters per window.
        max_containment: The bound.
        title_windows: See `make_certificate`.

    Returns:
        A sentence for each term.
    """
    return {
        "key": (
            "Texts are compared by a key: Unicode NFKC, case-folded, each character in its "
            f"simplified form (OpenCC {', '.join(VARIANTS)}), and of the result only letters and "
            f"digits. A pair of brackets with at most {MARK_CHARACTERS} characters between them, "
            f"at most {MARK_HAN} of them Han, is left out with what it holds, unless Han are all "
            "the letters and digits that it holds."
        ),
        "window": (
            f"A window is {window_characters} consecutive ideographs of the key of one "
            "document, whatever else stands between them. Windows are compared character by "
            "character."
        ),
        "unit": (
            "Judged is every sequence and every document of the final shards that has at least "
            f"{MIN_WINDOWS} windows; of a document, what the shards hold. A sequence has the "
            "windows that lie in it."
        ),
        "share": (
            "The share of a unit is the part of its windows that the other split as a whole has, "
            f"each counted where it stands. No share may be above {max_containment:.0%}."
        ),
        "heldout_sequence": (
            "Share of each sequence of the second split of a pair that the first one has."
        ),
        "heldout_document": (
            "Share of each document of the second split of a pair that the first one has."
        ),
        "near_containment": (
            "Share of each sequence of the first split of a pair that the second one has."
        ),
        "exact_sequence": "Sequences of the first split that equal one of the second one.",
        "document_id": "Ids of documents that both splits have.",
        "title": (
            f"Titles of which a document of the first split has at least {title_windows} windows "
            "that documents of the same title have in the second one."
        ),
        "not_found": (
            "Paraphrase, translation, text without ideographs, a copy with other ideographs in "
            f"every {window_characters}, and what a unit with fewer than {MIN_WINDOWS} windows "
            "shares are not found."
        ),
    }
