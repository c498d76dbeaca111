"""What a finished training run publishes: the best model, its metrics and its curves."""

import math
import shutil
from pathlib import Path
from statistics import median
from typing import Any

from pipelines.base.artifacts import (
    publish_directory,
    sha256_file,
    write_csv,
    write_json,
)
from pipelines.base.errors import UserError
from pipelines.base.workspace import Workspace
from pipelines.data.text.shard_vocabulary import shard_tokenizer
from pipelines.runs.checkpoints import AVERAGED, checkpoint_path, is_complete
from pipelines.runs.directory import RunConfig, RunDirectory
from pipelines.runs.mlflow_run import open_run_log
from pipelines.tracking.git import GitState
from pipelines.tracking.metrics_file import TIME
from pipelines.training.history import Records, best_step, evaluations

COLUMNS = (
    "step",
    "epoch",
    "train_loss_nats",
    "validation_loss_nats",
    "validation_perplexity",
    "validation_bits_per_character",
    "learning_rate",
    "gradient_norm",
    "tokens_per_s",
    "data_wait_fraction",
    "peak_memory_mib",
)
FIRST_STEPS = 0.05
"""The share of the steps, from the first on, whose losses need not all be in the picture."""
CURVES = (
    ("loss.png", "loss (nats per token)", ("train_loss_nats", "validation_loss_nats")),
    ("bits_per_character.png", "bits per character", ("validation_bits_per_character",)),
    ("learning_rate.png", "learning rate", ("learning_rate",)),
    ("gradient_norm.png", "gradient norm", ("gradient_norm",)),
    ("tokens_per_s.png", "tokens/s", ("tokens_per_s",)),
)


def publish(run: RunDirectory, config: RunConfig, workspace: Workspace) -> None:
    """Publish the checkpoint with the lowest validation loss, and the reports.

    Args:
        run: A finished run.
        config: Its configuration.
        workspace: Where the stage's outputs go.

    Raises:
        UserError: If the best checkpoint is missing or damaged.
    """
    history = run.metrics.read()
    step = best_step(history)
    checkpoint = checkpoint_path(run.checkpoints, step or 0)
    if step is None or not is_complete(checkpoint):
        raise UserError(
            f"expected the best checkpoint in {checkpoint}, found it missing or damaged",
            f"delete {run.path} and train again",
        )
    run_log = open_run_log(run, config)
    with publish_directory(workspace.language_model) as building:
        _write_model(checkpoint, config, building)
        facts = {
            "fingerprint": config.fingerprint,
            "shards_root": config.shards_root,
            "certificate_sha256": config.certificate_sha256,
            "best_step": step,
            "mlflow_run_id": run.mlflow_run_id,
            **GitState.read().tags(),
            "weights_sha256": sha256_file(building / "model.safetensors"),
        }
        write_json(building / "training.json", facts)
    report = workspace.report("train")
    write_json(report / "metrics.json", summary(history, step))
    write_csv(report / "history.csv", COLUMNS, table(history))
    with publish_directory(report / "figures") as figures:
        draw_curves(history, figures)
    for path in (*sorted((report / "figures").glob("*.png")), report / "history.csv"):
        run_log.artifact(path, "plots")
    run_log.finish("FINISHED")


def _write_model(checkpoint: Path, config: RunConfig, building: Path) -> None:
    source = checkpoint if config.train.ema_decay is None else checkpoint / AVERAGED
    for name in ("config.json", "generation_config.json", "model.safetensors"):
        shutil.copyfile(source / name, building / name)
    shard_tokenizer(config.shards).save_pretrained(building)


def summary(history: Records, step: int) -> dict[str, float]:
    """Summarise the best evaluation, and the speed and memory of the run.

    Args:
        history: All records of the run.
        step: The step of the best evaluation.
    """

    def column(name: str) -> list[float]:
        return [record[name] for record in history if name in record] or [0.0]

    best = next(record for record in evaluations(history) if record["step"] == step)
    values = {name: value for name, value in best.items() if name not in {"step", TIME}}
    return {
        "best_step": step,
        "last_step": int(history[-1]["step"]),
        **values,
        "median_tokens_per_s": median(column("tokens_per_s")),
        "median_data_wait_fraction": median(column("data_wait_fraction")),
        "peak_memory_mib": max(column("peak_memory_mib")),
    }


def table(history: Records) -> list[dict[str, float]]:
    """Make one row per evaluation; training figures are means since the one before.

    Args:
        history: All records of the run.

    Returns:
        Rows with the names of `COLUMNS`; a figure that was not logged is absent.
    """
    rows = []
    since: list[Any] = []
    for record in history:
        if "validation_loss_nats" not in record:
            since.append(record)
            continue
        means = {
            name: sum(r[name] for r in since if name in r) / len([r for r in since if name in r])
            for name in COLUMNS[2:]
            if any(name in r for r in since)
        }
        rows.append({**means, **{name: record[name] for name in COLUMNS if name in record}})
        since = []
    return rows


def draw_curves(history: Records, directory: Path) -> None:
    """Draw each of `CURVES` against the optimiser steps, one PNG each."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    for file_name, label, names in CURVES:
        figure, axes = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
        for name in names:
            points = [(record["step"], record[name]) for record in history if name in record]
            if points:
                steps, values = zip(*points, strict=True)
                marker = "o" if name.startswith("validation") else ""
                axes.plot(steps, values, marker=marker, markersize=4, label=name)
        axes.set(xlabel="optimiser step", ylabel=label)
        axes.grid(alpha=0.3)
        if len(names) > 1:
            axes.legend()
        if file_name == "loss.png":
            axes.set_ylim(top=loss_limit(history))
        figure.savefig(directory / file_name, dpi=120)
        plt.close(figure)


def loss_limit(history: Records) -> float | None:
    """Return where the axis of losses ends; None to show all of them.

    A model that knows nothing yet has more than twice the loss of the end, which would press the
    rest of the curve flat. So of the first steps only what is no higher than later losses is shown.
    """
    later = [
        record[name]
        for record in history
        for name in ("train_loss_nats", "validation_loss_nats")
        if record["step"] > FIRST_STEPS * history[-1]["step"]
        and math.isfinite(record.get(name, math.nan))
    ]
    if not later or min(later) == max(later):
        return None
    return max(later) + 0.05 * (max(later) - min(later))
