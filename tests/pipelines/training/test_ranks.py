"""Gloo ranks under the real torchrun: they agree, and survive the loss of one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.runs.directory import RunDirectory
from tests.support import TINY_NGRAMS, free_port, kill_tree, start_training, wait_for
from tests.support import TINY_RUN as TINY

pytestmark = [
    pytest.mark.slow,
    pytest.mark.distributed,
    pytest.mark.usefixtures("tables"),
]


def losses(run: Path) -> list[float]:
    """Every training loss and evaluation, in order; no step twice, none missing."""
    records = RunDirectory(run).metrics.read()
    steps = [record["step"] for record in records if "train_loss_nats" in record]
    assert steps == list(range(1, len(steps) + 1))
    return [r.get("train_loss_nats", r.get("validation_loss_nats")) for r in records]


def ranks_of(process: subprocess.Popen[str]) -> list[psutil.Process]:
    """The ranks under a launcher."""
    return [
        member
        for member in psutil.Process(process.pid).children(recursive=True)
        if "pipelines.training.worker" in member.cmdline()
        and "torch.distributed.run" not in member.cmdline()
    ]


def start_two_nodes(run: Path) -> tuple[subprocess.Popen[str], subprocess.Popen[str]]:
    """Start the launcher of the first node and what joins it on the second."""
    first = start_training()
    command = "from pipelines.cli.commands import main; main()"
    wait_for(lambda: RunDirectory(run).read_config().nodes == 2, first)
    second = subprocess.Popen(
        [sys.executable, "-c", command, "join", str(run)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    return first, second


def test_ranks_that_lose_one_and_then_move_to_two_nodes_learn_what_one_rank_learns(
    one_rank: Any, set_params: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = one_rank(
        {
            "count_ngrams": TINY_NGRAMS,
            "model.attention_dropout": 0.0,
            "train.batch_size": 6,
            "train.epochs": 100,
            "train.max_steps": 60,
            "train.evaluate_every_steps": 10,
            "train.early_stopping_patience": 99,
            "train.learning_rate": 1.0e-4,
        }
    )
    alone.train()

    monkeypatch.setenv("ENIGMA_RUNS_DIR", str(tmp_path / "runs"))
    set_params({"train.ranks": 3, "train.batch_size": 2})
    process = start_training()
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/checkpoint-10/manifest.json")), process)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == alone.run.path.name, "how a step is divided does not change the run"
    before = ranks_of(process)
    assert len(before) == 3
    before[1].kill()
    # torchrun restarts all of them from the newest checkpoint.
    wait_for(lambda: list(run.glob("checkpoints/checkpoint-40/manifest.json")), process)
    assert not {rank.pid for rank in before} & {rank.pid for rank in ranks_of(process)}
    kill_tree(process)

    # The same run with fewer ranks, on two nodes.
    set_params({"train.ranks": 2, "train.batch_size": 3})
    monkeypatch.setenv("ENIGMA_NODES", "2")
    monkeypatch.setenv("ENIGMA_RENDEZVOUS", f"127.0.0.1:{free_port()}")
    # The second node dies; both start again, as it says.
    first, second = start_two_nodes(run)
    wait_for(lambda: ranks_of(second), second)
    for member in psutil.Process(second.pid).children(recursive=True):
        member.kill()
    output, _ = second.communicate(timeout=300)
    assert second.returncode == 1
    assert "start the run again on its first node, then join again" in output
    kill_tree(first)
    first, second = start_two_nodes(run)
    output, _ = first.communicate(timeout=300)
    joined, _ = second.communicate(timeout=300)
    assert first.returncode == 0, output[-4000:]
    assert second.returncode == 0, joined[-4000:]
    assert f"enigma join {run.resolve()}" in output
    assert {path.name for path in run.glob("checkpoints/checkpoint-60/rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }
    assert len(losses(run)) == 66
    assert losses(run) == pytest.approx(losses(alone.run.path), abs=1e-5)


def test_ranks_agree_on_a_failure_and_do_not_retry(shards: Path, set_params: Any) -> None:
    set_params(
        {
            **TINY,
            "train.ranks": 2,
            "train.learning_rate": 1.0e30,
            "train.warmup_fraction": 0.5,
            "train.evaluate_every_steps": 1,
        }
    )
    process = start_training()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 1
    assert "error: step" in output
    assert "expected a finite" in output
    assert "Warning" not in output
    assert "Traceback" not in output
    (run,) = Path("runs").iterdir()
    assert json.loads((run / "outcome.json").read_text())["status"] == "failed"
    assert (run / "checkpoints" / "checkpoint-1" / "manifest.json").is_file()
