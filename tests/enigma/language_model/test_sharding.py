"""FSDP2 on gloo: two ranks hold half of the model each, and train the same model."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from enigma.language_model.sharding import shard
from enigma.model import EnigmaLM
from tests.support import REPOSITORY


def test_a_reversible_model_is_not_sharded() -> None:
    lm = EnigmaLM(11, 16, 1, 1, 1, 2, conv1x1_positions=4, memory="reversible")
    with pytest.raises(ValueError, match="'plain' or 'checkpoint', got 'reversible'"):
        shard(lm, None)


@pytest.mark.slow
@pytest.mark.distributed
def test_a_sharded_model_trains_like_a_whole_one() -> None:
    script = Path(__file__).with_name("sharded_rank.py")
    command = [
        *(sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2"),
        str(script),
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
