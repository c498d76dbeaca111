"""Turn text into the ids of Hugging Face's tokenizer, many times as fast.

Code points that stand alone are looked up in a table
(`pipelines/data/tokenizer/code_points.py`). A run of others, a chunk, is given to the tokenizer
once and remembered. What the table cannot prove (another kind of tokenizer, a text that spells
a special token) goes to the tokenizer whole. numba runs the loops; without it NumPy does.

Shape legend: D documents, I items (a token or a chunk), T tokens.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.data.text.arrays import text_array, utf8_views
from pipelines.data.text.compiled import have_numba
from pipelines.data.tokenizer.code_points import CHUNK, SPACE, code_point_table, is_provable

if TYPE_CHECKING:
    from tokenizers import Encoding, Tokenizer

Ints = npt.NDArray[np.int64]

# Chunks to remember before all are forgotten, so that memory stays flat.
MAX_CHUNKS = 1 << 18
MAX_CHUNK_BYTES = 1 << 22
BATCH_BYTES = 1 << 22
# A full stop stands alone, so no token spans it.
SEPARATOR = "。"
CHUNKS_PER_CALL = 2048


@dataclass(frozen=True)
class TokenStream:
    """The tokens of documents, one after another.

    Args:
        ids: (T,) uint16.
        characters: (T,) int32, the code points behind each token; every code point counts
            once, except white space, which no token covers.
        lengths: (D,) int64, tokens of each document.
    """

    ids: npt.NDArray[np.uint16]
    characters: npt.NDArray[np.int32]
    lengths: Ints

    def __len__(self) -> int:
        return len(self.ids)


class FastTokenizer:
    """A tokenizer that returns the ids of another one.

    Args:
        tokenizer: The backend of a fast tokenizer, which defines the ids.
        end: An id to append to every document, or None.
        use_numba: Whether to compile the loops; by default if numba is installed.
    """

    def __init__(
        self, tokenizer: "Tokenizer", *, end: int | None = None, use_numba: bool | None = None
    ) -> None:
        self._tokenizer = tokenizer
        self._end = -1 if end is None else end
        chunks = _CompiledChunks if have_numba(use_numba) else _Chunks
        self._chunks = chunks(tokenizer) if is_provable(tokenizer) else None

    def encode(self, texts: pa.Array | pa.ChunkedArray | Sequence[str]) -> TokenStream:
        """Tokenize documents, without [CLS] and [SEP] around them.

        Args:
            texts: D strings.

        Returns:
            Their tokens, with `end` after each document.
        """
        array = text_array(texts)
        if self._chunks is None:
            return self._by_tokenizer(array)
        spelled = self._spell_specials(array)
        if not spelled.any():
            return self._by_table(array)
        edges = np.flatnonzero(np.diff(spelled)) + 1
        parts = [
            self._by_tokenizer(array[start:stop])
            if spelled[start]
            else self._by_table(array[start:stop])
            for start, stop in pairwise([0, *edges.tolist(), len(array)])
        ]
        return _concatenate(parts)

    def _spell_specials(self, array: pa.Array) -> npt.NDArray[np.bool_]:
        """(D,) bool, whether the tokenizer would find a special token in a text."""
        found = np.zeros(len(array), dtype=bool)
        if self._tokenizer.encode_special_tokens:
            return found
        everything = array.buffers()[2]
        everything = b"" if everything is None else everything.to_pybytes()
        for token in self._tokenizer.get_added_tokens_decoder().values():
            # A search of all texts at once is cheap, and usually finds nothing.
            if token.content.encode() in everything:
                found |= pc.match_substring(array, token.content).to_numpy(zero_copy_only=False)
        return found

    def _by_tokenizer(self, array: pa.Array) -> TokenStream:
        encodings = self._tokenizer.encode_batch(array.to_pylist(), add_special_tokens=False)
        return _concatenate([_as_stream(encoding, self._end) for encoding in encodings])

    def _by_table(self, array: pa.Array) -> TokenStream:
        chunks = self._chunks
        if chunks is None:
            msg = "this tokenizer has no table"
            raise ValueError(msg)
        data, offsets = utf8_views(array)
        marks = np.arange(offsets[0] + BATCH_BYTES, offsets[-1], BATCH_BYTES)
        edges = np.unique([0, *np.searchsorted(offsets, marks), len(array)])
        parts = [
            chunks.encode(data, offsets[start : stop + 1], self._end)
            for start, stop in pairwise(edges.tolist())
        ]
        return _concatenate(parts)


class _Chunks:
    """The table and the chunks seen so far; loops in NumPy."""

    def __init__(self, tokenizer: "Tokenizer") -> None:
        self._tokenizer = tokenizer
        self.table = code_point_table(tokenizer)
        self._entries: dict[str, int] = {}
        self._forget()

    def _forget(self) -> None:
        self._entries.clear()
        self._spans = np.zeros((0, 2), np.int64)
        self._ids = np.zeros(0, np.uint16)
        self._characters = np.zeros(0, np.int32)

    def encode(self, data: npt.NDArray[np.uint8], offsets: Ints, end: int) -> TokenStream:
        """Tokenize D documents.

        Args:
            data: UTF-8 of the documents and perhaps of others.
            offsets: (D + 1,) int64 into `data`.
            end: Appended to every document, unless negative.

        Returns:
            Their tokens.
        """
        if len(self._entries) > MAX_CHUNKS or len(self._ids) > MAX_CHUNK_BYTES:
            self._forget()
        text = data[offsets[0] : offsets[-1]].tobytes().decode()
        points = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
        kinds_P = self.table[points].astype(np.int32)
        # From offsets in bytes to offsets in code points.
        begins = (data[offsets[0] : offsets[-1]] & 0xC0) != 0x80
        edges = np.append(0, np.cumsum(begins))[offsets - offsets[0]]
        in_chunk = kinds_P == CHUNK
        fresh = np.ones(len(points) + 1, dtype=bool)
        fresh[1:-1] = ~in_chunk[:-1]
        fresh[edges] = True
        starts = np.flatnonzero(in_chunk & fresh[:-1])
        stops = np.flatnonzero(in_chunk & (fresh[1:] | np.append(~in_chunk[1:], True))) + 1
        entries = self._entries
        first_new = len(entries)
        kinds_P[starts] = [
            -1 - entries.setdefault(text[start:stop], len(entries))
            for start, stop in zip(starts.tolist(), stops.tolist(), strict=True)
        ]
        is_item = kinds_P != SPACE
        is_item &= kinds_P != CHUNK
        self._resolve(list(entries)[first_new:] if len(entries) > first_new else [])
        counts = np.diff(np.append(0, np.cumsum(is_item))[edges])
        return self._expand(kinds_P[is_item], counts, end)

    def _resolve(self, chunks: list[str]) -> None:
        """Ask the tokenizer about new chunks."""
        if not chunks:
            return
        groups = range(0, len(chunks), CHUNKS_PER_CALL)
        stream = _concatenate([self._ask(chunks[at : at + CHUNKS_PER_CALL]) for at in groups])
        starts = len(self._ids) + np.cumsum(stream.lengths) - stream.lengths
        self._spans = np.concatenate([self._spans, np.stack([starts, stream.lengths], axis=1)])
        self._ids = np.concatenate([self._ids, stream.ids])
        self._characters = np.concatenate([self._characters, stream.characters])

    def _ask(self, chunks: list[str]) -> TokenStream:
        """Tokenize chunks in one text, as a call costs more than a word."""
        text = SEPARATOR.join([*chunks, ""])
        stream = _as_stream(self._tokenizer.encode(text, add_special_tokens=False), -1)
        is_separator = stream.ids == self._tokenizer.token_to_id(SEPARATOR)
        if np.count_nonzero(is_separator) == len(chunks):
            lengths = np.diff(np.append(-1, np.flatnonzero(is_separator))) - 1
            kept = ~is_separator
            return TokenStream(stream.ids[kept], stream.characters[kept], lengths)
        encodings = self._tokenizer.encode_batch(chunks, add_special_tokens=False)
        return _concatenate([_as_stream(encoding, -1) for encoding in encodings])

    def _expand(self, items_I: npt.NDArray[np.int32], counts: Ints, end: int) -> TokenStream:
        """Replace every item by its tokens."""
        tokens_I = np.ones(len(items_I), np.int64)
        of_chunk = np.flatnonzero(items_I < 0)
        entries = -1 - items_I[of_chunk]
        tokens_I[of_chunk] = self._spans[entries, 1]
        ends = np.cumsum(counts)
        reached = np.append(0, np.cumsum(tokens_I))
        lengths = np.diff(reached[np.append(0, ends)])
        ids = np.repeat(np.maximum(items_I, 0).astype(np.uint16), tokens_I)
        characters = np.ones(len(ids), np.int32)
        sizes = self._spans[entries, 1]
        within = np.arange(sizes.sum()) - np.repeat(np.cumsum(sizes) - sizes, sizes)
        target = np.repeat(reached[of_chunk], sizes) + within
        source = np.repeat(self._spans[entries, 0], sizes) + within
        ids[target] = self._ids[source]
        characters[target] = self._characters[source]
        if end < 0:
            return TokenStream(ids, characters, lengths)
        ends = np.cumsum(lengths)
        return TokenStream(
            np.insert(ids, ends, np.uint16(end)), np.insert(characters, ends, 0), lengths + 1
        )


class _CompiledChunks(_Chunks):
    """The same, with loops compiled by numba."""

    def _forget(self) -> None:
        super()._forget()
        self._make_room(MAX_CHUNKS, MAX_CHUNK_BYTES)

    def _make_room(self, chunks: int, num_bytes: int) -> None:
        capacity = 1 << max(chunks - 1, 1).bit_length()
        self._slots = np.full(2 * capacity, -1, np.int32)
        self._hashes = np.zeros(capacity, np.uint64)
        self._chunk_bytes = np.zeros((capacity, 2), np.int64)
        self._arena = np.zeros(num_bytes, np.uint8)
        self._used = np.zeros(2, np.int64)

    def encode(self, data: npt.NDArray[np.uint8], offsets: Ints, end: int) -> TokenStream:
        from pipelines.data.tokenizer import kernels

        items = np.empty(int(offsets[-1] - offsets[0]), np.int32)
        counts = np.zeros(len(offsets) - 1, np.int64)
        parts = []
        first = 0
        while first < len(counts):
            stop, num_items = kernels.segment(
                data, offsets, first, self.table, self._slots, self._hashes,
                self._chunk_bytes, self._arena, self._used, items, counts,
            )  # fmt: skip
            if stop == first:
                self._forget()
                size = int(offsets[first + 1] - offsets[first])
                self._make_room(max(MAX_CHUNKS, size), max(MAX_CHUNK_BYTES, size))
                continue
            spans = self._chunk_bytes[len(self._spans) : self._used[0]]
            self._resolve([self._arena[at : at + size].tobytes().decode() for at, size in spans])
            parts.append(self._expand(items[:num_items], counts[first:stop], end))
            first = stop
        return _concatenate(parts)

    def _expand(self, items_I: npt.NDArray[np.int32], counts: Ints, end: int) -> TokenStream:
        from pipelines.data.tokenizer import kernels

        entries = -1 - items_I[items_I < 0]
        num_tokens = len(items_I) - len(entries) + int(self._spans[entries, 1].sum()) + len(counts)
        ids = np.empty(num_tokens, np.uint16)
        characters = np.empty(num_tokens, np.int32)
        lengths = np.empty(len(counts), np.int64)
        n = kernels.expand(
            items_I, counts, self._spans, self._ids, self._characters, end, ids, characters, lengths
        )
        return TokenStream(ids[:n], characters[:n], lengths)


def _as_stream(encoding: "Encoding", end: int) -> TokenStream:
    ids = np.array(encoding.ids, dtype=np.uint16)
    spans = np.array(encoding.offsets, dtype=np.int32).reshape(-1, 2)
    # Several tokens can come from one code point (a Hangul syllable becomes
    # several jamo): the code point counts only for the first of them.
    reached = np.maximum.accumulate(np.concatenate([np.zeros(1, np.int32), spans[:, 1]]))
    fresh = spans[:, 1] - np.maximum(spans[:, 0], reached[:-1])
    characters = np.maximum(fresh, 0).astype(np.int32)
    if end >= 0:
        ids = np.append(ids, np.uint16(end))
        characters = np.append(characters, np.int32(0))
    return TokenStream(ids, characters, np.array([len(ids)], np.int64))


def _concatenate(parts: list[TokenStream]) -> TokenStream:
    if len(parts) == 1:
        return parts[0]
    return TokenStream(
        np.concatenate([np.empty(0, np.uint16), *(part.ids for part in parts)]),
        np.concatenate([np.empty(0, np.int32), *(part.characters for part in parts)]),
        np.concatenate([np.empty(0, np.int64), *(part.lengths for part in parts)]),
    )
