"""Damaged files of every format: they are read, or refused with an error that names them.

    python -m tests.pipelines.data.sources.test_fuzz 100000

tries more of them, and other ones every time.
"""

import bz2
import gzip
import json
import random
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipelines.data.sources.folders import local_files
from pipelines.data.sources.reading import BadFileError
from pipelines.data.text.documents import RAW_SCHEMA
from tests.pipelines.data.sources.good_files import write_dump

MUTATIONS = 3000
GARBAGE = (
    b"\x00" * 40, b"\xff\xfe", "\ufeff".encode(), b"\\ud83d", b"[" * 3000, b'{"a":' * 2000,
    b"\n", b"\r\n", b"null", b"NaN", b"1e999", b"<!DOCTYPE html>", b"</page>", b"<page>", b"&#0;",
    b"\xed\xa0\x80", b"\xc4\xe3", b"PAR1", b'"id": "again", ', b"<ns>x</ns>", b"<!ENTITY a '&a;'>",
)  # fmt: skip
Mutation = Callable[[random.Random, bytes], bytes]


def span(rng: random.Random, data: bytes) -> tuple[int, int]:
    """A piece of the data: mostly a short one."""
    start = rng.randrange(len(data) + 1)
    return start, min(len(data), start + int(rng.paretovariate(0.8)))


def flip(rng: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 8))):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def flip_near_the_end(rng: random.Random, data: bytes) -> bytes:
    """Where parquet has its footer."""
    cut = max(0, len(data) - rng.choice((16, 200, 1000)))
    return data[:cut] + flip(rng, data[cut:])


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def delete(rng: random.Random, data: bytes) -> bytes:
    start, end = span(rng, data)
    return data[:start] + data[end:]


def duplicate(rng: random.Random, data: bytes) -> bytes:
    start, end = span(rng, data)
    return data[:end] + data[start:end] * rng.choice((1, 2, 50)) + data[end:]


def splice(rng: random.Random, data: bytes) -> bytes:
    (first, last), (start, end) = span(rng, data), span(rng, data)
    return data[:first] + data[start:end] + data[last:]


def insert(rng: random.Random, data: bytes) -> bytes:
    at = rng.randrange(len(data) + 1)
    return data[:at] + rng.choice((*GARBAGE, rng.randbytes(30))) + data[at:]


MUTATIONS_OF_BYTES: tuple[Mutation, ...] = (
    flip, flip, flip, flip_near_the_end, truncate, delete, duplicate, splice, insert,
)  # fmt: skip


def unpacked(name: str, data: bytes) -> tuple[bytes, Callable[[bytes], bytes]]:
    """What is inside a compressed file, and how to compress it again."""
    if name.endswith(".gz"):
        return gzip.decompress(data), gzip.compress
    if name.endswith(".bz2"):
        return bz2.decompress(data), bz2.compress
    return data, bytes


def write_good_files(folder: Path) -> dict[str, bytes]:
    """A small file of every format, by its name."""
    texts = [f"曹操字孟德，{number} 沛國譙人也。😀" * (number % 7) for number in range(40)]
    rows = [
        {"id": str(number), "url": f"u{number}", "title": "曹操", "text": text}
        for number, text in enumerate(texts)
    ]
    strings = pa.Table.from_pylist(rows, schema=RAW_SCHEMA)
    kinds = {
        "plain": strings,
        "dictionary": strings.set_column(2, "title", strings["title"].dictionary_encode()),
        "view": strings.cast(pa.schema([(name, pa.string_view()) for name in RAW_SCHEMA.names])),
        "integer": strings.set_column(0, "id", strings["id"].cast(pa.int64())),
    }
    for name, table in kinds.items():
        for compression in ("none", "zstd"):
            path = folder / f"{name}-{compression}.parquet"
            pq.write_table(table, path, compression=compression, row_group_size=16)
    lines = "".join(
        json.dumps(row, ensure_ascii=number % 2 == 0) + "\n" for number, row in enumerate(rows)
    )
    write_dump(folder / "dump.xml.bz2", pages=5)
    dump = bz2.decompress((folder / "dump.xml.bz2").read_bytes())
    packed = {
        "": bytes,
        ".gz": gzip.compress,
        ".bz2": bz2.compress,
        ".zst": lambda data: pa.Codec("zstd").compress(data, asbytes=True),
    }
    for end, pack in packed.items():
        (folder / f"lines.jsonl{end}").write_bytes(pack(lines.encode()))
        (folder / f"dump.xml{end}").write_bytes(pack(dump))
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def outcome(path: Path) -> str:
    """Read a file as the pipeline does: `read`, or what was expected of the file instead."""
    (file,), _ = local_files(str(path), "source")
    refused = None
    try:
        tables = list(file.read())
    except BadFileError as error:
        refused = error
    if refused is not None:
        assert path.name in refused.problem
        assert "expected" in refused.detail
        assert refused.fix
        # It goes into a manifest: valid text, and no path of this machine.
        assert str(path.parent).encode() not in refused.detail.encode()
        expected = refused.detail.partition("expected ")[2].partition(",")[0]
        return re.sub(r"\d+", "N", expected)
    for table in tables:
        assert table.schema.equals(RAW_SCHEMA)
        table.validate(full=True)
        assert not any(column.null_count for column in table.columns)
        assert "" not in table["id"].to_pylist()
    return "read"


def fuzz(folder: Path, mutations: int, seed: int) -> Counter[str]:
    """Mutate good files and count what becomes of them."""
    good = write_good_files(folder)
    assert all(outcome(folder / name) == "read" for name in good)
    rng = random.Random(seed)
    counts: Counter[str] = Counter()
    for number in range(mutations):
        name = sorted(good)[number % len(good)]
        data, pack = good[name], bytes
        if rng.random() < 0.5:
            data, pack = unpacked(name, data)
        for _ in range(rng.choice((1, 1, 1, 1, 3))):
            data = rng.choice(MUTATIONS_OF_BYTES)(rng, data or b"x")
        path = folder / f"damaged-{name}"
        path.write_bytes(pack(data))
        try:
            counts[outcome(path)] += 1
        except BaseException:
            kept = Path(tempfile.gettempdir()) / f"fuzz-{seed}-{number}-{name}"
            path.rename(kept)
            sys.stderr.write(f"kept the file as {kept}\n")
            raise
    return counts


@pytest.mark.slow
def test_damaged_files_are_read_or_refused_by_name(tmp_path: Path) -> None:
    counts = fuzz(tmp_path, MUTATIONS, seed=0)
    assert counts.total() == MUTATIONS
    # Not all of one kind: the mutations reach behind the first check.
    assert counts["read"] > MUTATIONS / 20
    assert len(counts) >= 9, counts


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        seed = random.SystemRandom().randrange(2**32)
        sys.stdout.write(f"{fuzz(Path(directory), int(sys.argv[1]), seed)}\n")
