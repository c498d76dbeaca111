"""The main job on the real novel: raw text to a promoted model, as a DVC user runs it.

All tests that need the whole pipeline are in this file: each worker would run it again.
"""

import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from tests.e2e.conftest import Project, cut_off, replace

pytestmark = [
    pytest.mark.slow,
    pytest.mark.e2e,
    # The first test waits for the whole pipeline.
    pytest.mark.timeout(2400),
]


def read(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def test_the_certificate_and_the_evaluation_are_clean(finished) -> None:
    reports = finished.path / "reports" / "sanguo"
    assert read(reports / "validate" / "certificate.json")["passed"] is True
    evaluation = read(reports / "evaluate" / "evaluation.json")
    assert evaluation["alarms"] == []
    assert evaluation["causality"]["is_causal"] is True
    better = evaluation["baselines"]["unigram"]["bits_per_character"]
    assert evaluation["test"]["bits_per_character"] < better


def test_the_flow_knows_how_the_sentences_of_the_novel_follow_one_another(finished) -> None:
    order = read(finished.path / "models/sanguo/flow/documents/typical.json")["order"]
    assert order["lengths"][-1] == 256
    assert order["medians"][-1] < 0, "in another order the novel is harder to follow"


def test_nothing_is_left_for_git_to_see(finished) -> None:
    status = finished.run("git", "status", "--porcelain").stdout.splitlines()
    assert sorted(status) == [" M params.yaml", "?? dvc.lock"]


def test_a_second_repro_does_nothing(finished) -> None:
    assert finished.stages_run_by_repro() == []
    assert "up to date" in finished.run("dvc", "status").stdout


def test_a_changed_parameter_runs_what_depends_on_it(project) -> None:
    """One real run; tests/architecture/test_graph.py reads the rest from the graph."""
    project.set({"sample_flow.samples": 2048})
    assert project.stages_run_by_repro() == ["sample_flow"]
    project.set({"promote.baseline": "5-gram"})
    assert project.stages_run_by_repro() == []


def test_the_tools_of_a_dvc_user_work(project) -> None:
    assert "train_flow" in project.run("dvc", "dag").stdout
    metrics = json.loads(project.run("dvc", "metrics", "show", "--json").stdout)
    files = metrics[""]["data"]
    assert files["reports/sanguo/evaluate/evaluation.json"]["data"]["test"]["perplexity"] > 2
    project.set({"train.learning_rate": 1.0e-3})
    diff = json.loads(
        project.run("dvc", "params", "diff", "--json", "--targets", "params.yaml").stdout
    )
    changed = diff["params.yaml"]["profiles.sanguo.train.learning_rate"]
    assert changed["new"] == 1.0e-3
    project.run("dvc", "plots", "show")
    assert (project.path / "dvc_plots" / "index.html").is_file()


def test_push_and_pull_through_a_local_remote(project, tmp_path: Path) -> None:
    remote = tmp_path / "remote"
    project.run("dvc", "remote", "add", "--default", "local", str(remote))
    project.run("dvc", "push")
    other = tmp_path / "other"
    subprocess.run(["git", "clone", "--quiet", str(project.path), str(other)], check=True)
    for name in ("dvc.lock", "params.yaml", ".dvc/config"):
        (other / name).write_bytes((project.path / name).read_bytes())
    there = type(project)(other)
    there.run("dvc", "pull")
    assert "up to date" in there.run("dvc", "status").stdout
    weights = "models/sanguo/lm/model.safetensors"
    assert (other / weights).read_bytes() == (project.path / weights).read_bytes()


PLANT = '''
"""Plant one validation sequence among the final train shards."""
import json
from pathlib import Path

from pipelines.base.artifacts import read_manifest, write_manifest

shards = Path("data/sanguo/shards")
manifest = read_manifest(shards)
width = 2 * manifest["sequence_length"]
train, validation = shards / "train-00000.bin", shards / "validation-00000.bin"
stolen = validation.read_bytes()[3 * width : 4 * width]
content = train.read_bytes()
train.write_bytes(content[: 7 * width] + stolen + content[8 * width :])
facts = {k: v for k, v in manifest.items() if k not in ("stage", "root", "files")}
write_manifest(shards, stage=manifest["stage"], facts=facts)
'''


def test_one_planted_duplicate_stops_everything(project) -> None:
    (project.path / "plant.py").write_text(PLANT)
    graph = (project.path / "dvc.yaml").read_text(encoding="utf-8")
    command = "python -m pipelines.decontaminate"
    (project.path / "dvc.yaml").write_text(
        graph.replace(command, f"{command} && PYTHONPATH=. python plant.py"), encoding="utf-8"
    )
    run = project.run("dvc", "repro", check=False)
    assert run.returncode != 0
    assert "Running stage 'validate'" in run.stdout
    assert "Running stage 'train'" not in run.stdout
    assert "train sequence 7" in run.stdout
    assert "validation sequence 3" in run.stdout
    assert "Traceback" not in run.stdout


@pytest.mark.parametrize("model", ["enigma-lm", "enigma-flow"])
def test_lineage_walks_from_the_champion_to_the_parquet(finished, model: str) -> None:
    run = finished.run("enigma", "lineage", f"{model}@champion")
    for link in ("content", "run ", "commit ", "dvc.lock", "part-00000.parquet", "sanguo_docs"):
        assert link in run.stdout, run.stdout
    assert "BROKEN" not in run.stdout


@pytest.mark.parametrize("where", ["working copy", "cache"])
def test_one_flipped_byte_breaks_the_lineage(project, where: str) -> None:
    shard = project.path / "data" / "sanguo" / "shards" / "train-00000.bin"
    if where == "cache":
        name = hashlib.md5(shard.read_bytes()).hexdigest()
        shard = project.path / ".dvc" / "cache" / "files" / "md5" / name[:2] / name[2:]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    # A new file: the old one is a hard link to the project that other tests read.
    shard.unlink()
    shard.write_bytes(content)
    run = project.run("enigma", "lineage", "enigma-lm@champion", check=False)
    assert run.returncode == 1
    assert "BROKEN" in run.stdout
    assert "train-00000.bin: expected" in run.stdout
    assert "Traceback" not in run.stdout


def test_the_champion_generates_in_a_fresh_process(finished, tmp_path: Path) -> None:
    script = (
        "import mlflow, pandas as pd\n"
        f"mlflow.set_tracking_uri('sqlite:///{finished.path}/mlflow.db')\n"
        "model = mlflow.pyfunc.load_model('models:/enigma-lm@champion')\n"
        "print(model.predict(pd.DataFrame({'prompt': ['却说曹操']}))['text'][0])\n"
    )
    run = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr[-3000:]
    text = run.stdout.strip().splitlines()[-1].replace(" ", "")
    assert text.startswith("却说曹操")
    assert len(text) > len("却说曹操")


SAY = """
from pipelines.base.errors import UserError

for check in checks:
    try:
        check()
    except UserError as error:
        print(error)
"""

REGISTRY = """
from pathlib import Path

from pipelines.base.workspace import Workspace
from pipelines.registry.dvc_objects import (
    cache_directory,
    check_working_copy,
    hash_output,
    read_lock,
)
from pipelines.registry.material import lm_material

lm = read_lock(Path("dvc.lock"))["train"].outs[0]
checks = (
    lambda: lm_material(Workspace("sanguo")),
    lambda: check_working_copy(lm, hash_output(lm, cache_directory())),
)
"""


def test_the_remedy_of_the_registry_needs_no_later_stage(project: Project) -> None:
    lock = project.path / "dvc.lock"
    yaml = YAML()
    made = yaml.load(lock)
    for stage in ("train_flow", "sample_flow"):
        del made["stages"][stage]
    yaml.dump(made, lock)
    shutil.rmtree(project.path / "models" / "sanguo" / "flow")
    cut_off(project.path / "models" / "sanguo" / "lm" / "model.safetensors")
    said = project.run("python", "-c", REGISTRY + SAY).stdout
    remedies = re.findall("`(dvc checkout [^`]+)`", said)
    assert remedies == ["dvc checkout --force models/sanguo/lm"] * 2
    project.run(*remedies[0].split())
    assert project.run("python", "-c", REGISTRY + SAY).stdout == ""


EDITED = {
    "models/sanguo/lm/tokenizer.json": "models/sanguo/lm",
    "reports/sanguo/evaluate/evaluation.json": "reports/sanguo/evaluate/evaluation.json",
    "reports/sanguo/evaluate/losses.parquet": "reports/sanguo/evaluate/losses.parquet",
}


def test_what_was_edited_is_registered_after_the_remedy_alone(project: Project) -> None:
    """Each by its own refusal, which the next one follows."""
    for file in EDITED:
        replace(project.path / file, (project.path / file).read_bytes() + b"\n")
    remedies = []
    for _ in EDITED:
        run = project.run("enigma", "register", "--model", "enigma-lm", check=False)
        assert run.returncode == 1
        assert "Traceback" not in run.stdout
        remedies += re.findall("`(dvc checkout --force [^`]+)`", run.stdout)
        project.run(*remedies[-1].split())
    assert sorted(remedies) == [f"dvc checkout --force {made}" for made in EDITED.values()]
    run = project.run("enigma", "register")
    assert run.stdout.count("has the same content already") == 2


def test_figures_that_dvc_was_told_to_believe_are_computed_again(project: Project) -> None:
    """By the remedy of the gate `baseline`: DVC has no doubt about this file any more."""
    path = project.path / "reports" / "sanguo" / "evaluate" / "evaluation.json"
    honest = path.read_bytes()
    evaluation = json.loads(honest)
    evaluation["test"]["bits_per_character"] *= 0.9
    replace(path, json.dumps(evaluation).encode())
    project.run("dvc", "commit", "--force", "evaluate")
    project.run("enigma", "register", "--model", "enigma-lm")
    run = project.run("enigma", "promote", "--model", "enigma-lm", check=False)
    assert run.returncode == 1
    assert "by its nats and counts" in " ".join(run.stdout.split())
    [remedy] = set(re.findall("`(dvc repro --force [^`]+)`", " ".join(run.stdout.split())))
    project.run(*remedy.split())
    assert path.read_bytes() == honest
    project.run("dvc", "repro")
    project.run("enigma", "register", "--model", "enigma-lm")
    assert "champion already" in project.run("enigma", "promote", "--model", "enigma-lm").stdout


REPORTS = """
from pipelines.base.artifacts import read_manifest
from pipelines.base.certificate import check_certificate
from pipelines.base.workspace import Workspace
from pipelines.registry.material import flow_material, lm_material
from pipelines.tracking.store import connect

there = Workspace("sanguo")
root = read_manifest(there.shards)["root"]
checks = (
    lambda: check_certificate(there.report("validate") / "certificate.json", root),
    lambda: lm_material(there),
    lambda: flow_material(connect(), there),
)
"""


def test_reports_of_other_data_or_models_are_made_again_by_their_remedies(project: Project) -> None:
    reports = project.path / "reports" / "sanguo"
    of_another = {
        "validate/certificate.json": "shards_root",
        "evaluate/evaluation.json": "weights_sha256",
        "sample_flow/metrics.json": "flow_weights_sha256",
    }
    for file, field in of_another.items():
        report = json.loads((reports / file).read_text(encoding="utf-8"))
        replace(reports / file, json.dumps({**report, field: 64 * "0"}).encode())
    said = project.run("python", "-c", REPORTS + SAY).stdout
    remedies = re.findall("`(dvc repro [^`]+)`", said)
    assert remedies == [f"dvc repro {file.split('/')[0]}" for file in of_another]
    for remedy in remedies:
        project.run(*remedy.split())
    assert project.run("python", "-c", REPORTS + SAY).stdout == ""
