"""A reference names one version or is refused; the walk follows what a stage read."""

import re
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
from mlflow.tracking._tracking_service.utils import _get_store
from rich.tree import Tree

from pipelines.base.errors import GateError, UserError
from pipelines.registry.dvc_objects import Output, Stage
from pipelines.registry.lineage import (
    Walk,
    _carried,
    _check_carried,
    _check_commit,
    _refuse_unmade,
    lineage,
    resolve,
)
from pipelines.registry.promote import promote
from pipelines.tracking.store import connect


@pytest.mark.parametrize(
    ("reference", "found"),
    [("enigma-lm@champion", ("enigma-lm", "1")), ("enigma-flow/2", ("enigma-flow", "2"))],
)
def test_a_reference_names_a_version(store: Path, reference: str, found: tuple[str, str]) -> None:
    assert resolve(reference) == found


@pytest.mark.parametrize(
    ("reference", "reason"),
    [
        ("enigma-lm", "expected a reference like"),
        ("enigma-lm/two", "expected a reference like"),
        ("other@champion", "expected a reference like"),
        ("enigma-lm@nobody", "expected a version at enigma-lm@nobody"),
    ],
)
def test_anything_else_is_refused(store: Path, reference: str, reason: str) -> None:
    with pytest.raises(UserError, match=reason):
        resolve(reference)


def test_the_walk_shows_what_was_checked_and_stops_at_the_break(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # The run of this version does not name its shards, as the run of a real training does: its
    # row can be edited, and decides nothing. The proof names no commit: that is a break.
    with pytest.raises(UserError, match="trained at commit None: expected it in this repository"):
        lineage("enigma-lm@champion")
    shown = capsys.readouterr().out
    assert "ok enigma-lm version 1, content" in shown
    assert "! the run names shards_root None" in shown
    assert "BROKEN" in shown


def test_a_run_that_is_gone_is_a_remark(
    copied_store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after `mlflow gc`, or in another store than that of the training."""
    client = connect()
    run_id = client.get_model_version("enigma-lm", "1").run_id
    client.delete_run(run_id)
    _get_store()._hard_delete_run(run_id)
    assert promote("enigma-lm", dry_run=True).outcome == "dry run"
    with pytest.raises(UserError, match="trained at commit None"):
        lineage("enigma-lm@champion")
    shown = capsys.readouterr().out
    assert f"! run {run_id} of the training is not in this store; the facts are in the" in shown


def test_a_commit_that_is_elsewhere_is_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The walk itself, over a real version, runs in tests/e2e."""

    def git(place: str, *arguments: str) -> str:
        who = ("-c", "user.name=t", "-c", "user.email=t@example.org", "-C", str(tmp_path / place))
        command = ["git", *who, *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "theirs").mkdir()
    git("theirs", "init", "--quiet")
    git("theirs", "commit", "--quiet", "--allow-empty", "--message", "one")
    git(".", "clone", "--quiet", str(tmp_path / "theirs"), "ours")
    git("theirs", "commit", "--quiet", "--allow-empty", "--message", "two")
    made_by = {"git_commit": git("theirs", "rev-parse", "HEAD")}
    version = SimpleNamespace(tags=made_by, proof=SimpleNamespace(training=made_by))
    monkeypatch.chdir(tmp_path / "ours")
    with pytest.raises(GateError, match="expected it in this repository") as refusal:
        _check_commit(version, Walk(Tree("")))
    assert refusal.value.fix.startswith("fetch it, or run the command in the repository")
    git("ours", "fetch", "--quiet")
    assert _check_commit(version, Walk(Tree("")))[0].subject() == "two"
    monkeypatch.chdir(tmp_path / "theirs")
    assert len(_check_commit(version, Walk(Tree("")))) == 2


def test_the_walk_goes_from_the_last_stage_to_the_first() -> None:
    from pipelines.registry.lineage import _upstream

    raw, tokens, model = (Output(f"data/{name}", name) for name in ("raw", "tokens", "model"))
    part = Output("data/raw/manifest.json", "x")
    lock = {
        "ingest": Stage("ingest", (Output("pipelines/ingest.py", "c"),), (raw,)),
        "tokenize": Stage("tokenize", (raw,), (tokens,)),
        "train": Stage("train", (part, tokens), (model,)),
        "other": Stage("other", (), (Output("data/other", "o"),)),
    }
    made = {out.path: (stage, out) for stage in lock.values() for out in stage.outs}
    assert [stage.name for stage in _upstream("train", lock, made)] == [
        "train",
        "tokenize",
        "ingest",
    ]


@pytest.mark.parametrize(
    "file",
    ["model/tokenizer.json", "model/extra.json", "proof/losses.parquet", "proof/training.json"],
)
def test_every_file_that_a_version_carries_is_compared_with_what_its_stage_made(
    tmp_path: Path, file: str
) -> None:
    carried = {
        "model/tokenizer.json": "models/p/lm/tokenizer.json",
        "proof/training.json": "models/p/lm/training.json",
        "proof/losses.parquet": "reports/p/evaluate/losses.parquet",
        "proof/params.yaml": None,
        "card/figures/train_curve.png": None,
    }
    artifacts, cache = tmp_path / "artifacts", tmp_path / "cache"
    for name, place in carried.items():
        for path in (artifacts / name, cache / (place or "nothing")):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name, encoding="utf-8")
    version = SimpleNamespace(artifacts=artifacts, name="enigma-lm", tags={"profile": "p"})
    outs = {
        Output("models/p/lm", "1.dir"): ("tokenizer.json", "training.json"),
        Output("reports/p/evaluate/losses.parquet", "2"): ("",),
    }

    def check() -> None:
        waiting = _carried(version)
        for out, names in outs.items():
            files = {name: Path(cache, out.path, name) for name in names}
            _check_carried(version, waiting, out, files)
        _refuse_unmade(waiting)

    check()
    (artifacts / file).write_text("another", encoding="utf-8")
    said = "a stage that made" if file == "model/extra.json" else "sha256 .*, as a stage made"
    with pytest.raises(GateError, match=f"{re.escape(file)}: expected {said}") as refusal:
        check()
    assert refusal.value.fix == "run `dvc repro`, then `enigma register` again"
