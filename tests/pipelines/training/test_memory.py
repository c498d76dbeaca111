"""Plain where it fits: what autograd keeps is counted, and compared with the device."""

from typing import Any

import pytest
import torch

from enigma.configuration_enigma import EnigmaConfig
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.training import memory
from pipelines.training.memory import SHARE, STATE_BYTES, activation_bytes, choose_memory


@pytest.fixture(scope="module")
def model() -> Any:
    sizes = {"vocab_size": 50, "d": 16, "num_heads": 2, "num_transformer_layers": 2}
    config = EnigmaConfig(**sizes, num_rev_blocks=1, num_rotors=1, conv1x1_positions=4)
    return EnigmaForCausalLM(config).eval()


def test_activations_grow_with_batch_length_and_depth(model: Any) -> None:
    small = activation_bytes(model, 4, 32, bf16=False)
    assert not model.training, "as it was"
    assert all(parameter.grad is None for parameter in model.parameters())
    assert 1.8 * small < activation_bytes(model, 8, 32, bf16=False) < 2.2 * small
    assert activation_bytes(model, 4, 64, bf16=False) > 1.8 * small
    # At least what an attention layer is known to keep: inputs of six products, in float32.
    assert small > 2 * 4 * 32 * 16 * (3 + 1 + 1 + 4) * 4


@pytest.mark.parametrize(("margin", "expected"), [(1.01, "plain"), (0.99, "reversible")])
def test_the_mode_follows_from_the_memory_of_the_device(
    model: Any, monkeypatch: pytest.MonkeyPatch, margin: float, expected: str
) -> None:
    needed = activation_bytes(model, 6, 32, bf16=False)
    needed += STATE_BYTES * sum(parameter.numel() for parameter in model.parameters())
    monkeypatch.setattr(memory, "device_bytes", lambda device, ranks: int(margin * needed / SHARE))
    chosen = choose_memory(model, batch_size=6, length=32, bf16=False, ranks_here=1)
    assert chosen == expected


def test_a_rank_that_is_short_of_memory_decides_for_all(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(memory, "any_rank", lambda mine: True)
    assert choose_memory(model, batch_size=1, length=8, bf16=False, ranks_here=1) == "reversible"


def test_auto_trains_in_the_chosen_mode(one_rank: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from pipelines.runs.checkpoints import checkpoint_path

    monkeypatch.setattr(memory, "device_bytes", lambda device, ranks: 1)
    rank = one_rank({"train.memory": "auto", "train.max_steps": 1})
    rank.train()
    kept = EnigmaForCausalLM.from_pretrained(checkpoint_path(rank.run.checkpoints, 1))
    assert kept.config.memory == kept.lm.memory == "reversible"
    assert torch.isfinite(torch.tensor(rank.run.metrics.read()[-1]["validation_loss_nats"]))
