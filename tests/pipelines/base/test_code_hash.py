"""The hash of the code: modules and templates of the deps count, and nothing else."""

from pathlib import Path

import pytest

from pipelines.base.code_hash import code_hash
from pipelines.base.errors import UserError


def test_other_code_gives_another_hash(tmp_path: Path) -> None:
    (tmp_path / "dvc.yaml").write_text(
        "stages:\n  clean:\n    deps: [pipelines/clean.py, pipelines/data, data/raw]\n"
    )
    names = ("clean.py", "data/rules.py", "data/page.html.j2", "a.py")
    files = [tmp_path / "pipelines" / name for name in names]
    for path in files:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
    before = code_hash("clean", repository=tmp_path)
    files[-1].write_text("a file that the stage does not depend on")
    assert code_hash("clean", repository=tmp_path) == before
    for path in files[:-1]:
        path.write_text("x = 1")
        after = code_hash("clean", repository=tmp_path)
        assert after != before
        before = after
    before = code_hash("clean", repository=tmp_path, without=["pipelines/clean.py"])
    files[0].write_text("x = 2")
    assert code_hash("clean", repository=tmp_path, without=["pipelines/clean.py"]) == before
    before = code_hash("clean", repository=tmp_path, without=["pipelines/data"])
    files[1].write_text("x = 3")
    assert code_hash("clean", repository=tmp_path, without=["pipelines/data"]) == before


def test_code_without_its_repository_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dvc\.yaml"):
        code_hash("clean", repository=tmp_path)
