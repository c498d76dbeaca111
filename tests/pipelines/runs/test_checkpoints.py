"""Only a complete checkpoint counts, and a run directory has one launcher."""

import logging
import os
import pickle
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pipelines.base.errors import UserError
from pipelines.base.locks import Holder
from pipelines.runs.checkpoints import (
    checkpoint_path,
    is_complete,
    newest_complete,
    prune,
    seal,
    steps_on_disk,
)
from pipelines.runs.directory import RunDirectory
from pipelines.training.history import best_step, patience_is_over


def write_checkpoint(directory: Path, step: int, *, sealed: bool = True) -> Path:
    checkpoint = checkpoint_path(directory, step)
    checkpoint.mkdir(parents=True)
    for name in ("model.safetensors", "training_args.bin"):
        (checkpoint / name).write_bytes(f"{name} {step}".encode())
    torch.save({"step": torch.tensor(step)}, checkpoint / "optimizer.pt")
    state = {"numpy": np.random.default_rng(0).bit_generator.state["bit_generator"]}
    torch.save(state | {"cpu": torch.get_rng_state()}, checkpoint / "rng_state.pth")
    if sealed:
        seal(checkpoint, step)
    return checkpoint


def test_the_newest_sealed_checkpoint_is_found_without_its_unread_pickle(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 9)
    checkpoint = write_checkpoint(tmp_path, 10)
    assert newest_complete(tmp_path) == 10
    assert is_complete(checkpoint)
    assert not (checkpoint / "training_args.bin").exists()


@pytest.mark.parametrize("damage", ["unsealed", "truncated", "missing", "manifest cut in half"])
def test_a_damaged_checkpoint_is_reported_and_the_one_before_is_used(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    write_checkpoint(tmp_path, 20)
    newest = write_checkpoint(tmp_path, 100, sealed=damage != "unsealed")
    if damage == "truncated":
        (newest / "optimizer.pt").write_bytes(b"half")
    elif damage == "missing":
        (newest / "model.safetensors").unlink()
    elif damage == "manifest cut in half":
        manifest = newest / "manifest.json"
        manifest.write_bytes(manifest.read_bytes()[:40])
    with caplog.at_level(logging.WARNING):
        assert newest_complete(tmp_path) == 20
    assert "checkpoint-100 is incomplete; falling back" in caplog.text
    assert steps_on_disk(tmp_path) == [20], "what is broken must not mix with a new one"


class Malicious:
    """Creates a file when unpickled; it could do anything else as well."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return Path.touch, (self.mark,)


@pytest.mark.parametrize("name", ["optimizer.pt", "rng_state.pth", "pytorch_model.bin"])
@pytest.mark.parametrize("how", ["torch", "pickle"])
def test_a_malicious_pickle_in_place_of_a_checkpoint_is_refused_and_does_not_run(
    tmp_path: Path, name: str, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Its manifest matches: an attacker who can write one can write the other."""
    directory, mark = tmp_path / "checkpoints", tmp_path / "pwned"
    write_checkpoint(directory, 20)
    newest = write_checkpoint(directory, 100, sealed=False)
    if how == "torch":
        torch.save(Malicious(mark), newest / name)
    else:
        (newest / name).write_bytes(pickle.dumps(Malicious(mark)))
    seal(newest, 100)
    assert newest_complete(directory) == 20
    assert f"{name} would run code when loaded: refused" in caplog.text
    assert not mark.exists()
    pickle.loads(pickle.dumps(Malicious(mark)))
    assert mark.exists(), "the pickle does run when loaded"


def test_without_a_complete_checkpoint_training_starts_from_scratch(tmp_path: Path) -> None:
    assert newest_complete(tmp_path / "nothing") is None
    write_checkpoint(tmp_path, 5, sealed=False)
    assert newest_complete(tmp_path) is None


def test_the_newest_two_and_the_best_are_kept(tmp_path: Path) -> None:
    for step in (2, 4, 6, 8, 10):
        write_checkpoint(tmp_path, step)
    prune(tmp_path, best_step=4)
    assert steps_on_disk(tmp_path) == [4, 8, 10]


def evaluation(step: int, loss: float) -> dict[str, float]:
    return {"step": step, "validation_loss_nats": loss}


def test_patience_and_the_best_step_follow_from_the_history() -> None:
    history = [evaluation(1, 5.0), {"step": 2, "train_loss_nats": 1.0}, evaluation(2, 4.0)]
    assert best_step([]) is None
    assert not patience_is_over([], 1)
    assert best_step(history) == 2
    assert not patience_is_over(history, 1)
    history += [evaluation(3, 4.0), evaluation(4, 4.5)]
    assert best_step(history) == 2, "equal is not better"
    assert patience_is_over(history, 2)
    assert not patience_is_over(history, 3)


def test_a_second_launcher_of_the_same_run_is_refused(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    refused = pytest.raises(UserError, match="expected no other training of this run")
    with run.locked(), refused, RunDirectory(tmp_path / "run").locked():
        pytest.fail("two launchers at one run")
    with run.locked():
        assert not run.launcher_is_gone()
        assert not run.stop_is_asked()
        run.ask_to_stop()
        assert run.stop_is_asked()
        run.begin()
        assert not run.stop_is_asked()


def test_ranks_without_a_launcher_are_asked_to_stop(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    assert not run.stop_is_asked(), "nobody knows of a launcher"
    this = Holder.this_process()
    (tmp_path / "lock").write_text(str(replace(this, process_id=2**22 + 1)))  # no such number
    assert run.stop_is_asked()
    (tmp_path / "lock").write_text(str(replace(this, host="another-node")))
    assert not run.stop_is_asked(), "the ranks of that node watch it"
    (tmp_path / "lock").write_text(str(replace(this, tick="0")))
    assert run.stop_is_asked(), "a later process that reuses the launcher's id does not count"
    (tmp_path / "lock").write_text(str(this))
    # The clock was set forward by a minute, or the files are on a server whose clock is behind.
    os.utime(tmp_path / "lock", (0, time.time() - 60))
    assert not run.stop_is_asked()
