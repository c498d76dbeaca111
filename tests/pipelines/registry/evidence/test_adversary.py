"""Someone who can write to the store, the artifacts and the ledger, but has no trusted key.

Versions 1 and 2 have both been champion; 2 is. Each case damages both in the same way. Every
entry point must refuse by the name of a gate, and nothing may move.
"""

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.artifacts import sha256_file
from pipelines.base.errors import GateError
from pipelines.cli.history import show_history
from pipelines.registry import ledger
from pipelines.registry.content import COMPILED, content_of_version, hash_content
from pipelines.registry.evidence.envelopes import write_sealed
from pipelines.registry.evidence.keys import own_key, public_pem, trust
from pipelines.registry.evidence.stored import opened
from pipelines.registry.evidence.verify import verify
from pipelines.registry.evidence.version import (
    FOLDER,
    KEY_FILE,
    VERSION_FILE,
    evidence_gates,
    read_statement,
    sign_version,
)
from pipelines.registry.lineage import lineage
from pipelines.registry.names import CHAMPION, CODE, LM, MODELS
from pipelines.registry.promote import promote, rollback
from pipelines.registry.register import register
from pipelines.registry.versions import load_champion
from pipelines.tracking.store import tracking_uri
from tests.finished import change_json, copy_project
from tests.support import REPOSITORY, change_params

WEIGHTS = "artifacts/model/model.safetensors"
Damage = Callable[[Path, str], None]


@pytest.fixture(scope="module")
def project(registered_project: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A copy of the registered project in which version 2 succeeded version 1."""
    there = copy_project(registered_project, tmp_path_factory.mktemp("adversary") / "project")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{there}/mlflow.db")
        patch.chdir(there)
        assert promote(LM).outcome == "promoted"
        yield there


@pytest.fixture
def versions(project: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Path]]:
    """The directories of both versions; files, tags and alias are put back afterwards."""
    monkeypatch.chdir(project)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{project}/mlflow.db")
    client = MlflowClient(tracking_uri())
    found = {}
    for number in "12":
        source = client.get_model_version(LM, number).source.removeprefix("models:/")
        found[number] = project / "mlartifacts" / "models" / source / "artifacts"
    roots = [*found.values(), project / ".enigma"]
    before = {
        path: path.read_bytes() for root in roots for path in root.rglob("*") if path.is_file()
    }
    tags = {number: dict(client.get_model_version(LM, number).tags) for number in found}
    head = client.get_registered_model(LM).tags[ledger.HEAD_TAG]
    yield found
    for root in roots:
        for path in root.rglob("*"):
            if path.is_file() and path not in before:
                path.unlink()
    for path, content in before.items():
        if not path.is_file() or path.read_bytes() != content:
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
    for number, known in tags.items():
        now = client.get_model_version(LM, number).tags
        for tag, value in known.items():
            if now.get(tag) != value:
                client.set_model_version_tag(LM, number, tag, value)
    client.set_registered_model_alias(LM, CHAMPION, "2")
    client.set_registered_model_tag(LM, ledger.HEAD_TAG, head)


def verify_champion() -> None:
    with opened(f"{LM}@champion") as stored:
        refuse(verify(stored, trust()))


def refuse(gates: list[Any]) -> None:
    for gate in gates:
        if not gate.holds:
            raise GateError(gate.name, gate.comparison, gate.fix)


ENTRY_POINTS: dict[str, Callable[[], object]] = {
    "load": load_champion,  # `generate`, `chat` and `serve`
    "verify": verify_champion,
    "history": lambda: show_history(LM),
    "lineage": lambda: lineage(f"{LM}@champion"),
    "promote": lambda: promote(LM, "1", dry_run=True, allow_tie=True),
    "rollback": lambda: rollback(LM, reason="to a version that was damaged too"),
}


def flip(name: str) -> Damage:
    """Change one character that keeps the file readable."""

    def damage(version: Path, _number: str) -> None:
        content = bytearray((version / name).read_bytes())
        # The last digit that has a next one; of code without digits, a letter.
        digits = [place for place, byte in enumerate(content) if byte in b"12345678"]
        place = (digits or [place for place, byte in enumerate(content) if byte in b"abc"])[-1]
        content[place] += 1
        (version / name).write_bytes(bytes(content))

    return damage


def set_json(name: str, dotted: str, value: Any) -> Damage:
    return lambda version, _number: change_json(version / "artifacts" / name, dotted, value)


def zero_weights_and_rewrite_the_proof(version: Path, _number: str) -> None:
    weights = version / WEIGHTS
    content = bytearray(weights.read_bytes())
    content[-4000:] = bytes(4000)
    weights.write_bytes(bytes(content))
    for report in ("training.json", "evaluation.json"):
        change_json(version / "artifacts/proof" / report, "weights_sha256", sha256_file(weights))


def rewrite_the_tags_too(version: Path, number: str) -> None:
    zero_weights_and_rewrite_the_proof(version, number)
    client = MlflowClient(tracking_uri())
    proof = version / "artifacts" / "proof"
    content = hash_content(content_of_version(version, code_name=CODE[LM].name))
    for tag, value in {
        "content_sha256": content,
        "weights_sha256": sha256_file(version / WEIGHTS),
        "evaluation_sha256": sha256_file(proof / "evaluation.json"),
    }.items():
        client.set_model_version_tag(LM, number, tag, value)


def sign_again_with_another_key(version: Path, number: str) -> None:
    zero_weights_and_rewrite_the_proof(version, number)
    stated = read_statement(version, trust([version / KEY_FILE]))["predicate"]
    shutil.rmtree(version / FOLDER)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(version.parent / "forger"))
        sign_version(version, stated, {}, own_key())


def date_it_back(version: Path, _number: str) -> None:
    path = version / VERSION_FILE
    envelope = json.loads(path.read_text(encoding="utf-8"))
    stated = read_statement(version, trust())
    stated["predicate"]["created"] = "2020-01-01T00:00:00+00:00"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CONFIG_HOME", str(version.parent / "forger"))
        write_sealed(path, stated, own_key())
    forged = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**forged, "signatures": envelope["signatures"]}), encoding="utf-8")


def exchange_the_evidence(version: Path, number: str) -> None:
    """Give each version the evidence of the other one; called for both, so done once."""
    if number == "2":
        [other] = [
            path.parents[2]
            for path in version.parents[1].glob(f"*/artifacts/{VERSION_FILE}")
            if path.parents[2] != version
            and read_statement(path.parents[2], trust())["predicate"]["model"] == LM
        ]
        mine, theirs = (read_all(place / FOLDER) for place in (version, other))
        for place, files in ((version, theirs), (other, mine)):
            for name, content in files.items():
                (place / FOLDER / name).write_bytes(content)


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def edit_tags(_version: Path, number: str) -> None:
    client = MlflowClient(tracking_uri())
    client.set_model_version_tag(LM, number, "bits_per_character", "1.0")


def move_the_alias(_version: Path, _number: str) -> None:
    MlflowClient(tracking_uri()).set_registered_model_alias(LM, CHAMPION, "1")


def ledger_lines(change: Callable[[list[bytes]], list[bytes]]) -> Damage:
    def damage(_version: Path, number: str) -> None:
        if number == "1":
            path = ledger.ledger_path()
            lines = path.read_bytes().split(b"\n")[:-1]
            path.write_bytes(b"".join(line + b"\n" for line in change(lines)))

    return damage


def roll_ledger_and_head_back(_version: Path, number: str) -> None:
    """Both files as they were one move earlier, and the alias with them."""
    if number == "1":
        path = ledger.ledger_path()
        lines = path.read_bytes().split(b"\n")[:-1]
        path.write_bytes(b"".join(line + b"\n" for line in lines[:-1]))
        client = MlflowClient(tracking_uri())
        # The flow was promoted before the last move: its tag has the head of that time.
        older = client.get_registered_model("enigma-flow").tags[ledger.HEAD_TAG]
        head = {"envelope": json.loads(older), "line": lines[-2].decode()}
        ledger.head_path().write_text(json.dumps(head), encoding="utf-8")
        client.set_registered_model_alias(LM, CHAMPION, "1")


def forge_the_head(_version: Path, number: str) -> None:
    if number == "1":
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("XDG_CONFIG_HOME", str(ledger.ledger_path().parent / "forger"))
            ledger.ledger_path().unlink()
            ledger.head_path().unlink()
            entry = {"action": "promote", "model": LM, "to": "2", "why": {}}
            # A forger does not look at the heads in MLflow.
            blind = SimpleNamespace(search_registered_models=lambda _: [])
            ledger.append(ledger.prepare(blind, entry))


def delete_the_head(_version: Path, number: str) -> None:
    if number == "1":
        ledger.head_path().unlink()


def forge_the_tag(_version: Path, _number: str) -> None:
    tag = json.loads(ledger.head_path().read_text(encoding="utf-8"))["envelope"]
    tag["signatures"][0]["keyid"] = "6" * 64
    client = MlflowClient(tracking_uri())
    client.set_registered_model_tag(LM, ledger.HEAD_TAG, json.dumps(tag))


def compile_the_code(version: Path, _number: str) -> None:
    compiled = version / "code" / COMPILED
    compiled.mkdir(exist_ok=True)
    (compiled / "model.cpython-311.pyc").write_bytes(b"not what model.py says")


CASES: dict[str, tuple[Damage, set[str]]] = {
    "weights": (flip(WEIGHTS), {"content", "signed_files", "weights"}),
    "tokenizer": (flip("artifacts/model/tokenizer.json"), {"content", "signed_files"}),
    "configuration": (flip("artifacts/model/config.json"), {"content", "signed_files"}),
    "code": (flip("code/enigma/model.py"), {"content", "signed_files"}),
    "served code": (flip("lm_pyfunc.py"), {"content", "signed_files"}),
    "MLflow's description": (flip("MLmodel"), {"signed_files"}),
    "requirements": (flip("requirements.txt"), {"signed_files"}),
    "model card": (flip("artifacts/card/MODEL_CARD.md"), {"signed_files"}),
    "environment": (flip("artifacts/proof/environment.txt"), {"recorded", "signed_files"}),
    "lock": (flip("artifacts/proof/dvc.lock"), {"recorded", "signed_files"}),
    "parameters": (flip("artifacts/proof/params.yaml"), {"content", "signed_files"}),
    "one more file": (
        lambda version, _: (version / "artifacts/model/extra.json").write_text("{}"),
        {"content", "signed_files"},
    ),
    "one file less": (
        lambda version, _: (version / "artifacts/model/tokenizer_config.json").unlink(),
        {"content", "signed_files"},
    ),
    "compiled code": (compile_the_code, {"signed_files"}),
    "guard against it": (flip(f"code/enigma/{COMPILED}"), {"signed_files"}),
    "weights and proof": (zero_weights_and_rewrite_the_proof, {"content", "signed_files"}),
    "weights, proof and tags": (rewrite_the_tags_too, {"signed_files", "recorded"}),
    "evaluation of another model": (
        set_json("proof/evaluation.json", "weights_sha256", "6" * 64),
        {"content", "signed_files", "evaluated_weights"},
    ),
    "a better evaluation": (
        set_json("proof/evaluation.json", "test.bits_per_character", 1.0),
        {"content", "signed_files", "baseline"},
    ),
    "certificate of other data": (
        set_json("proof/certificate.json", "shards_root", "6" * 64),
        {"content", "signed_files", "shards"},
    ),
    "no evidence": (
        lambda version, _: shutil.rmtree(version / FOLDER),
        {"signature", "ledger_evidence"},
    ),
    "another key": (sign_again_with_another_key, {"signature", "content"}),
    "public key exchanged": (flip(KEY_FILE), {"signed_files", "signature"}),
    "model signature": (flip(f"{FOLDER}/model.sig"), {"signed_files"}),
    "time changed": (date_it_back, {"signature"}),
    "evidence of another version": (exchange_the_evidence, {"signed_files"}),
    "tags in MLflow": (edit_tags, {"signed_facts"}),
    "alias moved by hand": (move_the_alias, {"ledger"}),
    "ledger cut": (ledger_lines(lambda lines: lines[:-2]), {"ledger"}),
    "ledger reordered": (ledger_lines(lambda lines: lines[::-1]), {"ledger"}),
    "ledger emptied": (ledger_lines(lambda _: []), {"ledger"}),
    "ledger line changed": (
        ledger_lines(lambda lines: [*lines[:-1], lines[-1].replace(b"promote", b"trusted")]),
        {"ledger"},
    ),
    "ledger rolled back": (roll_ledger_and_head_back, {"ledger"}),
    "ledger forged": (forge_the_head, {"signature", "ledger"}),
    "head deleted": (delete_the_head, {"ledger"}),
    "head in MLflow forged": (forge_the_tag, {"signature"}),
}
# What only MLflow knows; a verification does not ask it.
ONLY_WITH_MLFLOW = {"head in MLflow forged", "ledger rolled back"}
# It moves to a version that its own gates vouch for, wherever the alias is now.
WAYS_BACK = {"alias moved by hand", "ledger rolled back"}


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_what_was_tampered_with_is_refused_by_name_everywhere(
    versions: dict[str, Path], case: str
) -> None:
    damage, expected = CASES[case]
    for number, version in versions.items():
        damage(version, number)
    lines = ledger.ledger_path().read_bytes() if ledger.ledger_path().exists() else b""
    for name, enter in ENTRY_POINTS.items():
        if (name == "verify" and case in ONLY_WITH_MLFLOW) or (
            name == "rollback" and case in WAYS_BACK
        ):
            continue
        with pytest.raises(GateError) as refusal:
            enter()
        assert refusal.value.gate in expected, (case, name, str(refusal.value))
        assert refusal.value.fix
    assert ledger.ledger_path().read_bytes() == lines, "nothing moved"


def test_a_key_that_is_trusted_no_more_signs_nothing(
    versions: dict[str, Path], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A key was stolen: its owner has a new one, and an old store is brought back."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "new key"))
    own_key()
    for name, enter in ENTRY_POINTS.items():
        with pytest.raises(GateError, match="one of the trusted keys") as refusal:
            enter()
        assert refusal.value.gate == "signature", name
        assert "trusted_keys" in refusal.value.fix


def test_a_stolen_key_is_replaced_as_the_page_says(
    copied_store: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """docs/registry.md: sign again, trust the old key for one promotion, and never again."""
    page = (REPOSITORY / "docs" / "registry.md").read_text(encoding="utf-8")
    assert "`enigma promote --allow-tie`" in page
    old = tmp_path / "old.pub"
    old.write_text(public_pem(own_key().public_key))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "new key"))
    own_key()
    with pytest.raises(GateError, match="one of the trusted keys"):
        load_champion()
    for name in MODELS:
        assert register(name) == "3"
    change_params(copied_store / "params.yaml", {".signing.trusted_keys": [str(old)]})
    for name in MODELS:
        assert promote(name, allow_tie=True).outcome == "promoted"
    change_params(copied_store / "params.yaml", {".signing.trusted_keys": []})
    assert load_champion().version == "3"
    verify_champion()
    # What the old key signed is refused, the earlier champion too.
    with pytest.raises(GateError, match="one of the trusted keys"):
        rollback(LM, reason="to a version of the old key")


def test_a_copy_by_a_tool_that_drops_guards_is_whole(versions: dict[str, Path]) -> None:
    """Docker and DVC ignore the name, wherever it stands."""
    version = versions["2"]
    guards = [path for path in version.rglob(COMPILED) if path.is_file()]
    for guard in guards:
        guard.unlink()
    assert guards
    gates = evidence_gates(version, trust(), name=LM, tags={})
    assert {gate.name: gate.holds for gate in gates} == dict.fromkeys(
        ("signature", "signed_files", "signed_facts"), True
    )


def test_what_is_whole_is_never_refused(versions: dict[str, Path]) -> None:
    """20 times in a test; 1,000 times in benchmarks/registry/false_alarms.py."""
    known = trust()
    for _ in range(10):
        for version in versions.values():
            refuse(evidence_gates(version, known, name=LM, tags={}))
    load_champion()
    verify_champion()
