"""FSDP2 on gloo: each rank holds its share of the model, and all train the same model."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from enigma.language_model.sharding import shard
from enigma.model import EnigmaLM
from tests.support import REPOSITORY


def test_a_reversible_model_is_not_sharded() -> None:
    lm = EnigmaLM(11, 16, 1, 1, 1, 2, conv1x1_positions=4, memory="reversible")
    with pytest.raises(ValueError, match="'plain' or 'checkpoint', got 'reversible'"):
        shard(lm, None)


def test_another_model_is_not_sharded() -> None:
    with pytest.raises(TypeError, match=r"expected an EnigmaLM or a model .* got Linear"):
        shard(torch.nn.Linear(2, 2), None)


@pytest.mark.slow
@pytest.mark.distributed
def test_sharded_models_train_like_whole_ones_on_one_rank_and_on_two(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "tests.enigma.language_model.sharded_rank"]
    ranks = [
        subprocess.Popen(
            [*command, f"file://{tmp_path / 'meet'}", str(rank)],
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(2)
    ]
    for rank in ranks:
        output, _ = rank.communicate(timeout=600)
        assert rank.returncode == 0, output[-4000:]
        assert "sharded and whole agree" in output
