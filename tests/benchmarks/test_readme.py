"""Every published table is what its results file says."""

import pytest

from benchmarks import readme
from benchmarks.headlines import HEADLINES


def test_the_tables_are_what_the_results_say() -> None:
    assert readme.main(["--check"]) == 0


@pytest.mark.parametrize("name", ["headlines", "memory"])
def test_a_changed_figure_is_found(name: str, tmp_path, monkeypatch, capsys) -> None:
    document = tmp_path / "README.md"
    document.write_text(
        f"<!-- results:{name} -->\n{readme.table(name, 'README.md')}<!-- end -->\n",
        encoding="utf-8",
    )
    monkeypatch.setattr(readme, "DOCUMENTS", (document,))
    assert readme.main(["--check"]) == 0
    good = document.read_text(encoding="utf-8")
    document.write_text(good.replace("54.4 MiB", "45.4 MiB"), encoding="utf-8")
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
