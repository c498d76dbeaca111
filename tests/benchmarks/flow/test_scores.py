"""The measurement of `enigma score`: the rate leaves the start out, and growth is a miss."""

from pathlib import Path

import pytest

from benchmarks.data.memory import Usage
from benchmarks.flow.scores import CHARACTERS, rows, write_documents
from pipelines.data.sources.files import find_source


@pytest.mark.parametrize(("peak_bytes", "met"), [(1.05e9, True), (1.2e9, False)])
def test_memory_that_grows_misses_the_target(peak_bytes: float, met: bool) -> None:
    used = {1_000: Usage(1e9, 30.0), 10_000: Usage(peak_bytes, 120.0)}
    rate, memory = rows({"tiny": (300_000, used)})
    assert rate["value"] == pytest.approx(9_000 / 90)
    assert rate["name"] == "tiny, 0.3 M parameters: 10,000 documents"
    assert memory["ratio"] == pytest.approx(peak_bytes / 1e9)
    assert memory["met"] is met


def test_of_few_documents_memory_says_nothing() -> None:
    used = {10: Usage(1e9, 30.0), 100: Usage(2e9, 120.0)}
    assert [row["unit"] for row in rows({"big": (10**8, used)})] == [
        "documents per processor second"
    ]


def test_documents_are_the_same_every_time_and_can_be_scored(tmp_path: Path) -> None:
    paths = [tmp_path / name for name in ("a.jsonl", "b.jsonl")]
    for path in paths:
        write_documents(path, 20)
    first, second = (path.read_bytes() for path in paths)
    assert first == second
    (table,) = next(iter(find_source(str(paths[0]), "FILE"))).read()
    assert table.num_rows == 20
    assert all(CHARACTERS[0] <= len(text) < CHARACTERS[1] for text in table["text"].to_pylist())
