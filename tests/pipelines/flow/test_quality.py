"""Samples of one distribution look equal, others do not."""

import math

import pytest
import torch

from pipelines.flow.clouds import Cloud
from pipelines.flow.decoding import Decoded
from pipelines.flow.quality import (
    distances,
    divergence_bits,
    divergences,
    temperature_table,
    two_sample_auc,
)
from tests.pipelines.flow.points import points


def test_the_classifier_tells_apart_only_what_differs() -> None:
    assert two_sample_auc(points(0), points(1), seed=0) == pytest.approx(0.5, abs=0.06)
    assert two_sample_auc(points(0), points(1, mean=2.0), seed=0) > 0.97
    # Neither means nor widths differ here: only that the points lie on a sphere.
    on_sphere_ND = 2 * torch.nn.functional.normalize(points(1, count=2000))
    assert two_sample_auc(points(0, count=2000), on_sphere_ND, seed=0) > 0.7


def test_sequences_of_similar_states_do_not_make_clouds_look_different() -> None:
    """States cluster by sequence: a classifier that saw half of each would know the other half."""
    of_sequence_SD = 5 * points(0, count=40)
    real_SKD = of_sequence_SD[:, None] + 0.01 * points(1, count=800).view(40, 20, 4)
    other_SKD = 5 * points(2, count=40)[:, None] + 0.01 * points(3, count=800).view(40, 20, 4)
    found = distances(real_SKD, {"": other_SKD.flatten(0, 1)}, seed=0)
    assert 0.2 < found["two_sample_auc"] < 0.8
    assert found["energy_distance"] < found["real_energy_distance"] + 1.0
    assert set(found) == {
        f"{prefix}{name}"
        for prefix in ("real_", "")
        for name in ("energy_distance", "two_sample_auc")
    }


def test_divergence_runs_from_0_to_1_bit() -> None:
    first, second = torch.tensor([0.5, 0.5, 0.0]).double(), torch.tensor([0.0, 0.0, 1.0]).double()
    assert divergence_bits(first, first) == 0.0
    assert divergence_bits(first, second) == pytest.approx(1.0)
    assert divergence_bits(second, first) == pytest.approx(1.0)


def reading(probabilities: list[float]) -> Decoded:
    tokens_N = torch.tensor([0, 0, 1])
    return Decoded(torch.tensor(probabilities, dtype=torch.float64), 0.5, tokens_N)


def test_predictions_are_compared_with_the_true_next_tokens() -> None:
    decoded = {
        "real": reading([0.5, 0.5, 0.0]),
        "flow": reading([0.5, 0.5, 0.0]),
        "Gaussian": reading([0.0, 0.0, 1.0]),
    }
    found = divergences(decoded, torch.tensor([0, 1, 0, 1]))
    assert found["true_jensen_shannon_bits"] == found["decoded_jensen_shannon_bits"] == 0.0
    assert found["gaussian_true_jensen_shannon_bits"] == pytest.approx(1.0)
    assert found["real_entropy_nats"] == found["decoded_entropy_nats"] == 0.5


def test_every_temperature_is_a_row() -> None:
    samples = {
        temperature: Cloud(white_ND, white_ND, reading([0.5, 0.5]))
        for temperature, white_ND in ((0.5, 0.5 * points(1)), (1.0, points(1)))
    }
    text = temperature_table(samples, points(0), torch.tensor([0, 1]))
    half, whole = ([cell.strip() for cell in row.split("|")] for row in text.splitlines()[2:])
    assert (half[1], whole[1]) == ("0.5", "1")
    assert float(half[2]) > float(whole[2])
    assert math.isclose(float(whole[3]), 0.0)
    assert whole[5] == "2", "two tokens are the likeliest of some state"
    fewer = {**samples, 0.7: Cloud(points(1)[:8], points(1)[:8], reading([0.5, 0.5]))}
    with pytest.raises(ValueError, match="as many samples at every temperature"):
        temperature_table(fewer, points(0), torch.tensor([0, 1]))
