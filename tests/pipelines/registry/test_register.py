"""Registration against a real SQLite store, with tiny real models."""

import json
import os
import re
import shutil
import subprocess
import sys
from importlib.metadata import version as installed_version
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient
from ruamel.yaml import YAML

from pipelines.base.artifacts import sha256_file, write_json
from pipelines.base.errors import GateError, UserError
from pipelines.cli.terminal import generate
from pipelines.params import load_params
from pipelines.registry.content import COMPILED
from pipelines.registry.evidence.version import WRITTEN_BY_A_DOWNLOAD
from pipelines.registry.names import CHAMPION, FLOW, LM
from pipelines.registry.promote import promote
from pipelines.registry.register import register
from pipelines.registry.versions import champion_version
from pipelines.tracking.store import tracking_uri
from tests.finished import SHARDS_ROOT, change_json, score, write_finished_project
from tests.support import change_params

pytestmark = pytest.mark.slow

PREDICT = """
import json, sys
import mlflow, pandas as pd
mlflow.set_tracking_uri(sys.argv[1])
model = mlflow.pyfunc.load_model(sys.argv[2])
frame = pd.DataFrame({"prompt": ["却说曹操", "Abc，玄德曰"]})
once, again = (model.predict(frame, params=json.loads(sys.argv[3])) for _ in range(2))
assert once.equals(again), "the same seed gave something else"
try:
    model.predict(pd.DataFrame({"prompt": ["曹" * 5000]}), params=json.loads(sys.argv[3]))
except ValueError as error:
    assert "prompt: expected at most" in str(error)
else:
    raise AssertionError("a prompt of 5,000 characters was read")
import enigma
print(json.dumps({"rows": once.to_dict("list"), "enigma": enigma.__file__}))
"""


def files_of(store: Path, name: str, version: str) -> Path:
    model = MlflowClient(tracking_uri()).get_model_version(name, version)
    [directory] = store.glob(f"mlartifacts/**/{model.source.removeprefix('models:/')}")
    return directory / "artifacts"


def predict(store: Path, cwd: Path, model: str, params: dict) -> dict:
    # As on a user's machine: this variable hides what Python writes beside the source.
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    run = subprocess.run(
        [sys.executable, "-c", PREDICT, tracking_uri(), model, json.dumps(params)],
        cwd=cwd, env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    return json.loads(run.stdout.strip().splitlines()[-1])


def test_a_version_says_what_it_is_made_of(store: Path) -> None:
    version = MlflowClient(tracking_uri()).get_model_version(LM, "2")
    tags = version.tags
    assert len(tags["content_sha256"]) == 64
    assert tags["profile"] == "sanguo"
    assert len(tags["git_commit"]) == 40
    assert tags["shards_root"] == SHARDS_ROOT
    bits = score(4.58)["bits_per_character"]
    assert tags["bits_per_character"] == str(bits)
    assert tags["is_causal"] == "True"
    reports = store / "reports" / "sanguo"
    assert tags["certificate_sha256"] == sha256_file(reports / "validate" / "certificate.json")
    assert tags["evaluation_sha256"] == sha256_file(reports / "evaluate" / "evaluation.json")
    assert tags["dvc_lock_sha256"] == sha256_file(store / "dvc.lock")
    run = MlflowClient(tracking_uri()).get_run(version.run_id)
    assert run.info.run_name == "train"
    assert run.info.status == "FINISHED"
    assert run.data.metrics["registered/bits_per_character"] == bits
    assert "却说曹操" in version.description
    registered = MlflowClient(tracking_uri()).get_registered_model(LM)
    assert registered.description in version.description
    assert "language model" in registered.description


def test_a_flow_names_its_language_model(store: Path) -> None:
    version = MlflowClient(tracking_uri()).get_model_version(FLOW, "1")
    assert version.tags["lm_version"] in {"1", "2"}
    assert version.tags["test_nll_nats_per_dim"] == "0.5"


def test_proof_and_card_are_part_of_the_version(store: Path) -> None:
    artifacts = files_of(store, FLOW, "1") / "artifacts"
    assert {path.name for path in (artifacts / "proof").iterdir()} == {
        *("certificate.json", "evaluation.json", "training.json", "params.yaml", "dvc.lock"),
        *("environment.txt", "losses.parquet"),
        *("flow_training.json", "sample_flow.json"),
    }
    card = files_of(store, LM, "1") / "artifacts" / "card"
    page = (card / "model_card.html").read_text(encoding="utf-8")
    assert page.count("data:image/png;base64,") == 2
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "http" not in page
    texts = (card / "continuations.html").read_text(encoding="utf-8")
    assert "曹操大喜" in texts, "what really follows"
    assert "| bits_per_character | 6.654 |" in (card / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_nothing_is_pickled_and_requirements_are_pinned(store: Path) -> None:
    for name in (LM, FLOW):
        directory = files_of(store, name, "1")
        assert not [*directory.rglob("*.pkl"), *directory.rglob("*.bin"), *directory.rglob("*.pt")]
        requirements = (directory / "requirements.txt").read_text(encoding="utf-8")
        assert "torch==" in requirements
        assert "+" not in requirements


def test_the_same_content_is_one_version(store: Path) -> None:
    """Comments, other profiles and the lock file say nothing about a model."""
    params, lock = store / "params.yaml", store / "dvc.lock"
    before = {path: path.read_bytes() for path in (params, lock)}
    change_params(params, {".profiles.wiki-zh.train.ranks": 3})
    params.write_text(params.read_text(encoding="utf-8") + "# a remark\n", encoding="utf-8")
    lock.write_text(lock.read_text(encoding="utf-8") + "# another\n", encoding="utf-8")
    for name in (LM, FLOW):
        assert register(name) == "2"
        assert len(MlflowClient(tracking_uri()).search_model_versions(f"name = '{name}'")) == 2
    for path, content in before.items():
        path.write_bytes(content)


def test_a_version_carries_its_environment_and_its_profile_alone(store: Path) -> None:
    proof = files_of(store, LM, "2") / "artifacts" / "proof"
    environment = (proof / "environment.txt").read_text(encoding="utf-8")
    assert environment.startswith("# python 3.")
    assert f"torch=={installed_version('torch')}" in environment
    params = load_params(proof / "params.yaml")
    assert list(params.profiles) == ["sanguo"]
    assert params.profile == load_params(store / "params.yaml").profile
    card = files_of(store, LM, "2") / "artifacts" / "card"
    text = (card / "MODEL_CARD.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\w+) \|", text, re.MULTILINE)
    assert {"bits_per_character", "shards_root", "content_sha256"} <= set(rows)
    assert len(set(rows)) == len(rows), "a fact stands once"
    figures = re.findall(r"!\[.*\]\((figures/.*\.png)\)", text)
    assert len(figures) == 2
    assert all((card / name).is_file() for name in figures)


def test_a_fresh_process_and_the_command_line_print_the_same_text(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"max_new_tokens": 8, "seed": 3, "top_k": 5, "repetition_penalty": 1.2}
    found = predict(store, tmp_path, f"models:/{LM}@champion", settings)
    first, second = found["rows"]["text"]
    generate("却说曹操", settings)
    assert capsys.readouterr().out == f"{first}\n"
    assert first.startswith("却说曹操")
    assert len(first) > len("却说曹操")
    assert second.startswith("Abc，玄德曰")
    assert Path(found["enigma"]).is_relative_to(store), "the version brings its own code"


def test_a_version_that_ran_in_a_fresh_process_is_still_as_signed(
    store: Path, tmp_path: Path
) -> None:
    """MLflow runs the code of a local store where it lies; two compilers would write there."""
    version = files_of(store, FLOW, "2")
    before = _signed_files(version)
    found = predict(store, tmp_path, f"models:/{FLOW}/2", {"seed": 3})
    assert all(0 < value < 100 for value in found["rows"]["nll_nats_per_dim"])
    assert _signed_files(version) == before


def _signed_files(version: Path) -> dict[Path, bytes]:
    files = (path for path in version.rglob("*") if path.is_file())
    return {path: path.read_bytes() for path in files if path.name != WRITTEN_BY_A_DOWNLOAD}


def test_damaged_weights_are_refused(finished: Path) -> None:
    with (finished / "models/sanguo/lm/model.safetensors").open("ab") as weights:
        weights.write(b"x")
    with pytest.raises(UserError, match="expected sha256"):
        register(LM)
    assert not MlflowClient(tracking_uri()).search_registered_models()


def test_an_evaluation_of_other_weights_is_refused(finished: Path) -> None:
    evaluation = finished / "reports/sanguo/evaluate/evaluation.json"
    change_json(evaluation, "weights_sha256", "6" * 64)
    with pytest.raises(UserError, match="got one of 6666"):
        register(LM)
    write_json(finished / "models/sanguo/lm/training.json", {})
    with pytest.raises(UserError, match="expected sha256 None"):
        register(LM)
    write_json(finished / "models/sanguo/flow/flow_training.json", {})
    with pytest.raises(UserError, match="over the weights None"):
        register(FLOW)


def test_a_flow_needs_its_language_model_and_its_own_samples(
    finished: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # As on a user's machine: MLflow runs the code that it stores, which Python compiles.
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    with pytest.raises(UserError, match="expected a flow over a registered enigma-lm") as refusal:
        register(FLOW)
    assert refusal.value.fix.endswith(f"then `enigma register --model {LM}` first")
    (finished / ".git").rename(finished / "git")
    with pytest.raises(GateError, match="not a git repository") as unknown:
        register(LM)
    assert unknown.value.gate == "commit"
    assert "work in a clone of the repository" in unknown.value.fix
    (finished / "git").rename(finished / ".git")
    with pytest.raises(UserError, match="expected a champion") as none:
        champion_version()
    assert none.value.fix == "run `enigma register` and `enigma promote`"
    assert register(LM) == "1"
    assert sys.dont_write_bytecode is False
    compiled = list(files_of(finished, LM, "1").rglob(COMPILED))
    assert len(compiled) > 5
    assert all(path.is_file() for path in compiled)
    assert promote(LM).outcome == "promoted"
    assert champion_version() == "1"
    metrics = finished / "reports/sanguo/sample_flow/metrics.json"
    change_json(metrics, "flow_weights_sha256", "6" * 64)
    with pytest.raises(UserError, match="got those of 6666"):
        register(FLOW)


def test_parameters_that_the_outputs_were_not_made_with_are_refused(finished: Path) -> None:
    lock = YAML(typ="safe").load((finished / "dvc.lock").read_text(encoding="utf-8"))
    made_with = lock["stages"]["train"]["params"]["params.yaml"]
    made_with["profiles.sanguo.promote"] = {"baseline": "5-gram"}
    (finished / "dvc.lock").write_text(json.dumps(lock), encoding="utf-8")
    with pytest.raises(UserError, match=r"expected profiles\.sanguo\.promote as in stage train"):
        register(LM)


def test_a_model_is_registered_with_the_lock_that_made_it(finished: Path) -> None:
    """Without one nothing said which parameters made it, and every check of them passed."""
    lock = finished / "dvc.lock"
    text = lock.read_text(encoding="utf-8")
    for profile, said in (("wiki-zh", "found no train, evaluate"), (None, "found no such file")):
        lock.unlink()
        if profile is not None:
            lock.write_text(text.replace("sanguo", profile), encoding="utf-8")
        with pytest.raises(UserError, match=f"expected .*{said}") as refusal:
            register(LM)
        assert not MlflowClient(tracking_uri()).search_registered_models()
    command = refusal.value.fix.split("`")[1].split()
    assert command == ["dvc", "repro"]
    outs = {
        "train": ["models/sanguo"],
        "evaluate": ["reports/sanguo/validate", "reports/sanguo/evaluate"],
        "train_flow": [],
        "sample_flow": ["reports/sanguo/sample_flow"],
    }
    stages = {
        stage: {
            "cmd": "true",
            "params": [f"profiles.sanguo.{stage}"],
            "outs": [{path: {"persist": True}} for path in paths],
        }
        for stage, paths in outs.items()
    }
    (finished / "dvc.yaml").write_text(json.dumps({"stages": stages}), encoding="utf-8")
    for arguments in (["init", "--quiet"], command[1:]):
        subprocess.run([sys.executable, "-m", "dvc", *arguments], check=True, capture_output=True)
    assert register(LM) == "1"
    assert register(FLOW) == "1"


@pytest.mark.parametrize("missing", ["validate", "evaluate", "train"])
def test_a_missing_report_is_named(finished: Path, missing: str) -> None:
    shutil.rmtree(finished / "reports" / "sanguo" / missing)
    with pytest.raises(UserError, match=f"expected reports/sanguo/{missing}/"):
        register(LM)


@pytest.mark.usefixtures("tables")
def test_a_run_of_another_store_is_replaced(workspace: Path, caplog, capsys) -> None:
    write_finished_project(workspace, "0" * 32)
    assert register(LM) == "1"
    assert "is not in this store" in caplog.text
    printed = capsys.readouterr()
    assert "version '1'" not in printed.err + printed.out, "MLflow announces what the log says"


def test_a_champion_that_is_gone_keeps_no_successor_out(finished: Path, caplog) -> None:
    assert register(LM) == "1"
    MlflowClient(tracking_uri()).set_registered_model_alias(LM, CHAMPION, "1")
    shutil.rmtree(finished / "mlartifacts")
    assert register(LM) == "2"
    assert "the card has no texts of the champion" in caplog.text
