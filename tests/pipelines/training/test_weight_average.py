"""The average of the weights, by hand, and through a checkpoint."""

from pathlib import Path

import pytest
import torch

from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.training.weight_average import WeightAverage

DECAY = 0.75


@pytest.fixture(scope="module")
def model() -> EnigmaForCausalLM:
    sizes = {"d": 8, "num_rev_blocks": 1, "num_heads": 2, "conv1x1_positions": 2}
    return EnigmaForCausalLM(
        EnigmaConfig(vocab_size=20, num_transformer_layers=1, num_rotors=1, **sizes)
    )


def fill(model: torch.nn.Module, value: float) -> torch.nn.Module:
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(value)
    return model


def values(average: WeightAverage) -> set[float]:
    return {round(v, 5) for p in average.model.parameters() for v in p.unique().tolist()}


def test_the_past_fades_exponentially_from_the_first_step_on(model: EnigmaForCausalLM) -> None:
    average = WeightAverage(DECAY, None)
    assert average.model is None
    average.on_train_begin(model=fill(model, 100.0))
    for value in (1.0, 5.0, 9.0):
        average.on_optimizer_step(model=fill(model, value))
    # 3/4 of (3/4 of 1 and 1/4 of 5) and 1/4 of 9; what was before the first step is gone.
    assert values(average) == {3.75}
    assert {v for p in model.parameters() for v in p.unique().tolist()} == {9.0}


def test_a_resume_averages_with_what_the_checkpoint_has(
    model: EnigmaForCausalLM, tmp_path: Path
) -> None:
    before = WeightAverage(DECAY, None)
    before.on_train_begin(model=model)
    before.on_optimizer_step(model=fill(model, 2.0))
    before.save(tmp_path)
    resumed = WeightAverage(DECAY, tmp_path)
    resumed.on_train_begin(model=fill(model, 50.0))
    assert values(resumed) == {2.0}
    resumed.on_optimizer_step(model=fill(model, 6.0))
    assert values(resumed) == {3.0}
