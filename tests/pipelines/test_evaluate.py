"""Evaluation charges [UNK] honestly, and every alarm can ring."""

import copy
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from enigma.model import EnigmaLM
from pipelines.base.artifacts import read_json, write_json, write_text
from pipelines.base.errors import GateError, UserError
from pipelines.base.workspace import Workspace
from pipelines.count_ngrams import main as count_ngrams
from pipelines.data.shards import ShardReader
from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.evaluate import alarms, main
from pipelines.language_model.baselines import ngram_nll_nats
from pipelines.language_model.classes import TokenClasses
from pipelines.language_model.continuations import (
    continuations_page,
    distinct_2,
    repetition_rate,
    word_share,
)
from pipelines.language_model.published import (
    load_language_model,
    load_network,
    new_language_model,
)
from pipelines.language_model.scoring import ASSIGNED_CHARACTERS, Score, Span
from pipelines.params import load_params
from tests.finished import CONTINUATIONS
from tests.support import TINY_NGRAMS, TINY_RUN

SANE = {
    "validation": {"perplexity": 30.0, "bits_per_character": 5.0},
    "test": {"perplexity": 31.0, "bits_per_character": 5.1},
    "causality": {"is_causal": True},
    "round_trip": {"float32": 1e-6, "float32_reversed": 1e-6},
    "generation": {"repetition_rate": 0.1},
    "bounds": {"min_perplexity": 2.0, "max_round_trip_error": 1e-5, "max_repetition_rate": 0.6},
}


def test_a_sane_report_raises_no_alarm() -> None:
    assert alarms(SANE, lowest_validation_loss=3.0) == []


@pytest.mark.parametrize(
    ("section", "name", "value", "alarm"),
    [
        ("test", "perplexity", 1.02, "perplexity_near_1"),
        ("validation", "perplexity", 1.9, "perplexity_near_1"),
        ("test", "perplexity", None, "not_finite"),
        ("causality", "is_causal", False, "not_causal"),
        ("round_trip", "float32", 1e-4, "round_trip"),
        ("round_trip", "float32", math.nan, "round_trip"),
        ("round_trip", "float32_reversed", 1e-4, "round_trip"),
        ("generation", "repetition_rate", 0.9, "repetitive_generation"),
    ],
)
def test_each_alarm_rings(section: str, name: str, value: object, alarm: str) -> None:
    report = copy.deepcopy(SANE)
    report[section][name] = value
    assert [entry["name"] for entry in alarms(report, lowest_validation_loss=3.0)] == [alarm]


def test_a_validation_loss_that_fell_to_0_rings() -> None:
    (alarm,) = alarms(SANE, lowest_validation_loss=0.01)
    assert alarm["name"] == "validation_loss_near_0"


@pytest.fixture
def published_model(shards: Path, set_params: Any) -> Path:
    """An untrained model where `train` would have published one."""
    set_params(
        {
            **TINY_RUN,
            "model.pointer_channels": 0,  # untrained, it repeats what the text has said
            "evaluate.causality_length": 8,
            "evaluate.generated_tokens": 8,
            "evaluate.batch_size": 4,
        }
    )
    workspace = Workspace("sanguo")
    torch.manual_seed(0)
    count_ngrams()
    model = new_language_model(load_params().profile.model, shards, workspace.ngrams)
    model.save_pretrained(workspace.language_model)
    load_tokenizer("bert-base-chinese").save_pretrained(workspace.language_model)
    history = workspace.report("train") / "history.csv"
    write_text(history, "step,validation_loss_nats\n10,9.9\n")
    return workspace.language_model


def test_an_honest_model_passes(published_model: Path) -> None:
    main()
    report = read_json(Path("reports/sanguo/evaluate/evaluation.json"))
    assert report["alarms"] == []
    assert report["causality"]["is_causal"] is True
    assert report["test"]["tokens"] == 8 * 15
    assert report["test"]["perplexity"] == pytest.approx(21128, rel=0.5), "it knows nothing yet"
    figures = Path("reports/sanguo/evaluate/figures")
    assert (figures / "bits_per_character.png").is_file()
    texts = report["continuations"]["texts"]
    assert len(texts) == 8, "all that the test split has"
    assert report["continuations"]["distinct_2"] > 0.9, "it draws any token"
    page = (figures / "continuations.html").read_text(encoding="utf-8")
    assert texts[-1]["real"] in page
    assert "champion" not in page


def test_a_model_with_a_memory_is_scored_generates_and_beats_chance_untrained(
    shards: Path, set_params: Any, published_model: Path
) -> None:
    set_params({"count_ngrams": TINY_NGRAMS, "model.pointer_channels": 32})
    count_ngrams()
    model = new_language_model(load_params().profile.model, shards, Workspace("sanguo").ngrams)
    model.save_pretrained(published_model)
    main()
    report = read_json(Path("reports/sanguo/evaluate/evaluation.json"))
    assert report["alarms"] == []
    assert report["causality"]["is_causal"] is True
    counted = report["baselines"]
    assert list(counted) == ["unigram", "bigram", "3-gram", "4-gram", "5-gram"]
    # Half of the mixture is the trigram's: a bit more per token, at most.
    assert 0.0 < report["test"]["loss_nats"] - counted["3-gram"]["loss_nats"] < math.log(2)
    assert report["baseline_tokens"]["counted"] == report["baseline_tokens"]["train"] == 64 * 16


def test_the_baseline_is_the_memory_where_nothing_is_pruned(shards: Path, set_params: Any) -> None:
    """One formula, two ways to look counts up."""
    set_params({**TINY_RUN, "count_ngrams": {**TINY_NGRAMS, "order": 5}})
    count_ngrams()
    model = new_language_model(load_params().profile.model, shards, Workspace("sanguo").ngrams)
    lm = model.double().eval().lm
    scored = ShardReader(shards, "test").gather(np.arange(8))
    classes = TokenClasses.of_shards(shards, TINY_NGRAMS["min_token_count"])
    expected = ngram_nll_nats(ShardReader(shards, "train"), scored, classes, order=5)[-1]
    ids_BL = torch.from_numpy(scored.astype(np.int64))
    rows = lm.ngrams.context_rows(lm.classes(ids_BL))[:, :-1].flatten(0, 1)
    target_N, cost_N = lm.reachable.targets(ids_BL[:, 1:].flatten(), torch.float64)
    log_p_N, _ = lm.ngrams.log_prob(rows, target_N, torch.float64)
    assert float((cost_N - log_p_N).sum()) == pytest.approx(expected, rel=1e-12)


def test_a_model_that_knows_the_answers_stops_the_stage(
    published_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The published leak in one line: the hidden state is the embedding of the next token.
    honest = EnigmaLM._hidden_states

    def oracle(self: Any, ids_BL: torch.Tensor, **options: Any) -> torch.Tensor:
        if not torch.is_grad_enabled():
            honest(self, ids_BL, **options)  # or nothing would reach the machine
        return 1e3 * self.embedding.tokens(ids_BL.roll(-1, dims=1))

    model = load_language_model(published_model)
    with torch.no_grad():  # of unit length, or a longer embedding of another token would win
        weight = model.lm.embedding.tokens.weight
        weight.copy_(torch.nn.functional.normalize(weight))
    model.save_pretrained(published_model)

    monkeypatch.setattr(EnigmaLM, "_hidden_states", oracle)
    with pytest.raises(GateError, match="perplexity_near_1"):
        main()
    names = {
        a["name"] for a in read_json(Path("reports/sanguo/evaluate/evaluation.json"))["alarms"]
    }
    assert {"perplexity_near_1", "not_causal"} <= names


def test_a_test_split_of_train_text_is_not_judged_on(published_model: Path) -> None:
    """Its manifest still names the shards that were certified, so no later gate could see it."""
    shards = Workspace("sanguo").shards
    test = shards / "test-00000.bin"
    test.write_bytes((shards / "train-00000.bin").read_bytes()[: test.stat().st_size])
    with pytest.raises(UserError, match=r"test-00000\.bin: expected sha256") as refusal:
        main()
    assert f"`dvc checkout --force {shards}`" in refusal.value.fix
    assert not Path("reports/sanguo/evaluate").exists()


@pytest.mark.parametrize("load", [load_language_model, load_network])
def test_a_model_that_is_missing_or_of_other_code_is_named(
    workspace: Path, published_model: Path, load: Any
) -> None:
    with pytest.raises(UserError, match="expected a language model in"):
        load(workspace / "nowhere")
    config = read_json(published_model / "config.json")
    changed = config | {"num_rev_blocks": config["num_rev_blocks"] + 1}
    write_json(published_model / "config.json", changed)
    with pytest.raises(UserError, match="the weights do not fit this version") as refusal:
        load(published_model)
    assert "use the version of the code that they were trained with" in refusal.value.fix
    write_json(published_model / "config.json", config)
    load(published_model)


def test_unk_is_charged_as_if_drawn_from_all_of_unicode() -> None:
    free = Score(Span(tokens=10, characters=10, unk_characters=0), nll_nats=10 * math.log(2))
    charged = Score(Span(tokens=10, characters=10, unk_characters=2), nll_nats=10 * math.log(2))
    assert free.bits_per_character == pytest.approx(1.0)
    extra = charged.bits_per_character - free.bits_per_character
    assert extra == pytest.approx(0.2 * math.log2(ASSIGNED_CHARACTERS))


def test_repetition_is_the_share_of_repeated_4_grams() -> None:
    assert repetition_rate([[1, 2, 3, 4, 5, 6]]) == 0.0
    assert repetition_rate([[1] * 8]) == pytest.approx(4 / 5)
    assert distinct_2([[1, 1, 1]]) == pytest.approx(1 / 2)
    assert word_share(["洛阳大喜，曰"]) == pytest.approx(4 / 5), "曰 is a word of one character"
    assert word_share(["abc", ""]) == 0.0


def test_texts_are_shown_beside_those_of_the_champion_where_the_prompts_are_the_same() -> None:
    other = copy.deepcopy(CONTINUATIONS)
    other["texts"].insert(0, {"prompt": "次日", "real": "天明", "generated": "大雨"})
    page = continuations_page("texts", other, CONTINUATIONS)
    rows = [row for row in page.split("<tr>") if "天明" in row or "曹操大喜" in row]
    assert ["玄德&lt;i&gt;大惊" in row.rpartition("<td>")[2] for row in rows] == [False, True]
    assert "<i>" not in page
