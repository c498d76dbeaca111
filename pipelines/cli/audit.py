"""`enigma audit A B`: what two corpora share, by the judge of `validate` and without its pipeline.

A is trained on, B is held out. Both are streamed; the texts stay in temporary files.
"""

import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pipelines.base.artifacts import write_text
from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress
from pipelines.data.audit.comparison import MIN_WINDOWS, Comparison, Unit
from pipelines.data.audit.windows import Run
from pipelines.data.sources.files import find_source

WINDOW_CHARACTERS = 8
WORST = 10
Json = dict[str, Any]


def audit(trained_on: str, held_out: str, *, max_share: float, output: Path | None) -> bool:
    """Compare two corpora, print what they share, and write it as JSON if asked to.

    Args:
        trained_on: A file, directory or glob of documents, as `ingest.source` takes it.
        held_out: The same, of documents that must not occur in the first corpus.
        max_share: The largest share of its windows that a document may have in the other corpus.
        output: A file for the report as JSON; None for none.

    Returns:
        Whether no document has more.

    Raises:
        UserError: If a corpus cannot be read, or has no document that is long enough, or if the
            report cannot be written.
    """
    report = compare(trained_on, held_out, max_share=max_share)
    # First, as the report may not be writable.
    _print(report)
    if output is not None:
        _write(report, output)
    return bool(report["clean"])


def _write(report: Json, output: Path) -> None:
    try:
        write_text(output, json.dumps(report, ensure_ascii=False, indent=2) + "\n")
    except OSError as error:
        raise UserError(
            f"--json: expected a file that can be written, got {output}: {error.strerror}",
            "name a file in a folder where you may write",
        ) from error


def compare(trained_on: str, held_out: str, *, max_share: float) -> Json:
    """Compare two corpora; the arguments are those of `audit`.

    Returns:
        What the command writes as JSON.
    """
    corpora = {"A": trained_on, "B": held_out}
    with Comparison(WINDOW_CHARACTERS) as comparison:
        comparison.hold_out("B", _runs(comparison, "B", held_out))
        comparison.add("A", _runs(comparison, "A", trained_on))
        comparison.measure("A", "B")
        sides = [
            _side(comparison, mine, other, max_share) for mine, other in (("B", "A"), ("A", "B"))
        ]
        for side in sides:
            if not side["judged"]:
                raise UserError(
                    f"{corpora[side['corpus']]}: expected documents with at least {MIN_WINDOWS} "
                    f"windows of {WINDOW_CHARACTERS} ideographs, got none "
                    f"among {side['documents']} documents",
                    "name a corpus with longer Chinese or Japanese texts",
                )
    return {
        **corpora,
        "window_characters": WINDOW_CHARACTERS,
        "min_windows": MIN_WINDOWS,
        "max_share": max_share,
        "clean": not any(side["above"] for side in sides),
        "sides": sides,
    }


def _runs(comparison: Comparison, name: str, source: str) -> Iterator[Run]:
    """Yield the texts of a corpus, and note the ids of its documents."""
    first = 0
    files = find_source(source, f"corpus {name}")
    for file in progress(files, total=None, unit="file", label=f"corpus {name}"):
        for table in file.read():
            titles = table["title"].to_pylist()
            comparison.add_documents(name, first, table["id"].to_pylist(), titles)
            for number, text in enumerate(table["text"].to_pylist(), first):
                yield Run(number, (number,), (text,))
            first += table.num_rows


def _side(comparison: Comparison, mine: str, other: str, max_share: float) -> Json:
    """What one corpus has of the documents of the other one."""
    shares = asdict(comparison.shares(mine, "document", max_share))
    return {
        "corpus": mine,
        "found_in": other,
        "documents": comparison.count_documents(mine),
        "judged": shares.pop("compared"),
        **shares,
        "worst": [
            _document(comparison, unit, mine, other)
            for unit in comparison.worst(mine, "document", WORST)
            if unit.share > 0
        ],
    }


def _document(comparison: Comparison, unit: Unit, mine: str, other: str) -> Json:
    source = comparison.source(mine, "document", unit.number, other)
    number, text = source or (None, "")
    return {
        "document": comparison.document_id(mine, unit.number),
        "share": unit.share,
        "windows": unit.windows,
        "mostly_in": None if number is None else comparison.document_id(other, number),
        "shared_text": text,
    }


def _print(report: Json) -> None:
    windows = f"{report['min_windows']} windows of {report['window_characters']} ideographs"
    for side in report["sides"]:
        mine, other = side["corpus"], side["found_in"]
        figures = f"largest {side['maximum']:.1%}, 99 of 100 at most {side['p99']:.1%}"
        lines = [
            f"{mine} ({report[mine]}): {side['documents']:,} documents",
            f"{side['judged']:,} of them are judged: they have at least {windows}",
            f"{side['above']:,} have more than {report['max_share']:.1%} of them in {other}",
            f"shares: {figures}, mean {side['mean']:.2%}",
        ]
        if side["worst"]:
            lines.append(f"share\twindows\tdocument\tmostly in {other}\tlongest shared text")
        lines += [
            f"{worst['share']:.1%}\t{worst['windows']}\t{worst['document']}\t{worst['mostly_in']}"
            f"\t{worst['shared_text']}"
            for worst in side["worst"]
        ]
        sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.write("no document is above the bound\n" if report["clean"] else "overlap found\n")
