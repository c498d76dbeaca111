"""The vote of a single rank; several real ranks: see test_ranks.py."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipelines.training.ranks import any_rank


@pytest.fixture(params=[False, True])
def process_group(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[None]:
    if request.param:
        store = f"file://{tmp_path}/store"
        torch.distributed.init_process_group("gloo", init_method=store, rank=0, world_size=1)
    yield
    if request.param:
        torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("process_group")
def test_one_rank_gets_its_own_answer_with_and_without_a_process_group() -> None:
    for answer in (True, False):
        assert any_rank(answer) is answer
