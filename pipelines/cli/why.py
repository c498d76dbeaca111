"""`enigma why`: what became of a document or a sequence at each stage, and why."""

import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipelines.base.artifacts import read_manifest
from pipelines.base.errors import UserError
from pipelines.base.workspace import SPLITS, Workspace
from pipelines.data.cleaning.leftovers import Removed
from pipelines.data.cleaning.part import clean_text
from pipelines.params import CleanParams, load_params

Row = dict[str, Any]
# A removed sequence has its tokens and text as well.
HIDDEN = ("tokens", "text")
SHOWN_PIECES = 20
SHOWN_CHARACTERS = 200


def show_why(name: str, *, as_json: bool) -> None:
    """Print what became of a document or a sequence of the profile in use.

    Args:
        name: The id of a document, or `SPLIT:N`, a sequence by its number in `tokens`.
        as_json: Print JSON instead of tables.

    Raises:
        UserError: If there is no such document or sequence, or a stage has not run.
    """
    params = load_params()
    facts = why(name, Workspace(params.name), params.profile.clean)
    if as_json:
        sys.stdout.write(f"{json.dumps(facts, ensure_ascii=False, indent=2)}\n")
        return
    console = Console(soft_wrap=True, highlight=False)
    for stage, found in facts.items():
        for row in found if isinstance(found, list) else [found]:
            table = Table("", "", title=stage, title_justify="left", show_header=False)
            for key, value in row.items():
                # Text: a document is shown as it stands, and read as no markup.
                table.add_row(key, Text(_spelled(value)))
            console.print(table)


def why(name: str, workspace: Workspace, params: CleanParams) -> Row:
    """Collect what became of a document or a sequence.

    Args:
        name: The id of a document, or `SPLIT:N`, a sequence by its number in `tokens`.
        workspace: Where the files are.
        params: The section `clean`, to clean the document's text again.

    Returns:
        One entry per stage.

    Raises:
        UserError: If there is no such document or sequence, a stage has not run, or a file is
            damaged.
    """
    try:
        read_manifest(workspace.raw)
        raw = _raw(name, workspace.raw)
        if raw is not None:
            return _document(name, raw, workspace, params)
        split, colon, number = name.partition(":")
        if colon and split in SPLITS and number.isdecimal():
            return _sequence(split, int(number), workspace)
    except FileNotFoundError as error:
        raise UserError(
            f"expected the output of every data stage, found no {error.filename}",
            "run `dvc repro decontaminate`",
        ) from error
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(
            f"expected the complete output of the data stages, got a file that cannot be read "
            f"({str(error).splitlines()[0]})",
            "restore it with `dvc checkout --force --with-deps decontaminate`, or make it again "
            "with `dvc repro decontaminate`",
        ) from error
    example = pq.ParquetFile(next(workspace.raw.glob("part-*.parquet"))).read_row_group(0, ["id"])
    raise UserError(
        f"expected the id of a document in {workspace.raw}, or a sequence such as train:0, "
        f"got {name!r}",
        f"use an id of the corpus, such as {example['id'][0]}",
    )


def _raw(name: str, directory: Path) -> Row | None:
    """The row of a raw document and where it is."""
    for path in sorted(directory.glob("part-*.parquet")):
        start = 0
        with pq.ParquetFile(path, pre_buffer=False) as file:
            for batch in file.iter_batches(columns=["id", "title", "url", "text"]):
                row = pc.index(batch["id"], pa.scalar(name, batch["id"].type)).as_py()
                if row >= 0:
                    return {
                        "file": path.name,
                        "row": start + row,
                        **batch.slice(row, 1).to_pylist()[0],
                    }
                start += batch.num_rows
    return None


def _document(name: str, raw: Row, workspace: Workspace, params: CleanParams) -> Row:
    facts: Row = {"raw": {**raw, "text": f"{len(raw['text'])} characters"}}
    removed = Removed()
    clean_text(name, raw["text"], params, removed)
    cleaned: Row = {"cut out": dict(removed.counts), "pieces": removed.pieces[:SHOWN_PIECES]}
    facts["clean"] = cleaned
    dropped = _rows(workspace.documents / "dropped.parquet", "id", name)
    if dropped:
        cleaned.update(became="dropped", reason=dropped[0]["reason"], twin=dropped[0]["twin"])
        return facts
    for split in SPLITS:
        for row in _rows(workspace.documents / f"{split}.parquet", "id", name):
            cleaned.update(became="kept", split=split, **_cluster(row, split, workspace.documents))
            facts["tokenize"], facts["decontaminate"] = _packed(name, split, workspace)
            return facts
    raise _older(workspace.documents, name)


def _older(output: Path, name: str) -> UserError:
    return UserError(
        f"expected {name!r} in {output}, got an output that is older than the stage before it",
        "run `dvc repro decontaminate`",
    )


def _cluster(row: Row, split: str, documents: Path) -> Row:
    """The other documents of a cluster, and the links of this one."""
    members = _rows(documents / f"{split}.parquet", "cluster", row["cluster"], ["id"])
    links = [
        link
        for column in ("document", "joined_to")
        for link in _rows(documents / "links.parquet", column, row["id"])
    ]
    return {
        "cluster": row["cluster"],
        "also in the cluster": [member["id"] for member in members if member["id"] != row["id"]],
        "joined": links,
    }


def _packed(name: str, split: str, workspace: Workspace) -> tuple[Row, list[Row]]:
    """The sequences that a document lies in, and those of them that were removed."""
    length = int(read_manifest(workspace.tokens)["sequence_length"])
    sequences = int(read_manifest(workspace.tokens)["sequences"][split])
    rows = _rows(workspace.tokens / f"{split}.documents.parquet", "id", name)
    if not rows:
        raise _older(workspace.tokens, name)
    (row,) = rows
    first = row["start_token"] // length
    last = (row["start_token"] + max(row["num_tokens"], 1) - 1) // length
    numbers = [number for number in range(first, last + 1) if number < sequences]
    tokens: Row = {"tokens": row["num_tokens"], "sequences": [f"{split}:{n}" for n in numbers]}
    if last >= sequences:
        tokens["not packed"] = "its end, or all of it, does not fill a sequence"
    removals = [removal for n in numbers for removal in _removals(split, n, workspace.shards)]
    return tokens, removals or [{"became": "kept whole"}]


def _sequence(split: str, number: int, workspace: Workspace) -> Row:
    manifest = read_manifest(workspace.tokens)
    length, sequences = int(manifest["sequence_length"]), int(manifest["sequences"][split])
    if number >= sequences:
        raise UserError(
            f"expected a sequence of {split} below {sequences}, got {number}",
            f"use {split}:{max(sequences - 1, 0)} for the last one",
        )
    start = ds.field("start_token")
    documents = ds.dataset(workspace.tokens / f"{split}.documents.parquet").to_table(
        filter=(start < (number + 1) * length) & (start + ds.field("num_tokens") > number * length)
    )
    removals = _removals(split, number, workspace.shards)
    return {
        "tokenize": {"sequence": f"{split}:{number}", "documents": documents["id"].to_pylist()},
        "decontaminate": removals or [{"became": "kept"}],
    }


def _removals(split: str, number: int, shards: Path) -> list[Row]:
    """Why a sequence was removed, if it was."""
    rows = _rows(shards / "removed.parquet", "source_sequence", number)
    return [
        {"became": "removed", **{k: v for k, v in row.items() if k not in HIDDEN}}
        for row in rows
        if row["split"] == split
    ]


def _rows(path: Path, column: str, value: Any, columns: list[str] | None = None) -> list[Row]:
    """The rows of a parquet file with a value, read without the whole file in memory."""
    if not path.is_file():
        raise FileNotFoundError(2, "no such file", str(path))
    dataset = ds.dataset(path, format="parquet")
    columns = columns or [name for name in dataset.schema.names if name != "text"]
    found: list[Row] = dataset.to_table(columns, filter=ds.field(column) == value).to_pylist()
    return found


def _spelled(value: Any) -> str:
    """A value as text: lists and tables of a few lines."""
    if isinstance(value, dict):
        return ", ".join(f"{key}: {_spelled(item)}" for key, item in value.items())
    if isinstance(value, (list, tuple)):
        parts = [_spelled(item) for item in value[:SHOWN_PIECES]]
        more = len(value) - len(parts)
        lines = "\n" if any(isinstance(item, (dict, tuple)) for item in value) else ", "
        return lines.join([*parts, *([f"and {more} more"] if more else [])])
    if isinstance(value, float):
        return f"{value:.3g}"
    text = str(value).replace("\n", "\\n")
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."
