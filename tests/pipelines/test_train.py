"""Training refuses what must not train, and a killed run ends where an unkilled one does."""

import json
import random
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from pipelines.base.artifacts import read_manifest, sha256_file, write_json, write_manifest
from pipelines.base.errors import GateError, UserError
from pipelines.base.workspace import Workspace
from pipelines.params import load_params
from pipelines.runs.checkpoints import checkpoint_path, is_complete, newest_complete, steps_on_disk
from pipelines.runs.directory import Outcome
from pipelines.train import PUBLISHING, check_causality, check_certificate, check_sizes, prepare
from pipelines.training.history import best_step
from pipelines.training.report import summary, table
from tests.support import REPOSITORY, kill_tree, start_training, train_to_the_end, wait_for
from tests.support import TINY_RUN as TINY


def newest_checkpoint(runs: Path) -> int:
    """The step of the newest checkpoint of the only run; 0 without one."""
    return max((s for run in runs.glob("*") for s in steps_on_disk(run / "checkpoints")), default=0)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_run_killed_three_times_ends_with_the_weights_of_an_unkilled_one(
    one_rank: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rank = one_rank(
        {"train.max_steps": 30, "train.epochs": 10, "train.early_stopping_patience": 99}
    )
    rank.train()
    best = checkpoint_path(rank.run.checkpoints, best_step(rank.run.metrics.read()))
    expected = sha256_file(best / "model.safetensors")

    monkeypatch.setenv("ENIGMA_RUNS_DIR", str(tmp_path / "runs"))
    for step in (2, 0, 10):
        process = start_training()
        if step:
            wait_for(lambda step=step: newest_checkpoint(tmp_path / "runs") >= step, process)
        else:
            time.sleep(random.Random(0).uniform(0.0, 5.0))
        kill_tree(process)
    # A checkpoint that a kill left half written: it must not be resumed from.
    (run,) = (tmp_path / "runs").iterdir()
    half = run / "checkpoints" / "checkpoint-29"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    output = train_to_the_end()
    assert "checkpoint-29 is incomplete; falling back" in output
    workspace = Workspace("sanguo")
    assert sha256_file(workspace.language_model / "model.safetensors") == expected
    assert (workspace.report("train") / "figures" / "loss.png").stat().st_size > 1000
    steps = [
        record["step"]
        for record in read_lines(run / "metrics.jsonl")
        if "train_loss_nats" in record
    ]
    assert steps == list(range(1, 31)), "no step twice, none missing"


@pytest.mark.slow
@pytest.mark.distributed
def test_sigterm_saves_and_the_next_run_goes_on(shards: Path, set_params: Any) -> None:
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


def test_early_stopping_survives_a_kill_right_after_the_last_checkpoint(one_rank: Any) -> None:
    # The weights do not move, so no evaluation is better than the first.
    rank = one_rank(
        {
            "train.learning_rate": 1.0e-30,
            "train.evaluate_every_steps": 1,
            "train.early_stopping_patience": 2,
        }
    )
    assert rank.train() == Outcome("finished", 3)
    assert rank.train() == Outcome("finished", 3), "a resume must not train on"
    assert steps_on_disk(rank.run.checkpoints) == [1, 2, 3], "the best and the newest two"


def test_a_gradient_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(
    one_rank: Any,
) -> None:
    from pipelines.training.ranks import NotFiniteError

    # The first step of a warm-up has a rate of 0; the second ruins the weights.
    rank = one_rank(
        {
            "train.learning_rate": 1.0e30,
            "train.warmup_fraction": 0.5,
            "train.evaluate_every_steps": 1,
        }
    )
    with pytest.raises(NotFiniteError, match="expected a finite"):
        rank.train()
    assert newest_complete(rank.run.checkpoints) == 1


def test_a_gradient_is_checked_before_the_weights_take_the_step(
    one_rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    from pipelines.training.ranks import NotFiniteError
    from pipelines.training.trainer import EnigmaTrainer

    monkeypatch.setattr(
        EnigmaTrainer,
        "compute_loss",
        lambda self, model, inputs, **_: model(**inputs).logits.sum() * torch.nan,
    )
    monkeypatch.setattr("torch.optim.AdamW.step", lambda *_, **__: pytest.fail("took the step"))
    with pytest.raises(NotFiniteError, match="step 1: expected a finite gradient norm"):
        one_rank({}).train()


# torch's RMSNorm has no fused kernel for bf16 input and fp32 gain, and says so once.
@pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight:UserWarning")
def test_bf16_trains_close_to_fp32_and_its_checkpoint_stays_fp32(one_rank: Any) -> None:
    from safetensors.torch import load_file

    weights = []
    for precision in ("fp32", "bf16"):
        rank = one_rank({"train.precision": precision, "model.attention_dropout": 0.0})
        rank.train()
        checkpoint = checkpoint_path(rank.run.checkpoints, TINY["train.max_steps"])
        assert is_complete(checkpoint)
        weights.append(load_file(checkpoint / "model.safetensors"))
    exact, rounded = weights
    assert {value.dtype for value in rounded.values()} == {value.dtype for value in exact.values()}
    differences = [float((exact[name] - rounded[name]).abs().max()) for name in exact]
    assert 0.0 < max(differences) < 0.05


def test_what_a_run_is_not_named_by_exists() -> None:
    assert all((REPOSITORY / path).is_file() for path in PUBLISHING)


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
    check_sizes(load_params().profile.train, num_sequences=8, nodes=1)


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


def read_lines(path: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in path.read_text().splitlines()]
