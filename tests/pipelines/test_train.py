"""Training refuses what must not train, and a killed run ends where an unkilled one does."""

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from pipelines.artifacts import read_manifest, sha256_file, write_json, write_manifest
from pipelines.errors import GateError, UserError
from pipelines.params import load_params
from pipelines.train import check_causality, check_certificate, check_sizes, prepare
from pipelines.train_report import summary, table
from pipelines.workspace import Workspace
from tests.support import TINY_RUN as TINY


def start_training() -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.train"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def train_to_the_end() -> str:
    process = start_training()
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output[-4000:]
    return output


def weights() -> str:
    return sha256_file(Workspace("sanguo").language_model / "model.safetensors")


@pytest.mark.slow
@pytest.mark.distributed
def test_two_killed_runs_end_with_the_weights_of_an_unkilled_one(
    shards: Path, set_params: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    set_params(TINY)
    train_to_the_end()
    expected = weights()
    assert (Workspace("sanguo").report("train") / "figures" / "loss.png").stat().st_size > 1000

    monkeypatch.setenv("ENIGMA_RUNS_DIR", str(tmp_path / "runs"))
    process = start_training()
    wait_for(lambda: list(tmp_path.glob("runs/*/checkpoints/checkpoint-2/manifest.json")), process)
    kill_tree(process)
    # A checkpoint that a kill left half written: it must not be resumed from.
    (run,) = (tmp_path / "runs").iterdir()
    half = run / "checkpoints" / "checkpoint-5"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    output = train_to_the_end()
    assert "checkpoint-5 is incomplete; falling back" in output
    assert weights() == expected
    steps = [
        record["step"]
        for record in read_lines(run / "metrics.jsonl")
        if "train_loss_nats" in record
    ]
    assert steps == list(range(1, 7)), "no step twice, none missing"


@pytest.mark.slow
@pytest.mark.distributed
def test_two_ranks_learn_what_one_rank_learns(shards: Path, set_params: Any) -> None:
    set_params({**TINY, "model.attention_dropout": 0.0, "train.batch_size": 8})
    train_to_the_end()
    metrics = Workspace("sanguo").report("train") / "metrics.json"
    alone = json.loads(metrics.read_text())["validation_loss_nats"]
    set_params({"train.ranks": 2, "train.batch_size": 4})
    train_to_the_end()
    together = json.loads(metrics.read_text())["validation_loss_nats"]
    assert together == pytest.approx(alone, abs=1e-5)


@pytest.mark.slow
@pytest.mark.distributed
def test_sigterm_saves_and_the_next_run_goes_on(shards: Path, set_params: Any) -> None:
    set_params({**TINY, "train.max_steps": 400, "train.evaluate_every_steps": 200})
    process = start_training()
    wait_for(lambda: list(Path("runs").glob("*/metrics.jsonl")), process)
    wait_for(
        lambda: "train_loss" in next(Path("runs").glob("*/metrics.jsonl")).read_text(), process
    )
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "asked to stop" in output
    assert "Traceback" not in output
    assert list(Path("runs").glob("*/checkpoints/checkpoint-*/manifest.json"))
    assert not Workspace("sanguo").language_model.exists()


def test_more_sequences_a_step_than_there_are_is_refused(shards: Path, set_params: Any) -> None:
    set_params({**TINY, "train.ranks": 17})
    with pytest.raises(UserError, match="at least 68 train sequences for 17 ranks x 4"):
        prepare(Workspace("sanguo"), load_params().profile)


def test_a_failed_certificate_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "c.json", {"passed": False, "shards_root": "a"})
    with pytest.raises(GateError, match="did not pass"):
        check_certificate(tmp_path / "c.json", "a")


def test_a_certificate_of_other_data_is_refused(shards: Path, set_params: Any) -> None:
    set_params(TINY)
    path = shards / "train-00000.bin"
    content = bytearray(path.read_bytes())
    content[0] ^= 1
    path.write_bytes(content)
    with pytest.raises(UserError, match="expected sha256"):
        prepare(Workspace("sanguo"), load_params().profile)
    manifest = read_manifest(shards)
    facts = {k: v for k, v in manifest.items() if k not in {"stage", "root", "files"}}
    write_manifest(shards, stage="decontaminate", facts=facts)
    with pytest.raises(GateError, match="is for shards"):
        prepare(Workspace("sanguo"), load_params().profile)


def test_a_model_that_sees_the_future_never_trains(
    shards: Path, set_params: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from torch.nn import functional

    from enigma.attention import CausalSelfAttention

    set_params(TINY)
    _, config = prepare(Workspace("sanguo"), load_params().profile)
    check_causality(config)
    monkeypatch.setattr(
        CausalSelfAttention,
        "attend",
        lambda _, q, k, v: functional.scaled_dot_product_attention(q, k, v),
    )
    with pytest.raises(GateError, match="sees the future"):
        check_causality(config)


def test_sizes_that_fit_pass(workspace: Path) -> None:
    check_sizes(load_params().profile.train, num_sequences=8)


def test_the_table_has_one_complete_row_an_evaluation() -> None:
    history = [
        {"step": 1, "epoch": 0.1, "train_loss_nats": 4.0, "tokens_per_s": 10.0},
        {"step": 2, "epoch": 0.2, "train_loss_nats": 2.0, "tokens_per_s": 30.0},
        {"step": 2, "epoch": 0.2, "validation_loss_nats": 3.0},
        {"step": 4, "epoch": 0.4, "validation_loss_nats": 2.5},
    ]
    first, second = table(history)
    assert first["train_loss_nats"] == 3.0
    assert first["step"] == 2
    assert "train_loss_nats" not in second
    assert summary(history, 4)["validation_loss_nats"] == 2.5


def wait_for(condition: Any, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()[0][-4000:]
        assert time.monotonic() < deadline, "nothing happened in five minutes"
        time.sleep(0.02)


def kill_tree(process: subprocess.Popen[str]) -> None:
    tree = psutil.Process(process.pid)
    for member in [*tree.children(recursive=True), tree]:
        member.kill()
    process.communicate()


def read_lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
