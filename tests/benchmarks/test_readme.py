"""Every published table is what its results file says."""

import json

import pytest

from benchmarks import readme
from benchmarks.headlines import HEADLINES
from benchmarks.record import row


def test_the_tables_are_what_the_results_say() -> None:
    assert readme.main(["--check"]) == 0


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("headlines", ("54.4 MiB", "45.4 MiB")),
        ("memory", ("54.4 MiB", "45.4 MiB")),
        ("parts", ("0.9899 (0.9868", "0.9988 (0.9868")),
    ],
)
def test_a_changed_figure_is_found(
    name: str, change: tuple[str, str], tmp_path, monkeypatch, capsys
) -> None:
    document = tmp_path / "README.md"
    document.write_text(
        f"<!-- results:{name} -->\n{readme.table(name, 'README.md')}<!-- end -->\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(readme, "DOCUMENTS", (document,))
    assert readme.main(["--check"]) == 0
    good = document.read_text(encoding="utf-8")
    document.write_text(good.replace(*change), encoding="utf-8")
    assert readme.main(["--check"]) == 1
    assert "README.md" in capsys.readouterr().err
    assert readme.main([]) == 0
    assert document.read_text(encoding="utf-8") == good


def test_a_missed_target_stays_in_the_table_as_missed() -> None:
    rows = readme.table("headlines", "README.md").splitlines()[2:]
    assert len(rows) == len(HEADLINES)
    assert any("missed" in row for row in rows)
    chinese = readme.table("headlines", readme.CHINESE).splitlines()[2:]
    assert ["未达到" in row for row in chinese] == ["missed" in row for row in rows]


def test_rows_are_selected_by_name_and_peers_of_one_figure_share_a_line(
    tmp_path, monkeypatch
) -> None:
    rows = [
        row("a: speed", 2.0, "1/s", peer="x", peer_value=1.0),
        row("a: speed", 2.0, "1/s", peer="y", peer_value=4.0),
        row("a: speed", 2.0, "1/s", peer="z", peer_value=3.0, target=">= 1x", met=False),
        row("b: memory", 5.0, "MB"),
    ]
    (tmp_path / "kept.json").write_text(json.dumps({"rows": rows}), encoding="utf-8")
    monkeypatch.setattr(readme, "RESULTS", tmp_path)
    document = "<!-- results:kept speed$ -->\nold\n<!-- end -->\n"
    fresh = readme.rewrite(document, "data.md")
    assert fresh.splitlines()[3:-1] == [
        "| a: speed | 2 1/s | x: 1; y: 4 |  |  |  |",
        "| a: speed | 2 1/s | z: 3 | 0.667 | >= 1x | missed |",
    ]
    assert readme.rewrite(fresh, "data.md") == fresh
