"""The fast tokenizer: the ids of Hugging Face's on every input, compiled or not."""

import random

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from pipelines.data.text.vocabulary import load_tokenizer
from pipelines.data.tokenizer import fast as fast_tokenizer
from pipelines.data.tokenizer.code_points import (
    SPACE,
    is_provable,
)
from pipelines.data.tokenizer.fast import FastTokenizer

# Each of four ways of tokenizing sees its own: 60,000 in all.
FUZZ_STRINGS = 15_000
RANGES = {
    "controls": [(0x00, 0x20), (0x7F, 0xA0), (0x200B, 0x2010), (0x202A, 0x202F), (0xFFF0, 0xFFFF)],
    "marks": [(0x300, 0x370), (0x483, 0x488), (0x591, 0x5C8), (0x64B, 0x660), (0x302A, 0x3030)],
    "moving marks": [(0x1D165, 0x1D173), (0x16FF0, 0x16FF2), (0x1DC0, 0x1E00), (0x20D0, 0x20F1)],
    "indic": [(0x900, 0x980), (0xB80, 0xC00), (0xD00, 0xD80), (0xE00, 0xF00), (0xF00, 0xFD0)],
    "han": [(0x4E00, 0xA000)],
    "rare han": [(0x3400, 0x4DC0), (0x20000, 0x2A6E0), (0x2A700, 0x33480)],
    "compatibility han": [(0x2E80, 0x2FE0), (0xF900, 0xFB00), (0x2F800, 0x2FA20)],
    "kana": [(0x3040, 0x3100), (0x31F0, 0x3200), (0xFF65, 0xFFA0), (0x3099, 0x309D)],
    "hangul": [(0xAC00, 0xD7A4), (0x1100, 0x1200), (0x3130, 0x3190)],
    "emoji": [(0x1F300, 0x1FB00), (0x2600, 0x27C0), (0xFE00, 0xFE10), (0x200D, 0x200E)],
    "full width": [(0xFF00, 0xFF65), (0xFFE0, 0xFFEF), (0x3000, 0x3040)],
    "latin": [(0x20, 0x7F), (0x30, 0x3A), (0x61, 0x7B), (0xA0, 0x250), (0x1E00, 0x2000)],
    "everything": [(0x1, 0xD800), (0xE000, 0x110000)],
}
WORDS = (
    "[CLS]", "[SEP]", "[UNK]", "[PAD]", "[MASK]", "[cls]", "##", "[", "]", "Wikipedia", "İSTANBUL",
    "ΣΊΣΥΦΟΣ", "straße", "é", "e\u0301", "2023年", "3.14", "ﬁ", "Ǆ", "\u2028", "\ufeff", "🏳️‍🌈",
    "한글", "a" * 100, "b" * 101, "\r\n", "……", "——", "𠮷", "葛\U000e0100", "\u302e\u0323\u302a",
    "\u0345", "½",
)  # fmt: skip


@pytest.fixture(scope="module", params=["specials", "plain"])
def backend(request: pytest.FixtureRequest) -> Tokenizer:
    """The tokenizer as `BertTokenizerFast` is, and as `tokenize` sets it."""
    tokenizer = load_tokenizer("bert-base-chinese").backend_tokenizer
    tokenizer.encode_special_tokens = request.param == "plain"
    return tokenizer


def adversarial(generator: random.Random) -> str:
    """A few pieces of one to eight characters of one kind, special words between."""
    pieces = []
    for _ in range(generator.randint(1, 6)):
        if generator.random() < 0.25:
            pieces.append(generator.choice(WORDS))
            continue
        ranges = RANGES[generator.choice(list(RANGES))]
        pieces += [
            chr(generator.randrange(*generator.choice(ranges)))
            for _ in range(generator.randint(1, 8))
        ]
    return "".join(pieces)


def first_difference(fast: FastTokenizer, backend: Tokenizer, texts: list[str]) -> str:
    """The first text that comes out otherwise, spelled out; empty if none does."""
    ours = fast.encode(texts)
    stops = np.cumsum(ours.lengths)
    for text, encoding, stop, length in zip(
        texts,
        backend.encode_batch(texts, add_special_tokens=False),
        stops.tolist(),
        ours.lengths.tolist(),
        strict=True,
    ):
        if ours.ids[stop - length : stop].tolist() != encoding.ids:
            return " ".join(f"{ord(c):04x}" for c in text)
    return ""


@pytest.mark.parametrize("use_numba", [True, False], ids=["numba", "numpy"])
def test_fuzz_no_id_differs(backend: Tokenizer, use_numba: bool) -> None:
    generator = random.Random(2 * use_numba + backend.encode_special_tokens)
    texts = [adversarial(generator) for _ in range(FUZZ_STRINGS)]
    fast = FastTokenizer(backend, use_numba=use_numba)
    assert first_difference(fast, backend, texts) == ""


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=60), max_size=5))
def test_compiled_and_not_agree_with_the_tokenizer_in_everything(
    both: tuple[FastTokenizer, FastTokenizer, FastTokenizer], texts: list[str]
) -> None:
    expected, *others = (one.encode(texts) for one in both)
    for other in others:
        assert other.ids.tolist() == expected.ids.tolist()
        assert other.characters.tolist() == expected.characters.tolist()
        assert other.lengths.tolist() == expected.lengths.tolist()


@pytest.fixture(scope="module")
def both(backend: Tokenizer) -> tuple[FastTokenizer, FastTokenizer, FastTokenizer]:
    """The tokenizer itself behind our interface, numba, NumPy."""
    oracle = FastTokenizer(backend, end=102)
    oracle._chunks = None
    fast = [FastTokenizer(backend, end=102, use_numba=flag) for flag in (True, False)]
    for one in fast:
        one.encode(["compile"])
    return oracle, *fast


@pytest.mark.parametrize("use_numba", [True, False], ids=["numba", "numpy"])
def test_slices_chunks_and_batches_change_nothing(
    backend: Tokenizer, use_numba: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Small limits: chunks are forgotten, batches are short, a text is larger than either."""
    generator = random.Random(7)
    texts = [adversarial(generator) for _ in range(400)]
    texts[200:200] = ["", "word " * 400, "x1 y2 z3 " * 300]
    expected = FastTokenizer(backend, use_numba=use_numba).encode(texts)
    monkeypatch.setattr(fast_tokenizer, "MAX_CHUNKS", 64)
    monkeypatch.setattr(fast_tokenizer, "MAX_CHUNK_BYTES", 512)
    monkeypatch.setattr(fast_tokenizer, "BATCH_BYTES", 1000)
    fast = FastTokenizer(backend, use_numba=use_numba)
    array = pa.array(["before", *texts, "after"])
    for given_texts in (array[1:-1], pa.chunked_array([array[1:50], array[50:-1]])):
        stream = fast.encode(given_texts)
        assert stream.ids.tolist() == expected.ids.tolist()
        assert stream.lengths.tolist() == expected.lengths.tolist()
    assert len(fast.encode([])) == 0


def test_another_kind_of_tokenizer_is_left_to_itself() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "a": 1, "##b": 2}, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    assert not is_provable(tokenizer)
    stream = FastTokenizer(tokenizer, end=7).encode(["ab c", "a"])
    assert stream.ids.tolist() == [1, 2, 0, 7, 1, 7]
    assert stream.characters.tolist() == [1, 1, 1, 0, 1, 0]


def test_a_fault_in_the_table_would_be_seen(backend: Tokenizer) -> None:
    """The fuzz test can fail: one wrong entry, one wrong class."""
    generator = random.Random(0)
    texts = [adversarial(generator) for _ in range(3000)]
    for point, value in ((ord("年"), 671), (0x0301, SPACE)):
        fast = FastTokenizer(backend, use_numba=False)
        fast._chunks.table = fast._chunks.table.copy()
        fast._chunks.table[point] = value
        assert first_difference(fast, backend, texts) != ""
