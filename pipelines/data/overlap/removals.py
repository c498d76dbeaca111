"""Say what was removed and why: one row per sequence, with the text that it shares.

Shape legend: N sequences, L length, T tokens, W windows, H shared windows.
"""

from collections.abc import Iterator

import numpy as np
import pyarrow as pa

from enigma.language_model.word_pieces import join_word_pieces
from pipelines.data.overlap.hits import MAX_HITS, Records
from pipelines.data.overlap.stream import document_rows, document_starts
from pipelines.data.overlap.verdicts import METHODS, UNKNOWN, Compared
from pipelines.data.overlap.windows import Integers, Windows
from pipelines.data.text.shard_vocabulary import ShardVocabulary

SEQUENCES_PER_TABLE = 1024
# Of two numbers in one: windows of a table, and documents.
SHIFT = 32
REMOVED_SCHEMA = pa.schema(
    [
        ("split", pa.string()),
        ("source_sequence", pa.int64()),
        ("documents", pa.list_(pa.string())),
        ("matched_split", pa.string()),
        ("matched_document", pa.string()),
        ("method", pa.string()),
        ("share", pa.float64()),
        ("example", pa.string()),
        ("tokens", pa.list_(pa.uint16())),
        ("text", pa.string()),
    ]
)


class _Tokens(list[str]):
    """The tokens of a vocabulary by their ids, for `join_word_pieces`.

    A tokenizer of transformers looks ids up one by one, which takes longer than all else here.
    """

    def convert_ids_to_tokens(self, ids: list[int], *, skip_special_tokens: bool) -> list[str]:
        """Look ids up.

        Raises:
            NotImplementedError: If special tokens are to be left out.
        """
        if skip_special_tokens:
            raise NotImplementedError
        return [self[index] for index in ids]


def removal_tables(compared: Compared, found: Records) -> Iterator[pa.Table]:
    """Describe the sequences that go.

    Args:
        compared: What the workers found.
        found: `VERDICT`, ascending.

    Yields:
        Tables of `REMOVED_SCHEMA`: `documents` are those of the split that share something
        with `matched_document`, and `example` is the longest text that they share.
    """
    if not len(found):
        return
    starts = document_starts(compared.reader.directory, compared.reader.split)
    tokens = _Tokens(ShardVocabulary.read(compared.held_out.directory).tokens)
    for first in range(0, len(found), SEQUENCES_PER_TABLE):
        yield _table(compared, found[first : first + SEQUENCES_PER_TABLE], starts, tokens)


def _table(compared: Compared, found_N: Records, starts: Integers, tokens: _Tokens) -> pa.Table:
    reader, held_out = compared.reader, compared.held_out
    ids_NL = reader.gather(found_N["sequence"])
    length = reader.sequence_length
    tokens_T = (found_N["sequence"][:, None] * length + np.arange(length)).reshape(-1)
    owners_T = np.searchsorted(starts, tokens_T, "right") - 1
    cuts = np.flatnonzero((np.diff(owners_T) != 0) | (np.diff(tokens_T) != 1)) + 1
    offsets = np.union1d(np.arange(0, len(tokens_T) + 1, length), cuts)
    windows = held_out.folder.windows(ids_NL.reshape(-1), offsets, held_out.window_characters)
    held_N, shared_H = _shared(compared, found_N, windows, windows.first_W // length)
    bounds = np.searchsorted(windows.first_W[shared_H] // length, np.arange(len(found_N) + 1))
    sharers, rows = [], []
    for row, verdict in enumerate(found_N):
        mine_H = shared_H[bounds[row] : bounds[row + 1]]
        first, last = _longest(windows, mine_H)
        ids = ids_NL[row].tolist()
        document = [verdict["document"]] if verdict["document"] != UNKNOWN else []
        sharers.append(np.unique([*owners_T[windows.first_W[mine_H]], *document]).astype(np.int64))
        rows.append(
            {
                "split": reader.split,
                "source_sequence": int(verdict["sequence"]),
                "method": METHODS[verdict["method"]],
                "share": float(verdict["share"]),
                "example": join_word_pieces(tokens, ids_NL.reshape(-1)[first:last].tolist()),
                "tokens": ids,
                "text": join_word_pieces(tokens, ids),
            }
        )
    numbers = np.unique(np.concatenate(sharers))
    names = document_rows(reader.directory, reader.split, numbers, ["id"])["id"].to_pylist()
    name_of = dict(zip(numbers.tolist(), names, strict=True))
    held = np.unique(held_N[held_N != UNKNOWN])
    matched = held_out.documents(held, ["id"])
    columns = zip(matched["split"].to_pylist(), matched["id"].to_pylist(), strict=True)
    match_of = dict(zip(held.tolist(), columns, strict=True))
    for entry, mine, number in zip(rows, sharers, held_N.tolist(), strict=True):
        entry["documents"] = [name_of[document] for document in mine.tolist()]
        entry["matched_split"], entry["matched_document"] = match_of.get(number, (None, None))
    return pa.Table.from_pylist(rows, schema=REMOVED_SCHEMA)


def _shared(
    compared: Compared, found_N: Records, windows: Windows, row_W: Integers
) -> tuple[Integers, Integers]:
    """Name the held-out document of each sequence, and the windows shared with it."""
    passing = compared.index.passing(windows.hashes_W)
    keys: list[Integers] = [np.empty(0, np.int64)]
    for block, (rows, ids) in enumerate(compared.index.look_up(windows.hashes_W[passing])):
        row, places = compared.index.expand(block, ids, MAX_HITS)
        keys.append(passing[rows[row]] << SHIFT | places["document"])
    window_H, document_H = _split(np.unique(np.concatenate(keys)))
    row_H = row_W[window_H]
    # The document with most of a sequence's windows, where the verdict names none.
    pairs, counts = np.unique(row_H << SHIFT | document_H, return_counts=True)
    pair_rows, pair_documents = _split(pairs)
    order = np.lexsort((-counts, pair_rows))
    rows, first = np.unique(pair_rows[order], return_index=True)
    main_N = np.full(len(found_N), UNKNOWN)
    main_N[rows] = pair_documents[order[first]]
    held_N = np.where(found_N["held_document"] == UNKNOWN, main_N, found_N["held_document"])
    is_named = document_H == held_N[row_H]
    # Not all places of a commonplace window are read: then any shared text is the example.
    has_named_N = np.bincount(row_H[is_named], minlength=len(held_N)) > 0
    return held_N, np.unique(window_H[is_named | ~has_named_N[row_H]])


def _split(keys: Integers) -> tuple[Integers, Integers]:
    return keys >> SHIFT, keys & ((1 << SHIFT) - 1)


def _longest(windows: Windows, shared_H: Integers) -> tuple[int, int]:
    """The tokens of the longest run of consecutive windows, as a half-open range."""
    if not len(shared_H):
        return 0, 0
    breaks = (np.diff(windows.positions_W[shared_H]) != 1) | (np.diff(shared_H) != 1)
    bounds = np.concatenate([[0], np.flatnonzero(breaks) + 1, [len(shared_H)]])
    longest = int(np.diff(bounds).argmax())
    first, last = shared_H[bounds[longest]], shared_H[bounds[longest + 1] - 1]
    return int(windows.first_W[first]), int(windows.last_W[last]) + 1
