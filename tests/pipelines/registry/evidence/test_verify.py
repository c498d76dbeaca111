"""A version is verified offline: in the store, as a directory, as a bundle, and by strangers."""

import json
import re
import shutil
import subprocess
import sys
import tarfile
from dataclasses import replace
from pathlib import Path

import pytest

from pipelines.base.artifacts import read_manifest, sha256_file
from pipelines.base.errors import GateError, UserError
from pipelines.base.workspace import Workspace
from pipelines.cli.verify import export_version, verify_version
from pipelines.language_model.published import load_network
from pipelines.registry.content import origins_of
from pipelines.registry.evidence.keys import (
    key_path,
    own_key,
    public_pem,
    signing_params,
    trust,
)
from pipelines.registry.evidence.links import stage_links
from pipelines.registry.evidence.stored import opened
from pipelines.registry.evidence.verify import _losses_gate, has_shards, verify
from pipelines.registry.evidence.version import (
    FOLDER,
    KEY_FILE,
    LINK_KIND,
    VERSION_FILE,
    evidence_gates,
    full_evidence_gates,
    is_signed,
    read_statement,
    sign_version,
)
from pipelines.registry.gates import Proof
from pipelines.registry.names import LM
from pipelines.registry.succession import _lm_losses
from tests.support import REPOSITORY, change_params, make_tiny_shards

OFFLINE = """
import socket, sys
def refuse(*arguments): raise OSError("no network in this test")
socket.socket.connect = refuse
from pipelines.cli.verify import verify_version
verify_version(sys.argv[1], [])
loaded = {"mlflow", "prefect", "dvc"} & set(sys.modules)
assert not loaded, loaded
"""


@pytest.fixture
def bundle(store: Path, tmp_path: Path) -> Path:
    path = tmp_path / "lm.tar"
    assert export_version(path, "enigma-lm@champion") == "enigma-lm version 1"
    return path


def unpacked(bundle: Path, root: str = "enigma-lm-1") -> Path:
    with tarfile.open(bundle) as archive:
        archive.extractall(bundle.parent / "there", filter="data")
    return bundle.parent / "there" / root


def test_the_champion_is_verified_without_mlflow_and_network(store: Path) -> None:
    run = subprocess.run(
        [sys.executable, "-c", OFFLINE, "enigma-lm@champion"],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert run.returncode == 0, run.stderr[-3000:]
    for gate in ("signed_files", "model_signature", "ledger_evidence", "causality_again"):
        assert gate in run.stdout


def test_a_stranger_trusts_a_key_and_nothing_else(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = tmp_path / "publisher.pem"
    key.write_text(public_pem(own_key().public_key), encoding="utf-8")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "stranger"))
    with pytest.raises(GateError, match="one of the trusted keys") as refusal:
        verify_version(str(bundle), [])
    assert "--key" in refusal.value.fix
    with opened(str(bundle)) as stored:
        gates = verify(stored, trust([key]))
    assert all(gate.holds for gate in gates)
    assert {"causality_again", "signed_gates", "perplexity"} < {gate.name for gate in gates}
    assert not key_path().exists(), "a verification makes no key"
    assert "through another channel" in refusal.value.fix
    # The other half of the advice: the key is trusted wherever a version is used.
    assert "`signing.trusted_keys` in params.yaml" in refusal.value.fix
    params = tmp_path / "params.yaml"
    shutil.copy(REPOSITORY / "params.yaml", params)
    change_params(params, {".signing.trusted_keys": [str(key)]})
    monkeypatch.chdir(tmp_path)
    with opened(str(bundle)) as stored:
        assert all(
            gate.holds
            for gate in evidence_gates(stored.directory, trust(), name=stored.name, tags={})
        )


def test_an_unsigned_bundle_of_someone_else_comes_back_signed(bundle: Path) -> None:
    version = unpacked(bundle)
    (version / VERSION_FILE).unlink()
    with pytest.raises(GateError, match="the version is unsigned") as refusal:
        verify_version(str(version), [])
    assert refusal.value.fix.startswith("if someone else published it, ask them for a signed one")
    verify_version(str(bundle), [])


def test_a_stranger_needs_python_and_openssl_alone(bundle: Path) -> None:
    version = unpacked(bundle)
    script = str(REPOSITORY / "docs" / "verify_evidence.py")
    command = [sys.executable, "-I", script, str(version), str(version / KEY_FILE)]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr
    assert "6 envelopes" in run.stdout, "the version's, and one of each stage"
    (version / "artifacts" / "model" / "config.json").write_text("{}", encoding="utf-8")
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    assert run.returncode != 0
    assert "config.json: signed" in run.stderr
    code = Path(script).read_text(encoding="utf-8").split('"""')[2]
    assert sum(bool(line.strip()) for line in code.split("\n")) <= 30


def test_losses_are_computed_again_where_the_shards_are(
    bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    version = unpacked(bundle)
    proof = Proof.read(version, LM)
    monkeypatch.chdir(tmp_path)
    assert not has_shards(proof)
    root = read_manifest(make_tiny_shards())["root"]
    proof = replace(proof, certificate={**proof.certificate, "shards_root": root})
    assert has_shards(proof)
    artifacts = version / "artifacts"
    _, losses = _lm_losses(artifacts, Workspace("sanguo"), proof.params.profile)
    model = load_network(artifacts / "model")
    assert _losses_gate(model, replace(proof, losses=losses)).holds
    other = replace(proof, losses=replace(losses, loss_nats=losses.loss_nats * 0.99))
    assert not _losses_gate(model, other).holds
    assert not _losses_gate(model, replace(proof, losses=None)).holds
    shards = Workspace("sanguo").shards
    test = shards / "test-00000.bin"
    test.write_bytes((shards / "train-00000.bin").read_bytes()[: test.stat().st_size])
    gate = _losses_gate(model, replace(proof, losses=losses))
    assert (gate.name, gate.holds) == ("losses_again", False)
    assert "test-00000.bin: expected sha256" in gate.figures
    assert f"`dvc checkout --force {shards}`" in gate.fix


def test_what_is_no_version_is_refused(store: Path, tmp_path: Path) -> None:
    (tmp_path / "noise.tar").write_bytes(b"noise")
    evil = tmp_path / "evil.tar"
    with tarfile.open(evil, "w") as archive:
        archive.add(store / "params.yaml", arcname="../params.yaml")
    for target in (str(tmp_path / "noise.tar"), str(evil), str(tmp_path), "enigma-lm/99", "other"):
        with pytest.raises(UserError, match="expected"):
            verify_version(target, [])
    with pytest.raises(UserError, match="expected a file that can be written"):
        export_version(Path(), "enigma-lm@champion")


def test_a_reference_without_its_store_is_verified_as_a_bundle(
    store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
        with (
            pytest.raises(UserError, match="expected a SQLite store") as refusal,
            opened("enigma-lm/2"),
        ):
            pass
    command = refusal.value.fix.split("`")[1].split()
    assert command == ["enigma", "export", "enigma-lm.tar", "enigma-lm/2"]
    bundle = tmp_path / command[2]
    assert export_version(bundle, command[3]) == "enigma-lm version 2"
    for target in (bundle, unpacked(bundle, "enigma-lm-2")):
        with opened(str(target)) as stored:
            assert (stored.name, is_signed(stored.directory)) == (LM, True)


def test_a_key_is_made_once_for_its_owner_alone(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    assert own_key().public_key == own_key().public_key
    path = key_path()
    assert path.stat().st_mode & 0o777 == 0o600
    path.chmod(0o644)
    with pytest.raises(UserError, match="only its owner can read") as refusal:
        own_key()
    subprocess.run(refusal.value.fix.split("`")[1].split(), check=True)
    assert own_key()
    path.write_text("no key", encoding="utf-8")
    with pytest.raises(UserError, match="expected a key on the curve") as refusal:
        own_key()
    command = refusal.value.fix.split("`")[1]
    subprocess.run(["bash", "-c", f"{command} > {path}"], check=True, capture_output=True)
    made = own_key().public_key
    # A private key is no public one; its owner writes the public one as the message says.
    with pytest.raises(UserError, match="expected a public key") as refusal:
        trust([path])
    public = refusal.value.fix.split("`")[1].replace("FILE", str(path))
    done = subprocess.run(public.split(), input=path.read_bytes(), capture_output=True, check=True)
    (tmp_path / "public.pem").write_bytes(done.stdout)
    assert list(trust([tmp_path / "public.pem"]).keys) == [made.keyid]
    path.unlink()
    assert own_key().public_key != made
    monkeypatch.setenv("XDG_CONFIG_HOME", "/dev/null")
    with pytest.raises(UserError, match="expected a directory for the signing key") as refusal:
        own_key()
    assert "`signing.key` in params.yaml" in refusal.value.fix
    change_params(workspace / "params.yaml", {".signing.key": str(tmp_path / "mine.pem")})
    assert own_key()
    change_params(workspace / "params.yaml", {".signing": None})
    with pytest.raises(UserError, match="expected the section `signing`") as refusal:
        own_key()
    line = refusal.value.fix.split("`")[1]
    lines = (workspace / "params.yaml").read_text(encoding="utf-8").split("\n")
    kept = [text for text in lines if not text.startswith("signing:")]
    (workspace / "params.yaml").write_text("\n".join([*kept, line, ""]), encoding="utf-8")
    assert not signing_params().sigstore


@pytest.mark.parametrize(
    ("named", "got"), [("folder", "a directory"), ("/dev/null", "no regular file")]
)
def test_a_key_that_is_no_file_is_named_and_left_as_it_is(
    workspace: Path, tmp_path: Path, named: str, got: str
) -> None:
    """The advice for a key that others can read, `chmod` or delete it, would break a directory."""
    folder = tmp_path / "folder"
    folder.mkdir(mode=0o755)
    change_params(workspace / "params.yaml", {".signing.key": str(tmp_path / named)})
    for read in (own_key, trust):
        with pytest.raises(UserError, match=f"expected a private key, got {got}") as refusal:
            read()
        assert not {"chmod", "delete"} & set(re.findall(r"\w+", refusal.value.fix))
    assert "name a file: `signing.key` in params.yaml" in refusal.value.fix
    change_params(workspace / "params.yaml", {".signing.key": str(folder / "mine.pem")})
    assert own_key().public_key.keyid in trust().keys


def test_a_stage_is_stated_with_its_materials_and_products(workspace: Path) -> None:
    lock = {
        "schema": "2.0",
        "stages": {
            "ingest": {"cmd": "a", "outs": [{"path": "data/raw", "md5": "1" * 32 + ".dir"}]},
            "clean": {
                "cmd": "b",
                "deps": [{"path": "data/raw", "md5": "1" * 32 + ".dir"}],
                "outs": [{"path": "report.json", "md5": "99914b932bd37a50b983c5e7c90ae93b"}],
                "params": {"params.yaml": {"x": 1}},
            },
        },
    }
    (workspace / "dvc.lock").write_text(json.dumps(lock), encoding="utf-8")
    hashes = {"report.json": "5" * 64}
    links = stage_links(workspace / "dvc.lock", {"git_commit": "c"}, hashes)
    made, read = links["ingest"]["subject"], links["clean"]["predicate"]["materials"]
    assert made == read == [{"name": "data/raw/", "digest": {"md5": "1" * 32}}]
    [report] = links["clean"]["subject"]
    assert report["digest"] == {"md5": "99914b932bd37a50b983c5e7c90ae93b", "sha256": "5" * 64}
    hashes = {"data/raw/one.parquet": "6" * 64, "data/raw2": "7" * 64}
    links = stage_links(workspace / "dvc.lock", {"git_commit": "c"}, hashes)
    assert links["ingest"]["subject"] == [
        *made,
        {"name": "data/raw/one.parquet", "digest": {"sha256": "6" * 64}},
    ]
    [report] = links["clean"]["subject"]
    assert "sha256" not in report["digest"], "nobody found it to be what the lock says"
    assert links["clean"]["predicateType"] == LINK_KIND
    assert links["clean"]["predicate"]["environment"]["parameters"] == {"params.yaml": {"x": 1}}


def test_stages_that_do_not_fit_one_another_or_the_version_are_refused(bundle: Path) -> None:
    version = unpacked(bundle)
    stated = read_statement(version, trust())["predicate"]
    lock = version / "artifacts" / "proof" / "dvc.lock"
    tokenizer, losses = "models/sanguo/lm/tokenizer.json", "reports/sanguo/evaluate/losses.parquet"
    evaluation = "reports/sanguo/evaluate/evaluation.json"
    hashes = {
        place: sha256_file(version / "artifacts" / file)
        for file, place in origins_of(below(version / "artifacts"), LM, "sanguo").items()
    }
    other = {"name": tokenizer, "digest": {"md5": "2" * 32}}
    for change, read, refused in (
        ({}, [], None),
        ({}, [other], f"evaluate read {tokenizer}"),
        ({tokenizer: "3" * 64}, [], "model/tokenizer.json: a stage made sha256 3333"),
        ({losses: "3" * 64}, [], "proof/losses.parquet: a stage made sha256 3333"),
        ({evaluation: "3" * 64}, [], "proof/evaluation.json: a stage made sha256 3333"),
        # A hash that is missing vouches for nothing.
        ({tokenizer: None}, [], "model/tokenizer.json: a stage made sha256 None"),
        ({losses: None}, [], "proof/losses.parquet: a stage made sha256 None"),
    ):
        made = {place: sha256 for place, sha256 in (hashes | change).items() if sha256}
        links = stage_links(lock, {"git_commit": "c"}, made)
        if read:
            was = {"name": tokenizer, "digest": {"md5": "1" * 32, "sha256": made[tokenizer]}}
            links["train"]["subject"].append(was)
            links["evaluate"]["predicate"]["materials"] = read
        shutil.rmtree(version / FOLDER)
        sign_version(version, stated, links, own_key())
        [_, gate] = full_evidence_gates(version, trust())
        assert (gate.name, gate.holds) == ("stages", refused is None)
        assert gate.figures.startswith(refused or "5 stages")


def below(directory: Path) -> list[str]:
    files = (path for path in directory.rglob("*") if path.is_file())
    return [path.relative_to(directory).as_posix() for path in files]


def test_without_a_network_sigstore_is_refused_in_words(
    workspace: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("https_proxy", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))

    def sign(version: Path, *, sigstore: bool) -> Path:
        (version / "artifacts" / "model").mkdir(parents=True)
        (version / "artifacts" / "model" / "weights").write_bytes(b"0")
        change_params(workspace / "params.yaml", {".signing.sigstore": sigstore})
        return sign_version(version, {"model": LM, "tags": {}}, {}, own_key())

    with pytest.raises(UserError, match="expected Sigstore to sign model") as refusal:
        sign(tmp_path / "one", sigstore=True)
    assert "set `signing.sigstore: false` in params.yaml" in refusal.value.fix
    evidence = sign(tmp_path / "other", sigstore=False)
    assert sorted(path.name for path in evidence.iterdir()) == [
        *("key.pub", "model.sig", "version.dsse.json")
    ]
