"""Parameters and environment of a version; what it refuses otherwise: see test_register.py."""

import copy
import subprocess
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from pipelines.base.errors import UserError
from pipelines.params import load_params
from pipelines.registry.material import (
    STAGES,
    check_parameters,
    check_stages,
    write_environment,
    write_profile,
)
from pipelines.registry.names import FLOW, LM
from tests.support import change_params


@pytest.fixture
def registered(workspace: Path) -> Path:
    path = workspace / "registered.yaml"
    write_profile(path)
    return path


def read(path: Path) -> Any:
    return YAML(typ="safe").load(path.read_text(encoding="utf-8"))


def write_lock(directory: Path, params: dict[str, Any], *others: str) -> Path:
    stages = {
        "ingest": {"cmd": "a stage without parameters"},
        "other": {"params": {"other.yaml": {"x": 1}}},
        **{stage: {"params": {"params.yaml": params}} for stage in ("train", *others)},
    }
    path = directory / "dvc.lock"
    with path.open("w", encoding="utf-8") as stream:
        YAML().dump({"schema": "2.0", "stages": stages}, stream)
    return path


def test_a_profile_is_written_alone_and_reads_as_the_same(workspace: Path) -> None:
    (workspace / "copy").mkdir()
    write_profile(workspace / "copy" / "params.yaml")
    assert list(read(workspace / "copy" / "params.yaml")["profiles"]) == ["sanguo"]
    assert len(read(workspace / "params.yaml")["profiles"]) > 1
    assert load_params(workspace / "copy" / "params.yaml").profile == load_params().profile


def test_the_parameters_of_an_earlier_version_are_still_read() -> None:
    """A version carries its own: a new field without a default would make all of them unreadable.

    Whoever has to change the schema so must say how earlier versions are verified.
    """
    params = load_params(Path(__file__).with_name("params_of_0_2.yaml"))
    assert params.name == "sanguo"
    assert params.profile.sample_flow.samples == 2000


def test_the_parameters_of_the_lock_are_accepted_in_any_order(registered: Path) -> None:
    train = read(registered)["profiles"]["sanguo"]["train"]
    backwards = dict(reversed(train.items()))
    check_parameters(
        write_lock(registered.parent, {"profiles.sanguo.train": backwards}), registered
    )


def test_one_other_value_is_refused_by_its_section(registered: Path) -> None:
    train = copy.deepcopy(read(registered)["profiles"]["sanguo"]["train"])
    train["max_steps"] = 12345
    lock = write_lock(registered.parent, {"profiles.sanguo.train": train})
    with pytest.raises(UserError, match=r"profiles\.sanguo\.train") as refusal:
        check_parameters(lock, registered)
    assert "or restore the earlier ones" in refusal.value.fix
    change_params(registered.parent / "params.yaml", {"train.max_steps": 12345})
    write_profile(registered)
    check_parameters(lock, registered)


def test_a_section_that_is_gone_is_refused_and_other_parameters_are_not(registered: Path) -> None:
    other = {"seed": 1, "profiles.sanguo.train.max_steps": 7}
    check_parameters(write_lock(registered.parent, other), registered)
    lock = write_lock(registered.parent, {"profiles.sanguo.of_an_older_schema": {}})
    with pytest.raises(UserError, match=r"expected profiles\.sanguo\.of_an_older_schema"):
        check_parameters(lock, registered)


def test_another_profile_may_have_been_made_with_anything(registered: Path) -> None:
    check_parameters(write_lock(registered.parent, {"profiles.wiki.train": {}}), registered)


@pytest.mark.parametrize(
    ("name", "profile", "stages", "missing"),
    [
        (LM, "sanguo", [], "evaluate"),
        (LM, "wiki", ["evaluate"], "train, evaluate"),
        (LM, "sanguo-small", ["evaluate"], "train, evaluate"),
        (FLOW, "sanguo", ["evaluate", "train_flow"], "sample_flow"),
        (FLOW, "sanguo", ["evaluate", "sample_flow"], "train_flow"),
        (FLOW, "sanguo", ["train_flow", "sample_flow"], "evaluate"),
    ],
)
def test_a_lock_without_the_stages_of_the_profile_is_refused(
    workspace: Path, name: str, profile: str, stages: list[str], missing: str
) -> None:
    lock = write_lock(workspace, {f"profiles.{profile}.train": {}}, *stages)
    with pytest.raises(UserError, match=f"of the profile sanguo, found no {missing}\n") as refusal:
        check_stages(lock, "sanguo", STAGES[name])
    assert "`dvc repro`" in refusal.value.fix
    every = write_lock(workspace, {"profiles.sanguo.train": {}}, *STAGES[name])
    check_stages(every, "sanguo", STAGES[name])


@pytest.mark.parametrize("content", ["", "schema: '2.0'\n", "stages:\n"])
def test_a_lock_of_no_stages_refuses_nothing(registered: Path, content: str) -> None:
    lock = registered.parent / "dvc.lock"
    lock.write_text(content, encoding="utf-8")
    check_parameters(lock, registered)


@pytest.mark.parametrize(
    ("content", "got"),
    [
        ("<<<<<<< HEAD\nstages: {}\n=======\nstages: {a: 1}\n>>>>>>> other\n", "merge conflict"),
        ("- a list\n", "expected stages as DVC writes them"),
        ("stages: {train: 5}\n", "expected stages as DVC writes them"),
        ("stages: [train]\n", "expected stages as DVC writes them"),
        ("\0", "expected stages as DVC writes them"),
    ],
)
def test_a_lock_that_is_no_lock_is_named_and_its_remedy_helps(
    registered: Path, content: str, got: str
) -> None:
    directory = registered.parent
    lock = directory / "dvc.lock"
    lock.write_text("schema: '2.0'\n", encoding="utf-8")
    who = ("-c", "user.name=t", "-c", "user.email=t@example.org")
    for arguments in (("init", "-q"), ("add", "dvc.lock"), ("commit", "-qm", "x")):
        subprocess.run(["git", *who, *arguments], cwd=directory, check=True)
    lock.write_text(content, encoding="utf-8")
    with pytest.raises(UserError, match=got) as refusal:
        check_parameters(lock, registered)
    command = refusal.value.fix.split("`")[1]
    assert command == "git checkout HEAD -- dvc.lock"
    subprocess.run(command.split(), cwd=directory, check=True)
    check_parameters(lock, registered)


def test_a_changed_profile_no_longer_fits_its_lock(workspace: Path) -> None:
    path = workspace / "registered.yaml"
    write_profile(path)
    section = {"profiles.sanguo.model": read(path)["profiles"]["sanguo"]["model"]}
    lock = write_lock(workspace, section)
    check_parameters(lock, path)
    change_params(workspace / "params.yaml", {"model.d": 16})
    write_profile(path)
    with pytest.raises(UserError, match=r"profiles\.sanguo\.model"):
        check_parameters(lock, path)


def test_the_environment_pins_every_package_in_order(tmp_path: Path) -> None:
    path = tmp_path / "environment.txt"
    write_environment(path)
    first, *pins = path.read_text(encoding="utf-8").splitlines()
    assert first.startswith("# python 3.")
    assert pins == sorted(set(pins))
    assert all(name == name.lower() for name, _ in (pin.split("==") for pin in pins))
    assert {f"torch=={version('torch')}", f"pytest=={version('pytest')}"} <= set(pins)
