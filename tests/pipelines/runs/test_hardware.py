"""What a machine can do and holds; the count of FLOPs is tested in training/test_recipe.py."""

import psutil
import pytest
import torch

from pipelines.runs.hardware import (
    MIB,
    PEAK_FLOPS,
    TRAINING_OVER_FORWARD,
    peak_flops,
    peak_memory_mib,
    training_flops_per_token,
)


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
