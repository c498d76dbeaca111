"""Atypical documents come first, and what cannot be scored is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.base.artifacts import read_json, sha256_file, write_json
from pipelines.base.errors import UserError
from pipelines.cli.score import score
from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.flow.document_flow import DIRECTORY, DocumentFlow, Typical, fit_document_flow
from pipelines.flow.passages import Passages, read_passages
from pipelines.language_model.published import model_config
from pipelines.params import load_params
from tests.support import LENGTH, REPOSITORY, TINY_RUN, change_params, make_tiny_shards

NORMAL_IDS = range(1000, 1040)  # of the tiny shards
FOREIGN_IDS = range(6000, 6040)
RECIPE = {
    "train_flow.num_blocks": 1,
    "train_flow.hidden_channels": 8,
    "train_flow.steps": 10,
    "train_flow.batch_size": 32,
    "train_flow.evaluate_every_steps": 5,
}


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`lm/` and `flow/`: an untrained language model, and a flow over its states of tiny shards."""
    directory = tmp_path_factory.mktemp("scored")
    (directory / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    change_params(directory / "params.yaml", {**TINY_RUN, **RECIPE})
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        shards = make_tiny_shards()
        profile = load_params().profile
        torch.manual_seed(0)
        model = EnigmaForCausalLM(model_config(profile.model, shards)).eval()
        model.save_pretrained(directory / "lm")
        load_tokenizer("bert-base-chinese").save_pretrained(directory / "lm")
        flow, _ = fit_document_flow(model, shards, profile.train_flow, lambda _: None)
        flow.save(directory / "flow" / DIRECTORY)
    weights = sha256_file(directory / "lm" / "model.safetensors")
    write_json(directory / "flow" / "flow_training.json", {"lm_weights_sha256": weights})
    return directory


def write_documents(path: Path, kinds: dict[str, range], models: Path, length: int) -> Path:
    """A document of random tokens of each range."""
    tokenizer = AutoTokenizer.from_pretrained(models / "lm")
    rng = np.random.default_rng(0)
    lines = []
    for name, ids in kinds.items():
        chosen = rng.integers(ids.start, ids.stop, size=length).tolist()
        text = "".join(tokenizer.convert_ids_to_tokens(chosen))
        lines.append(json.dumps({"id": name, "text": text}) + "\n")
    path.write_text("".join(lines), encoding="utf-8")
    return path


def test_planted_atypical_documents_come_first(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kinds = {
        **{f"normal {i}": NORMAL_IDS for i in range(20)},
        "one token again and again": range(1000, 1001),
        "another script": FOREIGN_IDS,
    }
    source = write_documents(tmp_path / "crawl.jsonl", kinds, models, 3 * LENGTH)
    score(str(source), models=models, output=tmp_path / "scores.jsonl", top=2)
    shown = [line.split("\t")[0] for line in capsys.readouterr().out.splitlines()]
    assert shown[0] == "id"
    assert set(shown[1:]) == {"one token again and again", "another script"}
    lines = (tmp_path / "scores.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    assert [row["atypicality"] for row in rows] == sorted(
        (row["atypicality"] for row in rows), reverse=True
    )
    assert {row["id"] for row in rows} == set(kinds)
    assert np.median([row["atypicality"] for row in rows if "normal" in row["id"]]) < 3


def test_too_likely_is_atypical_too() -> None:
    typical = Typical.of(np.array([1.0, 2.0, 3.0, 4.0, 5.0]))
    low, middle, high = typical.deviations(np.array([0.0, 3.0, 6.0]))
    assert middle == 0.0
    assert -low == high > 1.0


def test_held_out_passages_without_spread_are_refused() -> None:
    with pytest.raises(UserError, match="expected held-out passages that differ"):
        Typical.of(np.ones(9))


def test_a_passage_gets_the_same_states_alone_and_beside_longer_ones(models: Path) -> None:
    model = EnigmaForCausalLM.from_pretrained(models / "lm").eval()
    ids = [[1000, 1001, 1002], [1003] * LENGTH, [1004]]
    together = read_passages(model, Passages(ids, np.arange(3), 3))
    for index, mine in enumerate(ids):
        alone = read_passages(model, Passages([mine], np.arange(1), 1))
        torch.testing.assert_close(together.states[index], alone.states[0])
        assert together.loss_nats[index] == pytest.approx(alone.loss_nats[0])
    assert together.loss_nats[2] == pytest.approx(np.log(21128), rel=1e-6)


def test_the_rest_of_a_longer_document_is_not_read(models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "lm")
    texts = ["曹" * (2 * LENGTH + 3), "操" * 3]
    passages = Passages.of_texts(tokenizer, texts, LENGTH)
    assert [len(ids) for ids in passages.ids] == [LENGTH, LENGTH, 3]
    assert passages.mean_by_document(np.array([1.0, 3.0, 7.0])).tolist() == [2.0, 7.0]
    with pytest.raises(UserError, match="document 2 of 2: expected text"):
        Passages.of_texts(tokenizer, ["曹操", " "], LENGTH)


def test_the_flow_is_the_same_after_a_file(models: Path, tmp_path: Path) -> None:
    before = DocumentFlow.load(models / "flow" / DIRECTORY, torch.device("cpu"))
    before.save(tmp_path / "again")
    after = DocumentFlow.load(tmp_path / "again", torch.device("cpu"))
    assert (after.state, after.loss) == (before.state, before.loss)
    states_PD = torch.randn(5, 16)
    assert torch.equal(after.flow.log_prob(states_PD), before.flow.log_prob(states_PD))


def test_a_flow_of_another_language_model_or_without_documents_is_refused(
    models: Path, tmp_path: Path
) -> None:
    source = write_documents(tmp_path / "crawl.jsonl", {"a": NORMAL_IDS}, models, LENGTH)
    bare = tmp_path / "models"
    (bare / "flow").mkdir(parents=True)
    (bare / "lm").symlink_to(models / "lm")
    facts = read_json(models / "flow" / "flow_training.json")
    write_json(bare / "flow" / "flow_training.json", facts)
    with pytest.raises(UserError, match="expected a flow over documents"):
        score(str(source), models=bare, output=None, top=1)
    write_json(bare / "flow" / "flow_training.json", {"lm_weights_sha256": "0" * 64})
    with pytest.raises(UserError, match="the language model that the flow was fitted to"):
        score(str(source), models=bare, output=None, top=1)


def test_a_bad_file_is_named_before_a_model_is_loaded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"id": "a", "text": "曹操"}\n')
    (tmp_path / "b.jsonl").write_text('{"id": "b", "text": "\\ud83d"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl: line 1: text: .*half a surrogate pair"):
        score(str(tmp_path), models=tmp_path / "none", output=None, top=1)
    (tmp_path / "a.jsonl").write_text("")
    (tmp_path / "b.jsonl").write_text("")
    with pytest.raises(UserError, match="expected documents, got none"):
        score(str(tmp_path), models=tmp_path / "none", output=None, top=1)
