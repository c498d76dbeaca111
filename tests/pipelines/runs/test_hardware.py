"""What a machine can do and holds; the count of FLOPs is tested in training/test_recipe.py."""

import importlib
from pathlib import Path

import psutil
import pytest
import torch

from pipelines.base.errors import UserError
from pipelines.runs import hardware
from pipelines.runs.hardware import (
    MIB,
    PEAK_FLOPS,
    TRAINING_OVER_FORWARD,
    describe_device,
    device_bytes,
    peak_flops,
    peak_memory_mib,
    refuse_idle_gpus,
    training_flops_per_token,
)

NO_GPU = pytest.mark.skipif(torch.cuda.is_available(), reason="torch uses the GPU here")


@pytest.mark.parametrize(
    ("name", "peak"), [("NVIDIA L40S", 362.05e12), ("NVIDIA L40", None), ("", None)]
)
def test_a_gpu_that_is_not_listed_has_no_peak(
    monkeypatch: pytest.MonkeyPatch, name: str, peak: float | None
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: name)
    assert peak_flops(torch.device("cuda", 0)) == peak
    assert peak_flops(torch.device("cpu")) is None


def test_peaks_are_flops_and_dense() -> None:
    # With sparsity the data sheets state twice as much: 1,979 TFLOP/s for the fastest of these.
    assert all(50e12 < peak < 1e15 for peak in PEAK_FLOPS.values())


def test_the_most_memory_is_at_least_what_is_held_now_in_mib() -> None:
    held = psutil.Process().memory_info().rss / MIB
    # The kernel rounds its two counters differently.
    assert held * 0.9 < peak_memory_mib(torch.device("cpu")) < 100 * held


class Squared(torch.nn.Module):
    """One product of all pairs of tokens, as attention has; it does not run in training."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = torch.nn.Embedding(1, 5)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        assert not self.training, "dropout would be counted"
        states = self.rows(input_ids)
        return states @ states.mT


@pytest.mark.parametrize("training", [True, False])
def test_counting_needs_no_gradient_and_keeps_the_mode_of_the_model(training: bool) -> None:
    model = Squared().train(training)
    # L x D by D x L is 2 L^2 D in all, 2 L D for each token.
    expected = {length: TRAINING_OVER_FORWARD * 2 * length * 5 for length in (4, 12)}
    assert {length: training_flops_per_token(model, length) for length in (4, 12)} == expected
    assert model.training == training
    assert model.rows.weight.grad is None


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The files of a driver that sees two GPUs, which this torch does not use."""
    version = tmp_path / "proc/driver/nvidia/version"
    version.parent.mkdir(parents=True)
    version.write_text("NVRM version: NVIDIA UNIX x86_64 Kernel Module  470.1\nGCC\n")
    (tmp_path / "dev").mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl"):
        (tmp_path / "dev" / name).touch()
    monkeypatch.setattr(hardware, "ROOT", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


@NO_GPU
@pytest.mark.parametrize("visible", [None, "0,1", "1"])
def test_gpus_that_torch_cannot_use_are_not_left_idle(
    driver: Path, monkeypatch: pytest.MonkeyPatch, visible: str | None
) -> None:
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    with pytest.raises(UserError) as caught:
        refuse_idle_gpus()
    for word in ("nvidia0, nvidia1;", "470.1", str(torch.__version__), "CUDA none"):
        assert word in caught.value.problem
    assert "a build of torch with CUDA" in caught.value.fix
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    with pytest.raises(UserError) as caught:
        refuse_idle_gpus()
    assert "update the driver to one for CUDA 13.0" in caught.value.fix


@NO_GPU
@pytest.mark.usefixtures("driver")
@pytest.mark.parametrize("stage", ["evaluate", "train_flow", "sample_flow"])
def test_no_stage_that_computes_leaves_gpus_idle(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, stage: str
) -> None:
    monkeypatch.chdir(tmp_path)  # without parameters
    main = importlib.import_module(f"pipelines.{stage}").main
    with pytest.raises(UserError, match="expected torch to use the GPU"):
        main()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "-1")
    with pytest.raises(UserError, match=r"params\.yaml"):
        main()


@NO_GPU
@pytest.mark.parametrize("hidden", ["", "-1", "-1,0"])
def test_gpus_that_the_user_hides_may_lie_idle(
    driver: Path, monkeypatch: pytest.MonkeyPatch, hidden: str
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", hidden)
    refuse_idle_gpus()


@NO_GPU
@pytest.mark.parametrize("missing", ["dev/nvidia0", "proc/driver/nvidia/version"])
def test_a_machine_without_a_driver_or_a_gpu_trains_on_its_cpu(driver: Path, missing: str) -> None:
    (driver / missing).unlink()
    (driver / "dev/nvidia1").unlink()
    refuse_idle_gpus()


def test_the_memory_of_a_container_is_divided_among_its_ranks(driver: Path) -> None:
    total = psutil.virtual_memory().total
    cpu = torch.device("cpu")
    assert device_bytes(cpu, 1) == total
    limit = driver / "sys/fs/cgroup/memory.max"
    limit.parent.mkdir(parents=True)
    for text, expected in (("max", total), ("1000000", 10**6), (str(2 * total), total)):
        limit.write_text(f"{text}\n")
        assert device_bytes(cpu, 4) == expected // 4


@NO_GPU
def test_the_device_is_named_with_the_versions() -> None:
    found = describe_device()
    assert found == {
        "device": "cpu",
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "none",
    }
