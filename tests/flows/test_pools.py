"""The shipped job templates, as the workers of their pools read them."""

import asyncio
import importlib
import json
from typing import Any
from uuid import uuid4

import kubernetes_validate
import pytest
from prefect.client.schemas.objects import FlowRun

from tests.support import REPOSITORY

KINDS = ("kubernetes", "docker")


def configuration(kind: str, **values: Any) -> Any:
    """What a worker makes of the template for one flow run."""
    worker = importlib.import_module(f"prefect_{kind}.worker")
    cls = getattr(worker, f"{kind.capitalize()}WorkerJobConfiguration")
    text = (REPOSITORY / "deploy" / f"{kind}-job-template.json").read_text(encoding="utf-8")
    made = asyncio.run(cls.from_template_and_values(json.loads(text), values))
    made.prepare_for_flow_run(FlowRun(id=uuid4(), name="blue-fox", flow_id=uuid4()))
    return made


def test_a_kubernetes_job_gets_its_gpus_and_shared_memory() -> None:
    job = configuration("kubernetes", gpus=3, image="enigma:1").job_manifest
    pod = job["spec"]["template"]["spec"]
    [container] = pod["containers"]
    assert container["resources"]["limits"]["nvidia.com/gpu"] == 3
    assert container["image"] == "enigma:1"
    assert container["args"][:2] == ["prefect", "flow-run"]
    assert container["workingDir"] == "/enigma"
    # Prefect retries, from the newest checkpoint; Kubernetes must not retry as well.
    assert job["spec"]["backoffLimit"] == 0
    names = {volume["name"] for volume in pod["volumes"]}
    assert {mount["name"] for mount in container["volumeMounts"]} == names
    assert pod["volumes"][0]["emptyDir"] == {"medium": "Memory", "sizeLimit": "16Gi"}
    assert container["resources"]["requests"]["memory"] == "32Gi"
    # 1.1 GB of checkpoint at 5 MB/s, and the end of a step.
    assert pod["terminationGracePeriodSeconds"] >= 1100 / 5 + 60


# The oldest and the newest release whose schemas the validator carries and people still run.
@pytest.mark.parametrize("release", ["1.29", "1.37"])
def test_kubernetes_knows_every_field_of_the_job(release: str) -> None:
    job = configuration("kubernetes").job_manifest
    kubernetes_validate.validate(job, release, strict=True)
    # Where Prefect's own template has it; a pod has no such field.
    job["spec"]["template"]["spec"]["completions"] = 1
    with pytest.raises(kubernetes_validate.ValidationError, match="completions"):
        kubernetes_validate.validate(job, release, strict=True)


def test_an_image_takes_along_nothing_that_git_ignores() -> None:
    """That includes secrets and state of this machine, for example DVC's `config.local`."""

    def entries(path: str) -> set[str]:
        lines = (REPOSITORY / path).read_text(encoding="utf-8").splitlines()
        patterns = (line.replace("!/", "!") for line in lines if line[:1] not in {"", "#"})
        return {pattern.strip("/").removeprefix("**/") for pattern in patterns}

    below_dvc = {f".dvc/{entry}" for entry in entries(".dvc/.gitignore")}
    assert entries(".gitignore") | below_dvc <= entries(".dockerignore")


def test_docker_takes_the_image_that_was_built_here() -> None:
    """Without a policy Docker's worker pulls whatever is called `latest` from a registry."""
    made = configuration("docker")
    assert (made.image, made.image_pull_policy) == ("enigma:latest", "IfNotPresent")


def test_a_docker_container_gets_every_gpu() -> None:
    from docker.types import HostConfig

    made = configuration("docker", image="enigma:1")
    extra = dict(made.container_create_kwargs)
    assert extra.pop("working_dir") == "/enigma"
    # The Docker client itself reads the rest.
    host = HostConfig(version="1.44", **extra)
    assert host["DeviceRequests"][0]["Capabilities"] == [["gpu"]]
    assert host["ShmSize"] == 16 * 2**30
    assert all(volume.split(":")[1].startswith("/enigma/") for volume in made.volumes)


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_is_the_pools_own_with_additions(kind: str) -> None:
    """An update of the worker's package that renames something must be noticed."""
    worker = importlib.import_module(f"prefect_{kind}.worker")
    default = getattr(worker, f"{kind.capitalize()}Worker").get_default_base_job_template()
    text = (REPOSITORY / "deploy" / f"{kind}-job-template.json").read_text(encoding="utf-8")
    ours = json.loads(text)
    assert default["variables"]["properties"].keys() <= ours["variables"]["properties"].keys()
    assert default["job_configuration"].keys() == ours["job_configuration"].keys()


@pytest.mark.parametrize("value", [-1, "five"])
def test_a_wrong_number_of_gpus_is_refused(value: Any) -> None:
    import jsonschema

    text = (REPOSITORY / "deploy" / "kubernetes-job-template.json").read_text(encoding="utf-8")
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({"gpus": value}, json.loads(text)["variables"])
