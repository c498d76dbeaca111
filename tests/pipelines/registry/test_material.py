"""What a version is made of, and what is refused as not of its stages.

The rest of what a registration refuses: see test_register.py.
"""

import copy
import json
import subprocess
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML

from pipelines.base.errors import GateError, UserError
from pipelines.language_model.losses import Losses
from pipelines.params import load_params
from pipelines.registry.evidence.links import stage_links
from pipelines.registry.material import (
    STAGES,
    check_parameters,
    check_stages,
    write_environment,
    write_profile,
)
from pipelines.registry.names import FLOW, LM
from pipelines.registry.promote import promote
from pipelines.registry.register import register
from pipelines.tracking.store import tracking_uri
from tests.finished import change_json, score
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


def turn_token_ids(path: Path) -> None:
    """Give every token of a tokenizer the id of the next one."""
    tokenizer = json.loads(path.read_text(encoding="utf-8"))
    first, *others = tokenizer["model"]["vocab"].values()
    turned = dict(zip(tokenizer["model"]["vocab"], [*others, first], strict=True))
    tokenizer["model"]["vocab"] = turned
    path.write_text(json.dumps(tokenizer, ensure_ascii=False), encoding="utf-8")


def make_evaluation_better(path: Path) -> None:
    change_json(path, "test", score(4.5))
    change_json(path, "baselines.5-gram", score(6.0))


def flatten_losses(path: Path) -> None:
    """Leave their mean, by which the gate `losses` judges."""
    losses = Losses.read(path)
    flat = losses.units * (losses.loss_nats.sum() / losses.units.sum())
    Losses(losses.document, losses.units, flat).write(path)


def write_nothing(path: Path) -> None:
    path.write_text("{}", encoding="utf-8")


EDITS: dict[str, Callable[[Path], None]] = {
    "models/sanguo/lm/tokenizer.json": turn_token_ids,
    "models/sanguo/lm/extra.json": write_nothing,
    "models/sanguo/lm/tokenizer_config.json": Path.unlink,
    "reports/sanguo/validate/extra.json": write_nothing,
    "reports/sanguo/train/metrics.json": write_nothing,
    "reports/sanguo/evaluate/evaluation.json": make_evaluation_better,
    "reports/sanguo/evaluate/losses.parquet": flatten_losses,
}
FLOW_EDITS: dict[str, Callable[[Path], None]] = {
    "models/sanguo/flow/documents/extra.json": write_nothing,
    "reports/sanguo/train_flow/metrics.json": write_nothing,
    "reports/sanguo/sample_flow/losses.parquet": flatten_losses,
}


@pytest.mark.slow
def test_outputs_that_are_not_those_of_the_lock_are_refused(finished: Path) -> None:
    """A signature says that the stages made them. The remedy runs in test_dvc_objects.py."""
    assert register(LM) == "1"
    for file, edit in (EDITS | FLOW_EDITS).items():
        path = finished / file
        before = path.read_bytes() if path.exists() else None
        edit(path)
        if file in FLOW_EDITS:
            assert register(LM) == "1", "what is the flow's keeps no language model out"
        for name in (FLOW,) if file in FLOW_EDITS else (LM, FLOW):
            with pytest.raises(UserError, match=r"expected md5 .*, as dvc\.lock has it") as refusal:
                register(name)
            made = refusal.value.problem.split(":")[0]
            assert Path(file).is_relative_to(made)
            assert f"`dvc checkout --force {made}`, or run `dvc repro`" in refusal.value.fix
        path.unlink(missing_ok=True)
        if before is not None:
            path.write_bytes(before)
    assert len(MlflowClient(tracking_uri()).search_model_versions()) == 1
    assert register(FLOW) == "1"


def rename(out: dict[str, str]) -> None:
    out["path"] = "elsewhere"


@pytest.mark.parametrize("stage", ["validate", "train", "evaluate"])
@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda out: out.update(md5="0" * 32), "expected md5 0000.*, as dvc.lock has it, got"),
        (lambda out: out.pop("md5"), "expected the lock of a finished `dvc repro`"),
        (rename, "expected a stage that made (models|reports)/sanguo"),
    ],
)
def test_a_lock_that_does_not_say_what_was_made_is_refused_before_anything_is_logged(
    finished: Path, stage: str, change: Callable[[dict[str, str]], None], said: str
) -> None:
    lock = read(finished / "dvc.lock")
    for out in lock["stages"][stage]["outs"]:
        change(out)
    (finished / "dvc.lock").write_text(json.dumps(lock), encoding="utf-8")
    with pytest.raises(UserError, match=said) as refusal:
        register(LM)
    assert "run `dvc repro`" in refusal.value.fix
    client = MlflowClient(tracking_uri())
    assert not client.search_registered_models()
    experiments = [found.experiment_id for found in client.search_experiments()]
    assert not client.search_logged_models(experiments)


@pytest.mark.slow
def test_a_version_that_states_no_hash_of_its_files_is_refused_and_registered_again(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an earlier release registered one whose outputs were not those of the lock."""
    with monkeypatch.context() as patch:
        patch.setattr(
            "pipelines.registry.register.stage_links",
            lambda lock, environment, _: stage_links(lock, environment, {}),
        )
        assert register(LM) == "1"
    with pytest.raises(GateError, match=r"tokenizer\.json: a stage made sha256 None") as refusal:
        promote(LM)
    assert refusal.value.gate == "stages"
    assert "or run `enigma register`: it makes another version of them" in refusal.value.fix
    assert register(LM) == "2"
    assert promote(LM).outcome == "promoted"
