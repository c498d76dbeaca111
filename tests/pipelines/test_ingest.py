"""Ingest: parts of one size, every row counted, bad files named, nothing half written."""

import json
import logging
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.base.artifacts import read_manifest, verify_manifest
from pipelines.base.errors import UserError
from pipelines.data.text.documents import RAW_SCHEMA
from pipelines.ingest import ingest
from pipelines.params import IngestParams
from tests.pipelines.data.sources.good_files import write_dump
from tests.support import REPOSITORY


def settings(source: Path | str, size: int = 100, limit: int | None = None) -> IngestParams:
    return IngestParams(
        source=str(source),
        on_bad_file="error",
        max_bad_files=0,
        documents_per_file=size,
        max_documents=limit,
    )


@pytest.mark.parametrize("size", [1, 3, 5, 7, 10, 100])
def test_parts_hold_every_document_once_in_order(write_corpus, tmp_path: Path, size: int) -> None:
    texts = ["字" * count for count in range(1, 11)]
    source = write_corpus(texts)
    ingest(settings(source, size), tmp_path / "raw")
    manifest = verify_manifest(tmp_path / "raw")
    assert manifest["rows"] == 10
    assert manifest["characters"] == sum(part["characters"] for part in manifest["parts"]) == 55
    parts = [pq.read_table(tmp_path / "raw" / part["path"]) for part in manifest["parts"]]
    assert all(len(part) == size for part in parts[:-1])
    assert [len(part) for part in parts] == [part["rows"] for part in manifest["parts"]]
    assert pa.concat_tables(parts)["text"].to_pylist() == texts
    assert all(part.schema.equals(RAW_SCHEMA) for part in parts)


@pytest.mark.parametrize(("limit", "rows"), [(1, 1), (4, 4), (10, 10), (11, 10)])
def test_max_documents_takes_the_first(write_corpus, tmp_path: Path, limit: int, rows: int) -> None:
    ingest(settings(write_corpus(["文"] * 10), 3, limit), tmp_path / "raw")
    parts = sorted((tmp_path / "raw").glob("*.parquet"))
    ids = [name for part in parts for name in pq.read_table(part)["id"].to_pylist()]
    assert ids == [f"d{index:04d}" for index in range(rows)]


def test_the_same_source_gives_the_same_bytes(write_corpus, tmp_path: Path) -> None:
    source = write_corpus(["一", "二", "三"])
    ingest(settings(source), tmp_path / "a")
    ingest(settings(source), tmp_path / "b")
    assert read_manifest(tmp_path / "a")["root"] == read_manifest(tmp_path / "b")["root"]


def test_an_empty_corpus_is_refused_and_the_old_output_stays(write_corpus, tmp_path: Path) -> None:
    ingest(settings(write_corpus(["文"])), tmp_path / "raw")
    before = read_manifest(tmp_path / "raw")
    with pytest.raises(UserError, match="expected documents, got no row from"):
        ingest(settings(write_corpus([], name="empty.parquet")), tmp_path / "raw")
    assert read_manifest(tmp_path / "raw") == before
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "corpus.parquet",
        "empty.parquet",
        "raw",
    ]


def test_a_repeated_id_is_refused(write_corpus, tmp_path: Path) -> None:
    write_corpus(["一", "二"], name="a.parquet")
    write_corpus(["三"], name="b.parquet")
    with pytest.raises(UserError, match=r"got 'd0000' 2 times \(1 repeated ids\)"):
        ingest(settings(tmp_path / "*.parquet"), tmp_path / "raw")


def write_lines(
    path: Path, rows: int, *, prefix: str = "", repeat: int = 1, broken: bool = False
) -> Path:
    """JSON lines, with ids of their own; a broken file ends in half a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [
        json.dumps({"id": f"{prefix}{n}", "text": f"文{n}" * repeat}) + "\n" for n in range(rows)
    ]
    path.write_text("".join(lines) + ('{"id": "' if broken else ""), encoding="utf-8")
    return path


def rows_of(raw: Path) -> list[dict[str, str]]:
    return pa.concat_tables(map(pq.read_table, sorted(raw.glob("*.parquet")))).to_pylist()


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


@pytest.mark.parametrize("mode", ["error", "quarantine"])
def test_files_of_one_name_are_told_apart_after_a_failure(tmp_path: Path, mode: str) -> None:
    source = tmp_path / "in"
    write_lines(source / "a" / "data.jsonl", 30, prefix="a")
    write_lines(source / "b" / "data.jsonl", 0, prefix="b", broken=True)
    params = settings(source / "*" / "data.jsonl", 7)
    params = params.model_copy(update={"on_bad_file": mode})
    with pytest.raises(UserError, match=r"b/data\.jsonl.*: line 1"):
        ingest(params, tmp_path / "raw")
    # As the message says: the line is corrected.
    write_lines(source / "b" / "data.jsonl", 25, prefix="b")
    ingest(params, tmp_path / "raw")
    ids = [row["id"] for row in rows_of(tmp_path / "raw")]
    assert ids == [*(f"a{n}" for n in range(30)), *(f"b{n}" for n in range(25))]
    manifest = read_manifest(tmp_path / "raw")
    assert [(file["name"], file["rows"]) for file in manifest["sources"]] == [
        ("a/data.jsonl", 30),
        ("b/data.jsonl", 25),
    ]
    assert manifest["rows_read"] == manifest["rows"] == 55
    ingest(params, tmp_path / "fresh")
    assert contents(tmp_path / "fresh") == contents(tmp_path / "raw")


def test_a_file_that_sorts_before_those_of_an_unfinished_run_starts_it_over(
    tmp_path: Path,
) -> None:
    source = tmp_path / "in"
    write_lines(source / "b.jsonl", 10, prefix="b")
    write_lines(source / "c.jsonl", 0, broken=True)
    with pytest.raises(UserError, match=r"c\.jsonl"):
        ingest(settings(source, 4), tmp_path / "raw")
    write_lines(source / "a.jsonl", 3, prefix="a")
    write_lines(source / "c.jsonl", 2, prefix="c")
    ingest(settings(source, 4), tmp_path / "raw")
    ids = [row["id"] for row in rows_of(tmp_path / "raw")]
    assert [name[0] for name in ids] == list("aaabbbbbbbbbbcc")


@pytest.mark.parametrize("limit", [None, 9, 10])
def test_an_unfinished_run_keeps_what_it_found_bad(tmp_path: Path, limit: int | None) -> None:
    source = tmp_path / "in"
    write_lines(source / "a.jsonl", 5, broken=True)
    write_lines(source / "b.jsonl", 10, prefix="b")
    params = settings(source, 3, limit).model_copy(
        update={"on_bad_file": "quarantine", "max_bad_files": 1}
    )
    # The last document repeats an id: the run fails after its last part.
    with (source / "b.jsonl").open("a") as stream:
        stream.write('{"id": "b0", "text": "again"}\n' if limit is None else "")
    work = tmp_path / "work"
    if limit is None:
        with pytest.raises(UserError, match="'b0' 2 times"):
            ingest(params, tmp_path / "raw", work=work)
        assert len(list(work.glob("part-*"))) == 4
        write_lines(source / "b.jsonl", 10, prefix="b")
    ingest(params, tmp_path / "raw", work=work)
    manifest = read_manifest(tmp_path / "raw")
    assert manifest["rows"] == (limit or 10)
    assert [file["name"] for file in manifest["quarantined"]] == ["a.jsonl"]
    assert manifest["rows_over_max_documents"] == 10 - (limit or 10)
    assert manifest["rows_read"] == 10
    assert (source / "quarantine" / "a.jsonl").is_file()


def test_rows_lost_on_the_way_fail_the_stage(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_lines(source / "a.jsonl", 10)
    write_lines(source / "b.jsonl", 0, broken=True)
    work = tmp_path / "work"
    with pytest.raises(UserError, match=r"b\.jsonl"):
        ingest(settings(source, 4), tmp_path / "raw", work=work)
    # A finished part loses a row, as a full disk may do it.
    part = work / "part-00001" / "documents.parquet"
    pq.write_table(pq.read_table(part).slice(1), part)
    (source / "b.jsonl").unlink()
    with pytest.raises(UserError, match="10 read, 10 taken, 9 in the parts, 0 over") as caught:
        ingest(settings(source, 4), tmp_path / "raw", work=work)
    assert not (tmp_path / "raw").exists()
    # As the message says.
    assert caught.value.fix == f"discard the unfinished run and start again: rm -r {work}"
    shutil.rmtree(work)
    ingest(settings(source, 4), tmp_path / "raw", work=work)
    assert len(rows_of(tmp_path / "raw")) == 10


# Ingest a source, and be killed when the two files of a part are deleted.
KILLED_WHILE_IT_DELETES = """
import os, signal, sys
from pathlib import Path
from pipelines.ingest import ingest
from pipelines.params import IngestParams

unlink = os.unlink
deleted = []

def killing(*args, **names):
    unlink(*args, **names)
    deleted.append(args)
    if len(deleted) == 2:
        os.kill(os.getpid(), signal.SIGKILL)

os.unlink = killing
directory = Path(sys.argv[1])
params = IngestParams.model_validate_json(sys.argv[2])
ingest(params, directory / "raw", work=directory / "work")
"""


def test_a_run_killed_while_it_starts_over_mixes_no_sources(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_lines(source / "a.jsonl", 12)
    write_lines(source / "b.jsonl", 0, broken=True)
    with pytest.raises(UserError, match=r"b\.jsonl"):
        ingest(settings(source, 4), tmp_path / "raw", work=tmp_path / "work")
    assert len(list((tmp_path / "work").glob("part-*"))) == 3
    write_lines(source / "a.jsonl", 4, prefix="changed")
    values = settings(source, 4).model_dump_json()
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_IT_DELETES, tmp_path, values],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        check=False,
    )
    assert done.returncode == -signal.SIGKILL
    with pytest.raises(UserError, match=r"b\.jsonl"):
        ingest(settings(source, 4), tmp_path / "raw", work=tmp_path / "work")
    write_lines(source / "a.jsonl", 12)
    (source / "b.jsonl").unlink()
    ingest(settings(source, 4), tmp_path / "raw", work=tmp_path / "work")
    ingest(settings(source, 4), tmp_path / "whole")
    assert contents(tmp_path / "raw") == contents(tmp_path / "whole")
    assert not (tmp_path / "work").exists()


def test_resumed_json_lines_give_the_same_bytes(tmp_path: Path) -> None:
    source = tmp_path / "in"
    # Long enough for several pages per column: where they end must not depend on the resumption.
    write_lines(source / "a.jsonl", 5000, repeat=300)
    write_lines(source / "b.jsonl", 0, broken=True)
    with pytest.raises(UserError, match=r"b\.jsonl"):
        ingest(settings(source, 3000), tmp_path / "raw", work=tmp_path / "work")
    # The part that is finished ends inside a table of the reader.
    assert len(list((tmp_path / "work").glob("part-*"))) == 1
    (source / "b.jsonl").unlink()
    ingest(settings(source, 3000), tmp_path / "raw", work=tmp_path / "work")
    ingest(settings(source, 3000), tmp_path / "whole")
    assert contents(tmp_path / "raw") == contents(tmp_path / "whole")


def test_the_rows_over_max_documents_are_counted(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "a.jsonl", 50)
    ingest(settings(source, 8, 20), tmp_path / "raw")
    manifest = read_manifest(tmp_path / "raw")
    assert (manifest["rows"], manifest["rows_read"]) == (20, 50)
    assert manifest["rows_over_max_documents"] == 30


def test_what_is_ignored_is_in_the_manifest(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = tmp_path / "in"
    write_lines(source / "a.JSONL", 2)
    (source / "notes.txt").touch()
    (source / "wiki.parquet").mkdir()
    (source / "wiki.parquet" / "_SUCCESS").touch()
    with caplog.at_level(logging.WARNING):
        ingest(settings(source), tmp_path / "raw")
    assert read_manifest(tmp_path / "raw")["ignored"] == ["notes.txt", "wiki.parquet/_SUCCESS"]
    assert "not read: notes.txt, wiki.parquet/_SUCCESS" in caplog.text


def test_a_bad_file_is_never_moved_over_another(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_lines(source / "good.jsonl", 1)
    held = {
        "quarantine/bad.jsonl": "an earlier one",
        "quarantine/2-bad.jsonl": "and another",
        "bad.jsonl": "{",
        "a/bad.jsonl": "[",
    }
    for name, text in held.items():
        (source / name).parent.mkdir(exist_ok=True)
        (source / name).write_text(text)
    (source / "broken.jsonl").symlink_to("../elsewhere/nothing.jsonl")
    (tmp_path / "bad text.jsonl").write_text("}")
    (source / "a" / "link.jsonl").symlink_to("../../bad text.jsonl")
    params = settings(source).model_copy(update={"on_bad_file": "quarantine", "max_bad_files": 4})
    ingest(params, tmp_path / "raw")
    manifest = read_manifest(tmp_path / "raw")
    assert [(entry["name"], entry["sha256"] is None) for entry in manifest["quarantined"]] == [
        ("a/bad.jsonl", False),
        ("a/link.jsonl", False),
        ("bad.jsonl", False),
        ("broken.jsonl", True),
    ]
    assert str(tmp_path) not in json.dumps(manifest["quarantined"])
    quarantine = source / "quarantine"
    assert {path.name: path.read_text() for path in quarantine.iterdir() if path.exists()} == {
        "bad.jsonl": "an earlier one",
        "2-bad.jsonl": "and another",
        "3-bad.jsonl": "{",
    }
    assert (quarantine / "broken.jsonl").readlink() == source / "../elsewhere/nothing.jsonl"
    assert (source / "a" / "quarantine" / "bad.jsonl").read_text() == "["
    # A relative link still leads to its file.
    assert (source / "a" / "quarantine" / "link.jsonl").read_text() == "}"
    assert sorted(path.name for path in source.iterdir()) == ["a", "good.jsonl", "quarantine"]
    # As the message says, or would say: nothing is left to complain of.
    ingest(settings(source), tmp_path / "raw")
    assert read_manifest(tmp_path / "raw")["ignored"] == ["a/quarantine/", "quarantine/"]


def test_a_quarantine_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_lines(source / "good.jsonl", 1)
    write_lines(source / "bad.jsonl", 0, broken=True)
    (source / "quarantine").touch()
    params = settings(source).model_copy(update={"on_bad_file": "quarantine", "max_bad_files": 1})
    with pytest.raises(UserError, match=r"bad\.jsonl: expected to move this bad file into"):
        ingest(params, tmp_path / "raw")
    (source / "bad.jsonl").unlink()
    ingest(params, tmp_path / "raw")


def test_a_source_of_nothing_but_bad_files_is_refused_and_stays(tmp_path: Path) -> None:
    source = tmp_path / "in"
    write_lines(source / "bad.jsonl", 3, broken=True)
    params = settings(source).model_copy(update={"on_bad_file": "quarantine", "max_bad_files": 1})
    with pytest.raises(UserError, match=r"got no row from .*; bad\.jsonl: line 4: expected"):
        ingest(params, tmp_path / "raw")
    assert (source / "bad.jsonl").is_file()
    write_lines(source / "bad.jsonl", 3)
    ingest(params, tmp_path / "raw")


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """A directory of four files, two of them bad."""
    directory = tmp_path / "source"
    directory.mkdir()
    rows = {name: [f"{name}-{i}" for i in range(100)] for name in ("id", "url", "title", "text")}
    pq.write_table(pa.table(rows), directory / "a.parquet")
    content = (directory / "a.parquet").read_bytes()
    (directory / "b.parquet").write_bytes(content[:-100])
    # Good lines before a bad one: no part of the file is taken.
    line = json.dumps({"id": "c", "text": "x"})
    (directory / "c.jsonl").write_text(f"{line}\n{{\n")
    write_dump(directory / "d.xml.bz2")
    return directory


def test_a_bad_file_is_an_error_by_default(mixed: Path, profile, tmp_path: Path) -> None:
    params = profile.ingest.model_copy(update={"source": str(mixed)})
    with pytest.raises(UserError, match=r"b\.parquet: expected a whole parquet file") as caught:
        ingest(params, tmp_path / "raw")
    assert caught.value.fix.endswith("; or set ingest.on_bad_file: quarantine")
    assert not (tmp_path / "raw").exists()
    assert (mixed / "b.parquet").is_file()


def test_bad_files_are_moved_named_and_counted(mixed: Path, profile, tmp_path: Path) -> None:
    update = {"source": str(mixed), "on_bad_file": "quarantine", "max_bad_files": 2}
    ingest(profile.ingest.model_copy(update=update), tmp_path / "raw")
    manifest = read_manifest(tmp_path / "raw")
    assert manifest["rows"] == 103
    assert [entry["name"] for entry in manifest["sources"]] == ["a.parquet", "d.xml.bz2"]
    assert [entry["name"] for entry in manifest["quarantined"]] == ["b.parquet", "c.jsonl"]
    assert "line 2" in manifest["quarantined"][1]["problem"]
    assert str(tmp_path) not in json.dumps(manifest["quarantined"])
    assert manifest["rows_read"] == 103
    assert sorted(path.name for path in (mixed / "quarantine").iterdir()) == [
        "b.parquet",
        "c.jsonl",
    ]
    assert not (mixed / "b.parquet").exists()


def test_the_budget_of_bad_files_is_kept(mixed: Path, profile, tmp_path: Path) -> None:
    update = {"source": str(mixed), "on_bad_file": "quarantine", "max_bad_files": 1}
    with pytest.raises(UserError, match="expected at most 1 bad files") as caught:
        ingest(profile.ingest.model_copy(update=update), tmp_path / "raw")
    assert "b.parquet, c.jsonl" in caught.value.problem
    assert not (tmp_path / "raw").exists()
    assert (mixed / "b.parquet").is_file()
