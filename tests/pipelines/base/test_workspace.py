"""Where files are: no output lies in another one, and runs can lie elsewhere."""

from itertools import permutations
from pathlib import Path

import pytest

from pipelines.base.workspace import Workspace


def outputs(workspace: Workspace) -> list[Path]:
    stages = ("validate", "train", "evaluate", "train_flow", "sample_flow")
    return [
        *(workspace.raw, workspace.documents, workspace.tokens, workspace.shards),
        *(workspace.language_model, workspace.flow, workspace.overlap_report, workspace.runs),
        *(workspace.report(stage) for stage in stages),
    ]


def test_no_output_lies_in_another_one_or_in_those_of_another_profile() -> None:
    one, two = outputs(Workspace("one")), outputs(Workspace("two"))
    everything = {*one, *two}
    assert len(everything) == 2 * len(one) - 1, "two profiles share the directory of runs alone"
    # DVC deletes an output before its stage runs.
    assert not [pair for pair in permutations(everything, 2) if pair[0].is_relative_to(pair[1])]


def test_the_environment_moves_runs_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("ENIGMA_RUNS_DIR", raising=False)
    before = outputs(Workspace("one"))
    assert Workspace("one").runs == Path("runs")
    monkeypatch.setenv("ENIGMA_RUNS_DIR", str(tmp_path))
    assert Workspace("one").runs == tmp_path
    assert set(outputs(Workspace("one"))) - set(before) == {tmp_path}
