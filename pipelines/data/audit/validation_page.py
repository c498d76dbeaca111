"""The report of `validate` as one HTML page that needs nothing from elsewhere.

Great Expectations' own Data Docs load their styles from a CDN.
"""

from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.data.audit.suites import Check, SuiteResult

STYLE = """
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", sans-serif; margin: 2rem auto;
       max-width: 72rem; padding: 0 1rem; color: #1c2024; }
h1 { font-size: 1.6rem; margin-bottom: 0; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .5rem; }
table { border-collapse: collapse; width: 100%; }
th, td { text-align: left; padding: .3rem .7rem .3rem 0; border-bottom: 1px solid #e3e6e9;
         vertical-align: top; }
.checks td { overflow-wrap: anywhere; }
.checks td:first-child { white-space: nowrap; }
.reason { border-left: 3px solid #cd2b31; padding-left: .8rem; overflow-wrap: anywhere; }
th { color: #5b6670; font-weight: 600; }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; }
code { font-size: .88em; }
.passed { color: #18794e; } .refused { color: #cd2b31; } .warning { color: #946800; }
.note { color: #5b6670; }
"""
NOTE = (
    "Counted again from the files below. Great Expectations' own pages of the same checks are "
    'under each suite, and in <a href="data_docs/index.html">Data Docs</a>, whose index and '
    "styles come from the network."
)


def render_page(
    certificate: dict[str, Any], results: "Sequence[SuiteResult]", refusals: Sequence[str]
) -> str:
    """Write the report.

    Args:
        certificate: The certificate.
        results: The suites with their evidence.
        refusals: Why the data were refused; empty if they passed.

    Returns:
        A whole HTML document.
    """
    verdict = "passed" if certificate["passed"] else "refused"
    heading = f"Validation of {escape(certificate['profile'])}"
    roots = [
        (name.removesuffix("_root"), _code(certificate[name]))
        for name in ("raw_root", "documents_root", "shards_root")
    ]
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{heading}: {verdict}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE}</style></head><body>",
            f'<h1>{heading}: <span class="{verdict}">{verdict}</span></h1>',
            *(f'<p class="reason">{escape(reason)}</p>' for reason in refusals),
            f'<p class="note">{NOTE}</p>',
            _table(("Data", "Root (SHA-256)"), roots),
            *(_suite(result) for result in results),
            "</body></html>\n",
        ]
    )


def _suite(result: "SuiteResult") -> str:
    failed = sum(check.refuses for check in result.checks)
    count = f"{len(result.checks)} expectations, {failed} failed"
    names = [str(name).replace("_", " ") for name in result.evidence.columns]
    rows = [[_cell(value) for value in row] for row in result.evidence.itertuples(index=False)]
    checks = [
        (_status(check), _expectation(check), _arguments(check), escape(check.observed))
        for check in result.checks
    ]
    return "\n".join(
        [
            f"<h2>{escape(result.name)}: {count}</h2>",
            _table(names, rows),
            f"<details{' open' if failed else ''}><summary>Expectations</summary>",
            '<div class="checks">',
            _table(("", "Expectation", "Arguments", "Observed"), checks),
            "</div></details>",
            f'<p class="note"><a href="{escape(result.page)}">The same in Data Docs</a></p>',
        ]
    )


def _table(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    rows = [list(row) for row in rows]
    # A heading stands where its figures stand.
    kinds = [' class="number"' if cell.startswith("<td") else "" for cell in (rows or [[]])[0]]
    kinds += [""] * (len(heads) - len(kinds))
    head = "".join(
        f"<th{kind}>{escape(name)}</th>" for kind, name in zip(kinds, heads, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(cell if cell.startswith("<td") else f"<td>{cell}</td>" for cell in row)
        + "</tr>\n"
        for row in rows
    )
    return f'<div class="scroll"><table><tr>{head}</tr>\n{body}</table></div>'


def _cell(value: Any) -> str:
    if isinstance(value, str):
        return escape(value)
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    return f'<td class="number">{text}</td>'


def _status(check: "Check") -> str:
    if check.success:
        return '<span class="passed">met</span>'
    return f'<span class="{"refused" if check.critical else "warning"}">not met</span>'


def _expectation(check: "Check") -> str:
    return escape(check.expectation.removeprefix("expect_").replace("_", " "))


def _arguments(check: "Check") -> str:
    spelled = (f"{name} = {value}" for name, value in check.arguments.items())
    return _code(", ".join(spelled))


def _code(text: str) -> str:
    return f"<code>{escape(text)}</code>"
