"""What the files of a run say; how it is shown is tested in cli/test_monitor.py."""

import json
import os
import time
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.base.errors import UserError
from pipelines.base.locks import Holder
from pipelines.params import Profile
from pipelines.runs.checkpoints import checkpoint_path, seal
from pipelines.runs.directory import Outcome, RunConfig, RunDirectory
from pipelines.runs.status import RunStatus, newest_run, read_status


@pytest.fixture
def config(profile: Profile, tmp_path: Path) -> RunConfig:
    return RunConfig(
        profile="sanguo",
        fingerprint="f" * 64,
        steps=100,
        tokens_per_step=500,
        nodes=1,
        rendezvous="",
        shards=tmp_path / "shards",
        shards_root="5" * 64,
        certificate_sha256="c" * 64,
        ngrams=tmp_path / "ngrams",
        ngrams_root="a" * 64,
        model=profile.model,
        train=profile.train,
    )


@pytest.fixture
def run(config: RunConfig, tmp_path: Path) -> RunDirectory:
    run = RunDirectory(tmp_path / "runs" / "one")
    run.write_config(config)
    (run.path / "lock").write_text(str(Holder.this_process()))
    return run


def test_the_rest_takes_the_remaining_tokens_at_the_newest_speed(config: RunConfig) -> None:
    records = [
        {"step": 30, "train_loss_nats": 3.0, "tokens_per_s": 10.0},
        {"step": 40, "train_loss_nats": 2.0, "tokens_per_s": 250.0},
        {"step": 40, "validation_loss_nats": 2.5},
    ]

    def at(state: str, records: list[dict[str, float]]) -> RunStatus:
        return RunStatus(Path(), config, state, records, None, 0.0, {})

    # 60 steps of 500 tokens at 250 tokens/s.
    assert at("running", records).remaining_s == 120.0
    assert at("stopped at step 40", records).remaining_s is None
    assert at("running", records[2:]).remaining_s is None, "no speed is known yet"
    assert at("running", []).step == 0
    assert at("running", records).curve("train_loss_nats") == [3.0, 2.0]
    assert at("running", records).newest("validation_loss_nats") == 2.5
    assert at("running", records).newest("mfu") is None


def test_the_newest_checkpoint_is_the_newest_sealed_one(run: RunDirectory) -> None:
    assert read_status(run.path).checkpoint_step is None
    for step in (9, 10, 100):
        checkpoint = checkpoint_path(run.checkpoints, step)
        checkpoint.mkdir(parents=True)
        (checkpoint / "model.safetensors").write_bytes(b"weights")
        if step != 100:
            seal(checkpoint, step)
    manifest = checkpoint_path(run.checkpoints, 10) / "manifest.json"
    hour_ago_s = time.time() - 3600
    os.utime(manifest, (hour_ago_s, hour_ago_s))
    status = read_status(run.path)
    assert status.checkpoint_step == 10
    assert status.checkpoint_age_s == pytest.approx(3600, abs=60)
    os.utime(manifest, (time.time() + 60, time.time() + 60))
    assert read_status(run.path).checkpoint_age_s == 0.0, "the clock of a file server is ahead"


def test_a_run_runs_until_its_launcher_or_its_ranks_end(run: RunDirectory) -> None:
    assert read_status(run.path).state == "running"
    this = Holder.this_process()
    for holder, state in (
        (replace(this, process_id=2**22 + 1), "stopped: its launcher was killed"),
        (replace(this, boot="0"), "stopped: the machine was restarted"),
        (replace(this, host="another-node"), "running"),
        ("", "unknown"),
    ):
        (run.path / "lock").write_text(str(holder))
        assert read_status(run.path).state.startswith(state)
    run.write_outcome(Outcome("failed", 7, problem="the disk is full"))
    state = read_status(run.path).state
    assert all(part in state for part in ("failed", "7", "the disk is full"))


def test_a_run_of_other_code_is_no_traceback(run: RunDirectory) -> None:
    path = run.path / "run.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    other = (
        {name: value for name, value in values.items() if name != "shards"},
        {**values, "of_a_later_version": 1},
        {**values, "model": {}},
    )
    for found in other:
        path.write_text(json.dumps(found), encoding="utf-8")
        with pytest.raises(UserError, match="expected a run of this version of the code") as error:
            read_status(run.path)
        assert "use the commit that started the run" in error.value.fix
    path.write_text(json.dumps(values), encoding="utf-8")
    assert read_status(run.path).config == run.read_config()


def test_the_newest_run_is_the_one_that_was_written_to_last(tmp_path: Path) -> None:
    for age_s, name in enumerate(("b", "a", "c"), start=1):
        (tmp_path / name).mkdir()
        for file in ("run.json", "metrics.jsonl"):
            (tmp_path / name / file).touch()
            os.utime(tmp_path / name / file, (1000 - age_s, 1000 - age_s))
    (tmp_path / "no run").mkdir()
    assert newest_run(tmp_path).name == "b"
    os.utime(tmp_path / "c" / "metrics.jsonl", (2000, 2000))
    assert newest_run(tmp_path).name == "c"
    with pytest.raises(UserError):
        newest_run(tmp_path / "no run")
