"""Windows of a token stream: those of the folded text, counted by hand."""

from functools import lru_cache
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from transformers import BertTokenizerFast

from enigma.language_model.word_pieces import join_word_pieces
from pipelines.data.overlap.windows import (
    TokenFolder,
    bits_of,
    select_windows,
    shift_of,
    token_folder,
    window_hashes,
)
from pipelines.data.text.folding import fold
from pipelines.data.text.scripts import IDEOGRAPHS
from pipelines.data.text.vocabulary import load_tokenizer, vocabulary_tokens
from pipelines.data.tokenizer.fast import FastTokenizer

VOCABULARY = "bert-base-chinese"
PIECES = st.sampled_from(
    [
        "国",
        "國",
        "乾",
        "々",
        "カ",
        "ｶ",
        "a",
        "Wi-Fi",
        "unbelievable",
        "１２",
        "3",
        " ",
        "，",
        "（",
        ")",
        "[",
        "】",
    ]
)
TEXTS = st.lists(PIECES, max_size=60).map("".join)


def ideographs(text: str) -> str:
    return "".join(c for c in text if any(start <= ord(c) < stop for start, stop in IDEOGRAPHS))


@lru_cache
def tokenizers() -> tuple[BertTokenizerFast, FastTokenizer]:
    tokenizer = load_tokenizer(VOCABULARY)
    return tokenizer, FastTokenizer(tokenizer.backend_tokenizer, end=102)


@given(texts=st.lists(TEXTS, min_size=1, max_size=4))
def test_the_key_of_tokens_is_the_ideographs_of_that_of_their_text(texts: list[str]) -> None:
    tokenizer, fast = tokenizers()
    ids = fast.encode(texts)
    offsets = np.append(0, np.cumsum(ids.lengths))
    folder = token_folder(vocabulary_tokens(VOCABULARY))
    for use_numba in (True, False):
        folded = folder.fold(ids.ids, offsets, use_numba=use_numba)
        for row, (start, stop) in enumerate(pairwise(offsets.tolist())):
            text = join_word_pieces(tokenizer, ids.ids[start:stop], skip_special_tokens=True)
            mine = slice(*folded.offsets[row : row + 2])
            assert "".join(map(chr, folded.points_F[mine])) == ideographs(fold(text))
            assert ((folded.sources_F[mine] >= start) & (folded.sources_F[mine] < stop)).all()


@given(
    texts=st.lists(st.text("一二ab", max_size=20), min_size=1, max_size=4), size=st.integers(4, 6)
)
def test_windows_are_those_of_the_ideographs_of_one_document(texts: list[str], size: int) -> None:
    folder = TokenFolder(["一", "二", "a", "b"])
    ids = np.array(["一二ab".index(c) for text in texts for c in text], np.uint16)
    offsets = np.append(0, np.cumsum([len(text) for text in texts]))
    places = [[at for at, c in enumerate(text) if c in "一二"] for text in texts]
    expected = [
        (row, at) for row, of_row in enumerate(places) for at in range(len(of_row) - size + 1)
    ]
    for use_numba in (True, False):
        windows = folder.windows(ids, offsets, size, use_numba=use_numba)
        found = zip(windows.documents_W.tolist(), windows.positions_W.tolist(), strict=True)
        assert list(found) == expected
        ends = [(places[row][at], places[row][at + size - 1]) for row, at in expected]
        starts = offsets[windows.documents_W]
        found = zip(windows.first_W - starts, windows.last_W - starts, strict=True)
        assert list(found) == ends
        spelled = [ideographs(texts[row])[at : at + size] for row, at in expected]
        assert len(set(spelled)) == len(np.unique(windows.hashes_W))


@given(
    texts=st.lists(st.text("一二ab", max_size=20), min_size=1, max_size=4),
    length=st.integers(1, 9),
    seed=st.integers(0, 9),
)
def test_a_filter_selects_among_all_windows_and_all_are_counted(
    texts: list[str], length: int, seed: int
) -> None:
    folder = TokenFolder(["一", "二", "a", "b"])
    ids = np.array(["一二ab".index(c) for text in texts for c in text], np.uint16)
    offsets = np.append(0, np.cumsum([len(text) for text in texts]))
    sequences = np.arange(len(ids)) // length
    every = folder.windows(ids, offsets, 4)
    words = np.random.default_rng(seed).integers(0, 2**64, 16, dtype=np.uint64)
    bits = bits_of(every.hashes_W)
    passing = words[every.hashes_W >> shift_of(words)] & bits == bits
    is_whole = sequences[every.first_W] == sequences[every.last_W]
    whole = np.bincount(sequences[every.first_W][is_whole], minlength=-(-len(ids) // length))
    for use_numba in (True, False):
        folded = folder.fold(ids, offsets, use_numba=use_numba)
        found, counts = select_windows(folded, 4, sequences, words, use_numba=use_numba)
        assert counts.tolist() == whole.tolist()
        for name, column in vars(every).items():
            assert getattr(found, name).tolist() == column[passing].tolist()


@pytest.mark.parametrize("use_numba", [True, False])
def test_equal_windows_hash_alike_and_others_apart(random_tokens, use_numba: bool) -> None:
    tokens_NL = random_tokens(0, 500)
    tokens_NL[1, 3:11] = tokens_NL[0, 20:28]
    hashes_NW = window_hashes(tokens_NL, 8, use_numba=use_numba)
    assert np.array_equal(hashes_NW, window_hashes(tokens_NL, 8))
    assert hashes_NW.shape == (500, 25)
    assert hashes_NW[1, 3] == hashes_NW[0, 20]
    assert len(np.unique(hashes_NW)) == 500 * 25 - 1
