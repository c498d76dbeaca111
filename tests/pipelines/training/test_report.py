"""The table and the summary of a run, counted by hand; see also tests/pipelines/test_train.py."""

import csv
from pathlib import Path

from pipelines.base.artifacts import write_csv
from pipelines.tracking.metrics_file import TIME
from pipelines.training.report import COLUMNS, loss_limit, summary, table

HISTORY = [
    {"step": 1, TIME: 1.0, "train_loss_nats": 6.0, "learning_rate": 0.1, "mfu": 0.5},
    {"step": 2, TIME: 2.0, "train_loss_nats": 4.0, "tokens_per_s": 10.0, "peak_memory_mib": 90.0},
    {"step": 3, TIME: 3.0, "train_loss_nats": 5.0, "tokens_per_s": 40.0, "peak_memory_mib": 80.0},
    {"step": 3, TIME: 4.0, "epoch": 0.5, "validation_loss_nats": 4.5, "validation_perplexity": 90},
    {"step": 4, TIME: 5.0, "train_loss_nats": 3.0, "tokens_per_s": 20.0, "data_wait_fraction": 0.2},
    {"step": 5, TIME: 6.0, "epoch": 1.0, "validation_loss_nats": 4.7, "validation_perplexity": 110},
    {"step": 6, TIME: 7.0, "train_loss_nats": 9.0},
]


def test_a_mean_is_over_the_records_that_have_the_figure_since_the_last_evaluation() -> None:
    assert table(HISTORY) == [
        {
            "step": 3, "epoch": 0.5, "train_loss_nats": 5.0, "validation_loss_nats": 4.5,
            "validation_perplexity": 90, "learning_rate": 0.1, "tokens_per_s": 25.0,
            "peak_memory_mib": 85.0,
        },
        {
            "step": 5, "epoch": 1.0, "train_loss_nats": 3.0, "validation_loss_nats": 4.7,
            "validation_perplexity": 110, "tokens_per_s": 20.0, "data_wait_fraction": 0.2,
        },
    ]  # fmt: skip
    assert table(HISTORY[:3]) == []


def test_the_summary_has_the_best_evaluation_and_what_the_run_took() -> None:
    assert summary(HISTORY, 3) == {
        "best_step": 3,
        "last_step": 6,
        "epoch": 0.5,
        "validation_loss_nats": 4.5,
        "validation_perplexity": 90,
        "median_tokens_per_s": 20.0,
        "median_data_wait_fraction": 0.2,
        "peak_memory_mib": 90.0,
    }


def test_figures_that_were_never_measured_are_0() -> None:
    found = summary([{"step": 1, "validation_loss_nats": 2.0}], 1)
    assert [value for name, value in found.items() if "median" in name or "peak" in name] == [
        0.0
    ] * 3


def test_a_figure_that_is_absent_is_an_empty_cell(tmp_path: Path) -> None:
    path = tmp_path / "reports" / "history.csv"
    write_csv(path, COLUMNS, table(HISTORY))
    with path.open(newline="", encoding="utf-8") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == list(COLUMNS)
    assert rows[0]["tokens_per_s"] == "25.0"
    assert [row["data_wait_fraction"] for row in rows] == ["", "0.2"]
    assert list(path.parent.iterdir()) == [path], "nothing half written is left"


def test_the_first_losses_do_not_press_the_curve_flat_and_later_ones_are_all_shown() -> None:
    falling = [{"step": step, "train_loss_nats": 5.0 - step / 100} for step in range(10, 101, 10)]
    first = {"step": 1, "train_loss_nats": 13.6}
    assert loss_limit([first, *falling]) == loss_limit(falling) < 5.0
    exploded = {"step": 90, "validation_loss_nats": 30.0}
    limit = loss_limit([first, *falling[:-1], exploded, falling[-1]])
    assert limit is not None
    assert limit > 30.0


def test_losses_that_are_not_finite_or_all_equal_set_no_limit() -> None:
    assert loss_limit([{"step": 1, "train_loss_nats": float("nan")}]) is None
    assert loss_limit([{"step": 1, "train_loss_nats": 2.0}]) is None
    assert loss_limit([{"step": 1, "gradient_norm": 2.0}]) is None
