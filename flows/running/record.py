"""The record of a finished flow run: a DVC experiment and Prefect artifacts."""

import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import get_run_logger, task
from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_table_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.runtime import flow_run

from flows.running.checkout import Checkout
from flows.running.progress import artifact_key

# Set by `flows.serve` to the address of its MLflow UI.
MLFLOW_URL = "ENIGMA_MLFLOW_URL"


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
        The experiment; `dvc exp apply <name>` copies its results into the repository.
    """
    experiment = save_experiment(target, profile, stages, checkout)
    metrics = metrics_of(json.loads(checkout.run("dvc", "metrics", "show", "--json")), stages)
    key = artifact_key(f"{target}-{profile}")
    about = f"{target}/{profile}: {experiment.name}"
    summary = page(profile, checkout, experiment)
    create_markdown_artifact(summary, key=key, description=f"What ran and where it is, {about}")
    table = [{"metric": name, "value": _shown(value)} for name, value in metrics.items()]
    if table:
        create_table_artifact(table, key=f"metrics-{key}", description=f"Metrics, {about}")
    for name, (link, text) in links(profile, checkout).items():
        description = f"{text}, {about}"
        create_link_artifact(link, link_text=text, key=f"{name}-{key}", description=description)
    get_run_logger().info(
        "experiment %s (%s); `dvc exp apply %s` copies its results into the repository",
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
    # The layout of DVC; `dvc exp list` prints no commit that a program can parse.
    reference = f"refs/exps/{checkout.baseline[:2]}/{checkout.baseline[2:]}/{name}"
    return Experiment(name, checkout.run("git", "rev-parse", reference))


def metrics_of(shown: Mapping[str, Any], stages: Sequence[str]) -> dict[str, float | bool]:
    """Select the numbers that these stages made from `dvc metrics show --json`.

    A checkout also has metrics of earlier runs, which other stages made.

    Example:
        >>> data = {"reports/p/train/m.json": {"data": {"loss": {"best": 1.5}}}}
        >>> metrics_of({"": {"data": data}}, ["train"])
        {'train: loss.best': 1.5}
        >>> metrics_of({"": {"data": data}}, ["ingest"])
        {}
    """
    files = shown.get("", {}).get("data", {})
    found: dict[str, float | bool] = {}
    # The last stage comes first, as it is the target.
    for stage in reversed(stages):
        for path, content in files.items():
            if path.split("/")[-2] == stage and "data" in content:
                numbers = _numbers(content["data"])
                found.update({f"{stage}: {name}": value for name, value in numbers})
    return found


def _numbers(value: Any, name: str = "") -> Iterator[tuple[str, float | bool]]:
    if isinstance(value, Mapping):
        for key, inner in value.items():
            yield from _numbers(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, int | float):
        yield name, value


def page(profile: str, checkout: Checkout, experiment: Experiment) -> str:
    """Return the text of the artifact: what ran, and where the results are."""
    reports = checkout.path / "reports" / profile
    docs = reports / "validate" / "index.html"
    commit, apply = experiment.commit[:12], f"dvc exp apply {experiment.name}"
    places = [
        f"* Experiment `{experiment.name}`: code, `params.yaml` and `dvc.lock` of this run",
        f"* Its commit: `{commit}`; `{apply}` copies it into the repository",
        f"* Based on commit `{checkout.baseline[:12]}`",
        f"* Reports and plots: `{reports}`",
        f"* MLflow: {os.environ.get(MLFLOW_URL) or 'start it with `make serve`'}",
    ]
    if docs.is_file():
        places.append(f"* The data gate's report, and Data Docs: `{docs}`")
    return "\n".join([*places, ""])


def links(profile: str, checkout: Checkout) -> dict[str, tuple[str, str]]:
    """Return the addresses of what the run made: names to an address and its text."""
    found: dict[str, tuple[str, str]] = {}
    docs = checkout.path / "reports" / profile / "validate" / "data_docs" / "index.html"
    if docs.is_file():
        found["data-docs"] = (docs.as_uri(), "Data Docs")
    training = checkout.path / "models" / profile / "lm" / "training.json"
    mlflow = os.environ.get(MLFLOW_URL)
    if mlflow and training.is_file():
        run_id = json.loads(training.read_text(encoding="utf-8"))["mlflow_run_id"]
        if run_id is not None:
            found["mlflow-run"] = (f"{mlflow}/#/runs/{run_id}", "MLflow run of the training")
    return found


def _shown(value: float | bool) -> str:
    return f"{value:.5g}" if isinstance(value, float) else str(value)
