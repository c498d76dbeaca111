"""Write the tables of the READMEs and of the docs from `benchmarks/results/*.json`.

    python -m benchmarks.readme           # rewrite the tables
    python -m benchmarks.readme --check   # exit 1 if a table is not what the files say

A table stands between `<!-- results:NAME -->` and `<!-- end -->`, where NAME is the name
of a results file. A missed target stays in the table as missed.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).resolve().parent.parent
RESULTS = REPOSITORY / "benchmarks" / "results"
DOCUMENTS = (
    REPOSITORY / "README.md",
    REPOSITORY / "README.zh-CN.md",
    REPOSITORY / "docs" / "data.md",
    REPOSITORY / "docs" / "flow.md",
    REPOSITORY / "docs" / "library.md",
    REPOSITORY / "docs" / "quality.md",
    REPOSITORY / "docs" / "training.md",
)
CHINESE = "README.zh-CN.md"
BLOCK = re.compile(r"(<!-- results:(?P<name>\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
HEADER = "| what | Enigma | peer | ratio | target | |\n|---|---|---|---|---|---|\n"
CHINESE_HEADER = "| 项目 | Enigma | 对照 | 比值 | 目标 | |\n|---|---|---|---|---|---|\n"
VERDICT, CHINESE_VERDICT = ("met", "missed"), ("达到", "未达到")


def table(name: str, document: str) -> str:
    """The Markdown table of one results file."""
    rows = json.loads((RESULTS / f"{name}.json").read_text(encoding="utf-8"))["rows"]
    header = CHINESE_HEADER if document == CHINESE else HEADER
    return header + "".join(_row(row, document) for row in rows)


def _row(row: dict[str, Any], document: str) -> str:
    peer = "" if row["peer"] is None else f"{row['peer']}: {_figure(row['peer_value'])}"
    ratio = "" if row["ratio"] is None else _figure(row["ratio"])
    verdicts = CHINESE_VERDICT if document == CHINESE else VERDICT
    verdict = "" if row["met"] is None else verdicts[0 if row["met"] else 1]
    cells = (
        row["name"],
        f"{_figure(row['value'])} {row['unit']}",
        peer,
        ratio,
        row["target"] or "",
        verdict,
    )
    return "| " + " | ".join(cells) + " |\n"


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def rewrite(text: str, document: str) -> str:
    """The document with every table made anew."""
    return BLOCK.sub(lambda match: match[1] + table(match["name"], document) + match[3], text)


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
