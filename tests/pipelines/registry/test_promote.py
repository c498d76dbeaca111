"""Every gate refuses a planted bad proof, and the champion stays."""

import hashlib
import json
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from mlflow.tracking import MlflowClient

from pipelines.base.errors import GateError, UserError
from pipelines.cli.history import show_history
from pipelines.registry import ledger
from pipelines.registry.evidence.keys import own_key, trust
from pipelines.registry.evidence.version import read_statement, sign_version
from pipelines.registry.gates import Proof, language_model_gate, lm_gates
from pipelines.registry.names import FLOW, LM
from pipelines.registry.promote import RefusalError, promote, restore, rollback
from pipelines.registry.register import register
from pipelines.registry.versions import Version, champion_version, load_champion
from pipelines.tracking.store import tracking_uri
from tests.finished import change_json, score
from tests.support import change_params

LM_CASES = [
    ("certificate", "certificate.json", "passed", False),
    ("certificate", "certificate.json", "passed", "true"),
    ("overlap", "certificate.json", "overlap", {}),
    ("overlap", "certificate.json", "overlap.train/test.title", 1),
    ("overlap", "certificate.json", "overlap.train/test", {}),
    ("overlap", "certificate.json", "overlap.validation/test.title", None),
    ("shards", "certificate.json", "shards_root", "6" * 64),
    ("shards", "training.json", "shards_root", "6" * 64),
    ("shards", "evaluation.json", "evaluation_set", {}),
    ("certificate_sha256", "training.json", "certificate_sha256", "6" * 64),
    ("weights", "training.json", "weights_sha256", "6" * 64),
    ("evaluated_weights", "evaluation.json", "weights_sha256", "6" * 64),
    ("causality", "evaluation.json", "causality", {"is_causal": False}),
    ("causality", "evaluation.json", "causality", {}),
    ("round_trip", "evaluation.json", "round_trip.float32", 1e-4),
    ("round_trip", "evaluation.json", "round_trip.float32", None),
    ("round_trip", "evaluation.json", "round_trip.float32_reversed", 1e-4),
    ("baseline", "evaluation.json", "test", score(5.3)),
    ("baseline", "evaluation.json", "baselines", {}),
    # Better than its own nats and counts say, and a baseline that is worse than its nats.
    ("baseline", "evaluation.json", "test.bits_per_character", 6.0),
    ("baseline", "evaluation.json", "test.unk_characters", 3),
    ("baseline", "evaluation.json", "test.unk_characters", None),
    ("baseline", "evaluation.json", "baselines.5-gram.bits_per_character", 8.0),
    ("baseline", "evaluation.json", "baselines.5-gram.loss_nats", None),
    ("perplexity", "evaluation.json", "validation", {"perplexity": 1.0}),
    ("perplexity", "evaluation.json", "validation", {"perplexity": None}),
    # Better than it was: no bound is broken, but it is not what was registered.
    ("content", "evaluation.json", "validation.bits_per_character", 1.0),
    ("losses", "evaluation.json", "test", score(4.0)),
    ("perplexity", "evaluation.json", "test.perplexity", 1001.0),
    ("perplexity", "evaluation.json", "test.perplexity", 7.9),
    ("alarms", "evaluation.json", "alarms", [{"name": "not_causal", "message": "it looks ahead"}]),
]
FLOW_CASES = [
    ("certificate", "certificate.json", "passed", False),
    ("flow_shards", "flow_training.json", "shards_root", "6" * 64),
    ("flow_states", "flow_training.json", "lm_weights_sha256", "6" * 64),
    ("flow_round_trip", "sample_flow.json", "round_trip_error", 1.0),
    ("flow_round_trip", "sample_flow.json", "round_trip_error", None),
    ("flow_weights", "sample_flow.json", "flow_weights_sha256", "6" * 64),
    ("losses", "sample_flow.json", "test_nll_nats_per_dim", 0.1),
    ("content", "sample_flow.json", "round_trip_error", 2e-6),
    ("gaussian", "sample_flow.json", "test_nll_nats_per_dim", 0.6),
    # Each measure alone: as bad as the Gaussian's, missing, and no number.
    ("samples", "sample_flow.json", "two_sample_auc", 0.7),
    ("samples", "sample_flow.json", "two_sample_auc", 0.0),
    ("samples", "sample_flow.json", "energy_distance", 0.031),
    ("samples", "sample_flow.json", "true_jensen_shannon_bits", 0.21),
    ("samples", "sample_flow.json", "gaussian_energy_distance", None),
    ("samples", "sample_flow.json", "true_jensen_shannon_bits", "0.1"),
]


def champion(name: str) -> str:
    client = MlflowClient(tracking_uri())
    return str(client.get_model_version_by_alias(name, "champion").version)


def stored(store: Path, name: str, number: str = "2") -> Path:
    """The files of a version in the store."""
    model = MlflowClient(tracking_uri()).get_model_version(name, number)
    [directory] = store.glob(f"mlartifacts/**/{model.source.removeprefix('models:/')}")
    return directory / "artifacts" / "artifacts"


@pytest.fixture
def proof(store: Path) -> Iterator[dict[str, Path]]:
    """The directories of the candidates' proof, put back afterwards."""
    found = {name: stored(store, name) / "proof" for name in (LM, FLOW)}
    before = {path: path.read_bytes() for d in found.values() for path in d.iterdir()}
    yield found
    for path, content in before.items():
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "case"), [(LM, case) for case in LM_CASES] + [(FLOW, case) for case in FLOW_CASES]
)
def test_a_gate_refuses_and_the_champion_stays(proof, name, case) -> None:
    gate, file, field, value = case
    change_json(proof[name] / file, field, value)
    lines = len(ledger.read())
    with pytest.raises(RefusalError, match=f"{name} version 2") as refusal:
        promote(name)
    assert refusal.value.gate == gate
    decision = refusal.value.decision.to_dict()
    assert (decision["model"], decision["version"], decision["outcome"]) == (name, "2", "refused")
    *passed, last = [gate["passed"] for gate in decision["gates"]]
    assert all(passed)
    assert not last
    assert champion(name) == "1"
    assert len(ledger.read()) == lines


def test_the_baseline_is_the_one_of_the_versions_own_parameters(proof) -> None:
    change_params(proof[LM] / "params.yaml", {"promote.baseline": "5-gram"})
    change_json(proof[LM] / "evaluation.json", "baselines.5-gram", score(4.0))
    with pytest.raises(GateError, match=r"5-gram 5\.78"):
        promote(LM)


def test_figures_that_do_not_follow_from_the_nats_are_said_and_computed_again(proof) -> None:
    change_json(proof[LM] / "evaluation.json", "test.bits_per_character", 6.0)
    with pytest.raises(GateError, match=r"6\.0000 .*; test has 6\.6\d+ by its nats") as refusal:
        promote(LM)
    # The command itself runs in tests/e2e.
    assert "`dvc repro --force --single-item evaluate`" in refusal.value.fix


def test_weights_changed_in_the_store_are_refused(store: Path) -> None:
    weights = stored(store, LM) / "model" / "model.safetensors"
    before = weights.read_bytes()
    weights.write_bytes(before + b"x")
    try:
        with pytest.raises(GateError, match="gate `weights`"):
            promote(LM)
    finally:
        weights.write_bytes(before)


@pytest.mark.parametrize("file", ["lm_pyfunc.py", "code/enigma/model.py"])
def test_code_changed_in_the_store_is_refused(store: Path, file: str) -> None:
    code = stored(store, LM).parent / file
    before = code.read_bytes()
    code.write_bytes(before + b"\n")
    try:
        with pytest.raises(GateError, match="gate `content`"):
            promote(LM)
    finally:
        code.write_bytes(before)


def test_a_missing_proof_is_no_traceback(proof) -> None:
    (proof[LM] / "certificate.json").unlink()
    with pytest.raises(UserError, match="found no such file"):
        promote(LM)
    assert champion(LM) == "1"


@pytest.mark.usefixtures("tables")
@pytest.mark.parametrize("version", ["99", None])
def test_an_unknown_version_is_refused(version: str | None) -> None:
    with pytest.raises(UserError, match="found none"):
        promote(LM, version)


@pytest.mark.parametrize("file", ["dvc.lock", "environment.txt"])
def test_what_is_recorded_beside_the_content_is_checked_too(proof, file: str) -> None:
    path = proof[LM] / file
    path.write_text(path.read_text() + "# later\n")
    with pytest.raises(GateError, match=f"{file}: registered as") as refusal:
        promote(LM)
    assert refusal.value.gate == "recorded"


def test_the_ledger_records_every_move_and_rollback_goes_back(store: Path) -> None:
    before = len(ledger.read())
    assert promote(LM, dry_run=True).outcome == "dry run"
    assert promote(LM, "1").outcome == "champion already"
    assert len(ledger.read()) == before
    assert promote(LM).outcome == "promoted"
    assert champion(LM) == "2"
    assert rollback(LM, reason="it speaks in riddles") == "1"
    assert champion(LM) == "1"
    there, back = ledger.read()[before:]
    assert (there["from"], there["to"], back["from"], back["to"]) == ("1", "2", "2", "1")
    assert (there["action"], back["action"]) == ("promote", "rollback")
    assert there["model"] == LM
    assert there["who"]
    assert "5-gram" in there["why"]["baseline"]
    assert "bits per character against the champion" in there["why"]["successor"]
    assert back["why"]["reason"] == "it speaks in riddles"
    assert len(there["evidence_sha256"]["certificate.json"]) == 64
    assert ledger.champions(ledger.read(), LM) == ["1"]


@pytest.mark.parametrize("to", [None, "2", "99"])
def test_a_rollback_goes_only_to_an_earlier_champion(store: Path, to) -> None:
    with pytest.raises(UserError, match="expected an earlier champion"):
        rollback(LM, to=to, reason="")
    assert champion(LM) == "1"


def test_an_alias_moved_by_hand_is_refused_until_it_is_restored(store: Path) -> None:
    client = MlflowClient(tracking_uri())
    client.set_registered_model_alias(FLOW, "champion", "2")
    commands = (
        lambda: show_history(FLOW),
        lambda: promote(FLOW, "2"),
        lambda: champion_version(FLOW),
    )
    for command in commands:
        with pytest.raises(GateError, match=r"expected the alias at version 1, .*, got 2") as found:
            command()
        assert "enigma history --restore" in found.value.fix
    show_history(FLOW, restore=True)
    assert champion_version(FLOW) == "1"


def test_a_deleted_champion_leaves_two_ways_on(copied_store: Path) -> None:
    assert promote(LM).outcome == "promoted"
    MlflowClient(tracking_uri()).delete_model_version(LM, "2")
    with pytest.raises(UserError, match="it was deleted") as refusal:
        restore(LM)
    assert f"enigma rollback --model {LM}" in refusal.value.fix
    assert f"enigma promote --model {LM}" in refusal.value.fix
    assert promote(LM, "1", dry_run=True).outcome == "dry run"
    assert rollback(LM, reason="2 was deleted") == "1"
    show_history(LM)


@pytest.mark.slow
def test_what_a_refusal_advises_leads_on(copied_store: Path) -> None:
    """An edited tag, a damaged champion, a first champion that was deleted."""
    client = MlflowClient(tracking_uri())
    tag = client.get_model_version(LM, "2").tags["perplexity"]
    client.set_model_version_tag(LM, "2", "perplexity", "1.0")
    with pytest.raises(RefusalError, match=r"perplexity: signed 97\.\d+, stored 1\.0") as refusal:
        promote(LM)
    assert "restore the tags of the version in MLflow" in refusal.value.fix
    client.set_model_version_tag(LM, "2", "perplexity", tag)
    assert promote(LM).outcome == "promoted"

    change_json(stored(copied_store, LM) / "proof" / "evaluation.json", "round_trip.float32", 1.0)
    with pytest.raises(GateError, match="gate `content`") as damaged:
        load_champion()
    assert "`enigma rollback`, `enigma register` and `enigma promote`" in damaged.value.fix
    assert rollback(LM, reason="2 is damaged") == "1"
    with pytest.raises(RefusalError, match="relative errors 1") as refusal:
        promote(LM, "2")
    assert "`enigma register` again" in refusal.value.fix
    assert register(LM) == "3", "the same content as 2 had, which it has no more"
    assert promote(LM).outcome == "promoted"
    assert load_champion().version == "3"

    client.delete_model_version(FLOW, "1")
    assert promote(FLOW).outcome == "promoted", "no champion is left to be better than"


def test_bounds_and_a_language_model_as_the_messages_ask_for_them(
    store: Path, tmp_path: Path
) -> None:
    proof = Proof.read(stored(store, LM).parent, LM)
    params = Path(shutil.copy(proof.params_file, tmp_path))
    for bound, holds in ((50, False), (200, True)):
        change_params(params, {"promote.max_perplexity": bound})
        gates = {gate.name: gate for gate in lm_gates(replace(proof, params_file=params))}
        assert gates["perplexity"].holds is holds
        assert "promote.max_perplexity in params.yaml are the bounds" in gates["perplexity"].fix
    client = MlflowClient(tracking_uri())
    gate = language_model_gate(client, replace(proof, weights_sha256="6" * 64))
    assert (gate.holds, gate.fix) == (False, "register the language model under the flow first")
    assert language_model_gate(client, proof).holds


def test_the_alias_is_restored_from_the_ledger(store: Path) -> None:
    MlflowClient(tracking_uri()).delete_registered_model_alias(FLOW, "champion")
    assert restore(FLOW) == "1"
    assert champion(FLOW) == "1"
    show_history(FLOW)


@pytest.mark.parametrize("trust_unsigned", [False, True])
def test_without_the_ledger_that_mlflow_has_a_head_of_nothing_is_promoted(
    copied_store: Path, tmp_path: Path, trust_unsigned: bool
) -> None:
    """As in a fresh clone, which would begin a ledger, and sign it over the one of the others."""
    heads = [MlflowClient(tracking_uri()).get_registered_model(n).tags for n in (LM, FLOW)]
    files, before = (ledger.ledger_path(), ledger.head_path()), len(ledger.read())
    for path in files:
        path.rename(tmp_path / path.name)
    with pytest.raises(GateError, match="or are on another machine") as refusal:
        promote(LM, trust_unsigned=trust_unsigned)
    assert refusal.value.gate == "ledger"
    assert champion(LM) == "1"
    assert heads == [MlflowClient(tracking_uri()).get_registered_model(n).tags for n in (LM, FLOW)]
    _, name, _, head, folder, *_ = refusal.value.fix.replace(" into", "").split()
    assert [Path(folder, name), Path(folder, head)] == list(files)
    for path in files:
        shutil.copy(tmp_path / path.name, folder)
    assert promote(LM).outcome == "promoted"
    assert len(ledger.read()) == before + 1


def test_a_store_from_before_signatures_is_trusted_once_and_in_the_ledger(
    copied_store: Path,
) -> None:
    client = MlflowClient(tracking_uri())
    shutil.rmtree(stored(copied_store, LM, "1") / "evidence")
    ledger.head_path().unlink()
    for name in (LM, FLOW):
        client.delete_registered_model_tag(name, ledger.HEAD_TAG)
    old = [line.replace(b'"statement"', b'"other"') for line in _lines()]
    ledger.ledger_path().write_bytes(_chained(old))
    for command in (lambda: promote(LM), lambda: champion_version(LM), lambda: show_history(LM)):
        with pytest.raises(GateError, match="expected the signed head") as refusal:
            command()
        assert "--trust-unsigned" in refusal.value.fix
    with pytest.raises(RefusalError, match="the version is unsigned"):
        promote(LM, "1")
    assert promote(LM, "1", trust_unsigned=True).outcome == "promoted"
    last = ledger.read()[-1]
    assert (last["action"], last["from"], last["to"]) == ("trust", "1", "1")
    assert last["why"]["trust_unsigned"] == "yes"
    assert load_champion().version == "1"
    show_history(LM)
    # From now on the signed ledger has the hash of its content.
    (stored(copied_store, LM, "1") / "model" / "config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(GateError, match="gate `content`"):
        load_champion()


@pytest.mark.slow
def test_a_version_that_states_no_stages_is_registered_again_or_gone_back_to(
    copied_store: Path,
) -> None:
    """Earlier releases registered one without a lock, and the gate passed on nothing."""
    client, files = MlflowClient(tracking_uri()), stored(copied_store, LM).parent
    stated = read_statement(files, trust())["predicate"]
    del stated["tags"]["dvc_lock_sha256"]
    client.delete_model_version_tag(LM, "2", "dvc_lock_sha256")
    (files / "artifacts" / "proof" / "dvc.lock").unlink()
    shutil.rmtree(files / "artifacts" / "evidence")
    sign_version(files, stated, {}, own_key())
    with pytest.raises(RefusalError, match="0 stages") as refusal:
        promote(LM)
    assert refusal.value.gate == "stages"
    passed = {gate.name: gate.figures for gate in refusal.value.decision.gates}
    assert passed["recorded"] == "4 files as registered"
    assert "run `enigma register`" in refusal.value.fix
    # As a promotion of that release left it.
    version = Version(LM, "2", files, client.get_model_version(LM, "2").tags)
    entry = {"action": "promote", "model": LM, "from": "1", "to": "2", "why": {}}
    line = ledger.prepare(client, {**entry, "evidence_sha256": version.evidence_sha256})
    client.set_registered_model_alias(LM, "champion", "2")
    ledger.append(line)
    ledger.tag_head(client, LM, line.head)
    assert register(LM) == "3"
    assert promote(LM, allow_tie=True).outcome == "promoted"
    assert rollback(LM, reason="3 is no better") == "2"


def _lines() -> list[bytes]:
    return ledger.ledger_path().read_bytes().split(b"\n")[:-1]


def _chained(lines: list[bytes]) -> bytes:
    """Lines with the hashes that they need to be a ledger."""
    done, previous = [], ledger.FIRST
    for line in lines:
        text = json.dumps({**json.loads(line), "previous_sha256": previous})
        previous = hashlib.sha256(text.encode()).hexdigest()
        done.append(f"{text}\n")
    return "".join(done).encode()
