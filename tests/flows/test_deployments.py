"""`prefect.yaml` and `prefect.toml`, as they are shipped."""

import importlib
import inspect
import tomllib

import pytest
from prefect import Flow
from ruamel.yaml import YAML

from flows.serve import POOL
from pipelines.params import load_params
from tests.support import REPOSITORY

# What an operator runs; `wiki-zh-published` is there to compare with (`dvc exp run`).
PROFILES = ("sanguo", "wiki-zh")
FLOWS = ("ingest", "validate", "train", "evaluate", "sample", "promote", "pipeline")
DEPLOYMENTS = YAML(typ="safe").load(REPOSITORY / "prefect.yaml")["deployments"]


def flow_of(deployment: dict) -> Flow:
    module, name = deployment["entrypoint"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def test_every_flow_has_a_deployment_for_every_profile_in_operation() -> None:
    found = sorted((flow_of(one).name, one["name"]) for one in DEPLOYMENTS)
    assert found == sorted((flow, profile) for flow in FLOWS for profile in PROFILES)
    assert set(PROFILES) <= load_params(REPOSITORY / "params.yaml").profiles.keys()


@pytest.mark.parametrize("deployment", DEPLOYMENTS, ids=lambda one: one["entrypoint"])
def test_a_deployment_runs_one_at_a_time_with_valid_parameters(deployment: dict) -> None:
    assert deployment["work_pool"] == {"name": POOL}
    assert deployment["concurrency_limit"] == {"limit": 1, "collision_strategy": "ENQUEUE"}
    assert "pull" not in deployment
    assert deployment["parameters"] == {"profile": deployment["name"]}
    flow = flow_of(deployment)
    assert flow.validate_parameters(deployment["parameters"])["profile"] == deployment["name"]
    assert inspect.getdoc(flow.fn)


def test_the_mission_has_a_weekly_schedule_that_is_off() -> None:
    scheduled = [one for one in DEPLOYMENTS if "schedules" in one]
    assert [(one["entrypoint"], one["name"]) for one in scheduled] == [
        ("flows.pipeline.pipeline", "wiki-zh")
    ]
    [schedule] = scheduled[0]["schedules"]
    assert schedule == {"cron": "0 3 * * 0", "timezone": "UTC", "active": False}


@pytest.mark.parametrize("name", FLOWS)
def test_parameters_have_types_and_descriptions_in_the_ui(name: str) -> None:
    flow = getattr(importlib.import_module(f"flows.{name}"), name)
    for parameter in flow.parameters.properties.values():
        assert parameter.get("description"), parameter
        assert parameter.get("type") or parameter.get("anyOf"), parameter
    assert flow.parameters.properties["profile"]["pattern"]
    # Of a source outside `sources/` DVC knows only the name; `promote` runs no stage.
    assert ("refresh" in flow.parameters.properties) == (name != "promote")


@pytest.mark.parametrize("name", FLOWS)
def test_a_command_in_a_profile_is_refused(name: str) -> None:
    flow = getattr(importlib.import_module(f"flows.{name}"), name)
    with pytest.raises(Exception, match="should match pattern"):
        flow.validate_parameters({"profile": "x; touch pwned"})


def test_a_second_shell_finds_the_default_server() -> None:
    settings = tomllib.loads((REPOSITORY / "prefect.toml").read_text(encoding="utf-8"))
    assert settings["api"]["url"] == "http://127.0.0.1:4200/api"
    assert settings["home"] == ".prefect"
