"""Decontaminate: what an earlier split has of a later one is removed, kept aside and counted."""

import random
import unicodedata
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import opencc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from enigma.language_model.word_pieces import join_word_pieces
from pipelines.base.artifacts import read_json, verify_manifest, write_manifest
from pipelines.base.errors import UserError
from pipelines.base.workspace import SPLITS
from pipelines.data.audit.recount import overlap_table
from pipelines.data.overlap import stream
from pipelines.data.shards import ShardReader
from pipelines.data.text.folding import fold
from pipelines.data.text.scripts import IDEOGRAPHS
from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.decontaminate import decontaminate
from pipelines.params import DecontaminateParams
from pipelines.tokenize import tokenize

PARAMS = DecontaminateParams(window_characters=8, max_containment=0.15, excerpt_windows=16)
LENGTH = 256

Corpus = dict[str, Sequence[str]]


def everything(directory: Path, split: str) -> np.ndarray:
    return np.concatenate(list(ShardReader(directory, split)))


def windows(text: str) -> list[str]:
    key = "".join(c for c in fold(text) if any(a <= ord(c) < b for a, b in IDEOGRAPHS))
    return [key[i : i + 8] for i in range(len(key) - 7)]


@lru_cache
def letters() -> list[str]:
    """The simplified characters of the vocabulary."""
    tokens = load_tokenizer("bert-base-chinese").convert_ids_to_tokens(list(range(670, 7992)))
    return [token for token in tokens if fold(token) == token]


def prose(seed: int, characters: int) -> str:
    """Random text, different for each seed."""
    return "".join(random.Random(seed).choices(letters(), k=characters))


@pytest.fixture
def run(profile, tmp_path: Path):
    """Call it as `run(corpus, titles=...)`: tokens of documents, decontaminated.

    It returns the removed rows, and a function from a document to the share of its windows
    that is left in a split.
    """

    def make(
        corpus: Corpus, titles: dict[str, Sequence[str]] | None = None, params=PARAMS
    ) -> tuple[list[dict], Callable[[str, str], float]]:
        documents = tmp_path / "documents"
        documents.mkdir()
        counts = {}
        for split in SPLITS:
            texts = list(corpus.get(split, [])) + [
                prose(1000 * SPLITS.index(split) + 1000 + i, 300) for i in range(3)
            ]
            names = [f"{split}{index}" for index in range(len(texts))]
            given = list((titles or {}).get(split, []))
            columns = {
                "id": names,
                "title": given + names[len(given) :],
                "text": texts,
            }
            pq.write_table(pa.table(columns), documents / f"{split}.parquet", row_group_size=2)
            counts[split] = len(names)
        write_manifest(documents, stage="clean", facts={"documents": counts})
        small = profile.tokenize.model_copy(
            update={"sequence_length": LENGTH, "sequences_per_shard": 7}
        )
        tokenize(small, documents, tmp_path / "tokens")
        shards = tmp_path / "shards"
        decontaminate(params, tmp_path / "tokens", shards, tmp_path / "overlap.json")
        verify_manifest(shards)

        def share(text: str, split: str) -> float:
            left = left_in(shards, split)
            mine = windows(text)
            return sum(window in left for window in mine) / len(mine)

        return pq.read_table(shards / "removed.parquet").to_pylist(), share

    return make


def left_in(shards: Path, split: str) -> set[str]:
    """All windows of a split's final sequences, joined where they follow each other."""
    reader = ShardReader(shards, split)
    sources = reader.sequences()["source_sequence"].to_numpy()
    tokenizer = load_tokenizer("bert-base-chinese")
    found: set[str] = set()
    for run in np.split(np.arange(len(sources)), np.flatnonzero(np.diff(sources) != 1) + 1):
        tokens = reader.gather(run).reshape(-1)
        for ids in np.split(tokens, np.flatnonzero(tokens == 102)):
            found |= set(windows(join_word_pieces(tokenizer, ids, skip_special_tokens=True)))
    return found


def edited(text: str, share: float, seed: int = 0) -> str:
    """Substitute, insert or delete that share of the characters."""
    generator = random.Random(seed)
    out = []
    for character in text:
        if generator.random() >= share:
            out.append(character)
            continue
        out += generator.choice([[], [generator.choice(letters())], [character, "之"]])
    return "".join(out)


def methods(rows: list[dict]) -> set[str]:
    return {row["method"] for row in rows}


@pytest.fixture
def planted(random_tokens, write_shards) -> tuple[dict[str, np.ndarray], Path]:
    """Train shares 3 sequences with validation and test, validation 1 with test."""
    splits = {
        "train": random_tokens(0, 40),
        "validation": random_tokens(1, 10),
        "test": random_tokens(2, 9),
    }
    splits["train"][8] = splits["validation"][2]
    splits["train"][20] = splits["test"][8]
    splits["train"][39, 4:24] = splits["test"][5, 10:30]
    splits["validation"][0] = splits["test"][3]
    return splits, write_shards(splits)


def test_shared_sequences_are_removed_and_all_others_stay(planted, tmp_path: Path) -> None:
    splits, tokens = planted
    output = tmp_path / "shards"
    decontaminate(PARAMS, tokens, output, tmp_path / "overlap.json")
    manifest = verify_manifest(output)
    assert manifest["sequences"] == {"train": 37, "validation": 9, "test": 9}
    gone = {"train": [8, 20, 39], "validation": [0], "test": []}
    for split, rows in gone.items():
        kept = np.setdiff1d(np.arange(len(splits[split])), rows)
        assert np.array_equal(everything(output, split), splits[split][kept])
        table = ShardReader(output, split).sequences()
        assert table["source_sequence"].to_pylist() == kept.tolist()


def test_what_was_removed_can_be_read(planted, tmp_path: Path) -> None:
    splits, tokens = planted
    output = tmp_path / "shards"
    decontaminate(PARAMS, tokens, output, tmp_path / "overlap.json")
    removed = pq.read_table(output / "removed.parquet").to_pylist()
    facts = {
        (row["split"], row["source_sequence"]): (
            row["documents"],
            row["matched_split"],
            row["matched_document"],
            row["method"],
            row["share"],
        )
        for row in removed
    }
    assert facts == {
        ("validation", 0): (["validation-id"], "test", "test-id", "exact", 1.0),
        ("train", 8): (["train-id"], "validation", "validation-id", "exact", 1.0),
        ("train", 20): (["train-id"], "test", "test-id", "exact", 1.0),
        # With sequence 20, whose windows count too.
        ("train", 39): (["train-id"], "test", "test-id", "near", pytest.approx((25 + 13) / 281)),
    }
    tokenizer = load_tokenizer("bert-base-chinese")
    for row in removed:
        assert row["tokens"] == splits[row["split"]][row["source_sequence"]].tolist()
        assert row["example"] in row["text"]
    shared = splits["test"][5, 10:30].tolist()
    examples = {row["source_sequence"]: row["example"] for row in removed}
    assert examples[39] == join_word_pieces(tokenizer, shared)


def test_the_report_counts_before_and_after_by_split_and_method(planted, tmp_path: Path) -> None:
    decontaminate(PARAMS, planted[1], tmp_path / "shards", tmp_path / "overlap.json")
    report = read_json(tmp_path / "overlap.json")
    none = dict.fromkeys(("exact", "title", "excerpt", "near", "sequence", "coverage"), 0)
    assert {name: report["train"][name] for name in list(report["train"])[:5]} == {
        "before": 40,
        "removed": 3,
        "after": 37,
        "removed_percent": 7.5,
        "shared_with": {
            "validation": {**none, "exact": 1},
            "test": {**none, "exact": 1, "near": 1},
        },
    }
    assert report["validation"]["shared_with"] == {"test": {**none, "exact": 1}}
    assert report["test"]["removed"] == 0
    assert report["max_containment"] == 0.15
    shares = report["train"]["held_out"]["sequences"]
    # 9 of validation, as one of 10 is gone, and 9 of test; two are whole in train, and a third
    # has 13 of its 25 windows there.
    assert shares["judged"] == 18
    assert shares["before"] == {
        "mean": pytest.approx((1 + 1 + 13 / 25) / 18, abs=1e-6),
        "p99": pytest.approx(1.0),
        "max": 1.0,
        "above_bound": 3,
    }
    assert shares["after"] == {"mean": 0.0, "p99": 0.0, "max": 0.0, "above_bound": 0}


def test_an_equal_sequence_without_chinese_is_removed(planted, tmp_path: Path) -> None:
    """It has no window."""
    splits, tokens = planted
    latin = np.arange(8100, 8132, dtype=np.uint16)
    splits["train"][3] = splits["test"][4] = latin
    for split, rows in splits.items():
        for shard, start in enumerate(range(0, len(rows), 7)):
            rows[start : start + 7].tofile(tokens / f"{split}-{shard:05d}.bin")
    decontaminate(PARAMS, tokens, tmp_path / "shards", tmp_path / "overlap.json")
    assert not (everything(tmp_path / "shards", "train") == latin).all(axis=1).any()
    rows = pq.read_table(tmp_path / "shards" / "removed.parquet").to_pylist()
    [row] = [row for row in rows if row["source_sequence"] == 3]
    assert (row["method"], row["matched_document"], row["example"]) == ("exact", "test-id", "")


def test_a_text_quoted_piecewise_by_many_documents_is_uncovered(run) -> None:
    """No document quotes more than 20 characters, and no sequence is mostly quotation."""
    held = prose(0, 600)
    quotations = [
        prose(100 + at, 250) + held[at : at + 20] + prose(900 + at, 250) for at in range(0, 600, 20)
    ]
    removed, share = run({"test": [held], "train": quotations})
    assert methods(removed) == {"coverage"}
    assert {row["matched_document"] for row in removed} == {"test0"}
    # What is within the allowance stays.
    assert 0.05 < share(held, "train") <= 0.15


@pytest.mark.parametrize("before", [196, 216, 226, 236])
def test_a_short_document_across_a_packing_border_is_removed(run, before: int) -> None:
    held = prose(0, 60)
    removed, share = run({"test": [held], "train": [prose(1, before) + held + prose(2, 500)]})
    assert removed
    assert share(held, "train") == 0.0


@pytest.mark.parametrize("before", [0, 100, 116, 130])
def test_an_excerpt_is_removed_wherever_it_stands(run, before: int) -> None:
    """23 characters of a long document, in a long document."""
    held = prose(0, 900)
    text = prose(1, 400 + before) + held[500:523] + prose(2, 400)
    removed, share = run({"test": [held], "train": [text]})
    assert methods(removed) == {"excerpt"}
    assert share(held, "train") == 0.0


def after_each(*marks: str) -> Callable[[str], str]:
    """Put a mark after each character."""
    return lambda text: "".join(c + marks[i % len(marks)] for i, c in enumerate(text))


DRESSES: dict[str, Callable[[str], str]] = {
    "traditional": opencc.OpenCC("s2t").convert,
    "two scripts": lambda text: text[:99] + opencc.OpenCC("s2t").convert(text[99:]),
    "half width": lambda text: unicodedata.normalize("NFKC", text),
    "no punctuation": lambda text: text.replace("，", ""),
    "sentences reversed": lambda text: "，".join(reversed(text.split("，"))),
    "spaces": " ".join,
    "lines": "\n".join,
    "punctuation": after_each("、"),
    "quotes": lambda text: "".join(f"「{c}」" for c in text),
    "brackets": lambda text: "".join(f"（{c}）" for c in text),
    "brackets of four": lambda text: "".join(
        f"[{text[i : i + 4]}]" for i in range(0, len(text), 4)
    ),
    "footnotes": after_each("[1]", "【12】", "（注 3）"),
    "notes without brackets": after_each("1", "¹", "①", "⑴"),
    "pinyin": after_each("běi", "jīng"),
    "pinyin in brackets": after_each("（běi jīng）"),
    "kana": after_each("きょう", "ー", "ｶﾞ"),
    "bopomofo": after_each("ㄅㄟˇ"),
    "letters of other scripts": after_each("a", "я", "한", "ʰ"),
    "iteration marks": after_each("々"),
    "emoji": after_each("😀", "👩‍👩‍👧"),
    "invisible": after_each("\u200b", "\u200d", "\u2060", "\u00ad", "\u034f", "\u3164"),
    "variation selectors": after_each("\ufe0f", "\U000e0100"),
    "combining marks": after_each("\u0301", "\u20dd", "\u0336"),
}


def test_copies_in_other_dress_are_removed_and_seen_by_the_judge(run, tmp_path: Path) -> None:
    generator = random.Random(1)
    held = {
        dress: "，".join(
            "".join(generator.choices("国学汉语电脑发现历史书写时间问题东门马鸟鱼龙", k=12))
            for _ in range(30)
        )
        for dress in DRESSES
    }
    copies = [DRESSES[dress](text) for dress, text in held.items()]
    removed, share = run({"validation": list(held.values()), "train": copies})
    assert {row["matched_split"] for row in removed} == {"validation"}
    assert {dress: share(text, "train") for dress, text in held.items()} == dict.fromkeys(held, 0.0)
    judged = overlap_table(
        tmp_path / "tokens", window_characters=8, max_containment=0.15, title_windows=16
    )
    rows = judged.set_index(["pair", "method"])["shared"]
    # All of them: what is left in train after the filter would be refused.
    assert rows["train/validation", "heldout_document"] == len(held)


def test_a_short_document_with_few_ideographs_is_removed(run) -> None:
    """It has 12 windows: too few for an excerpt, and for the judge."""
    held = "（Wi-Fi 6E）1999-2024, ISBN 978-7-111-40701-0".join([prose(0, 10), prose(1, 9)])
    removed, share = run({"test": [held], "train": [prose(2, 300) + held + prose(3, 300)]})
    assert methods(removed) == {"near"}
    assert share(held, "train") == 0.0


@pytest.mark.parametrize("characters", [120, 400])
def test_a_copy_with_a_fifth_edited_is_removed(run, characters: int) -> None:
    held = [prose(seed, characters) for seed in range(10)]
    copies = [edited(text, 0.2, seed) for seed, text in enumerate(held)]
    between = [prose(100 + seed, 800) for seed in range(10)]
    train = [text for pair in zip(copies, between, strict=True) for text in pair]
    removed, share = run({"test": held, "train": train})
    assert "near" in methods(removed)
    assert sum(share(text, "train") < 0.03 for text in held) >= 9


@pytest.mark.parametrize(("quoting", "expected"), [(3, {"excerpt"}), (40, set())])
def test_wording_that_many_documents_have_removes_none(
    run, quoting: int, expected: set[str]
) -> None:
    """30 characters of a held-out document of 500."""
    held, phrase = prose(0, 500), prose(1, 30)
    train = [prose(100 + at, 300) + phrase + prose(200 + at, 300) for at in range(quoting)]
    removed, _ = run({"test": [held[:250] + phrase + held[250:]], "train": train})
    assert methods(removed) == expected


def test_commonplaces_that_fill_a_held_out_document_are_removed(run) -> None:
    template = [prose(seed, 25) for seed in range(3)]
    stub = prose(10, 20).join(template)
    train = [prose(100 + at, 300).join(template) for at in range(30)]
    removed, share = run({"test": [stub], "train": train})
    assert "coverage" in methods(removed)
    assert share(stub, "train") <= 0.15


def test_half_of_a_sequence_from_many_held_out_documents_is_removed(run) -> None:
    held = [prose(seed, 500) for seed in range(20)]
    mosaic = "".join(text[200:213] for text in held[:10])
    removed, _ = run({"test": held, "train": [mosaic + prose(100, 300)]})
    assert methods(removed) == {"sequence"}


def with_names(seed: int) -> str:
    """Text of its own around nine names that every such text has: 18 windows, no excerpt."""
    return "".join(prose(seed + at, 100) + prose(at, 9) for at in range(9))


def test_a_shared_title_counts_with_windows_in_common(run) -> None:
    """The second train document shares the title alone, the third the names alone."""
    removed, _ = run(
        {"test": [with_names(100)], "train": [with_names(200), prose(300, 900), with_names(400)]},
        {"test": ["无标题"], "train": ["無標題", "无标题", "别的"]},
    )
    assert methods(removed) == {"title"}
    assert all(row["documents"][0] == "train0" for row in removed)
    assert {row["source_sequence"] for row in removed} == {0, 1, 2, 3}


def test_a_placeholder_title_removes_nothing_for_a_common_phrase(run) -> None:
    """Forty documents have the phrase, three of them the title as well."""
    phrase = prose(9, 12)
    train = [prose(100 + at, 300) + phrase + prose(200 + at, 200) for at in range(40)]
    removed, _ = run(
        {"test": [prose(0, 400) + phrase], "train": train},
        {"test": ["无标题"], "train": ["无标题"] * 3},
    )
    assert not removed


def test_a_document_removed_by_its_title_leaves_the_table(run, tmp_path: Path) -> None:
    run(
        {"test": [with_names(100)], "train": [with_names(200), prose(300, 300)]},
        {"test": ["甲"], "train": ["甲", "甲"]},
    )
    assert pq.read_table(tmp_path / "shards" / "train.documents.parquet")["id"].to_pylist() == [
        "train1", "train2", "train3", "train4",
    ]  # fmt: skip


def test_validation_loses_what_test_has_and_train_may_keep_that(run) -> None:
    """What left validation is held out no longer, unless test has it."""
    shared, own = prose(0, 300), prose(1, 100)
    removed, share = run(
        {"test": [shared], "validation": [own + shared[:155]], "train": [own + prose(2, 300)]}
    )
    assert [(row["split"], row["source_sequence"]) for row in removed] == [("validation", 0)]
    assert share(own, "train") == 1.0


def test_parts_decide_nothing(run, tmp_path: Path, monkeypatch) -> None:
    held = [prose(seed, 200) for seed in range(6)]
    train = [prose(100 + seed, 37) + edited(text, 0.1) for seed, text in enumerate(held)] * 2
    run({"test": held, "train": train})
    monkeypatch.setattr(stream, "DOCUMENTS_PER_PART", 1)
    monkeypatch.setattr(stream, "TOKENS_PER_BATCH", 50)
    monkeypatch.setattr("pipelines.data.overlap.coverage.HITS_PER_ROUND", 1)
    again = tmp_path / "again"
    decontaminate(PARAMS, tmp_path / "tokens", again, tmp_path / "again.json")
    for path in (tmp_path / "shards").iterdir():
        assert (again / path.name).read_bytes() == path.read_bytes(), path.name
    # Held-out documents in other groups: a match may be named otherwise, the same go.
    monkeypatch.setattr("pipelines.data.overlap.hits.DOCUMENTS_PER_GROUP", 2)
    decontaminate(PARAMS, tmp_path / "tokens", tmp_path / "groups", tmp_path / "groups.json")
    assert np.array_equal(everything(tmp_path / "groups", "train"), everything(again, "train"))


def test_a_clean_corpus_passes_unchanged(random_tokens, write_shards, tmp_path: Path) -> None:
    splits = {
        name: random_tokens(seed, 9) for seed, name in enumerate(("train", "validation", "test"))
    }
    tokens = write_shards(splits)
    decontaminate(PARAMS, tokens, tmp_path / "shards", tmp_path / "overlap.json")
    for split, sequences in splits.items():
        assert np.array_equal(everything(tmp_path / "shards", split), sequences)
    assert len(pq.read_table(tmp_path / "shards" / "removed.parquet")) == 0


def test_a_truncated_shard_is_refused(planted, tmp_path: Path) -> None:
    path = planted[1] / "train-00001.bin"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(UserError, match="expected whole sequences of 64 bytes"):
        decontaminate(PARAMS, planted[1], tmp_path / "shards", tmp_path / "overlap.json")
    assert not (tmp_path / "shards").exists()


def test_the_novel_shares_no_sequence(sanguo: Path) -> None:
    report = read_json(sanguo / "overlap.json")
    assert report["train"]["before"] == 2106
    assert report["train"]["removed"] <= 20


@pytest.mark.slow
def test_wikipedia_loses_template_text_and_little_else(
    wiki_sample: Path, profile, tmp_path: Path
) -> None:
    from pipelines.clean import clean
    from pipelines.ingest import ingest

    source = profile.ingest.model_copy(update={"source": str(wiki_sample), "max_documents": 2000})
    ingest(source, tmp_path / "raw")
    clean(profile.clean, tmp_path / "raw", tmp_path / "documents")
    tokenize(profile.tokenize, tmp_path / "documents", tmp_path / "tokens")
    decontaminate(
        profile.decontaminate, tmp_path / "tokens", tmp_path / "shards", tmp_path / "overlap.json"
    )
    train = read_json(tmp_path / "overlap.json")["train"]
    # 2.1 %: fish, dioceses and birthdays in the wording of templates.
    assert 0 < train["removed"] < 0.025 * train["before"]
    assert train["held_out"]["documents"]["after"]["above_bound"] == 0
