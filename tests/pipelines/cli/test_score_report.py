"""The scores of documents on disk, and what is shown of them."""

import json
import subprocess
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipelines.base.errors import UserError
from pipelines.cli.scores.report import check_output, draw_scores, write_report
from pipelines.cli.scores.store import TEXT_CHARACTERS, open_store

HOSTILE = '<script>alert(1)</script>"><img src=x onerror=alert(1)>\u202e'


def scores(name: str, atypicality: float, **others: Any) -> dict[str, Any]:
    return {
        "id": name,
        "title": "题",
        "atypicality": atypicality,
        "state_deviation": atypicality,
        "loss_deviation": 0.0,
        "peak_deviation": 0.0,
        "order_deviation": 0.0,
        "length_deviation": 0.0,
        "loss_nats": 5.0,
        "characters": 1000,
        **others,
    }


class Elements(HTMLParser):
    """What a browser would make of a page."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.images: list[str] = []
        self.text = ""
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.images += [value or "" for name, value in attrs if name == "src"]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_the_most_atypical_come_first_and_equal_ones_in_the_order_of_the_source() -> None:
    with open_store(None) as store:
        store.add(1, "k", [scores("a", 1.0), scores("b", 3.0)], ["甲", "乙"])
        store.add(2, "k", [scores("c", 1.0), scores("d", 5.0)], ["丙", "丁"])
        assert [json.loads(line)["id"] for line in store.lines()] == ["d", "b", "a", "c"]
        assert [(row["id"], row["text"]) for row in store.oddest(2)] == [("d", "丁"), ("b", "乙")]
        assert sorted(store.values().tolist()) == [[1, 1, 0], [1, 1, 0], [3, 3, 0], [5, 5, 0]]


def test_a_part_replaces_the_one_of_its_number_and_those_behind_are_forgotten() -> None:
    with open_store(None) as store:
        for number in (1, 2, 3):
            store.add(number, "old", [scores(f"old {number}", 1.0)] * 2, ["", ""])
        assert store.has(2, "old")
        assert not store.has(2, "new")
        store.add(2, "new", [scores("new 2", 1.0)], [""])
        assert store.has(2, "new")
        store.forget_after(2)
        assert not store.has(3, "old")
        found = [json.loads(line)["id"] for line in store.lines()]
        assert found == ["old 1", "old 1", "new 2"]


def test_two_runs_with_one_output_and_a_damaged_unfinished_one_are_refused(
    tmp_path: Path,
) -> None:
    output = tmp_path / "my scores.jsonl"
    with (
        open_store(output),
        pytest.raises(UserError, match=r"(?s)database is locked.*wait, if another run"),
        open_store(output),
    ):
        pass
    unfinished = tmp_path / ".my scores.jsonl.unfinished"
    assert not unfinished.exists()
    unfinished.write_bytes(b"not a database" * 100)
    with pytest.raises(UserError, match="not a database") as refusal, open_store(output):
        pass
    subprocess.run(["bash", "-c", refusal.value.fix.partition("unfinished run: ")[2]], check=True)
    with open_store(output) as store:
        assert store.oddest(1) == []


def test_a_full_disk_ends_in_a_message_and_what_is_scored_stays(tmp_path: Path) -> None:
    def fill() -> None:
        with open_store(output) as store:
            store.add(1, "k", [scores("a", 1.0)], [""])
            store._database.execute("PRAGMA max_page_count = 12")
            store.add(2, "k", [scores("b" * 100_000, 1.0)], [""])

    output = tmp_path / "scores.jsonl"
    with pytest.raises(UserError, match=r"(?s)disk is full.*free disk space"):
        fill()
    with open_store(output) as store:
        assert store.has(1, "k")
        assert not store.has(2, "k")


def test_the_page_shows_a_bounded_part_of_hostile_documents_and_executes_none(
    tmp_path: Path,
) -> None:
    output = tmp_path / "scores.jsonl"
    with open_store(output) as store:
        rows = [scores(HOSTILE, 9.0, title=HOSTILE * 10_000), scores("b", 0.5), scores("c", 0.1)]
        store.add(1, "k", rows, [HOSTILE * 10_000, "乙", "丙"])
        write_report(output, f"{HOSTILE}.jsonl", store, store.oddest(2))
    lines = output.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == rows, "the file has it all"
    page = output.with_suffix(".html").read_text(encoding="utf-8")
    found = Elements(page)
    assert "script" not in found.tags
    assert len(found.images) == 1
    assert found.images[0].startswith("data:image/png;base64,")
    assert found.text.count(HOSTILE) >= 3, "shown as text"
    assert "3 documents; 66.7 % have an atypicality below 3.0" in found.text
    assert ("乙" in page, "丙" in page) == (True, False)
    assert len(page) < len(found.images[0]) + 10 * TEXT_CHARACTERS + 10_000
    assert output.with_suffix(".png").read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "scores.html", "scores.jsonl", "scores.png",
    ]  # fmt: skip


def test_the_page_shows_and_explains_every_deviation_that_counts(tmp_path: Path) -> None:
    deviations = {
        "state_deviation": 1.11, "loss_deviation": -2.22, "peak_deviation": 3.33,
        "order_deviation": 0.55, "length_deviation": 4.44,
    }  # fmt: skip
    with open_store(None) as store:
        store.add(1, "k", [scores("a", 6.07, **deviations)], ["甲"])
        write_report(tmp_path / "scores.jsonl", "x", store, store.oddest(1))
    found = Elements((tmp_path / "scores.html").read_text(encoding="utf-8"))
    assert "atypicalitystatelosspeakorderlength" in found.text, "the columns"
    assert "6.07+1.11-2.22+3.33+0.55+4.44" in found.text
    assert "its peak, which is that of the loss of the least expected tenth" in found.text
    assert "its order, which is that of the loss less the loss of the same sentences" in found.text


@pytest.mark.parametrize(
    "values", [[[0.0] * 3], [[2e9, 1e9, -1e9], [3.0, -3.0, 0.1]], [[2.1, 0.2, 2.0]] * 9]
)
def test_a_picture_of_any_scores(values: list[list[float]]) -> None:
    assert draw_scores(np.array(values)).startswith(b"\x89PNG")


def test_an_output_that_cannot_be_written_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").mkdir()
    with pytest.raises(UserError, match=r"a\.jsonl: Is a directory"):
        check_output(tmp_path / "a.jsonl")
    with pytest.raises(UserError, match=r"expected a name that ends in \.jsonl, got .*a\.html"):
        check_output(tmp_path / "a.html")
    check_output(tmp_path / "new" / "a.jsonl")
    with open_store(tmp_path / "new" / "a.jsonl"):
        pass
