"""Two gloo ranks under the real torchrun: they agree, and outlive the loss of one."""

import json
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.workspace import Workspace
from tests.support import TINY_RUN as TINY
from tests.support import start_training, train_to_the_end, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.distributed]


def test_two_ranks_learn_what_one_rank_learns(shards: Path, set_params: Any) -> None:
    set_params({**TINY, "model.attention_dropout": 0.0, "train.batch_size": 8})
    train_to_the_end()
    metrics = Workspace("sanguo").report("train") / "metrics.json"
    alone = json.loads(metrics.read_text())["validation_loss_nats"]
    set_params({"train.ranks": 2, "train.batch_size": 4})
    train_to_the_end()
    together = json.loads(metrics.read_text())["validation_loss_nats"]
    assert together == pytest.approx(alone, abs=1e-5)


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
        if "pipelines.train_worker" in member.cmdline()
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
    process.kill()
    _, alive = psutil.wait_procs(orphans, timeout=60)
    process.communicate()
    assert alive == []
    assert json.loads((run / "outcome.json").read_text())["status"] == "stopped"
    assert list(run.glob("checkpoints/checkpoint-*/manifest.json"))
