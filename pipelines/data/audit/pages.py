"""The pages of `validate` and of `enigma analyze`, as HTML that needs nothing from the network.

Great Expectations' own Data Docs load their styles from a CDN.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from pipelines.base.templates import render
from pipelines.base.workspace import SPLITS

if TYPE_CHECKING:
    from pipelines.data.audit.suites import SuiteResult

PACKAGE = "pipelines.data.audit"


def render_validation(
    certificate: Mapping[str, Any], results: "Sequence[SuiteResult]", refusals: Sequence[str]
) -> str:
    """Render the report of `validate`.

    Args:
        certificate: The certificate.
        results: The suites with their evidence.
        refusals: Why the data were refused; empty if they passed.

    Returns:
        A whole HTML document.
    """
    values = {"certificate": certificate, "results": results, "refusals": refusals}
    return render(PACKAGE, "validation.html.j2", **values)


def render_analysis(analysis: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """Render the page of `enigma analyze`.

    Args:
        analysis: The content of `analysis.json`.
        figures: SVG by title.

    Returns:
        A whole HTML document.
    """
    tables = {
        title: {name: [_figure(value) for value in values] for name, values in rows.items()}
        for title, rows in _tables(analysis["splits"]).items()
    }
    values = {"analysis": analysis, "tables": tables, "figures": figures}
    return render(PACKAGE, "analysis.html.j2", **values)


def _tables(splits: Mapping[str, Any]) -> dict[str, dict[str, list[Any]]]:
    """The rows of each table by its title; a row has one value per split."""
    counted = (
        "documents", "characters", "distinct_characters", "sequences", "unk_rate",
        "duplicate_rate", "drift_bits",
    )  # fmt: skip
    by_name = {name: [splits[split][name] for split in SPLITS] for name in counted}
    for name in ("unk_rate", "duplicate_rate"):
        by_name[name] = [f"{rate:.3%}" for rate in by_name[name]]
    lengths = {
        name: [splits[split]["length_quantiles"][name] for split in SPLITS]
        for name in splits["train"]["length_quantiles"]
    }
    scripts = {
        name: [f"{splits[split]['script_shares'][name]:.3%}" for split in SPLITS]
        for name in splits["train"]["script_shares"]
    }
    overlap = [splits[split]["removed_by_decontaminate"] for split in SPLITS]
    removed = {name: [facts[name] for facts in overlap] for name in ("before", "removed", "after")}
    shared = {
        f"shared with {other}, {method}": [
            facts["shared_with"].get(other, {}).get(method, "") for facts in overlap
        ]
        for other in ("validation", "test")
        for method in splits["train"]["removed_by_decontaminate"]["shared_with"]["test"]
    }
    return {
        "Splits": by_name,
        "Characters per document": lengths,
        "Share of characters by script": scripts,
        "Overlap: sequences before, removed and after": {**removed, **shared},
    }


def _figure(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
    return f"{int(value):,}"
