"""The comparison of language models: its sweep, its classes, its jobs, and what it refuses."""

import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from benchmarks.language_model import quality, quality_table, use
from benchmarks.language_model.classes import MIN_COUNT, PredictedClasses
from benchmarks.language_model.entrants import ALL, SIZES, Size, make, parameters
from benchmarks.language_model.quality_table import RATES, SETTINGS, Setting, chosen, next_rate
from benchmarks.language_model.use import over_ids, token_nll
from benchmarks.peers import check_sizes
from enigma.language_model.memory.ngram_counts import count_ngrams
from enigma.language_model.memory.ngram_memory import NGramMemory
from enigma.language_model.memory.pointer import Pointer
from pipelines.base.artifacts import read_json, write_json
from pipelines.base.errors import UserError
from pipelines.data.shards import ShardReader
from pipelines.data.text.shard_vocabulary import ShardVocabulary
from tests.support import LENGTH


def result(rate, bits, *, seed=0, entrant="enigma", test=9.0):
    scores = {
        part: {"bits_per_character": value}
        for part, value in (("validation", bits), ("held out", bits), ("test", test))
    }
    return {
        "entrant": entrant,
        "rate": rate,
        "seed": seed,
        "scores": scores,
        "mixed": {"weight": 0.5, "scores": scores},
        "parameters": {"without embeddings": 1},
        "curve": [{"tokens": 1, "processor_s": 1.0, "validation_nats": 1.0}],
    }


def bits_of(entry):
    return entry["scores"]["validation"]["bits_per_character"]


SWEEP = [result(0.012, 7.0), result(0.006, 7.2), result(0.024, 7.1)]
TINY = Size(16, 1, {"num_transformer_layers": 1, "num_rev_blocks": 1, "num_rotors": 1}, 40)
WHOLE = [{**entry, "entrant": quality_table.OURS_WHOLE} for entry in SWEEP]


def test_a_sweep_goes_on_until_the_best_rate_is_inside_the_grid() -> None:
    found = []
    best = 0.1
    while (rate := next_rate(found, "enigma")[0]) is not None:
        found.append(result(rate, abs(math.log(rate / best))))
    rates = sorted(entry["rate"] for entry in found)
    assert rates == pytest.approx([0.006, 0.012, 0.024, 0.048, 0.096, 0.192])
    assert next_rate(found, "enigma")[1] == pytest.approx(0.096)


def test_no_test_figure_before_the_sweep_is_over() -> None:
    for unfinished in (
        SWEEP[:2],
        [*SWEEP[:2], result(0.024, 6.9)],
        [result(r, None) for r in RATES],
    ):
        assert chosen(unfinished, "enigma") == []
        assert not any("test" in row["name"] for row in quality_table.table("1M-983k", unfinished))
    assert [entry["rate"] for entry in chosen(SWEEP, "enigma")] == [0.012]
    other_seed = result(0.012, 7.0, seed=1)
    assert chosen([*SWEEP, other_seed, result(0.006, 1.0, seed=1)], "enigma")[1:] == [other_seed]


def test_a_target_can_be_missed() -> None:
    def verdict(test):
        theirs = [
            result(entry["rate"], bits_of(entry), entrant="modern, all ids", test=test)
            for entry in SWEEP
        ]
        rows = quality_table.table("1M-983k", [*WHOLE, *theirs])
        return next(row["met"] for row in rows if row["target"] == "<= 0.92x")

    assert verdict(10.0) is True
    assert verdict(9.5) is False


def test_fewer_tokens_can_be_too_few() -> None:
    def verdict(ours):
        mine = [
            result(e["rate"], bits_of(e), entrant=quality_table.OURS_WHOLE, test=ours)
            for e in SWEEP
        ]
        peer = [result(e["rate"], bits_of(e), entrant="modern, all ids", test=8.0) for e in SWEEP]
        found = {setting: [] for setting in SETTINGS} | {"1M-154k": mine, "1M-983k": peer}
        return [row["met"] for row in quality_table.fewer_tokens(found)]

    assert verdict(7.9) == [True]
    assert verdict(8.1) == [False]


def test_a_part_is_compared_seed_by_seed_once_its_sweep_is_over() -> None:
    mine = [result(e["rate"], bits_of(e), test=8.0) for e in SWEEP]
    theirs = [result(e["rate"], bits_of(e), entrant="no rotors", test=7.6) for e in SWEEP]
    more = [
        result(0.012, 7.0, seed=1, test=7.0),
        result(0.012, 7.0, seed=1, entrant="no rotors", test=7.7),
        result(0.012, 7.0, seed=2, entrant="no rotors", test=1.0),  # nothing to compare it with
    ]
    found = {row["name"]: row["value"] for row in quality_table.part_rows([*mine, *theirs, *more])}
    name = "no rotors (2 of 5 seeds), bits of enigma's"
    assert found[f"{name}, mean"] == pytest.approx((0.95 + 1.1) / 2)
    assert found[f"{name}, smallest"] == pytest.approx(0.95)
    assert found[f"{name}, largest"] == pytest.approx(1.1)
    assert not any(
        "bits of" in row["name"] for row in quality_table.part_rows([*mine, *theirs[:2]])
    )


def test_a_machine_without_its_way_back_passes_its_blocks_once() -> None:
    whole, cut = (make(name, "1M", 8, 0).lm.core for name in ("enigma", "no way back"))
    kinds = [[type(each.part).__name__ for each in core.passes()] for core in (whole, cut)]
    assert kinds[0].count("RevBlock") == 2 * kinds[1].count("RevBlock") == 6
    assert kinds[1][-2:] == ["Reflector", "Plugboard"]


def test_classes_keep_probabilities_over_ids_normalised(shards) -> None:
    classes = PredictedClasses.reachable(shards)
    train = ShardReader(shards, "train")
    _, counts = np.unique(train.gather(np.arange(len(train))), return_counts=True)
    assert classes.count == (counts >= MIN_COUNT).sum() + 1
    p_C = np.random.default_rng(0).dirichlet(np.ones(classes.count))
    every_class = np.arange(classes.count)
    ids_per_class = np.where(every_class == classes.count - 1, classes.others, 1)
    assert np.sum(p_C * np.exp(-classes.extra_nats(every_class)) * ids_per_class) == pytest.approx(
        1
    )
    assert classes.possible_V.sum() == classes.others + classes.count - 1
    assert not PredictedClasses.all_ids(5).extra_nats(np.arange(5)).any()


@pytest.mark.parametrize("size", ["1M", "2M"])
def test_all_entrants_have_one_size(size) -> None:
    counts = {name: parameters(make(name, size, 8, 0))["without embeddings"] for name in ALL}
    check_sizes(counts, "without embeddings", quality.TOLERANCE)


@pytest.fixture
def command(shards, tmp_path, monkeypatch):
    """Run the benchmark on tiny shards; returns the files of finished jobs."""
    monkeypatch.setattr(quality, "LENGTH", LENGTH)
    monkeypatch.setattr(quality, "WEIGHTS", tmp_path / "weights")
    monkeypatch.setattr(quality_table, "RESULTS", tmp_path / "results")
    monkeypatch.setitem(SIZES, "tiny", TINY)
    monkeypatch.setattr(quality, "TOLERANCE", 1.0)
    monkeypatch.setitem(SETTINGS, "tiny", Setting("tiny", 10 * 4 * LENGTH, 0.92))

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["quality", str(shards), "tiny", *arguments])
        quality.main()
        return sorted(path.name for path in (tmp_path / "results" / "tiny").iterdir())

    return run


def test_an_interrupted_command_resumes_and_shows_no_test(command, tmp_path, capsys) -> None:
    both = ("--entrants", "enigma", "modern", "--sweep-only")
    first = command(*both, "--jobs", "1")
    trained = [name for name in first if "gram" not in name]
    assert trained == ["enigma-0.012-0.json"]
    assert len(first) - len(trained) == 4 * 3, "every order of every seed is counted"
    path = tmp_path / "results" / "tiny" / trained[0]
    written = path.stat().st_mtime_ns
    second = command(*both, "--jobs", "2")
    assert len(second) == len(first) + 2
    assert path.stat().st_mtime_ns == written, "a finished job is not done again"
    assert "test" not in capsys.readouterr().out
    found = read_json(path)
    assert found["scores"]["test"]["bits_per_character"] > 0
    mixed = found["mixed"]["scores"]["validation"]["loss_nats"]
    assert mixed <= found["scores"]["validation"]["loss_nats"] + 1e-9
    found["fingerprint"] = "0" * 16
    write_json(path, found)
    with pytest.raises(UserError, match="expected a result of these shards"):
        command(*both, "--jobs", "1")


def test_a_peer_with_a_memory_is_trained_and_scored_with_it(command, tmp_path) -> None:
    """Its prediction is a distribution, and the gate has learned."""
    names = ["modern", "modern, memory", "modern, memory and pointer"]
    command("--entrants", *names, "--sweep-only", "--jobs", "3")
    found = [quality_table.path_of(job_of(name)) for name in names]
    made = [read_json(path) for path in found]
    assert ["mixed" in result for result in made] == [True, False, False]
    scores = [result["scores"]["validation"]["loss_nats"] for result in made]
    assert len(set(scores)) == len(scores)
    weights = load_file((tmp_path / "weights" / "tiny" / found[2].name).with_suffix(".safetensors"))
    assert weights["ngrams.gate.weight"].any()
    assert weights["pointer.gate.weight"].any()


def job_of(name):
    setting = SETTINGS["tiny"]
    return quality_table.Job("tiny", setting.size, name, RATES[0], 0, setting.tokens)


@pytest.mark.parametrize("network", ["enigma", "modern", "llama", "gpt2"])
def test_a_network_with_a_memory_predicts_a_distribution(network, monkeypatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    ids_BL = torch.randint(9, (4, 20), generator=torch.Generator().manual_seed(0))
    model = make(f"{network}, memory", "tiny", 9, 0)
    model.ngrams = NGramMemory.of(count_ngrams(ids_BL, 9, 3), 16)
    model.pointer = Pointer(16, 4)
    for memory in (model.ngrams, model.pointer):
        torch.nn.init.normal_(memory.gate.weight)
    every_CL = torch.cat([ids_BL[:1, :6].expand(9, -1), torch.arange(9)[:, None]], dim=1)
    nats_CL = quality.token_nll(model, every_CL.numpy())
    assert np.exp(-nats_CL[:, -1]).sum() == pytest.approx(1, abs=1e-5)
    assert quality.loss_of(model, ids_BL).item() > 0


def test_shards_of_other_sizes_are_refused(shards, monkeypatch) -> None:
    monkeypatch.setattr(sys, "argv", ["quality", str(shards), "1M-983k"])
    with pytest.raises(UserError, match="expected sequences of 256 of 21128 ids"):
        quality.main()


@pytest.mark.parametrize("name", ["enigma", "gpt2", "llama"])
def test_a_model_over_ids_has_the_probabilities_of_its_classes(shards, name, monkeypatch) -> None:
    monkeypatch.setitem(SIZES, "tiny", TINY)
    classes = PredictedClasses.reachable(shards)
    model = make(name, "tiny", classes.count, 0)
    reader = ShardReader(shards, "test")
    ids = reader.gather(np.arange(2)).astype(np.int64)
    read = classes.class_of_id_V[ids]
    expected = quality.token_nll(model, read) + classes.extra_nats(read[:, 1:])
    wide = over_ids(model, classes)
    np.testing.assert_allclose(token_nll(wide, torch.from_numpy(ids)), expected, rtol=1e-4)
    with torch.no_grad():
        p_V = wide(input_ids=torch.from_numpy(ids)).logits[0, -1].double().softmax(-1)
    assert p_V.sum().item() == pytest.approx(1)
    assert not p_V[~torch.from_numpy(classes.possible_V)].any()


class Echo:
    """Continues a text with the text itself."""

    def generate(self, ids_NL: torch.Tensor, **_: object) -> torch.Tensor:
        return torch.cat((ids_NL, ids_NL), dim=1)


def test_samples_are_read_with_the_characters_that_the_shards_learned(
    shards, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    reader = ShardReader(shards, "test")
    learned = int(reader.gather(np.arange(1))[0, 0])
    vocabulary = ShardVocabulary.read(shards)
    tokens = list(vocabulary.tokens)
    tokens[learned] = "𠮷"
    replace(vocabulary, tokens=tuple(tokens)).write(shards)
    monkeypatch.setattr(use, "PROMPTS", 2)
    use.generation_rows({"echo": Echo()}, reader)
    assert "𠮷" in capsys.readouterr().out
