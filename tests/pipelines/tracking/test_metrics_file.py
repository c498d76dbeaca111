"""How far a metrics file has been sent, through appends, cut lines and rewrites."""

import json
from pathlib import Path

import pytest

from pipelines.tracking.metrics_file import MetricsFile


@pytest.fixture
def metrics(tmp_path: Path) -> MetricsFile:
    metrics = MetricsFile(tmp_path / "run" / "metrics.jsonl")
    for step in range(3):
        metrics.append({"step": step, "loss": float(step)})
    metrics.belongs_to("run")
    return metrics


def unsent_steps(metrics: MetricsFile) -> list[int]:
    return [json.loads(line)["step"] for line in metrics.unsent()]


def test_the_offset_advances_only_past_what_was_accepted(metrics: MetricsFile) -> None:
    assert unsent_steps(metrics) == [0, 1, 2]
    metrics.accept(metrics.unsent()[:2])
    assert unsent_steps(metrics) == [2]
    metrics.belongs_to("run")
    assert unsent_steps(metrics) == [2]
    metrics.append({"step": 3})
    assert unsent_steps(metrics) == [2, 3]
    metrics.accept(metrics.unsent())
    assert unsent_steps(metrics) == []


def test_a_line_that_is_being_written_waits_until_it_is_complete(metrics: MetricsFile) -> None:
    with metrics.path.open("a") as stream:
        stream.write('{"step": 3')
        stream.flush()
        metrics.accept(metrics.unsent())
        assert unsent_steps(metrics) == []
        stream.write("}\n")
    assert unsent_steps(metrics) == [3]


@pytest.mark.parametrize("records", [[], [{"step": 0}], [{"step": n} for n in range(9)]])
def test_a_rewritten_file_is_read_from_its_start(
    metrics: MetricsFile, records: list[dict[str, float]]
) -> None:
    metrics.accept(metrics.unsent())
    metrics.rewrite(records)
    assert unsent_steps(metrics) == [record["step"] for record in records]


def test_lines_of_a_file_rewritten_in_the_meantime_are_not_accepted(
    metrics: MetricsFile,
) -> None:
    lines = metrics.unsent()
    metrics.rewrite([{"step": 7}])
    metrics.accept(lines)
    assert unsent_steps(metrics) == [7]


def test_another_run_has_received_nothing(metrics: MetricsFile) -> None:
    metrics.accept(metrics.unsent())
    metrics.belongs_to("another run")
    assert unsent_steps(metrics) == [0, 1, 2]


def test_every_record_keeps_the_time_at_which_it_was_made(metrics: MetricsFile) -> None:
    before = metrics.read()
    assert all(record["time_s"] > 1e9 for record in before)
    metrics.rewrite(before)
    assert metrics.read() == before
    with pytest.raises(ValueError, match="not JSON compliant"):
        metrics.append({"step": 3, "loss": float("nan")})
    assert metrics.read() == before
