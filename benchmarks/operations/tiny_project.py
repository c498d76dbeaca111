"""A project whose pipeline takes seconds, for trying the soak."""

from pathlib import Path

from ruamel.yaml import YAML

from tests.support import TINY_RUN, change_params

PRACTICE = "cd practice && python -c 'from tests.support import *; make_tiny_shards()'"
FINISH = (
    "from pathlib import Path; from tests.finished import main, write_losses; "
    "from pipelines.params import load_params; main(); "
    "write_losses(Path(), better_by=0.02 * load_params().profile.train.seed, noise=0.01)"
)


def make_tiny(clone: Path) -> None:
    """Make the stages of a clone quick: a tiny training for real, finished reports for the rest."""
    change_params(clone / "params.yaml", {
        **TINY_RUN, "train.max_steps": 600, "train.epochs": 10_000, "train.ranks": 1,
        "train.evaluate_every_steps": 50, "train.early_stopping_patience": 1000,
        "train.rank_timeout_s": 60,
    })  # fmt: skip
    path = clone / "dvc.yaml"
    yaml = YAML()
    graph = yaml.load(path.read_text())
    code = [dep for dep in graph["stages"]["train"]["deps"] if "$" not in dep]
    sampled = "reports/${profile}/sample_flow"
    outs = [f"reports/${{profile}}/{stage}" for stage in ("validate", "train", "evaluate")]
    outs += ["models/${profile}", f"{sampled}/figures", f"{sampled}/losses.parquet"]
    seeds = ["profiles.${profile}.train"]
    graph["stages"] = {
        "train": {
            "cmd": [
                "mkdir -p practice && cp params.yaml practice && rm -rf practice/data",
                PRACTICE, "cd practice && python -m pipelines.train",
            ],
            "deps": code, "params": seeds, "outs": ["practice"],
        },
        # A version must name the stages that made and judged it.
        "evaluate": {
            "cmd": "cp params.yaml judged",
            "deps": ["practice"], "params": ["profiles.${profile}.evaluate"], "outs": ["judged"],
        },
        "train_flow": {
            "cmd": "cp params.yaml fitted",
            "deps": ["judged"], "params": ["profiles.${profile}.train_flow"], "outs": ["fitted"],
        },
        "sample_flow": {
            "cmd": f'python -c "{FINISH}"',
            "deps": ["fitted"], "params": seeds,
            "outs": outs,
            "metrics": [f"{sampled}/metrics.json"],
        },
    }  # fmt: skip
    with path.open("w") as stream:
        yaml.dump(graph, stream)
