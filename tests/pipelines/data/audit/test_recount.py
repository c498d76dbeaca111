"""The recount sees every kind of shared text in final shards, and the suite refuses it."""

import random
from collections.abc import Callable
from pathlib import Path

import numpy as np
import opencc
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from expectations.overlap import METHODS, overlap_suite
from pipelines.base.errors import UserError
from pipelines.base.workspace import SPLITS
from pipelines.data.audit.recount import overlap_table
from pipelines.data.audit.suites import run_suites
from pipelines.data.shards import DOCUMENT_SCHEMA
from pipelines.data.text.vocabulary import EOS_TOKEN_ID, load_tokenizer

LENGTH = 64
Texts = dict[str, list[str]]
WriteTexts = Callable[[Texts], Path]


# The common characters of GB 2312: none of them is traditional.
COMMON = [bytes([a, b]).decode("gb2312") for a in range(0xB0, 0xD7) for b in range(0xA1, 0xFF)]


@pytest.fixture
def prose() -> Callable[[int, int], str]:
    """Call it as `prose(seed, characters)`: random characters of the vocabulary."""
    vocabulary = load_tokenizer("bert-base-chinese").get_vocab()
    known = [character for character in COMMON if character in vocabulary]
    return lambda seed, characters: "".join(random.Random(seed).choices(known, k=characters))


@pytest.fixture
def write_texts(write_shards) -> WriteTexts:
    """Call it as `write_texts({"train": [text, ...], ...})`: shards that hold these documents."""

    def write(splits: Texts) -> Path:
        tokenizer = load_tokenizer("bert-base-chinese")
        tokens, tables = {}, {}
        for split, texts in splits.items():
            ids = [
                [*tokenizer.encode(text, add_special_tokens=False), EOS_TOKEN_ID] for text in texts
            ]
            stream = np.concatenate(ids).astype(np.uint16)
            tokens[split] = stream[: len(stream) // LENGTH * LENGTH].reshape(-1, LENGTH)
            sizes = [len(document) for document in ids]
            names = [f"{split}-{number}" for number in range(len(texts))]
            columns = [names, names, (np.cumsum(sizes) - sizes).tolist(), sizes]
            tables[split] = pa.table(columns, schema=DOCUMENT_SCHEMA)
        directory = write_shards(tokens)
        for split, table in tables.items():
            pq.write_table(table, directory / f"{split}.documents.parquet")
        return directory

    return write


def recount(directory: Path, title_windows: int = 16):
    table = overlap_table(
        directory, window_characters=8, max_containment=0.15, title_windows=title_windows
    )
    assert list(table["method"][: len(METHODS)]) == list(METHODS)
    return table


def shared(table) -> dict[tuple[str, str], int]:
    rows = table[table["shared"] > 0]
    return dict(zip(zip(rows["pair"], rows["method"], strict=True), rows["shared"], strict=True))


HELD = (
    "江南的雨季来得很早，老街上的石板路每天都是湿的；茶馆里坐满了听书的人。说书先生敲一下醒木，"
    "讲到将军夜里渡河，火把照亮了半边天，岸上的百姓都跑出来看热闹。后来那条河改了道，渡口也没有了，"
    "只剩下一块断碑，上面的字早已认不清楚。"
)
CLAUSES = HELD.replace("；", "，").replace("。", "，").split("，")[:-1]


def filler(prose, seed: int, count: int = 3) -> list[str]:
    return [prose(seed + number, 150) for number in range(count)]


def piecewise(prose) -> list[str]:
    pieces = [HELD[at : at + 30] for at in range(0, len(HELD), 30)]
    return [prose(40 + n, 100) + piece + prose(60 + n, 100) for n, piece in enumerate(pieces)]


def across_a_border(prose) -> list[str]:
    # The copy is half in one packed sequence and half in the next.
    return [prose(40, 3 * LENGTH - 60) + HELD + prose(41, 2 * LENGTH)]


def traditional(prose) -> list[str]:
    return [prose(40, 90), opencc.OpenCC("s2t").convert(HELD), prose(41, 90)]


def half_width(prose) -> list[str]:
    return [prose(40, 90), HELD.replace("，", ", ").replace("。", ". "), prose(41, 90)]


def with_notes(prose) -> list[str]:
    return [prose(40, 90), "[1]".join([*CLAUSES, "（英語：Jiangnan）"]), prose(41, 90)]


def by_many(prose) -> list[str]:
    # Each gives one clause, none of them more than a few per cent of its own windows.
    clauses = [HELD[at : at + 12] for at in range(0, len(HELD) - 12, 5)]
    return [prose(40 + n, 250) + clause + prose(90 + n, 250) for n, clause in enumerate(clauses)]


@pytest.mark.parametrize(
    "copy",
    [piecewise, across_a_border, traditional, half_width, with_notes, by_many],
    ids=lambda copy: copy.__name__,
)
def test_every_kind_of_copy_is_refused(copy, write_texts, prose, tmp_path) -> None:
    texts = {
        "train": [*filler(prose, 0), *copy(prose), prose(5, 150)],
        "validation": filler(prose, 10),
        "test": [prose(20, 100), HELD, prose(21, 150)],
    }
    table = recount(write_texts(texts))
    rows = table.set_index(["pair", "method"])
    document = rows.loc[("train/test", "heldout_document")]
    assert document["shared"] == 1
    assert document["max_share"] > 0.7
    assert document["example"].startswith("test document 'test-1': train has ")
    assert "most of them in document 'train-" in document["example"]
    assert rows.loc[("train/test", "heldout_sequence"), "shared"] >= 1
    assert {pair for pair, _ in shared(table)} == {"train/test"}
    (result,) = run_suites([overlap_suite(max_containment=0.15)], {"overlap": table}, tmp_path)
    refused = {check.arguments.get("column") for check in result.checks if check.refuses}
    assert {"shared", "max_share"} <= refused


def test_unrelated_text_passes(write_texts, prose, tmp_path) -> None:
    texts = {split: filler(prose, seed) for seed, split in zip((0, 10, 20), SPLITS, strict=True)}
    table = recount(write_texts(texts))
    assert shared(table) == {}
    assert (table["compared"] > 0).all()
    (result,) = run_suites([overlap_suite(max_containment=0.15)], {"overlap": table}, tmp_path)
    assert not [check for check in result.checks if check.refuses]


def test_the_recount_equals_a_count_by_hand(random_tokens, write_shards) -> None:
    splits = {
        "train": random_tokens(0, 20),
        "validation": random_tokens(1, 9),
        "test": random_tokens(2, 8),
    }
    # 32 characters have 25 windows.
    splits["train"][11] = splits["train"][15] = splits["validation"][4]
    splits["validation"][8, :16] = splits["test"][7, 10:26]
    rows = recount(write_shards(splits))
    assert shared(rows) == {
        ("train/validation", "exact_sequence"): 2,
        ("train/validation", "near_containment"): 2,
        ("train/validation", "heldout_sequence"): 1,
        ("validation/test", "near_containment"): 1,
        ("validation/test", "heldout_sequence"): 1,
    }
    rows = rows.set_index(["pair", "method"])
    exact = rows.loc[("train/validation", "exact_sequence")]
    assert exact["example"] == "train sequence 11 equals validation sequence 4"
    assert exact["mean_share"] == pytest.approx(2 / 20)
    near = rows.loc[("validation/test", "near_containment")]
    assert near["max_share"] == pytest.approx(9 / 25)
    assert near["mean_share"] == pytest.approx(9 / 25 / 9)
    assert near["example"].startswith(
        "validation sequence 8: test has 36.0% of its 25 windows, most of them in sequence 7: "
    )
    assert rows.loc[("train/test", "exact_sequence"), "compared"] == 20


def test_a_document_with_a_removed_sequence_is_read_in_parts(write_texts, prose) -> None:
    held, other = prose(0, 3 * LENGTH), prose(1, 200)
    texts = {"train": [held, other], "validation": [held], "test": filler(prose, 20)}
    directory = write_texts(texts)
    whole = recount(directory).set_index(["pair", "method"])
    assert whole.loc[("train/validation", "heldout_document"), "max_share"] == 1.0
    path = directory / "train-00000.bin"
    content = path.read_bytes()
    path.write_bytes(content[: 2 * LENGTH] + content[4 * LENGTH :])
    side = directory / "train.sequences.parquet"
    table = pq.read_table(side)
    pq.write_table(pa.concat_tables([table.slice(0, 1), table.slice(2)]), side)
    rows = recount(directory).set_index(["pair", "method"])
    # Gone are the windows that begin or end in the second sequence.
    windows = 3 * LENGTH - 7
    share = rows.loc[("train/validation", "heldout_document"), "max_share"]
    assert share == pytest.approx((windows - LENGTH - 7) / windows)


def test_shared_documents_and_titles_are_counted(random_tokens, write_shards) -> None:
    splits = {
        name: random_tokens(seed, 9) for seed, name in enumerate(("train", "validation", "test"))
    }
    splits["train"][3, :8] = splits["test"][5, :8]
    shards = write_shards(splits)
    table = pq.read_table(shards / "train.documents.parquet").to_pydict()
    changed = {**table, "id": ["test-id"], "title": [" Ｔest  TITLE"]}
    pq.write_table(pa.table(changed), shards / "train.documents.parquet")
    rows = recount(shards, title_windows=1)
    rows = rows[rows["shared"] > 0]
    assert rows[["pair", "method", "example"]].to_numpy().tolist() == [
        ["train/test", "document_id", "id 'test-id' is in train and in test"],
        ["train/test", "title", "title 'testtitle' is in train and in test"],
    ]


def test_an_empty_split_compares_nothing(random_tokens, write_shards) -> None:
    empty = np.empty((0, 32), dtype=np.uint16)
    splits = {"train": random_tokens(0, 9), "validation": empty, "test": random_tokens(1, 9)}
    rows = recount(write_shards(splits))
    compared = rows[rows["method"] == "exact_sequence"].set_index("pair")["compared"].to_dict()
    assert compared == {"train/validation": 0, "train/test": 9, "validation/test": 0}


@pytest.mark.parametrize("kind", ["documents", "sequences"])
@pytest.mark.parametrize("rows", [slice(1, None), slice(0, -1)], ids=["first", "last"])
def test_a_table_that_lacks_a_row_is_refused(kind, rows, write_texts, prose) -> None:
    texts = {split: filler(prose, seed) for seed, split in zip((0, 10, 20), SPLITS, strict=True)}
    directory = write_texts(texts)
    path = directory / f"test.{kind}.parquet"
    frame = pq.read_table(path).to_pylist()[rows]
    pq.write_table(pa.Table.from_pylist(frame, schema=pq.read_schema(path)), path)
    with pytest.raises(
        UserError, match="split test: expected one row for every sequence"
    ) as caught:
        recount(directory)
    assert "dvc repro" in caught.value.fix
