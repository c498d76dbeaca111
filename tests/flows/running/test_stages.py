"""What flows make of DVC's words: order, reasons, metrics."""

import subprocess
from pathlib import Path

import pytest

from flows.running.checkout import Checkout
from flows.running.command import reason_of
from flows.running.record import MLFLOW_URL, Experiment, links, metrics_of, page
from flows.running.stages import order_of, repro_command
from tests.support import wait_for


def test_stages_come_after_what_they_need() -> None:
    dot = '"train";\n"ingest";\n"clean";\n"ingest" -> "clean";\n"clean" -> "train";\n'
    assert order_of(f"strict digraph  {{\n{dot}}}") == ["ingest", "clean", "train"]


def test_a_stage_is_run_by_an_argument_list() -> None:
    assert repro_command("a; b") == ["dvc", "repro", "--single-item", "a; b"]


@pytest.mark.parametrize(
    ("lines", "reason", "explained"),
    [
        (
            ["error: old", "ERROR: failed", "error: no rows", "  to fix this: add", "ERROR: x"],
            "no rows\n  to fix this: add",
            True,
        ),
        (
            ["loading", "ERROR: failed"],
            "exit code 9; last lines: loading | ERROR: failed",
            False,
        ),
        ([], "exit code 9; last lines: ", False),
        (
            ["ERROR: 'data/p' is busy, it is being blocked by:", "  (PID 7): dvc repro"],
            """another DVC command is running in this checkout \
(ERROR: 'data/p' is busy, it is being blocked by:)
  to fix this: wait until it has ended, then start this run again""",
            True,
        ),
    ],
)
def test_the_reason_is_the_stages_own_last_error(
    lines: list[str], reason: str, explained: bool
) -> None:
    assert reason_of(lines, 9) == (reason, explained)


def test_a_second_dvc_in_one_checkout_is_told_to_wait(tmp_path: Path) -> None:
    waits = "touch began; until test -e go; do sleep 0.1; done; touch made"
    (tmp_path / "dvc.yaml").write_text(f"stages: {{waits: {{cmd: '{waits}', outs: [made]}}}}")
    subprocess.run(["dvc", "init", "--quiet", "--no-scm"], cwd=tmp_path, check=True)
    repro = ["dvc", "repro", "waits"]
    with subprocess.Popen(repro, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as first:
        wait_for((tmp_path / "began").exists, first)
        second = subprocess.run(repro, cwd=tmp_path, capture_output=True, text=True, check=False)
        (tmp_path / "go").touch()
    assert second.returncode != 0
    reason, explained = reason_of((second.stdout + second.stderr).splitlines(), second.returncode)
    assert "another DVC command is running in this checkout" in reason
    assert "wait until it has ended, then start this run again" in reason
    assert explained
    subprocess.run(repro, cwd=tmp_path, check=True)


def test_the_artifact_shows_the_metrics_of_the_stages_that_ran(tmp_path: Path) -> None:
    data = {
        "reports/p/train/metrics.json": {"data": {"loss": {"best": 1.234567}, "finite": True}},
        "reports/p/evaluate/evaluation.json": {"data": {"perplexity": 3.0}},
        "reports/p/decontaminate/overlap.json": {"error": "missing"},
    }
    metrics = metrics_of({"": {"data": data}}, ["decontaminate", "train"])
    assert metrics == {"train: loss.best": 1.234567, "train: finite": True}
    first, *_ = metrics_of({"": {"data": data}}, ["train", "evaluate"])
    assert first == "evaluate: perplexity", "the stage that was asked for comes first"
    checkout = Checkout(repository=tmp_path, path=tmp_path / "w", baseline="a" * 40, lock=-1)
    text = page("p", checkout, Experiment("train-p-run", "b" * 40))
    assert "`dvc exp apply train-p-run`" in text
    assert str(tmp_path / "w" / "reports" / "p") in text


def test_links_lead_to_what_the_run_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(MLFLOW_URL, "http://127.0.0.1:5000")
    checkout = Checkout(repository=tmp_path, path=tmp_path, baseline="a" * 40, lock=-1)
    assert links("p", checkout) == {}
    docs = tmp_path / "reports" / "p" / "validate" / "data_docs" / "index.html"
    training = tmp_path / "models" / "p" / "lm" / "training.json"
    for path, text in ((docs, ""), (training, '{"mlflow_run_id": "r1"}')):
        path.parent.mkdir(parents=True)
        path.write_text(text)
    assert links("p", checkout) == {
        "data-docs": (docs.as_uri(), "Data Docs"),
        "mlflow-run": ("http://127.0.0.1:5000/#/runs/r1", "MLflow run of the training"),
    }
    training.write_text('{"mlflow_run_id": null}')
    assert list(links("p", checkout)) == ["data-docs"]
