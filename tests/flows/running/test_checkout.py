"""The checkout of a flow run, in a small real repository."""

import os
import re
import shutil
import subprocess
import threading
from pathlib import Path

import pytest
from pydantic import ValidationError

from flows.running.checkout import Settings, open_checkout, tracking_store
from pipelines.base.errors import UserError
from pipelines.base.sqlite_urls import sqlite_path
from pipelines.params import load_params
from tests.flows.running.conftest import git
from tests.support import REPOSITORY

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(
    "profile", ["x; touch pwned", "../sanguo", "", "-rf", "a b", "sanguo\n", "三国"]
)
def test_a_profile_is_a_plain_name(profile: str) -> None:
    with pytest.raises(ValidationError, match="profile"):
        Settings(profile=profile)


@pytest.mark.parametrize(
    "wrong",
    [
        *({"ranks": 0}, {"steps": 0}, {"source": ""}, {"source": "a\nb"}, {"speed": 1}),
        {"source": "../elsewhere/*.parquet"},
    ],
)
def test_values_out_of_bounds_are_refused(wrong: dict) -> None:
    with pytest.raises(ValidationError):
        Settings(profile="sanguo", **wrong)


def test_only_what_was_asked_for_is_overridden() -> None:
    assert Settings(profile="sanguo").overrides() == {}
    assert Settings(profile="wiki-zh", source="甲.parquet", ranks=2, steps=20).overrides() == {
        "ingest.source": "甲.parquet",
        "train.ranks": 2,
        "train.max_steps": 20,
    }


def test_the_tracking_store_is_the_repositorys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    assert tracking_store(Path("/r")) == "sqlite:////r/mlflow.db"
    assert sqlite_path(tracking_store(Path("/a?b%41"))) == Path("/a?b%41/mlflow.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert tracking_store(Path("/r")) == "http://127.0.0.1:5000"


def test_a_run_sees_edits_and_overrides_and_the_repository_stays(repository: Path) -> None:
    (repository / "stage.py").write_text("edited\n")
    (repository / "untracked.py").write_text("")
    (repository / "data.parquet").write_text("")
    before = (git(repository, "status", "--porcelain"), (repository / "params.yaml").read_bytes())
    said: list[str] = []
    settings = Settings(profile="wiki-zh", source="data.parquet", ranks=2, steps=20)
    with open_checkout(repository, settings, said.append) as checkout:
        assert (checkout.path / "stage.py").read_text() == "edited\n"
        params = load_params(checkout.path / "params.yaml")
        profile = params.profiles[params.name]
        assert params.name == "wiki-zh"
        assert profile.ingest.source == str(repository / "data.parquet")
        assert (profile.train.ranks, profile.train.max_steps) == (2, 20)
        cache = subprocess.run(
            ["dvc", "cache", "dir"], cwd=checkout.path, check=True, capture_output=True, text=True
        )
        assert cache.stdout.strip() == str(repository / ".dvc" / "cache")
        environment = checkout.environment()
        assert environment["ENIGMA_RUNS_DIR"] == str(repository / "runs")
    assert "untracked.py" in said[0]
    after = (git(repository, "status", "--porcelain"), (repository / "params.yaml").read_bytes())
    assert before == after
    assert git(repository, "stash", "list") == ""


def test_the_next_run_keeps_outputs_and_forgets_overrides(repository: Path) -> None:
    with open_checkout(repository, Settings(profile="sanguo", steps=7), print) as checkout:
        (checkout.path / "data").mkdir()
        (checkout.path / "data" / "output").write_text("kept")
        (checkout.path / "dvc.lock").write_text("")
        # What a git that was killed leaves.
        lock = git(checkout.path, "rev-parse", "--path-format=absolute", "--git-path", "index.lock")
        Path(lock).touch()
    with open_checkout(repository, Settings(profile="sanguo"), print) as checkout:
        params = load_params(checkout.path / "params.yaml")
        assert params.profiles["sanguo"].train.max_steps is None
        assert (checkout.path / "data" / "output").read_text() == "kept"
        assert (checkout.path / "dvc.lock").is_file()


def test_the_list_of_readers_that_a_killed_dvc_left_half_written_is_dropped(
    repository: Path,
) -> None:
    with open_checkout(repository, Settings(profile="sanguo"), print) as checkout:
        (checkout.path / "text").write_text("words")
        checkout.run("dvc", "add", "text")
        (checkout.path / ".dvc" / "tmp" / "rwlock").write_bytes(b"")
        with pytest.raises(UserError, match="corrupted"):
            checkout.run("dvc", "add", "text")
    with open_checkout(repository, Settings(profile="sanguo"), print) as checkout:
        (checkout.path / "text").write_text("words")
        checkout.run("dvc", "add", "text")


def test_a_moved_repository_gets_a_new_checkout(repository: Path, tmp_path: Path) -> None:
    with open_checkout(repository, Settings(profile="sanguo"), print):
        pass
    moved = repository.rename(tmp_path / "moved")
    with open_checkout(moved, Settings(profile="sanguo"), print) as checkout:
        assert git(checkout.path, "rev-parse", "HEAD") == git(moved, "rev-parse", "HEAD")


def test_a_second_run_of_a_profile_waits_for_the_first(repository: Path) -> None:
    order: list[str] = []
    waiting = threading.Event()

    def hear(text: str) -> None:
        if text.startswith("waiting: "):
            assert str(os.getpid()) in text
            waiting.set()

    def second() -> None:
        with open_checkout(repository, Settings(profile="sanguo"), hear):
            order.append("second")

    with open_checkout(repository, Settings(profile="sanguo"), print):
        thread = threading.Thread(target=second)
        thread.start()
        assert waiting.wait(10)
        order.append("first")
    thread.join()
    assert order == ["first", "second"]


def test_an_unknown_profile_names_the_known_ones(repository: Path) -> None:
    with (
        pytest.raises(UserError, match="one of sanguo, wiki-zh, wiki-zh-published, got 'wiki'"),
        open_checkout(repository, Settings(profile="wiki"), print),
    ):
        pytest.fail("must not open")
    assert not (repository / ".enigma").exists()


def test_no_commit_is_an_error_with_a_remedy(repository: Path) -> None:
    shutil.rmtree(repository / ".git")
    git(repository, "init", "--quiet")
    with (
        pytest.raises(UserError, match="at least one commit"),
        open_checkout(repository, Settings(profile="sanguo"), print),
    ):
        pytest.fail("must not open")
    git(repository, "add", "--all")
    git(repository, "commit", "--quiet", "--message", "first")
    with open_checkout(repository, Settings(profile="sanguo"), print) as checkout:
        assert (checkout.path / "params.yaml").is_file()


def test_the_documented_gc_keeps_what_flow_runs_made(repository: Path) -> None:
    """`dvc gc --workspace` alone removes it: all checkouts share one cache."""
    stage = "stages: {copy: {cmd: cp stage.py made, deps: [stage.py], outs: [made]}}\n"
    (repository / "dvc.yaml").write_text(stage)
    git(repository, "add", "dvc.yaml")
    git(repository, "commit", "--quiet", "--message", "graph")
    with open_checkout(repository, Settings(profile="sanguo"), print) as checkout:
        checkout.run("dvc", "repro", "--quiet")
        checkout.run("dvc", "exp", "save", "--name", "kept")
    cache = repository / ".dvc" / "cache" / "files"
    kept = {path for path in cache.rglob("*") if path.is_file()}
    assert kept
    text = (REPOSITORY / "docs" / "operations.md").read_text(encoding="utf-8")
    [documented] = re.findall(r"`(dvc gc [^`]+/)`", text)
    [made] = re.findall(r"\t(dvc gc .+) \$\(wildcard", (REPOSITORY / "Makefile").read_text())
    assert documented == f"{made} .enigma/worktrees/*/"
    worktrees = [str(path) for path in (repository / ".enigma" / "worktrees").glob("*/")]
    for safe in ([*made.split(), *worktrees], ["dvc", "gc", "--workspace"]):
        assert {path for path in cache.rglob("*") if path.is_file()} == kept
        subprocess.run([*safe, "--quiet", "--force"], cwd=repository, check=True)
    assert {path for path in cache.rglob("*") if path.is_file()} < kept, "it can fail"
