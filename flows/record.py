"""What a finished flow run leaves to be found: a DVC experiment and a Prefect artifact."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import create_markdown_artifact
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.checkout import Checkout

# `flows.serve` says where its MLflow UI is.
MLFLOW_URL = "ENIGMA_MLFLOW_URL"
MAX_ROWS = 80


@dataclass(frozen=True)
class Experiment:
    """A commit of parameters, lock file and code, made by `dvc exp save`."""

    name: str
    commit: str


@task(cache_policy=NO_CACHE, persist_result=False)
def keep_record(target: str, profile: str, stages: Sequence[str], checkout: Checkout) -> Experiment:
    """Save the run as a DVC experiment, and show its metrics in the Prefect UI.

    Args:
        target: The last stage that ran.
        profile: The profile.
        stages: All stages of the run.
        checkout: Where they ran.

    Returns:
        The experiment; `dvc exp apply <name>` brings its results into the repository.
    """
    experiment = save_experiment(target, profile, stages, checkout)
    metrics = metrics_of(json.loads(checkout.run("dvc", "metrics", "show", "--json")), stages)
    text = page(profile, checkout, experiment, metrics)
    key = re.sub(r"[^a-z0-9]+", "-", f"{target}-{profile}".lower()).strip("-")
    create_markdown_artifact(text, key=key, description=f"{target}/{profile}: {experiment.name}")
    get_run_logger().info(
        "experiment %s (%s); `dvc exp apply %s` brings its results into the repository",
        experiment.name,
        experiment.commit[:7],
        experiment.name,
    )
    return experiment


def save_experiment(
    target: str, profile: str, stages: Sequence[str], checkout: Checkout
) -> Experiment:
    """Save what ran as a DVC experiment, named after the flow run."""
    label = flow_run.get_name() or "local"
    name = re.sub(r"[^A-Za-z0-9]+", "-", f"{target}-{profile}-{label}").strip("-")
    checkout.run("dvc", "exp", "save", "--force", "--name", name, *stages)
    # DVC's own layout; `dvc exp list` shows no commit that a program could read.
    reference = f"refs/exps/{checkout.baseline[:2]}/{checkout.baseline[2:]}/{name}"
    return Experiment(name, checkout.run("git", "rev-parse", reference))


def metrics_of(shown: Mapping[str, Any], stages: Sequence[str]) -> dict[str, float | bool]:
    """Pick from `dvc metrics show --json` the numbers that these stages made.

    A checkout also holds metrics of earlier runs; those of other stages say nothing here.

    Example:
        >>> data = {"reports/p/train/m.json": {"data": {"loss": {"best": 1.5}}}}
        >>> metrics_of({"": {"data": data}}, ["train"])
        {'train: loss.best': 1.5}
        >>> metrics_of({"": {"data": data}}, ["ingest"])
        {}
    """
    found: dict[str, float | bool] = {}
    for path, content in shown.get("", {}).get("data", {}).items():
        stage = path.split("/")[-2]
        if stage in stages and "data" in content:
            found.update({f"{stage}: {name}": value for name, value in _numbers(content["data"])})
    return found


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float | bool]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float):
        yield name, value


def page(
    profile: str,
    checkout: Checkout,
    experiment: Experiment,
    metrics: Mapping[str, float | bool],
) -> str:
    """Write the artifact: what ran, its metrics, and where to look."""
    rows = [f"| {name} | {_shown(value)} |" for name, value in list(metrics.items())[:MAX_ROWS]]
    reports = checkout.path / "reports" / profile
    docs = reports / "validate" / "index.html"
    apply = f"dvc exp apply {experiment.name}"
    places = [
        f"* Experiment `{experiment.name}`, commit `{experiment.commit[:12]}`: `{apply}`",
        f"* Based on commit `{checkout.baseline[:12]}`",
        f"* Reports and plots: `{reports}`",
        f"* MLflow: {os.environ.get(MLFLOW_URL) or 'start it with `make serve`'}",
    ]
    if docs.is_file():
        places.append(f"* The data gate's report, and Data Docs: `{docs}`")
    table = ["| metric | value |", "|---|---|", *rows] if rows else ["No metrics yet."]
    return "\n".join([*places, "", *table, ""])


def _shown(value: float | bool) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
