"""What a changed parameter or file re-runs, read from `dvc.yaml` (tests/e2e runs one for real)."""

from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.support import REPOSITORY

STAGES = YAML(typ="safe").load((REPOSITORY / "dvc.yaml").read_text(encoding="utf-8"))["stages"]


def outputs(stage: str) -> list[str]:
    """The paths that a stage writes."""
    entries = [
        entry for kind in ("outs", "metrics", "plots") for entry in STAGES[stage].get(kind, [])
    ]
    return [entry if isinstance(entry, str) else next(iter(entry)) for entry in entries]


def touched(section: str | None = None, file: str | None = None) -> list[str]:
    """The stages that a section of params.yaml or a file reaches, in the order of the graph."""
    reached: list[str] = []
    for stage, facts in STAGES.items():
        above = [*([file] if file else []), *(out for other in reached for out in outputs(other))]
        hit = any(
            Path(one).is_relative_to(dep) or Path(dep).is_relative_to(one)
            for one in above
            for dep in facts["deps"]
        )
        if hit or f"profiles.${{profile}}.{section}" in facts["params"]:
            reached.append(stage)
    return reached


def after(stage: str) -> list[str]:
    """A stage and all behind it."""
    names = list(STAGES)
    return names[names.index(stage) :]


@pytest.mark.parametrize(
    ("section", "stages"),
    [
        ("ingest", after("ingest")),
        ("clean", after("clean")),
        ("tokenize", after("tokenize")),
        ("decontaminate", after("decontaminate")),
        ("validate", after("validate")),
        ("model", after("train")),
        ("train", after("train")),
        ("evaluate", after("evaluate")),
        ("train_flow", after("train_flow")),
        ("sample_flow", ["sample_flow"]),
        ("promote", []),
        ("workers", []),
    ],
)
def test_a_section_reaches_what_depends_on_it(section: str, stages: list[str]) -> None:
    assert touched(section) == stages


@pytest.mark.parametrize(
    ("file", "first"),
    [
        ("pipelines/data/sources/files.py", "ingest"),
        ("pipelines/data/text/normalisation.py", "clean"),
        ("pipelines/data/audit/recount.py", "validate"),
        ("expectations/overlap.py", "validate"),
        ("enigma/rotor.py", "train"),
        ("pipelines/language_model/baselines.py", "evaluate"),
        ("pipelines/flow/gaussian.py", "train_flow"),
    ],
)
def test_a_file_reaches_what_it_decides(file: str, first: str) -> None:
    assert (REPOSITORY / file).is_file()
    assert touched(file=file) == after(first)


@pytest.mark.parametrize(
    "file",
    [
        "pipelines/base/run_stage.py",
        "pipelines/runs/progress.py",
        "pipelines/tracking/store.py",
        "pipelines/registry/gates.py",
        "pipelines/cli/commands.py",
        "flows/train.py",
    ],
)
def test_a_progress_bar_retrains_nothing(file: str) -> None:
    assert (REPOSITORY / file).is_file()
    assert touched(file=file) == []


def test_every_stage_depends_on_its_own_section() -> None:
    for stage, facts in STAGES.items():
        assert f"profiles.${{profile}}.{stage}" in facts["params"]


def test_a_dep_is_made_by_a_stage_before_it_or_is_in_the_repository() -> None:
    made: list[str] = []
    for stage, facts in STAGES.items():
        for dep in facts["deps"]:
            inside = any(Path(dep).is_relative_to(out) for out in made)
            assert inside or (REPOSITORY / dep).exists(), f"{stage}: {dep}"
        made += outputs(stage)
