"""FSDP2 on gloo: each rank holds its share of the model, and all train the same model."""

import os
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
@pytest.mark.parametrize("ranks", [1, 2])
def test_a_sharded_model_trains_like_a_whole_one(ranks: int) -> None:
    script = Path(__file__).with_name("sharded_rank.py")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
        *(f"--nproc-per-node={ranks}", str(script)),
    ]
    run = subprocess.run(
        command,
        cwd=REPOSITORY,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-4000:]
    assert "sharded and whole agree" in run.stdout
