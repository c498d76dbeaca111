"""`enigma audit A B`: two corpora are compared, and the exit code says what was found."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import opencc
import pytest

from pipelines.cli.commands import main

Audit = Callable[..., int]


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[[str, dict[str, str]], str]:
    """Call it as `write_lines(name, {id: text})`: the path of a file of JSON lines."""

    def write(name: str, texts: dict[str, str]) -> str:
        rows = (json.dumps({"id": key, "text": text}) + "\n" for key, text in texts.items())
        (tmp_path / name).write_text("".join(rows), encoding="utf-8")
        return str(tmp_path / name)

    return write


@pytest.fixture
def audit(monkeypatch: pytest.MonkeyPatch) -> Audit:
    """Call it as `audit(a, b, ...)`: the exit code of `enigma audit a b ...`."""

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["enigma", "audit", *arguments])
        with pytest.raises(SystemExit) as end:
            main()
        return int(end.value.code or 0)

    return run


def test_two_corpora_without_overlap_end_with_0(audit, write_corpus, write_lines, prose, capsys):
    a = write_corpus([prose(seed, 200) for seed in range(20)])
    b = write_lines("b.jsonl", {"x": prose(50, 200), "short": prose(0, 20)})
    assert audit(str(a), b) == 0
    out = capsys.readouterr().out
    assert f"B ({b}): 2 documents\n1 of them are judged" in out
    assert out.endswith("no document is above the bound\n")
    assert out.count("0 have more than 15.0% of them in") == 2


def test_what_is_shared_is_named_and_ends_with_1(audit, write_corpus, write_lines, prose, capsys):
    held = (
        "江南的雨季来得很早，老街上的石板路每天都是湿的；茶馆里坐满了听书的人，说书先生敲一下醒木。"
    )
    copy = opencc.OpenCC("s2t").convert(held).replace("，", ",")
    texts = [prose(seed, 200) for seed in range(20)]
    texts[7] = texts[7][:100] + copy + texts[7][100:]
    a = str(write_corpus(texts))
    b = write_lines("b.jsonl", {"x": prose(50, 200), "y": held})
    report = Path(b).with_name("report.json")
    assert audit(a, b, "--json", str(report)) == 1
    out = capsys.readouterr().out
    assert "100.0%\t34\ty\td0007\t江南的雨季来得很早老街上的石板路" in out
    assert out.endswith("overlap found\n")
    facts = json.loads(report.read_text(encoding="utf-8"))
    assert (facts["A"], facts["B"], facts["clean"]) == (a, b, False)
    held_out, trained_on = facts["sides"]
    assert (held_out["corpus"], held_out["above"], held_out["judged"]) == ("B", 1, 2)
    (worst,) = held_out["worst"]
    assert worst["shared_text"].endswith("敲一下醒木")
    assert (worst["share"], worst["mostly_in"]) == (1.0, "d0007")
    # The other direction: the document has 200 other characters.
    assert trained_on["worst"][0]["document"] == "d0007"
    assert 0.1 < trained_on["maximum"] < 0.2
    assert audit(a, b, "--max-share", "1") == 0


def test_a_held_out_text_quoted_by_many_is_found(audit, write_corpus, prose, capsys):
    held = prose(0, 240)
    pieces = [held[at : at + 12] for at in range(0, 228, 5)]
    quoting = [prose(9 + n, 250) + piece + prose(99 + n, 250) for n, piece in enumerate(pieces)]
    a, b = write_corpus(quoting, name="a.parquet"), write_corpus([held], name="b.parquet")
    assert audit(str(a), str(b)) == 1
    out = capsys.readouterr().out
    assert "1 have more than 15.0% of them in A" in out
    assert "0 have more than 15.0% of them in B" in out


@pytest.mark.parametrize(
    "case",
    [
        (None, "found none for"),
        ('{"id": "x"\n', "expected a JSON object"),
        ('{"id": "x", "text": "only Latin letters, and many of them, in one text"}\n', "got none"),
        ("", "among 0 documents"),
    ],
    ids=["missing", "broken", "latin", "empty"],
)
def test_bad_input_ends_with_2(audit, write_corpus, prose, capsys, case):
    content, expected = case
    a = str(write_corpus([prose(0, 200)]))
    b = Path(a).with_name("b.jsonl")
    if content is not None:
        b.write_text(content, encoding="utf-8")
    for order in ((a, str(b)), (str(b), a)):
        assert audit(*order) == 2
        message = capsys.readouterr().err
        assert expected in message
        assert "to fix this:" in message
        assert "Traceback" not in message


@pytest.mark.parametrize("place", ["folder", "file/report.json", "/proc/report.json"])
def test_a_report_that_cannot_be_written_ends_with_2(audit, write_lines, prose, capsys, place):
    a = write_lines("a.jsonl", {"x": prose(0, 200)})
    b = write_lines("b.jsonl", {"y": prose(1, 200)})
    Path(a).with_name("folder").mkdir()
    Path(a).with_name("file").touch()
    assert audit(a, b, "--json", str(Path(a).parent / place)) == 2
    shown = capsys.readouterr()
    assert shown.out.endswith("no document is above the bound\n")
    assert f"expected a file that can be written, got {Path(a).parent / place}" in shown.err
    assert "to fix this: name a file in a folder where you may write" in shown.err
    assert "Traceback" not in shown.err


@pytest.mark.parametrize("place", ["report.json", "new/folder/report.json"])
def test_a_report_is_written_where_its_folder_may_be_missing(audit, write_lines, prose, place):
    a = write_lines("a.jsonl", {"x": prose(0, 200)})
    b = write_lines("b.jsonl", {"y": prose(1, 200)})
    assert audit(a, b, "--json", str(Path(a).parent / place)) == 0
    assert json.loads((Path(a).parent / place).read_text(encoding="utf-8"))["clean"]
