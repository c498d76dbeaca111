"""Count what two splits share in the final shards, by other means than the filter.

The filter (`pipelines/data/overlap`) works on token tables and hashes, with NumPy and numba. Here
the shards are decoded to text, the text is folded by other code (`keys.py`), and DuckDB compares
the characters of windows and the bytes of sequences, so a fault of the filter is not repeated.
The data stay in files.

Shape legend: N sequences, L length, T tokens.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.base.artifacts import read_manifest
from pipelines.base.errors import UserError
from pipelines.base.run_stage import progress
from pipelines.base.workspace import SPLITS
from pipelines.data.audit.comparison import Comparison, Kind, Shares, Unit
from pipelines.data.audit.windows import Run
from pipelines.data.shards import SequenceFiles, Tokens, fixed_binary, shard_paths
from pipelines.data.text.shard_vocabulary import ShardVocabulary
from pipelines.data.text.vocabulary import SPECIAL_TOKENS

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

ROWS_PER_BATCH = 8192
SEQUENCES_PER_STEP = 1024
# What is trained on, and what is held out from it. The order is that of `expectations.overlap`.
PAIRS = (("train", "validation"), ("train", "test"), ("validation", "test"))
EXACT = """
SELECT count(*), min(number), arg_min(same, number) FROM (
    SELECT earlier.number, min(heldout.number) AS same
    FROM earlier JOIN heldout USING (tokens) GROUP BY earlier.number
)
"""


def overlap_table(
    directory: Path,
    *,
    window_characters: int,
    max_containment: float,
    title_windows: int,
    threads: int = 1,
) -> "pd.DataFrame":
    """Count what every pair of splits shares.

    Args:
        directory: The final shards.
        window_characters: Characters per window.
        max_containment: The largest share of its windows that a unit may have in the other
            split.
        title_windows: Windows that a document shares with those of its title, for the title to
            count as shared.
        threads: Threads of the database; the result does not depend on it.

    Returns:
        One row per pair and method, columns `expectations.overlap.COLUMNS`; `example`
        names the worst unit, and what it shares with which other one.

    Raises:
        UserError: If files are missing or damaged, or contradict each other.
    """
    splits = {split: ShardText(directory, split) for split in SPLITS}
    rows: list[Row] = []
    with Comparison(window_characters, threads=threads) as comparison:
        # Held-out splits first: of train only what they may have is kept.
        for split in progress(SPLITS[::-1], total=len(SPLITS), unit="split", label="recount"):
            text = splits[split]
            read = comparison.add if split == "train" else comparison.hold_out
            read(split, text.runs())
            for first, ids, titles in text.documents():
                comparison.add_documents(split, first, ids, titles)
        for earlier, heldout in PAIRS:
            comparison.measure(earlier, heldout)
            pair = _Pair(
                comparison, splits[earlier], splits[heldout], max_containment, title_windows
            )
            rows += pair.rows()
    # Only now, as they take as much memory as the database, which is closed.
    import pandas as pd

    from expectations import overlap

    return pd.DataFrame(rows, columns=list(overlap.COLUMNS))


class ShardText:
    """The text of one split of final shards.

    Args:
        directory: The shards.
        split: The split.

    Raises:
        UserError: If a file does not hold whole sequences.
    """

    def __init__(self, directory: Path, split: str) -> None:
        manifest = read_manifest(directory)
        self.split = split
        self.length = int(manifest["sequence_length"])
        self.files = SequenceFiles(shard_paths(directory, split), self.length)
        self._directory = directory

    def documents(self) -> Iterator[tuple[int, list[str], list[str]]]:
        """Yield the number of a document, and the ids and titles from it on."""
        first = 0
        for batch in self._batches("documents", ["id", "title"]):
            yield first, batch["id"].to_pylist(), batch["title"].to_pylist()
            first += batch.num_rows

    def runs(self) -> Iterator[Run]:
        """Yield the text of every document, one run for each part of it without a gap.

        Raises:
            UserError: If the tables of sequences and documents do not fit the shards.
        """
        sequences = self._sequences()
        current = next(sequences, None)
        covered = 0
        for document, start, stop in self._bounds():
            if start < covered or (start > covered and current and current.first < start):
                raise self._contradiction(f"token {covered}, then document {document} at {start}")
            run: list[_Sequence] = []
            while current and current.first < stop:
                if run and current.first != run[-1].first + self.length:
                    yield self._run(document, run, start, stop)
                    run = []
                run.append(current)
                if current.first + self.length > stop:
                    break
                current = next(sequences, None)
            yield self._run(document, run, start, stop)
            covered = stop
        if current:
            raise self._contradiction(f"token {covered}, then a sequence at {current.first}")

    def _run(self, document: int, run: list["_Sequence"], start: int, stop: int) -> Run:
        pieces = (
            "".join(sequence.words_L[max(start - sequence.first, 0) : stop - sequence.first])
            for sequence in run
        )
        return Run(document, tuple(sequence.number for sequence in run), tuple(pieces))

    def _bounds(self) -> Iterator[tuple[int, int, int]]:
        """Yield the number of each document, its first token, and the one after its last."""
        number = 0
        for batch in self._batches("documents", ["start_token", "num_tokens"]):
            starts, sizes = (column.to_pylist() for column in batch.columns)
            for start, size in zip(starts, sizes, strict=True):
                yield number, start, start + size
                number += 1

    def _sequences(self) -> Iterator["_Sequence"]:
        """Yield the sequences of the shards as text."""
        words = _words(self._directory)
        sources = self._sources()
        number = 0
        for block_NL in self.files:
            for few_NL in np.split(
                block_NL, range(SEQUENCES_PER_STEP, len(block_NL), SEQUENCES_PER_STEP)
            ):
                for words_L in words.spell(few_NL).tolist():
                    source = next(sources, None)
                    if source is None:
                        raise self._contradiction(f"{number} rows of sequences")
                    yield _Sequence(number, source * self.length, words_L)
                    number += 1
        if next(sources, None) is not None:
            raise self._contradiction(f"more than {number} rows of sequences")

    def _sources(self) -> Iterator[int]:
        for batch in self._batches("sequences", ["source_sequence"]):
            yield from batch.column(0).to_pylist()

    def _batches(self, kind: str, columns: list[str]) -> Iterator[pa.RecordBatch]:
        path = self._directory / f"{self.split}.{kind}.parquet"
        with pq.ParquetFile(path, pre_buffer=False) as file:
            yield from file.iter_batches(ROWS_PER_BATCH, columns=columns)

    def _contradiction(self, got: str) -> UserError:
        return UserError(
            f"{self._directory}: split {self.split}: expected one row for every sequence, and "
            f"every sequence in the documents of the split, got {got}",
            f"restore the files with `dvc checkout --force {self._directory}`, or make them again "
            "with `dvc repro`",
        )


@dataclass(frozen=True)
class _Sequence:
    """A sequence as text.

    Args:
        number: In the final shards.
        first: Its first token, counted before anything was removed.
        words_L: The text of each token.
    """

    number: int
    first: int
    words_L: list[str]


class _Words:
    """The text of every token."""

    def __init__(self, tokens: list[str]) -> None:
        # A word piece continues a word. Two Latin words have a space between them.
        texts = [t[2:] if t.startswith("##") and len(t) > 2 else t for t in tokens]
        self._texts = np.array([*texts, *(f" {text}" for text in texts)], object)
        self._starts_word = np.array([_is_latin(token[:1]) for token in tokens])
        self._ends_word = np.array([_is_latin(token[-1:]) for token in tokens])

    def spell(self, tokens_NL: Tokens) -> npt.NDArray[np.object_]:
        """Look up the text of tokens; (N, L) strings."""
        ids_T = tokens_NL.reshape(-1).astype(np.int64)
        spaced_T = np.zeros(len(ids_T), np.bool_)
        spaced_T[1:] = self._ends_word[ids_T[:-1]] & self._starts_word[ids_T[1:]]
        spelled: npt.NDArray[np.object_] = self._texts[ids_T + spaced_T * len(self._starts_word)]
        return spelled.reshape(tokens_NL.shape)


def _words(directory: Path) -> _Words:
    # [UNK] and the end of a document have no text.
    tokens = ShardVocabulary.read(directory).tokens
    return _Words(["" if token in SPECIAL_TOKENS else token for token in tokens])


def _is_latin(character: str) -> bool:
    return character.isascii() and character.isalnum()


@dataclass(frozen=True)
class _Pair:
    """Two splits that have been compared."""

    comparison: Comparison
    earlier: ShardText
    heldout: ShardText
    bound: float
    title_windows: int

    def rows(self) -> list[Row]:
        """The evidence, one row per method."""
        earlier, heldout = self.earlier.split, self.heldout.split
        ids = self.comparison.shared_ids(earlier, heldout)
        titles = self.comparison.shared_titles(earlier, heldout, self.title_windows)
        rows = {
            "exact_sequence": self._exact(),
            "near_containment": self._shares(earlier, "sequence", heldout),
            "heldout_sequence": self._shares(heldout, "sequence", earlier),
            "heldout_document": self._shares(heldout, "document", earlier),
            "document_id": self._names("id", *ids),
            "title": self._names("title", *titles),
        }
        pair = f"{earlier}/{heldout}"
        return [{"pair": pair, "method": method, **row} for method, row in rows.items()]

    def _exact(self) -> Row:
        database = self.comparison.database
        for name, text in (("earlier", self.earlier), ("heldout", self.heldout)):
            database.register(name, _sequence_reader(text.files))
        [(shared, first, same)] = database.execute(EXACT).fetchall()
        compared = len(self.earlier.files) if len(self.heldout.files) else 0
        example = ""
        if shared:
            example = (
                f"{self.earlier.split} sequence {first} equals {self.heldout.split} sequence {same}"
            )
        return _row(compared, shared, example)

    def _names(self, what: str, shared: int, name: str) -> Row:
        counts = map(self.comparison.count_documents, (self.earlier.split, self.heldout.split))
        compared, known = counts
        example = f"{what} {name!r} is in {self.earlier.split} and in {self.heldout.split}"
        return _row(compared if known else 0, shared, example if shared else "")

    def _shares(self, split: str, kind: Kind, other: str) -> Row:
        shares: Shares = self.comparison.shares(split, kind, self.bound)
        row = {
            "compared": shares.compared,
            "shared": shares.above,
            "max_share": shares.maximum,
            "p99_share": shares.p99,
            "mean_share": shares.mean,
            "example": "",
        }
        for unit in self.comparison.worst(split, kind, 1):
            if unit.share > 0:
                row["example"] = self._example(split, kind, unit, other)
        return row

    def _example(self, split: str, kind: Kind, unit: Unit, other: str) -> str:
        text = (
            f"{split} {kind} {self._name(split, kind, unit.number)}: {other} has {unit.share:.1%} "
            f"of its {unit.windows} windows"
        )
        source = self.comparison.source(split, kind, unit.number, other)
        if source is None:
            return text
        number, shared = source
        return f"{text}, most of them in {kind} {self._name(other, kind, number)}: {shared}"

    def _name(self, split: str, kind: Kind, number: int) -> str:
        return (
            str(number) if kind == "sequence" else repr(self.comparison.document_id(split, number))
        )


def _row(compared: int, shared: int, example: str) -> Row:
    """Evidence of a method under which a unit is shared as a whole or not at all."""
    return {
        "compared": compared,
        "shared": shared,
        "max_share": 1.0 if shared else 0.0,
        "p99_share": 1.0 if shared > compared // 100 else 0.0,
        "mean_share": shared / max(compared, 1),
        "example": example,
    }


def _sequence_reader(files: SequenceFiles) -> pa.RecordBatchReader:
    schema = pa.schema([("number", pa.int64()), ("tokens", pa.binary(2 * files.sequence_length))])

    def batches() -> Iterator[pa.RecordBatch]:
        first = 0
        for block_NL in files:
            numbers = pa.array(np.arange(first, first + len(block_NL)))
            yield pa.RecordBatch.from_arrays([numbers, fixed_binary(block_NL)], schema=schema)
            first += len(block_NL)

    return pa.RecordBatchReader.from_batches(schema, batches())
