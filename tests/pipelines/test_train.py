"""Training refuses what must not train, and a killed run ends where an unkilled one does."""

import shutil
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.artifacts import (
    read_json,
    read_manifest,
    sha256_file,
    write_json,
    write_manifest,
)
from pipelines.base.errors import GateError, UserError
from pipelines.base.workspace import Workspace
from pipelines.params import load_params
from pipelines.runs.checkpoints import checkpoint_path, is_complete, newest_complete, steps_on_disk
from pipelines.runs.directory import Outcome, RunDirectory
from pipelines.tracking.store import tracking_uri
from pipelines.train import (
    WITHOUT_EFFECT_ON_WEIGHTS,
    check_causality,
    check_certificate,
    check_sizes,
    prepare,
)
from pipelines.training.history import best_step
from pipelines.training.report import summary, table
from tests.support import REPOSITORY, kill_tree, start_training, train_to_the_end, wait_for
from tests.support import TINY_RUN as TINY


def recorded_steps(runs: Path) -> list[int]:
    """The steps of the training records of the only run."""
    return [
        int(record["step"])
        for run in runs.glob("*")
        for record in RunDirectory(run).metrics.read()
        if "train_loss_nats" in record
    ]


def train_until_it_saves(runs: Path) -> subprocess.Popen[str]:
    """Start the stage and wait until it has saved a checkpoint since it started."""
    newest = max(
        (n for run in runs.glob("*") for n in steps_on_disk(run / "checkpoints")), default=0
    )
    process = start_training()
    wait_for(
        lambda: any(
            int(path.parent.name.removeprefix("checkpoint-")) > newest
            for path in runs.glob("*/checkpoints/checkpoint-*/manifest.json")
        ),
        process,
    )
    return process


def agent_of(process: subprocess.Popen[str]) -> psutil.Process:
    """The torchrun of a training."""
    children = psutil.Process(process.pid).children(recursive=True)
    [agent] = [one for one in children if "torch.distributed.run" in one.cmdline()]
    return agent


@pytest.mark.slow
@pytest.mark.distributed
@pytest.mark.usefixtures("tables")
def test_a_run_that_is_killed_orphaned_and_stopped_ends_with_the_weights_of_an_undisturbed_one(
    one_rank: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    steps = 240
    rank = one_rank(
        {
            "train.max_steps": steps,
            "train.epochs": 100,
            "train.evaluate_every_steps": 20,
            "train.early_stopping_patience": 99,
            "train.learning_rate": 1.0e-4,
        }
    )
    rank.train()
    best = checkpoint_path(rank.run.checkpoints, best_step(rank.run.metrics.read()))
    expected = sha256_file(best / "model.safetensors")

    runs = tmp_path / "runs"
    monkeypatch.setenv("ENIGMA_RUNS_DIR", str(runs))
    kill_tree(train_until_it_saves(runs))

    # Only the launcher is killed: its ranks notice, save and end.
    process = train_until_it_saves(runs)
    (run,) = runs.iterdir()
    orphans = psutil.Process(process.pid).children(recursive=True)
    # The agent unpickles what its store holds: nobody else may reach that.
    agent = agent_of(process)
    assert [one for one in agent.net_connections("inet") if one.status == "LISTEN"] == []
    process.kill()
    _, alive = psutil.wait_procs(orphans, timeout=60)
    process.communicate()
    assert alive == []
    outcome = RunDirectory(run).read_outcome()
    assert outcome is not None
    assert outcome.status == "stopped"
    assert newest_complete(run / "checkpoints") == outcome.step

    # Nothing is wrong with the input if torchrun alone is killed: no "error:", a flow tries again.
    process = train_until_it_saves(runs)
    orphans = psutil.Process(process.pid).children(recursive=True)
    agent = agent_of(process)
    ranks = agent.children(recursive=True)
    # On a busy machine the launcher needs seconds to end, in which tiny steps reach the last one.
    for rank_of_run in ranks:
        rank_of_run.suspend()
    agent.kill()
    assert process.wait(timeout=300) == 128 + signal.SIGKILL
    for rank_of_run in ranks:
        rank_of_run.resume()
    output, _ = process.communicate(timeout=300)
    assert "torchrun was killed by signal 9" in output
    assert "error: " not in output
    assert psutil.wait_procs(orphans, timeout=60)[1] == []

    process = train_until_it_saves(runs)
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "asked to stop" in output
    assert "Traceback" not in output
    assert outcome.step < (newest_complete(run / "checkpoints") or 0) < steps
    workspace = Workspace("sanguo")
    assert not workspace.language_model.exists()

    # A checkpoint that a kill left half written must not be resumed.
    half = run / "checkpoints" / f"checkpoint-{steps - 1}"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    output = train_to_the_end()
    assert f"checkpoint-{steps - 1} is incomplete; falling back" in output
    assert sha256_file(workspace.language_model / "model.safetensors") == expected
    assert (workspace.report("train") / "figures" / "loss.png").stat().st_size > 1000
    assert recorded_steps(runs) == list(range(1, steps + 1)), "no step twice, none missing"
    run_id = read_json(workspace.language_model / "training.json")["mlflow_run_id"]
    sent = MlflowClient(tracking_uri()).get_metric_history(run_id, "loss/train_loss_nats")
    assert sorted(point.step for point in sent) == list(range(1, steps + 1)), "nor in MLflow"


def test_early_stopping_survives_a_kill_right_after_the_last_checkpoint(one_rank: Any) -> None:
    # The weights do not move, so no evaluation is better than the first.
    rank = one_rank(
        {
            "train.learning_rate": 1.0e-30,
            "model.pointer_channels": 0,  # it has a rate of its own
            "train.evaluate_every_steps": 1,
            "train.early_stopping_patience": 2,
        }
    )
    assert rank.train() == Outcome("finished", 3)
    assert rank.train() == Outcome("finished", 3), "a resume must not train on"
    assert steps_on_disk(rank.run.checkpoints) == [1, 2, 3], "the best and the newest two"


def test_a_run_that_lost_its_best_checkpoint_is_trained_again(one_rank: Any) -> None:
    from pipelines.training.report import publish

    def trained() -> Any:
        rank = one_rank({})
        rank.train()
        return rank

    rank, workspace = trained(), Workspace("sanguo")
    lost = rank.run
    shutil.rmtree(checkpoint_path(lost.checkpoints, best_step(lost.metrics.read())))
    with pytest.raises(UserError, match="expected the best checkpoint in") as error:
        publish(lost, rank.config, workspace)
    assert error.value.fix == f"delete {lost.path} and train again"
    assert not workspace.language_model.exists()
    shutil.rmtree(lost.path)
    again = trained()
    publish(again.run, again.config, workspace)
    assert (workspace.language_model / "model.safetensors").is_file()


# The first warm-up step has a rate of 0; the second ruins the weights.
RUINOUS = {"train.learning_rate": 1.0e4, "train.warmup_fraction": 0.5}


def test_a_loss_that_is_not_finite_ends_the_run_and_keeps_the_checkpoint(one_rank: Any) -> None:
    from pipelines.training.ranks import NotFiniteError

    rank = one_rank({**RUINOUS, "train.evaluate_every_steps": 1})
    with pytest.raises(NotFiniteError, match="step 2: expected a finite validation") as error:
        rank.train()
    assert error.value.fix.startswith("lower train.learning_rate")
    assert newest_complete(rank.run.checkpoints) == 1


def test_an_exact_model_that_leaves_its_grid_ends_the_run_with_the_remedy(one_rank: Any) -> None:
    from pipelines.training.ranks import OutOfGridError

    rank = one_rank({**RUINOUS, "train.evaluate_every_steps": 3})
    with pytest.raises(
        OutOfGridError, match="step 3: exact mode needs numbers below 1024"
    ) as error:
        rank.train()
    assert error.value.fix.startswith("lower train.learning_rate")
    assert "model.exact: false" in error.value.fix
    assert newest_complete(rank.run.checkpoints) is None
    lower = {"train.learning_rate": 3.0e-3, "train.evaluate_every_steps": 3}
    assert one_rank(lower).train().status == "finished"
    # A rate that is far too high, and yet finite without the grid.
    high = {"train.learning_rate": 3.0, "train.max_loss_rise_nats": 1000.0}
    with pytest.raises(OutOfGridError):
        one_rank(high).train()
    assert one_rank({**high, "model.exact": False}).train().status == "finished"


def test_a_gradient_that_was_not_finite_reaches_no_record_and_no_checkpoint(
    one_rank: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    from pipelines.training.ranks import NotFiniteError
    from pipelines.training.trainer import EnigmaTrainer

    sound = EnigmaTrainer.compute_loss

    def spoilt(self: Any, model: Any, inputs: Any, **options: Any) -> Any:
        return sound(self, model, inputs, **options) * (1 if self.state.global_step != 2 else 1e39)

    monkeypatch.setattr(EnigmaTrainer, "compute_loss", spoilt)
    rank = one_rank(
        {"train.log_every_steps": 5, "train.evaluate_every_steps": 4, "train.max_steps": 6}
    )
    with pytest.raises(NotFiniteError, match="step 3: expected a finite gradient norm"):
        rank.train()
    assert steps_on_disk(rank.run.checkpoints) == []
    assert rank.run.metrics.read() == []


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


def test_the_files_left_out_of_the_fingerprint_exist() -> None:
    assert all((REPOSITORY / path).exists() for path in WITHOUT_EFFECT_ON_WEIGHTS)


def test_a_step_of_more_sequences_than_exist_is_refused(shards: Path, set_params: Any) -> None:
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
        lambda _, q, k, v, context: functional.scaled_dot_product_attention(
            q, k[..., : q.shape[-1]], v
        ),
    )
    with pytest.raises(GateError, match="sees the future"):
        check_causality(config)


def test_sizes_that_fit_pass(workspace: Path) -> None:
    check_sizes(load_params().profile.train, num_sequences=8, nodes=1)


def test_the_table_has_one_complete_row_per_evaluation() -> None:
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
