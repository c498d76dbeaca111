"""Write the tables of the READMEs and of the docs from `benchmarks/results/*.json`.

    python -m benchmarks.readme           # rewrite the tables
    python -m benchmarks.readme --check   # exit 1 if a table differs from the files

A table stands between `<!-- results:NAME -->` and `<!-- end -->`, where NAME is the name
of a results file, `headlines` for the selection in `benchmarks/headlines.py`, or `parts` for
what the parts of the language model are worth. In `<!-- results:NAME PATTERN -->` a regular
expression selects rows by their names. Rows that set one figure beside several peers, without a
target, are one line. A missed target stays in the table as missed.
"""

import json
import re
import sys
from itertools import groupby
from pathlib import Path
from typing import Any

from benchmarks.headlines import HEADLINES, Headline, Words

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
DOCUMENTS = (
    REPOSITORY / "README.md",
    REPOSITORY / "README.zh-CN.md",
    REPOSITORY / "docs" / "data.md",
    REPOSITORY / "docs" / "flow.md",
    REPOSITORY / "docs" / "library.md",
    REPOSITORY / "docs" / "operations.md",
    REPOSITORY / "docs" / "quality.md",
    REPOSITORY / "docs" / "training.md",
)
CHINESE = "README.zh-CN.md"
BLOCK = re.compile(
    r"(<!-- results:(?P<name>\w+)(?: (?P<rows>[^\n]+))? -->\n).*?(<!-- end -->)", re.DOTALL
)
HEADER = "| what | Enigma | peer | ratio | target | |\n|---|---|---|---|---|---|\n"
MET, MISSED, COLON = Words("met", "达到"), Words("missed", "未达到"), Words(": ", "：")
HEADLINES_HEADER = Words(
    "| what | Enigma | peer | target | command |\n|---|---|---|---|---|\n",
    "| 项目 | Enigma | 对照 | 目标 | 命令 |\n|---|---|---|---|---|\n",
)
PARTS_HEADER = "| | bits | processor seconds |\n|---|---|---|\n"
PARTS = {
    "no machine": "no machine, a fifth attention layer",
    "no blocks": "no blocks, a fifth attention layer",
    "no way back": "no way back",
    "no rotors": "no rotors",
    "no reflector": "no reflector",
    "no plugboard": "no plugboard",
    "driven rotor, no machine": "no machine, a layer of driven rotors",
    "driven rotor": "a layer of driven rotors for one of attention",
}
"""Variants of the language model in the order of the table, and what they have instead."""


def table(name: str, document: str, rows: str = "") -> str:
    """Return the Markdown table of headlines, parts, or the matching rows of one results file."""
    if name == "headlines":
        language = 1 if document == CHINESE else 0
        lines = "".join(_headline(headline, language) for headline in HEADLINES)
        return HEADLINES_HEADER[language] + lines
    if name == "parts":
        return PARTS_HEADER + "".join(_part(variant) for variant in PARTS)
    found = [row for row in _rows(name) if re.search(rows, row["name"])]
    return HEADER + "".join(_row(list(group)) for _, group in groupby(found, _measurement))


def _measurement(row: dict[str, Any]) -> Any:
    """Name what rows of one line have in common; a row with a target has a line of its own."""
    return (row["name"], row["value"]) if row["target"] is None else id(row)


def _rows(name: str) -> list[dict[str, Any]]:
    results: dict[str, list[dict[str, Any]]] = json.loads(
        (RESULTS / f"{name}.json").read_text(encoding="utf-8")
    )
    return results["rows"]


def _row(group: list[dict[str, Any]]) -> str:
    row = group[0]
    peers = [f"{each['peer']}: {_figure(each['peer_value'])}" for each in group if each["peer"]]
    return _line(
        row["name"],
        f"{_figure(row['value'])} {row['unit']}",
        "; ".join(peers),
        "" if row["ratio"] is None or len(group) > 1 else _figure(row["ratio"]),
        row["target"] or "",
        "" if row["met"] is None else _verdict(row)[0],
    )


def _part(variant: str) -> str:
    values = {row["name"]: row["value"] for row in _rows("lm_parts")}
    mean, least, most = (
        format(values[f"{variant}, bits of enigma's, {which}"], ".4f")
        for which in ("mean", "smallest", "largest")
    )
    seconds = values[f"{variant}, processor seconds of enigma's, median"]
    return _line(PARTS[variant], f"{mean} ({least} to {most})", f"{seconds:.2f}")


def _verdict(row: dict[str, Any]) -> Words:
    return MET if row["met"] else MISSED


def _headline(headline: Headline, language: int) -> str:
    colon = COLON[language]
    row = next(
        row
        for row in _rows(headline.results)
        if row["name"] == headline.row and headline.peer in (None, row["peer"])
    )
    peer, target = headline.peer_name, headline.target
    wanted = row["target"] if target is None else target[language]
    return _line(
        headline.what[language],
        f"{_figure(row['value'])} {headline.unit[language]}".strip(),
        "" if peer is None else f"{peer[language]}{colon}{_figure(row['peer_value'])}",
        "" if row["met"] is None else f"{wanted}{colon}{_verdict(row)[language]}",
        f"`{headline.command}`",
    )


def _line(*cells: str) -> str:
    return "| " + " | ".join(cells) + " |\n"


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def rewrite(text: str, document: str) -> str:
    """Return the document with every table written from the results files."""

    def fresh(match: re.Match[str]) -> str:
        return match[1] + table(match["name"], document, match["rows"] or "") + match[4]

    return BLOCK.sub(fresh, text)


def main(arguments: list[str]) -> int:
    """Rewrite the tables, or check them."""
    stale = []
    for path in DOCUMENTS:
        text = path.read_text(encoding="utf-8")
        fresh = rewrite(text, path.name)
        if fresh != text:
            stale.append(path.name)
            if "--check" not in arguments:
                path.write_text(fresh, encoding="utf-8")
    if stale and "--check" in arguments:
        sys.stderr.write(f"stale tables in {', '.join(stale)}; run python -m benchmarks.readme\n")
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
