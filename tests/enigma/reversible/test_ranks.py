"""Reversible training under DDP: tied blocks, accumulation, dropout, bfloat16, two ranks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

pytestmark = [pytest.mark.slow, pytest.mark.distributed]

SCRIPT = Path(__file__).with_name("ddp_gradients.py")
CASES = {"float64": 1e-10, "exact": 0.0, "exact-bf16": 0.0, "exact-unused": 0.0, "tied": 1e-12}


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    where = tmp_path_factory.mktemp("gradients")
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    finished = subprocess.run(
        [*launcher, "--nproc-per-node", "2", str(SCRIPT), str(where)],
        cwd=SCRIPT.parents[3],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr[-4000:]
    return where


@pytest.mark.parametrize("case", CASES)
def test_ranks_agree_and_gradients_are_those_of_autograd(directory, case):
    plain, reversible = (
        [load_file(directory / f"{case}-{memory}-{rank}.safetensors") for rank in (0, 1)]
        for memory in ("plain", "reversible")
    )
    for name, expected in plain[0].items():
        assert torch.equal(reversible[0][name], reversible[1][name]), f"{name}: ranks diverge"
        difference = (reversible[0][name] - expected).abs().max() / expected.abs().max()
        assert float(difference) <= CASES[case], name


@pytest.mark.parametrize("rank", [0, 1])
def test_the_common_recipe_does_not_train_shared_networks(directory, rank):
    """DDP counts every nested `backward` of a parameter, and a shared one has several."""
    assert not (directory / f"tied-common recipe-{rank}.safetensors").exists()
    error = (directory / f"tied-common recipe-{rank}.txt").read_text()
    assert "Expected to mark a variable ready only once" in error
