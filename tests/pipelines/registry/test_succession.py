"""A successor must be better on the same items, by more than chance explains."""

import dataclasses
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from mlflow.tracking import MlflowClient

from enigma.configuration_enigma import EnigmaConfig
from enigma.jacobian_logdet import EnigmaFlow
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.base.artifacts import read_manifest, write_manifest
from pipelines.base.errors import GateError
from pipelines.base.workspace import Workspace
from pipelines.data.shards import TOKEN_DTYPE, ShardReader
from pipelines.data.text.shard_vocabulary import ShardVocabulary
from pipelines.data.text.vocabulary import UNK_TOKEN_ID, make_tokenizer, vocabulary_tokens
from pipelines.flow.gaussian import Gaussian
from pipelines.flow.state_flow import StateFlow
from pipelines.language_model.losses import Losses, evaluation_set_sha256
from pipelines.language_model.scoring import UNK_CHARGE_BITS
from pipelines.registry import succession
from pipelines.registry.gates import Gate, Proof
from pipelines.registry.names import FLOW, LM
from pipelines.registry.promote import RefusalError, promote, rollback
from pipelines.registry.register import register
from pipelines.registry.succession import _flow_losses, _lm_losses, succession_gates
from pipelines.tracking.store import tracking_uri
from tests.finished import change_json, write_lock
from tests.support import LENGTH, SEQUENCES, make_tiny_shards

# Characters that entries which no text uses were given to.
OURS, THEIRS = {5: "㐀"}, {5: "㐁", 6: "㐀"}


@pytest.fixture
def directory(store: Path) -> Path:
    """The files of the first champion."""
    model = MlflowClient(tracking_uri()).get_model_version(LM, "1")
    [found] = store.glob(f"mlartifacts/**/{model.source.removeprefix('models:/')}")
    return found / "artifacts"


@pytest.fixture
def champion(directory: Path) -> Proof:
    return Proof.read(directory, LM)


def candidate(champion: Proof, *, shift: float, noise: float = 0.02) -> Proof:
    rng = np.random.default_rng(3)
    units = champion.losses.units
    change = shift + noise * rng.normal(size=len(units))
    losses = Losses(champion.losses.document, units, champion.losses.loss_nats + change * units)
    return dataclasses.replace(champion, losses=losses)


def last(gates: list[Gate]) -> Gate:
    return gates[-1]


def learned(characters: dict[int, str]) -> tuple[str, ...]:
    """The vocabulary of a corpus whose characters were given entries."""
    tokens = list(vocabulary_tokens("bert-base-chinese"))
    for index, character in characters.items():
        tokens[index] = character
    return tuple(tokens)


def write_shards_with(characters: dict[int, str], rows: Sequence[Sequence[int]]) -> ShardReader:
    """Make the project's shards: with this vocabulary, and test sequences that end in `rows`."""
    shards = Workspace("sanguo").shards
    shards = shards if shards.is_dir() else make_tiny_shards()
    vocabulary = ShardVocabulary.read(shards)
    dataclasses.replace(vocabulary, tokens=learned(characters)).write(shards)
    tokens_NL = np.random.default_rng(0).integers(1000, 1040, (SEQUENCES["test"], LENGTH))
    for row, ids in enumerate(rows):
        tokens_NL[row, -len(ids) :] = ids
    (shards / "test-00000.bin").write_bytes(tokens_NL.astype(TOKEN_DTYPE).tobytes())
    made = read_manifest(shards)
    facts = {name: value for name, value in made.items() if name not in {"stage", "root", "files"}}
    write_manifest(shards, stage=made["stage"], facts=facts)
    return ShardReader(shards, "test")


def certified(proof: Proof, root: str | None = None) -> Proof:
    """The proof with a certificate of the project's shards, or of another root."""
    root = root or read_manifest(Workspace("sanguo").shards)["root"]
    return dataclasses.replace(proof, certificate={**proof.certificate, "shards_root": root})


@pytest.fixture
def learner(store: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A published language model that can produce the character it learned, and no other."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = EnigmaForCausalLM(EnigmaConfig(
        d=16, num_heads=2, num_rev_blocks=1, num_rotors=1, num_transformer_layers=1,
        max_len=LENGTH, conv1x1_positions=4,
    ))  # fmt: skip
    possible = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    possible[[*OURS, UNK_TOKEN_ID, *range(1000, 1041)]] = True
    model.set_reachable(torch.arange(1000, 1040), possible)
    artifacts = tmp_path / "champion" / "artifacts"
    model.save_pretrained(artifacts / "model")
    make_tokenizer(learned(OURS), lower_case=True).save_pretrained(artifacts / "model")
    return artifacts


@pytest.mark.parametrize(
    ("shift", "allow_tie", "holds"),
    [
        (-0.05, False, True),
        (0.0, False, False),
        (0.0, True, True),
        (0.05, False, False),
        (0.05, True, False),
    ],
)
def test_only_what_is_better_succeeds(champion, directory, shift, allow_tie, holds) -> None:
    proof = candidate(champion, shift=shift)
    gate = last(succession_gates(LM, champion, proof, directory, allow_tie=allow_tie))
    assert gate.name == "successor"
    assert gate.holds is holds
    assert "95 % interval" in gate.figures
    assert "40 documents" in gate.figures


def test_another_evaluation_set_is_no_ground_for_a_comparison(champion, directory) -> None:
    other = {"shards_root": "5" * 64, "sha256": "7" * 64}
    evaluation = {**champion.evaluation, "evaluation_set": other}
    proof = dataclasses.replace(candidate(champion, shift=-0.05), evaluation=evaluation)
    gate = last(succession_gates(LM, champion, proof, directory, allow_tie=True))
    assert (gate.name, gate.holds) == ("evaluation_set", False)
    assert "7777" in gate.bound
    assert "eeee" in gate.figures
    assert "could not be scored again" in gate.figures


def test_other_shards_than_the_candidates_are_not_scored(
    champion, directory, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards_with({}, [])
    evaluation = {**champion.evaluation, "evaluation_set": {"sha256": "7" * 64}}
    proof = dataclasses.replace(champion, evaluation=evaluation)
    for root, said in ((None, "has another one"), ("6" * 64, "has not the candidate's")):
        judged = certified(proof, root)
        gate = last(succession_gates(LM, champion, judged, directory, allow_tie=True))
        assert (gate.name, gate.holds) == ("evaluation_set", False)
        assert said in gate.figures
        assert gate.fix.startswith("run `enigma promote` where the candidate's shards are")


def test_the_champion_is_scored_on_the_candidates_set_where_its_shards_are(
    champion, directory, tmp_path, monkeypatch
) -> None:
    monkeypatch.chdir(tmp_path)
    reader = write_shards_with({}, [])
    name = evaluation_set_sha256(reader, np.arange(len(reader)))
    evaluation = {**champion.evaluation, "evaluation_set": {"sha256": name}}
    items = np.array(["1"] * len(reader), dtype=object)
    units = np.full(len(reader), 15.0)
    for loss, holds in ((0.5, True), (30.0, False)):
        losses = Losses(items, units, loss * units)
        proof = certified(dataclasses.replace(champion, losses=losses, evaluation=evaluation))
        gates = succession_gates(LM, champion, proof, directory, allow_tie=False)
        assert "the champion was scored on the candidate's" in gates[0].figures
        assert last(gates).name == "successor"
        assert last(gates).holds is holds


@pytest.mark.parametrize("name", [LM, FLOW])
def test_a_champion_is_not_scored_on_shards_that_have_changed(
    champion, directory, tmp_path, monkeypatch, name
) -> None:
    monkeypatch.chdir(tmp_path)
    shards = write_shards_with({}, []).directory
    proof = certified(champion)
    test = shards / "test-00000.bin"
    test.write_bytes((shards / "train-00000.bin").read_bytes()[-test.stat().st_size :])
    reigning = dataclasses.replace(champion, losses=None)
    gate = last(succession_gates(name, reigning, proof, directory, allow_tie=True))
    assert (gate.name, gate.holds) == ("evaluation_set", False)
    assert "could not be scored again: data/sanguo/shards/test-00000.bin: expected" in gate.figures
    assert gate.fix.startswith(f"restore it with `dvc checkout --force {shards}`")
    assert "delete" not in gate.fix


def test_a_champion_reads_another_corpus_in_its_own_ids(learner: Path, profile) -> None:
    """Ids 5 and 6 are characters of the new corpus; it has one of them at 5, the other not."""
    workspace = Workspace("sanguo")
    write_shards_with(OURS, [[5, 1000], [UNK_TOKEN_ID, 5], [UNK_TOKEN_ID, UNK_TOKEN_ID]])
    _, own = _lm_losses(learner, workspace, profile)
    reader = write_shards_with(THEIRS, [[6, 1000], [5, 6], [5, UNK_TOKEN_ID]])
    name, found = _lm_losses(learner, workspace, profile)
    assert name == evaluation_set_sha256(reader, np.arange(len(reader)))
    # What [UNK] hides from it alone is charged; what the candidate lacks too costs both the same.
    hidden_N = np.array([0, 1, 1] + [0] * (len(reader) - 3))
    charged = own.loss_nats + hidden_N * UNK_CHARGE_BITS * np.log(2)
    assert found.loss_nats == pytest.approx(charged)
    # What it knows and cannot produce is [UNK] as well; a first token is not predicted.
    write_shards_with({5: "㐁"}, [[5, *[1000] * (LENGTH - 1)], [2000]])
    _, found = _lm_losses(learner, workspace, profile)
    write_shards_with(OURS, [[UNK_TOKEN_ID, *[1000] * (LENGTH - 1)], [UNK_TOKEN_ID]])
    _, own = _lm_losses(learner, workspace, profile)
    hidden_N = np.array([0, 1] + [0] * (len(reader) - 2))
    assert found.loss_nats == pytest.approx(own.loss_nats + hidden_N * UNK_CHARGE_BITS * np.log(2))


def test_a_worse_candidate_from_another_corpus_is_refused(learner, champion, profile) -> None:
    """Read in raw ids, the champion would lose infinitely much, and whatever came would win."""
    write_shards_with(THEIRS, [[5], [6]])
    name, scored = _lm_losses(learner, Workspace("sanguo"), profile)
    evaluation = {**champion.evaluation, "evaluation_set": {"sha256": name}}
    for shift, holds in ((3.0, False), (-3.0, True)):
        losses = dataclasses.replace(scored, loss_nats=scored.loss_nats + shift * LENGTH)
        proof = certified(dataclasses.replace(champion, losses=losses, evaluation=evaluation))
        gates = succession_gates(LM, champion, proof, learner.parent, allow_tie=False)
        assert [gate.name for gate in gates] == ["evaluation_set", "successor"]
        assert last(gates).holds is holds
        assert f"{shift * LENGTH / (LENGTH - 1) / np.log(2):+.4f} bits" in last(gates).figures


def test_a_champion_with_a_loss_that_is_not_finite_is_not_succeeded(champion, directory) -> None:
    losses = champion.losses.loss_nats.copy()
    losses[3] = np.inf
    broken = dataclasses.replace(champion.losses, loss_nats=losses)
    reigning = dataclasses.replace(champion, losses=broken)
    proof = candidate(champion, shift=-0.05)
    gate = last(succession_gates(LM, reigning, proof, directory, allow_tie=True))
    assert (gate.name, gate.holds) == ("successor", False)
    assert "expected finite losses of the champion" in gate.figures


@pytest.mark.parametrize(("name", "model"), [(LM, "model"), (FLOW, "language_model")])
def test_a_champion_of_other_code_is_refused_in_words(
    directory, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, model: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_shards_with({}, [])
    files = tmp_path / "version" / "artifacts" / model
    shutil.copytree(directory / "artifacts" / "model", files)
    reigning = certified(dataclasses.replace(Proof.read(directory, LM), losses=None))
    for change, said in (
        (lambda: change_json(files / "config.json", "d", 32), "mismatch"),
        ((files / "model.safetensors").unlink, "found no model.safetensors"),
    ):
        change()
        gates = succession_gates(name, reigning, reigning, files.parents[1], allow_tie=True)
        assert [(gate.name, gate.holds) for gate in gates] == [("evaluation_set", False)]
        assert said in gates[0].figures
        assert "delete its version in MLflow" in gates[0].fix


def test_a_flow_reads_another_corpus_in_the_ids_of_its_language_model(
    learner: Path, profile
) -> None:
    language_model = learner / "language_model"
    shutil.copytree(learner / "model", language_model)
    shutil.rmtree(learner / "model")
    states_ND = torch.randn(200, 16, generator=torch.Generator().manual_seed(0))
    flow = EnigmaFlow.build(16, 1, hidden_channels=4, coupling="affine")
    for parameter in flow.parameters():  # a fresh one is its Gaussian, whatever it reads
        torch.nn.init.normal_(parameter, std=0.1)
    StateFlow(flow, Gaussian.fit(states_ND, noise_std=0.1)).save(learner / "model")
    workspace = Workspace("sanguo")
    reader = write_shards_with(OURS, [])
    _, own = _flow_losses(learner, workspace, profile)
    first, second = vocabulary_tokens("bert-base-chinese")[1000:1002]
    write_shards_with(OURS | {1000: second, 1001: first}, [])
    _, others = _flow_losses(learner, workspace, profile)
    assert others.loss_nats != pytest.approx(own.loss_nats), "the same ids are other characters"
    tokens_NL = reader.gather(np.arange(len(reader)))
    swapped_NL = np.where(tokens_NL // 2 == 500, 2001 - tokens_NL, tokens_NL)
    (reader.directory / "test-00000.bin").write_bytes(swapped_NL.astype(TOKEN_DTYPE).tobytes())
    _, found = _flow_losses(learner, workspace, profile)
    assert found.loss_nats == pytest.approx(own.loss_nats)


@pytest.mark.parametrize(
    "error", [torch.OutOfMemoryError("out of memory"), OSError(24, "Too many open files")]
)
def test_a_fault_of_the_machine_is_no_reason_to_delete_a_champion(
    champion, directory, tmp_path, monkeypatch, error
) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.chdir(tmp_path)
    write_shards_with({}, [])
    monkeypatch.setattr(succession, "_lm_losses", fail)
    reigning = dataclasses.replace(champion, losses=None)
    gate = last(succession_gates(LM, reigning, certified(champion), directory, allow_tie=True))
    assert (gate.name, gate.holds) == ("evaluation_set", False)
    assert str(error) in gate.figures
    assert "delete" not in gate.fix


def test_a_champion_that_cannot_be_scored_can_be_replaced(copied_store: Path) -> None:
    """By the way out that the refusal of such a champion names."""
    metrics = copied_store / "reports" / "sanguo" / "sample_flow" / "metrics.json"
    change_json(metrics, "evaluation_set_sha256", "7" * 64)
    write_lock(copied_store)
    assert register(FLOW) == "3"
    with pytest.raises(RefusalError) as refusal:
        promote(FLOW)
    assert refusal.value.gate == "evaluation_set"
    MlflowClient(tracking_uri()).delete_model_version(FLOW, "1")
    assert promote(FLOW).outcome == "promoted"


def test_a_champion_of_an_older_schema_can_be_succeeded(champion, directory, tmp_path) -> None:
    """Its parameters may lack what is asked for today: nothing of them is needed."""
    old = tmp_path / "params.yaml"
    old.write_text("profile: sanguo\nprofiles: {sanguo: {train: {ranks: 1}}}\n", encoding="utf-8")
    reigning = dataclasses.replace(champion, params_file=old)
    proof = candidate(champion, shift=-0.05)
    assert last(succession_gates(LM, reigning, proof, directory, allow_tie=False)).holds


def test_a_champion_without_losses_is_scored_or_the_candidate_refused(champion, directory) -> None:
    old = dataclasses.replace(champion, losses=None)
    proof = candidate(champion, shift=-0.05)
    gate = last(succession_gates(LM, old, proof, directory, allow_tie=True))
    assert (gate.name, gate.holds) == ("evaluation_set", False)


@pytest.mark.parametrize("name", [LM, FLOW])
def test_a_champion_that_is_better_stays(store: Path, name: str) -> None:
    """Version 2 is champion for a moment; version 1, which is worse, may not succeed it."""
    assert promote(name).outcome == "promoted"
    try:
        with pytest.raises(GateError, match=r"against the champion, 95 % interval") as refusal:
            promote(name, "1", allow_tie=True)
        assert refusal.value.gate == "successor"
        assert "+0.0" in str(refusal.value)
    finally:
        assert rollback(name, reason="the end of a test") == "1"
