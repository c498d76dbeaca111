"""The windows of a token stream: a few consecutive ideographs of a document's key.

The comparison key (`pipelines/data/text/folding.py`) is made from tokens, not from text: what a
token adds to it does not depend on its neighbours, except that a bracketed mark is left out.
Of the key only ideographs count: what stands between them (numbers of notes, readings in any
script, emoji) does not hide a copy, and a date, an ISBN or a foreign name is no window.

Shape legend: T tokens, D documents, F folded characters, W windows.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import numpy.typing as npt

from pipelines.data.shards import Tokens
from pipelines.data.text.compiled import have_numba
from pipelines.data.text.folding import (
    CLOSING,
    MARK_CHARACTERS,
    MARK_HAN,
    OPENING,
    Folded,
    fold_points,
)
from pipelines.data.text.scripts import HAN, IDEOGRAPHS
from pipelines.data.text.vocabulary import SPECIAL_TOKENS

Hashes = npt.NDArray[np.uint64]
Integers = npt.NDArray[np.int64]

MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)
# A filter that rules out nothing.
ALL_PASS = np.full(2, np.iinfo(np.uint64).max)


@dataclass(frozen=True)
class Windows:
    """The windows of D documents, in order.

    Args:
        hashes_W: (W,) uint64; equal windows have equal hashes.
        documents_W: (W,) int64, the document.
        positions_W: (W,) int64, the place of the first character in the document's key.
        first_W: (W,) int64, the token of the first character.
        last_W: (W,) int64, the token of the last character.
    """

    hashes_W: Hashes
    documents_W: Integers
    positions_W: Integers
    first_W: Integers
    last_W: Integers


class TokenFolder:
    """Makes the ideographs of comparison keys from tokens.

    Args:
        tokens: The text of every token; empty if it has none, with `##` if it continues a word.
    """

    def __init__(self, tokens: list[str]) -> None:
        texts = [token[2:] if token[:2] == "##" and len(token) > 2 else token for token in tokens]
        counts = np.array([len(text) for text in texts])
        points = np.frombuffer("".join(texts).encode("utf-32-le"), "<u4")
        folded = fold_points(points, np.append(0, np.cumsum(counts)))
        kept_F = _within(IDEOGRAPHS, folded.points_F)
        self.points = folded.points_F[kept_F]
        self.starts = np.append(0, np.cumsum(kept_F))[folded.offsets]
        self.sizes = np.diff(self.starts)
        self.num_characters = counts.astype(np.int32)
        token_of = np.repeat(np.arange(len(texts)), counts)
        is_han = _within(HAN, points)
        is_other = np.isin(np.arange(len(points)), folded.sources_F) & ~is_han
        self.num_han, self.num_others = (
            np.bincount(token_of[mine], minlength=len(texts)).astype(np.int32)
            for mine in (is_han, is_other)
        )
        self.bracket = np.array(
            [(text in OPENING) - (text in CLOSING) if text else 0 for text in texts], np.int8
        )
        # `join_word_pieces` puts a space between two of these.
        self.ends_latin = np.array([_is_latin(token[-1:]) for token in tokens])
        self.starts_latin = np.array([_is_latin(token[:1]) for token in tokens])

    def fold(self, ids_T: Tokens, offsets: Integers, *, use_numba: bool | None = None) -> Folded:
        """Compute the ideographs of the keys of documents given as tokens.

        Args:
            ids_T: (T,) uint16, the documents one after another.
            offsets: (D + 1,) int64, where each document starts.
            use_numba: Whether to compile the loop; by default if numba is installed.

        Returns:
            The keys; `sources_F` are tokens.
        """
        if have_numba(use_numba):
            return self._compiled(ids_T, offsets)
        sizes_T = self.sizes[ids_T]
        sizes_T[self._marks(ids_T, offsets)] = 0
        sources_F = np.repeat(np.arange(len(ids_T)), sizes_T)
        ends_T = np.cumsum(sizes_T)
        nth_F = np.arange(len(sources_F)) - (ends_T - sizes_T)[sources_F]
        points_F = self.points[self.starts[ids_T[sources_F]] + nth_F]
        return Folded(points_F, sources_F, np.append(0, ends_T)[offsets])

    def _compiled(self, ids_T: Tokens, offsets: Integers) -> Folded:
        from pipelines.data.overlap import kernels

        room = kernels.folded_size(ids_T, self.starts)
        points_F, sources_F = np.empty(room, np.uint32), np.empty(room, np.int64)
        ends = np.empty(len(offsets), np.int64)
        table = (
            self.points, self.starts, self.num_characters, self.num_han, self.num_others,
            self.bracket, self.ends_latin, self.starts_latin,
        )  # fmt: skip
        limits = (MARK_CHARACTERS, MARK_HAN)
        kernels.fold_tokens(ids_T, offsets, table, limits, points_F, sources_F, ends)
        return Folded(points_F[: ends[-1]], sources_F[: ends[-1]], ends)

    def _marks(self, ids_T: Tokens, offsets: Integers) -> npt.NDArray[np.bool_]:
        """Find the tokens of bracketed marks, as `folding` does."""
        bracket_T = self.bracket[ids_T]
        at = np.flatnonzero(bracket_T)
        pairs = np.flatnonzero((bracket_T[at[:-1]] > 0) & (bracket_T[at[1:]] < 0))
        first, last = at[pairs], at[pairs + 1]
        sizes_T = self.num_characters[ids_T]
        sizes_T[1:] += self.ends_latin[ids_T[:-1]] & self.starts_latin[ids_T[1:]]
        characters = np.append(0, np.cumsum(sizes_T))
        han, others = (
            np.append(0, np.cumsum(numbers[ids_T])) for numbers in (self.num_han, self.num_others)
        )
        document = np.searchsorted(offsets, np.stack([first, last]), "right")
        is_mark = (
            (characters[last] - characters[first + 1] <= MARK_CHARACTERS)
            & (han[last] - han[first] <= MARK_HAN)
            & ((han[last] == han[first]) | (others[last] > others[first]))
            & (document[0] == document[1])
        )
        depth = np.zeros(len(ids_T) + 1, np.int8)
        depth[first[is_mark]] += 1
        depth[last[is_mark] + 1] -= 1
        return np.cumsum(depth[:-1], dtype=np.int8) > 0

    def windows(
        self, ids_T: Tokens, offsets: Integers, size: int, *, use_numba: bool | None = None
    ) -> Windows:
        """Find the windows of documents given as tokens.

        Args:
            ids_T: (T,) uint16, the documents one after another.
            offsets: (D + 1,) int64, where each document starts.
            size: Characters per window.
            use_numba: Whether to compile the loops; by default if numba is installed.

        Returns:
            The windows.
        """
        folded = self.fold(ids_T, offsets, use_numba=use_numba)
        in_one = np.zeros(len(ids_T), np.int64)
        return select_windows(folded, size, in_one, ALL_PASS, use_numba=use_numba)[0]


def select_windows(
    folded: Folded,
    size: int,
    sequences_T: Integers,
    words: Hashes,
    *,
    use_numba: bool | None = None,
) -> tuple[Windows, Integers]:
    """Find the windows of documents that pass a filter.

    Args:
        folded: The keys of the documents (`TokenFolder.fold`).
        size: Characters per window.
        sequences_T: (T,) int64, the sequence of each token, from 0 on, ascending.
        words: (2^k,) uint64, the filter; its bits are those of `bits_of`.
        use_numba: Whether to compile the loop; by default if numba is installed.

    Returns:
        The windows; and, for each of N sequences, how many windows lie within it, (N,) int64,
        whether they pass or not.
    """
    num_sequences = int(sequences_T[-1]) + 1 if len(sequences_T) else 0
    shift = shift_of(words)
    if have_numba(use_numba):
        from pipelines.data.overlap import kernels

        # Only the part that is written takes memory.
        room = len(folded.points_F)
        hashes_W = np.empty(room, np.uint64)
        places = [np.empty(room, np.int64) for _ in range(4)]
        whole_N = np.zeros(num_sequences, np.int64)
        parts = (folded.points_F, folded.sources_F, folded.offsets)
        count = kernels.select_windows(
            parts, size, MULTIPLIER, (words, shift), sequences_T, whole_N, (hashes_W, *places)
        )
        return Windows(hashes_W[:count], *(column[:count] for column in places)), whole_N
    at_W = _starts(folded, size)
    first_W, last_W = folded.sources_F[at_W], folded.sources_F[at_W + size - 1]
    sequence_W = sequences_T[first_W]
    is_whole = sequence_W == sequences_T[last_W]
    whole_N = np.bincount(sequence_W[is_whole], minlength=num_sequences)
    hashes_W = window_hashes(folded.points_F[None], size, use_numba=False)[0, at_W]
    bits_W = bits_of(hashes_W)
    passing = words[hashes_W >> shift] & bits_W == bits_W
    document_W = np.searchsorted(folded.offsets, at_W, "right") - 1
    columns = (hashes_W, document_W, at_W - folded.offsets[document_W], first_W, last_W)
    return Windows(*(column[passing] for column in columns)), whole_N


def _starts(folded: Folded, size: int) -> Integers:
    """Find the first characters of all windows."""
    ends = folded.offsets
    document_F = np.repeat(np.arange(len(ends) - 1), np.diff(ends))
    num_starts = max(len(document_F) - size + 1, 0)
    return np.flatnonzero(document_F[:num_starts] == document_F[size - 1 :])


def bits_of(hashes: Hashes) -> Hashes:
    """The two bits that a window sets in its word of a filter."""
    one, last = np.uint64(1), np.uint64(63)
    return one << (hashes & last) | one << (hashes >> np.uint64(6) & last)


def shift_of(words: Hashes) -> np.uint64:
    """What leaves the number of a word, of a filter of at least two, of a hash."""
    return np.uint64(65 - len(words).bit_length())


@lru_cache(maxsize=1)
def token_folder(tokens: tuple[str, ...]) -> TokenFolder:
    """Make the folder of a vocabulary; special tokens have no characters."""
    return TokenFolder(["" if token in SPECIAL_TOKENS else token for token in tokens])


def window_hashes(
    tokens_NL: npt.NDArray[np.unsignedinteger], size: int, *, use_numba: bool | None = None
) -> Hashes:
    """Hash every window of consecutive tokens or characters.

    Args:
        tokens_NL: (N, L) unsigned integers.
        size: Tokens per window.
        use_numba: Whether to compile the loop; by default if numba is installed.

    Returns:
        (N, W) uint64 with W = L - size + 1.
    """
    num_windows = max(tokens_NL.shape[1] - size + 1, 0)
    hashes_NW = np.zeros((len(tokens_NL), num_windows), dtype=np.uint64)
    if have_numba(use_numba):
        from pipelines.data.overlap import kernels

        kernels.hash_windows(tokens_NL, size, MULTIPLIER, hashes_NW)
        return hashes_NW
    for offset in range(size):
        # Multiply-xorshift, a bijection for each token, in place: these arrays are large.
        hashes_NW += tokens_NL[:, offset : offset + num_windows]
        hashes_NW *= MULTIPLIER
        hashes_NW ^= hashes_NW >> np.uint64(29)
    return hashes_NW


def _within(
    ranges: tuple[tuple[int, int], ...], points: npt.NDArray[np.uint32]
) -> npt.NDArray[np.bool_]:
    # The ranges are disjoint and ascending: within one, an odd number of borders lies before.
    inside: npt.NDArray[np.bool_] = np.searchsorted(np.ravel(ranges), points, "right") % 2 == 1
    return inside


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()
