"""Atypical documents come first, and what cannot be scored is refused."""

import json
import os
import re
import shutil
import subprocess
import sys
import tracemalloc
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

import pipelines.cli.score as score_module
from enigma.modeling_enigma import EnigmaForCausalLM
from pipelines.base.artifacts import read_json, sha256_file, write_json
from pipelines.base.errors import UserError
from pipelines.cli.score import (
    DOCUMENTS_PER_PART,
    SHOWN_COLUMNS,
    Scorer,
    score,
    score_parts,
)
from pipelines.cli.scores.store import open_store
from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.flow.documents.document_flow import (
    DIRECTORY,
    TYPICAL_FILE,
    DocumentFlow,
    fit_document_flow,
)
from pipelines.flow.documents.passages import Passages, read_passages
from pipelines.flow.documents.sentence_order import SentenceEnds
from pipelines.flow.documents.typical import SHORTEST, Typical
from pipelines.language_model.published import model_config
from pipelines.params import load_params
from tests.support import LENGTH, REPOSITORY, TINY_RUN, change_params, make_tiny_shards, wait_for

NORMAL_IDS = range(1000, 1040)  # of the tiny shards
FOREIGN_IDS = range(6000, 6040)
NO_SENTENCES = SentenceEnds([], [])
PART = 4
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


def test_short_documents_are_odd_for_their_length_alone(models: Path) -> None:
    """Compared with whole passages, nearly all of them would be odd by state or loss."""
    scorer = Scorer.load(models / "lm", models / "flow")
    rng = np.random.default_rng(1)
    tokens = [rng.choice(NORMAL_IDS, size=SHORTEST).tolist() for _ in range(40)]
    passages = Passages(tokens, np.arange(40), 40)
    reading = read_passages(scorer.model, passages, scorer.flow.ends)
    found = scorer.flow.score(passages, reading)
    assert np.median(np.hypot(found.state_deviation, found.loss_deviation)) < 2.5
    whole = [LENGTH] * len(tokens)
    nll = -scorer.flow.flow.log_prob(reading.states).numpy() / reading.states.shape[1]
    as_if_whole = scorer.flow.state.deviations(nll, np.array(whole))
    assert np.median(np.abs(as_if_whole)) > 2 * np.median(np.abs(found.state_deviation))


def test_the_least_expected_tenth_counts_for_itself(models: Path) -> None:
    """A few misread characters are lost in the mean over all tokens."""
    scorer = Scorer.load(models / "lm", models / "flow")
    rng = np.random.default_rng(1)
    tokens_NL = rng.choice(NORMAL_IDS, size=(5, LENGTH))
    passages = Passages(tokens_NL.tolist(), np.arange(5), 5)
    reading = read_passages(scorer.model, passages, scorer.flow.ends)
    with torch.no_grad():
        ids_NL = torch.from_numpy(tokens_NL)
        nats_NL = scorer.model.lm.nll_nats(scorer.model.lm.hidden_states(ids_NL), ids_NL).numpy()
    highest_N = np.sort(nats_NL)[:, -((LENGTH - 1) // 10) :].mean(axis=1)
    np.testing.assert_allclose(reading.peak_nats, highest_N, rtol=1e-4)
    found = scorer.flow.score(passages, reading)
    misread = scorer.flow.score(passages, replace(reading, peak_nats=reading.peak_nats + 3))
    assert (misread.peak_deviation > found.peak_deviation + 3).all()
    assert (misread.atypicality > found.atypicality).all()
    assert np.array_equal(misread.loss_deviation, found.loss_deviation)


def test_a_passage_gets_the_same_states_alone_and_beside_longer_ones(models: Path) -> None:
    model = EnigmaForCausalLM.from_pretrained(models / "lm").eval()
    ids = [[1000, 1001, 1002], [1003] * LENGTH, [1004]]
    together = read_passages(model, Passages(ids, np.arange(3), 3), NO_SENTENCES)
    for index, mine in enumerate(ids):
        alone = read_passages(model, Passages([mine], np.arange(1), 1), NO_SENTENCES)
        torch.testing.assert_close(together.states[index], alone.states[0])
        assert together.loss_nats[index] == pytest.approx(alone.loss_nats[0])
        assert together.peak_nats[index] == pytest.approx(alone.peak_nats[0])
    assert together.loss_nats[2] == pytest.approx(np.log(21128), rel=1e-6)


def test_sentences_that_do_not_follow_one_another_count_for_themselves(models: Path) -> None:
    scorer = Scorer.load(models / "lm", models / "flow")
    flow = replace(scorer.flow, order=Typical([LENGTH], [-0.1], [0.02], [0.05]))
    rng = np.random.default_rng(1)
    passages = Passages(rng.choice(NORMAL_IDS, size=(4, LENGTH)).tolist(), np.arange(4), 4)
    reading = read_passages(scorer.model, passages, flow.ends)
    assert np.isnan(reading.order_nats).all(), "tokens without a sentence"
    plain = flow.score(passages, reading)
    read = replace(reading, order_nats=np.array([0.1, -0.1, -0.4, np.nan]))
    found = flow.score(passages, read)
    assert found.order_deviation == pytest.approx([4, 0, 0, 0])
    assert found.atypicality[0] > 4 > plain.atypicality[0]
    assert np.array_equal(found.atypicality[1:], plain.atypicality[1:])
    # Where no held-out passage has sentences, nothing is typical of them.
    assert replace(flow, order=None).score(passages, read).order_deviation.tolist() == [0] * 4


def test_the_names_of_special_tokens_in_a_text_are_text(models: Path) -> None:
    """As in the training shards: by their ids, an article about BERT would be infinitely odd."""
    scorer = Scorer.load(models / "lm", models / "flow")
    texts = ["BERT用[MASK]遮住一个字[SEP][PAD]", "[CLS]"]
    passages = Passages.of_texts(scorer.tokenizer, texts, LENGTH)
    special = set(scorer.tokenizer.all_special_ids) - {scorer.tokenizer.unk_token_id}
    assert special.isdisjoint(token for ids in passages.ids for token in ids)
    rows = scorer.score([{"id": text, "title": "", "text": text} for text in texts])
    assert np.isfinite([row["atypicality"] for row in rows]).all()


def test_a_longer_document_is_read_to_its_end(models: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(models / "lm")
    texts = ["曹" * 2 * LENGTH + "操操操", "操" * 3, "曹" * 2 * LENGTH]
    passages = Passages.of_texts(tokenizer, texts, LENGTH)
    assert [len(ids) for ids in passages.ids] == [*[LENGTH] * 3, 3, *[LENGTH] * 2]
    cao, last = passages.ids[0][0], passages.ids[3][0]
    assert passages.ids[2] == [cao] * (LENGTH - 3) + [last] * 3
    values = np.array([1.0, 3.0, 5.0, 7.0, 8.0, 9.0])
    assert passages.mean_by_document(values).tolist() == [3.0, 7.0, 8.5]
    with pytest.raises(UserError, match="document 2 of 2: expected text"):
        Passages.of_texts(tokenizer, ["曹操", " "], LENGTH)


def test_the_flow_is_the_same_after_a_file(models: Path, tmp_path: Path) -> None:
    before = DocumentFlow.load(models / "flow" / DIRECTORY, torch.device("cpu"))
    before.save(tmp_path / "again")
    after = DocumentFlow.load(tmp_path / "again", torch.device("cpu"))
    for part in ("state", "loss", "peak", "order", "length", "ends"):
        assert getattr(after, part) == getattr(before, part)
    replace(before, order=Typical([4, 8], [-0.1, -0.2], [0.1, 0.2], [0.3, 0.4])).save(tmp_path)
    assert DocumentFlow.load(tmp_path, torch.device("cpu")).order.lengths == [4, 8]
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
    shutil.copytree(models / "flow" / DIRECTORY, bare / "flow" / DIRECTORY)
    made = read_json(bare / "flow" / DIRECTORY / TYPICAL_FILE)
    write_json(bare / "flow" / DIRECTORY / TYPICAL_FILE, {"state": made["state"]})
    old = r"(?s)without ends, length, loss, order, peak.*dvc repro train_flow"
    with pytest.raises(UserError, match=old):
        score(str(source), models=bare, output=None, top=1)
    write_json(bare / "flow" / "flow_training.json", {"lm_weights_sha256": "0" * 64})
    with pytest.raises(UserError, match="the language model that the flow was fitted to"):
        score(str(source), models=bare, output=None, top=1)


def test_a_bad_file_and_every_blank_document_is_named_before_anything_is_scored(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr(Scorer, "score")
    first, second = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    first.write_text('{"id": "a", "text": "曹操"}\n')
    second.write_text('{"id": "b", "text": "\\ud83d"}\n')
    with pytest.raises(UserError, match=r"b\.jsonl: line 1: text: .*half a surrogate pair"):
        score(str(tmp_path), models=models, output=None, top=1)
    # The tokenizer drops zero-width characters and what stands for broken bytes.
    blank = ["", " \n", "\u200b", "\ufffd", "\t", "\u3000"]
    lines = [json.dumps({"id": f"b{n}", "text": text}) + "\n" for n, text in enumerate(blank)]
    second.write_text("".join(lines))
    expected = r"text in 7 documents, got none in 'b0', 'b1', 'b2', 'b3', 'b4' and 1 more"
    with pytest.raises(UserError, match=expected):
        score(str(tmp_path), models=models, output=tmp_path / "out" / "scores.jsonl", top=1)
    assert not list((tmp_path / "out").iterdir())
    first.write_text("")
    second.write_text("")
    with pytest.raises(UserError, match="expected documents, got none"):
        score(str(tmp_path), models=models, output=None, top=1)


def run(source: Path, models: Path, output: Path) -> dict[str, bytes]:
    """Score with parts of four documents, and return what is written."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(score_module, "DOCUMENTS_PER_PART", PART)
        score(str(source), models=models, output=output, top=3)
    assert not list(output.parent.glob(".*")), "nothing unfinished is left"
    return {
        ending: output.with_suffix(ending).read_bytes() for ending in (".jsonl", ".png", ".html")
    }


def interrupt(source: Path, models: Path, output: Path, parts: int) -> None:
    """Score so many parts of a source."""
    real = Scorer.score
    left = [parts]

    def limited(self: Scorer, documents: list[dict[str, str]]) -> list[dict[str, str]]:
        if left[0] == 0:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, documents)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Scorer, "score", limited)
        with pytest.raises(KeyboardInterrupt):
            run(source, models, output)


def scored_ids(patch: pytest.MonkeyPatch) -> list[str]:
    """The ids of the documents that are scored from now on."""
    seen: list[str] = []
    real = Scorer.score

    def watched(self: Scorer, documents: list[dict[str, str]]) -> list[dict[str, str]]:
        seen.extend(document["id"] for document in documents)
        return real(self, documents)

    patch.setattr(Scorer, "score", watched)
    return seen


@pytest.mark.slow
def test_a_killed_run_resumes_and_writes_the_same_bytes(
    models: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kinds = {f"d{number}": NORMAL_IDS for number in range(30 * PART)}
    source = write_documents(tmp_path / "crawl.jsonl", kinds, models, LENGTH)
    whole = run(source, models, tmp_path / "whole" / "scores.jsonl")
    output = tmp_path / "killed" / "scores.jsonl"
    unfinished = output.with_name(".scores.jsonl.unfinished")
    with open_store(tmp_path / "empty.jsonl"):
        empty_bytes = (tmp_path / ".empty.jsonl.unfinished").stat().st_size
    some_parts_bytes = empty_bytes + 4 * 4096
    script = (
        "import sys; from pathlib import Path; import pipelines.cli.score as module\n"
        f"module.DOCUMENTS_PER_PART = {PART}; source, models, output = sys.argv[1:]\n"
        "module.score(source, models=Path(models), output=Path(output), top=3)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", script, str(source), str(models), str(output)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    wait_for(lambda: unfinished.is_file() and unfinished.stat().st_size > some_parts_bytes, process)
    process.kill()
    process.communicate()
    assert not output.exists()
    seen = scored_ids(monkeypatch)
    assert run(source, models, output) == whole
    assert 0 < len(seen) < len(kinds)
    assert seen == list(kinds)[-len(seen) :], "what was scored is not scored again"


def test_scores_of_other_documents_or_another_model_are_never_mixed_in(
    models: Path, tmp_path: Path
) -> None:
    kinds = {f"d{number}": NORMAL_IDS for number in range(5 * PART)}
    source = write_documents(tmp_path / "crawl.jsonl", kinds, models, LENGTH)
    other = tmp_path / "other"
    shutil.copytree(models, other)
    typical = read_json(other / "flow" / DIRECTORY / TYPICAL_FILE)
    typical["loss"]["above"] = [3.0] * len(typical["loss"]["above"])
    write_json(other / "flow" / DIRECTORY / TYPICAL_FILE, typical)
    output, fresh = tmp_path / "resumed" / "scores.jsonl", tmp_path / "fresh" / "scores.jsonl"
    with pytest.MonkeyPatch.context() as patch:
        interrupt(source, models, output, parts=3)
        seen = scored_ids(patch)
        resumed = run(source, other, output)
        assert seen == list(kinds), "by another model, everything is scored"
    assert resumed == run(source, other, fresh)

    interrupt(source, models, output, parts=4)
    lines = source.read_text(encoding="utf-8").splitlines(keepends=True)
    lines[PART] = json.dumps({"id": "new", "text": "却说曹操"}) + "\n"
    # Shorter, too: the parts at the end are gone.
    source.write_text("".join(lines[: 3 * PART]), encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        seen = scored_ids(patch)
        resumed = run(source, models, output)
        assert seen == ["new", *list(kinds)[PART + 1 : 2 * PART]]
    assert resumed == run(source, models, fresh)
    assert len(resumed[".jsonl"].splitlines()) == 3 * PART


def test_memory_does_not_grow_with_the_documents() -> None:
    class Light:
        fingerprint = "f"

        def score(self, documents: list[dict[str, str]]) -> list[dict[str, Any]]:
            return [
                {"id": document["id"], "title": "", **dict.fromkeys(SHOWN_COLUMNS, 1.0)}
                for document in documents
            ]

    def peak_bytes(count: int) -> int:
        documents = ({"id": str(n), "title": "", "text": f"{n:05} " * 200} for n in range(count))
        tracemalloc.start()
        with open_store(None) as store:
            for _ in score_parts(Light(), score_module._parts(documents), store):
                pass
            assert sum(1 for _ in store.lines()) == count
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return peak

    peak_bytes(DOCUMENTS_PER_PART)
    assert peak_bytes(30 * DOCUMENTS_PER_PART) < 1.2 * peak_bytes(3 * DOCUMENTS_PER_PART)


def test_a_part_of_long_documents_has_fewer_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(score_module, "CHARACTERS_PER_PART", 10)
    texts = ["一" * 4, "二" * 6, "三" * 50, "四"]
    parts = list(score_module._parts({"text": text} for text in texts))
    assert [[row["text"][0] for row in part] for part in parts] == [["一", "二"], ["三"], ["四"]]


def test_progress_is_one_line_in_a_log_and_not_one_per_part(
    models: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    kinds = {f"d{number}": NORMAL_IDS for number in range(3 * PART)}
    source = write_documents(tmp_path / "crawl.jsonl", kinds, models, LENGTH)
    with caplog.at_level("INFO"):
        run(source, models, tmp_path / "out" / "scores.jsonl")
    lines = [record.getMessage() for record in caplog.records]
    lines = [line for line in lines if re.search(r" in \d+ s$", line)]
    assert [line.partition(" in ")[0] for line in lines] == [
        f"check: {3 * PART} documents",
        f"score: 100% ({3 * PART}/{3 * PART} documents)",
    ]


def test_what_a_document_is_called_cannot_steer_the_terminal(
    models: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "crawl.jsonl"
    row = {"id": "a\tb", "title": "\x1b[2J题\n\u202e", "text": "却说曹操"}
    source.write_text(json.dumps(row) + "\n")
    score(str(source), models=models, output=None, top=1)
    _, line = capsys.readouterr().out.splitlines()
    assert line.startswith("a\\tb\t")
    assert line.endswith("\t\\x1b[2J题\\n\\u202e")
