"""Speed, waiting and MFU of a record, and the file after a resume."""

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import TrainerControl, TrainerState

from pipelines.runs import recorder
from pipelines.runs.recorder import Recorder
from pipelines.tracking.metrics_file import TIME, MetricsFile

CPU = SimpleNamespace(device=torch.device("cpu"), bf16=False, world_size=1)
GPUS = SimpleNamespace(device=torch.device("cuda", 0), bf16=True, world_size=2)
WEIGHTS = 8 * 30


class Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(30, 8)
        self.head = torch.nn.Linear(8, 30, bias=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        return self.head(self.rows(input_ids))


class Loader:
    """A loader that was waited for as long as a test says."""

    def __init__(self, waited_s: float) -> None:
        self._waited_s = waited_s

    def take_waited_s(self) -> float:
        return self._waited_s


class Run:
    """A recorder under a trainer that takes steps."""

    def __init__(self, directory: Path, *, rank: int = 0, history: Any = (), args: Any = CPU):
        self.metrics = MetricsFile(directory / "metrics.jsonl")
        self.state = TrainerState(is_world_process_zero=rank == 0, log_history=list(history))
        self.args = args
        self.control = TrainerControl()
        self.recorder = Recorder(self.metrics, tokens_per_step=500, sequence_length=16)

    def begin(self) -> None:
        self.recorder.on_train_begin(self.args, self.state, None, model=Model())

    def take_steps(self, number: int, *, waited_s: float, pause_s: float = 0.0) -> None:
        for _ in range(number):
            self.recorder.on_step_begin()
            self.recorder.on_step_end(
                self.args, self.state, self.control, train_dataloader=Loader(waited_s)
            )
            time.sleep(pause_s)

    def log(self, **record: float) -> dict[str, float]:
        # A CPU's memory, on any machine.
        self.recorder.on_log(CPU, self.state, None, logs=record)
        return record


def test_speed_is_tokens_over_busy_and_waiting_time_since_the_last_record(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin()
    for steps, waited_s in ((4, 100.0), (2, 1000.0)):
        run.take_steps(steps, waited_s=waited_s)
        record = run.log(step=steps, train_loss_nats=1.0)
        # The steps themselves take microseconds.
        assert record["tokens_per_s"] == pytest.approx(500 / waited_s, rel=1e-3)
        assert record["data_wait_fraction"] == pytest.approx(1.0, abs=1e-3)
        assert "mfu" not in record


def test_time_between_steps_is_not_training_time(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin()
    run.take_steps(2, waited_s=0.001, pause_s=0.1)
    assert 2 * 500 / run.log(step=2, train_loss_nats=1.0)["tokens_per_s"] < 0.1


@pytest.mark.parametrize("what", ["should_log", "should_evaluate", "should_save"])
def test_what_waits_in_the_queue_of_a_gpu_is_training_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    monkeypatch.setattr(recorder, "finish_queued_work", lambda _: time.sleep(0.1))
    run = Run(tmp_path)
    run.begin()
    run.take_steps(4, waited_s=0.0)
    setattr(run.control, what, True)
    run.take_steps(1, waited_s=0.0)
    assert run.log(step=5, train_loss_nats=1.0)["tokens_per_s"] <= 5 * 500 / 0.1


def test_an_evaluation_has_no_speed_and_takes_none_from_the_next_record(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.begin()
    run.take_steps(3, waited_s=100.0)
    before_s = time.time()
    assert set(run.log(step=3, validation_loss_nats=1.0)) == {"step", "validation_loss_nats", TIME}
    record = run.log(step=3, train_loss_nats=1.0)
    assert record["tokens_per_s"] == pytest.approx(5.0, rel=1e-3)
    assert before_s <= record[TIME] <= time.time()
    assert run.metrics.read()[-1] == record


def test_mfu_is_useful_flops_over_the_peak_of_all_gpus(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "NVIDIA L40S")
    run = Run(tmp_path, args=GPUS)
    run.begin()
    run.take_steps(1, waited_s=10.0)
    record = run.log(step=1, train_loss_nats=1.0)
    # Six FLOPs for each weight and token: two forward, four backward.
    expected = record["tokens_per_s"] * 6 * WEIGHTS / (2 * 362.05e12)
    assert record["mfu"] == pytest.approx(expected, rel=1e-9)


def test_rank_0_takes_the_file_back_to_the_checkpoint_and_others_do_not_write(
    tmp_path: Path,
) -> None:
    history = [{"step": 1, TIME: 1.0, "train_loss_nats": 3.0}]
    later = {"step": 2, TIME: 2.0, "train_loss_nats": 2.0}
    for rank, expected in ((1, [*history, later]), (0, history)):
        run = Run(tmp_path, rank=rank, history=history)
        run.metrics.rewrite([*history, later])
        run.begin()
        assert run.metrics.read() == expected
        run.log(step=2, validation_loss_nats=2.0)
        assert len(run.metrics.read()) == 2, "rank 0 alone appends"
