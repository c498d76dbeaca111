"""Gloo ranks under the real torchrun: they agree, and outlive the loss of one."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.base.workspace import Workspace
from tests.support import TINY_RUN as TINY
from tests.support import free_port, kill_tree, start_training, train_to_the_end, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def losses(run: Path) -> list[float]:
    """Every training loss and evaluation, in order; no step twice, none missing."""
    records = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    steps = [record["step"] for record in records if "train_loss_nats" in record]
    assert steps == list(range(1, len(steps) + 1))
    return [r.get("train_loss_nats", r.get("validation_loss_nats")) for r in records]


def test_ranks_learn_what_one_rank_learns_and_fewer_ranks_go_on_from_there(
    one_rank: Any, set_params: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    alone = one_rank({"model.attention_dropout": 0.0, "train.batch_size": 8})
    alone.train()

    monkeypatch.setenv("ENIGMA_RUNS_DIR", str(tmp_path / "runs"))
    set_params({"train.ranks": 4, "train.batch_size": 2})
    process = start_training()
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/checkpoint-4/manifest.json")), process)
    kill_tree(process)
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name == alone.run.path.name, "how a step is divided does not change the run"
    set_params({"train.ranks": 2, "train.batch_size": 2, "train.gradient_accumulation_steps": 2})
    train_to_the_end()
    assert len(losses(run)) == 9
    assert losses(run) == pytest.approx(losses(alone.run.path), abs=1e-5)


def test_ranks_agree_on_a_failure_and_nobody_tries_again(shards: Path, set_params: Any) -> None:
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
    assert "Traceback" not in output
    (run,) = Path("runs").iterdir()
    assert json.loads((run / "outcome.json").read_text())["status"] == "failed"
    assert (run / "checkpoints" / "checkpoint-1" / "manifest.json").is_file()


def test_two_agents_train_together_as_two_nodes(
    shards: Path, set_params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_params({**TINY, "train.ranks": 2})
    monkeypatch.setenv("ENIGMA_NODES", "2")
    monkeypatch.setenv("ENIGMA_RENDEZVOUS", f"127.0.0.1:{free_port()}")
    first = start_training()
    wait_for(lambda: list(Path("runs").glob("*/run.json")), first)
    (run,) = Path("runs").iterdir()
    command = "from pipelines.cli.commands import main; main()"
    second = subprocess.run(
        [sys.executable, "-c", command, "join", str(run)],
        capture_output=True,
        text=True,
        check=False,
    )
    output, _ = first.communicate(timeout=300)
    assert first.returncode == 0, output[-4000:]
    assert second.returncode == 0, second.stderr[-4000:]
    assert f"enigma join {run.resolve()}" in output
    assert len(losses(run)) == 9
    assert {path.name for path in run.glob("checkpoints/checkpoint-6/rng_state*")} == {
        "rng_state_0.pth",
        "rng_state_1.pth",
    }


def test_a_lost_rank_costs_the_steps_since_the_last_checkpoint(
    shards: Path, set_params: Any
) -> None:
    set_params(
        {
            **TINY,
            "train.ranks": 2,
            "train.epochs": 10,
            "train.max_steps": 60,
            "train.early_stopping_patience": 99,
        }
    )
    process = start_training()
    wait_for(lambda: list(Path("runs").glob("*/checkpoints/checkpoint-4/manifest.json")), process)
    ranks = [
        member
        for member in psutil.Process(process.pid).children(recursive=True)
        if "pipelines.training.worker" in member.cmdline()
        and "torch.distributed.run" not in member.cmdline()
    ]
    assert len(ranks) == 2
    ranks[1].kill()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    assert Workspace("sanguo").language_model.is_dir()
    (metrics,) = Path("runs").glob("*/metrics.jsonl")
    records = [json.loads(line) for line in metrics.read_text().splitlines()]
    steps = [record["step"] for record in records if "train_loss_nats" in record]
    assert steps == list(range(1, 61)), "no step twice, none missing"


def test_ranks_whose_launcher_is_killed_save_and_end(shards: Path, set_params: Any) -> None:
    set_params(
        {
            **TINY,
            "train.epochs": 100000,
            "train.max_steps": 100000,
            "train.evaluate_every_steps": 50000,
        }
    )
    process = start_training()
    wait_for(lambda: list(Path("runs").glob("*/metrics.jsonl")), process)
    (run,) = Path("runs").iterdir()
    wait_for(lambda: "train_loss" in (run / "metrics.jsonl").read_text(), process)
    orphans = psutil.Process(process.pid).children(recursive=True)
    # The agent unpickles what its store holds: nobody else may reach that.
    [agent] = [one for one in orphans if "torch.distributed.run" in one.cmdline()]
    assert [one for one in agent.net_connections("inet") if one.status == "LISTEN"] == []
    process.kill()
    _, alive = psutil.wait_procs(orphans, timeout=60)
    process.communicate()
    assert alive == []
    assert json.loads((run / "outcome.json").read_text())["status"] == "stopped"
    assert list(run.glob("checkpoints/checkpoint-*/manifest.json"))
