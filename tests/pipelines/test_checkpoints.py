"""A checkpoint counts when it is whole, and a run directory has one launcher."""

import logging
import os
import socket
from pathlib import Path

import pytest

from pipelines.checkpoints import (
    checkpoint_path,
    is_complete,
    newest_complete,
    prune,
    seal,
    steps_on_disk,
)
from pipelines.errors import UserError
from pipelines.run_directory import RunDirectory
from pipelines.train_history import best_step, patience_is_over


def write_checkpoint(directory: Path, step: int, *, sealed: bool = True) -> Path:
    checkpoint = checkpoint_path(directory, step)
    checkpoint.mkdir(parents=True)
    for name in ("model.safetensors", "optimizer.pt", "training_args.bin"):
        (checkpoint / name).write_bytes(f"{name} {step}".encode())
    if sealed:
        seal(checkpoint, step)
    return checkpoint


def test_the_newest_sealed_one_is_found_and_its_unread_pickle_is_gone(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, 9)
    checkpoint = write_checkpoint(tmp_path, 10)
    assert newest_complete(tmp_path) == 10
    assert is_complete(checkpoint)
    assert not (checkpoint / "training_args.bin").exists()


@pytest.mark.parametrize("damage", ["unsealed", "truncated", "missing", "manifest cut in half"])
def test_a_damaged_one_falls_back_to_the_one_before_and_says_so(
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


def test_without_a_whole_one_training_starts_afresh(tmp_path: Path) -> None:
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
        assert run.launcher_is_alive()
        assert not run.stop_is_asked()
        run.ask_to_stop()
        assert run.stop_is_asked()
        run.begin()
        assert not run.stop_is_asked()


def test_ranks_without_a_launcher_are_asked_to_stop(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    nobody = 2**22 + 1  # above the largest process id
    (tmp_path / "lock").write_text(f"{nobody} {socket.gethostname()}")
    assert run.stop_is_asked()
    (tmp_path / "lock").write_text(f"{nobody} another-node")
    assert not run.stop_is_asked(), "the ranks of its own node watch it"
    (tmp_path / "lock").write_text(f"{os.getpid()} {socket.gethostname()}")
    os.utime(tmp_path / "lock", (0, 0))
    assert run.stop_is_asked(), "a later process with the number of the launcher is not it"
