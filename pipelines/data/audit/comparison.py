"""What texts share, compared exactly and out of core by DuckDB.

Held-out texts come first, then the texts that are trained on; both are streamed. Of the
latter only windows are kept that a held-out text may have; the join then compares all of
their characters.
"""

import tempfile
from collections.abc import Iterable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Literal, Self

import duckdb
import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.base.errors import UserError
from pipelines.data.audit.keys import title_key
from pipelines.data.audit.windows import (
    COLUMNS,
    MAX_WINDOW_CHARACTERS,
    MIN_WINDOW_CHARACTERS,
    Run,
    window_batches,
    window_text,
)

# A unit with fewer windows is not judged: three commonplaces would condemn it.
MIN_WINDOWS = 24
# For each thread. 2 GB of text (17 million windows of each of two splits) need more than 96.
MEMORY_MB = 160
# 64 MB, of which the memory that is never written to is never used.
SIEVE_BITS = 29
MULTIPLIERS = (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB)
EXAMPLE_CHARACTERS = 80
CONFIG = {
    # Nothing is looked for in the network.
    "autoinstall_known_extensions": "false",
    "autoload_known_extensions": "false",
    "preserve_insertion_order": "false",
}
TABLES = """
CREATE TABLE windows (
    split VARCHAR, sequence BIGINT, document BIGINT, place BIGINT,
    k0 UBIGINT, k1 UBIGINT, k2 UBIGINT
);
CREATE TABLE counts (split VARCHAR, kind VARCHAR, number BIGINT, windows BIGINT);
CREATE TABLE documents (split VARCHAR, number BIGINT, id VARCHAR, title VARCHAR);
"""
# The windows of both splits, each once; what each unit has of them; and the share of it.
MEASURE = """
CREATE OR REPLACE TEMP TABLE common AS
SELECT k0, k1, k2 FROM windows WHERE split = $heldout
INTERSECT SELECT k0, k1, k2 FROM windows WHERE split = $earlier;

CREATE OR REPLACE TEMP TABLE found AS
SELECT split, sequence, document, place, k0, k1, k2
FROM windows SEMI JOIN common USING (k0, k1, k2) WHERE split IN ($earlier, $heldout);

CREATE OR REPLACE TEMP TABLE shares AS
SELECT split, kind, number, windows, coalesce(hits, 0) / windows AS share
FROM (
    SELECT split, kind, number, sum(windows) AS windows FROM counts
    WHERE split IN ($earlier, $heldout) GROUP BY ALL HAVING sum(windows) >= $least
) LEFT JOIN (
    SELECT split, 'sequence' AS kind, sequence AS number, count(*) AS hits
    FROM found WHERE sequence >= 0 GROUP BY ALL
    UNION ALL
    SELECT split, 'document', document, count(*) FROM found GROUP BY ALL
) USING (split, kind, number)
"""
WORST = """
SELECT number, share, windows::BIGINT FROM shares WHERE split = $split AND kind = $kind
ORDER BY share DESC, number LIMIT $count
"""
# The unit of the other split with most of the windows of one unit.
GIVER = """
SELECT other.unit, count(DISTINCT mine.place)
FROM (SELECT place, k0, k1, k2, CASE $kind WHEN 'sequence' THEN sequence ELSE document END AS unit
      FROM found WHERE split = $split) mine
JOIN (SELECT k0, k1, k2, CASE $kind WHEN 'sequence' THEN sequence ELSE document END AS unit
      FROM found WHERE split = $other) other
USING (k0, k1, k2)
WHERE mine.unit = $number AND other.unit >= 0
GROUP BY other.unit ORDER BY 2 DESC, 1 LIMIT 1
"""
SHARED_TEXT = """
WITH mine AS (
    SELECT DISTINCT place, k0, k1, k2 FROM found
    WHERE split = $split AND $number = CASE $kind WHEN 'sequence' THEN sequence ELSE document END
    AND (k0, k1, k2) IN (
        SELECT (k0, k1, k2) FROM found WHERE split = $other
        AND $giver = CASE $kind WHEN 'sequence' THEN sequence ELSE document END
    )
), runs AS (SELECT *, place - row_number() OVER (ORDER BY place) AS run FROM mine)
SELECT k0, k1, k2 FROM runs WHERE run = (
    SELECT run FROM runs GROUP BY run ORDER BY count(*) DESC, run LIMIT 1
) ORDER BY place LIMIT $limit
"""
IDS = """
SELECT count(*), min(id) FROM (
    SELECT id FROM documents WHERE split = $earlier AND id <> ''
    INTERSECT SELECT id FROM documents WHERE split = $heldout
)
"""
TITLES = """
WITH titles AS (
    SELECT title FROM documents WHERE split = $earlier AND title <> ''
    INTERSECT SELECT title FROM documents WHERE split = $heldout
), titled AS (
    SELECT split, document, title, k0, k1, k2
    FROM found JOIN (SELECT DISTINCT split, number AS document, title FROM documents
                     SEMI JOIN titles USING (title)) USING (split, document)
)
SELECT count(DISTINCT title), min(title) FROM (
    SELECT document, title FROM (SELECT * FROM titled WHERE split = $earlier)
    SEMI JOIN (SELECT * FROM titled WHERE split = $heldout) USING (title, k0, k1, k2)
    GROUP BY ALL HAVING count(*) >= $least
)
"""

Kind = Literal["sequence", "document"]
Bits = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Unit:
    """A sequence or document, and how much of it the other side has.

    Args:
        number: Of the unit.
        share: Share of its windows that the other side as a whole has, in [0, 1].
        windows: Number of its windows.
    """

    number: int
    share: float
    windows: int


@dataclass(frozen=True)
class Shares:
    """The shares of all units of one kind.

    Args:
        compared: Number of units with at least `MIN_WINDOWS` windows.
        above: Number of those whose share is above the bound.
        maximum: The largest share, in [0, 1]; 0 if nothing was compared.
        p99: The share that at most one unit in a hundred exceeds.
        mean: The mean share.
    """

    compared: int
    above: int
    maximum: float
    p99: float
    mean: float


class Comparison(AbstractContextManager["Comparison"]):
    """Texts in a database that spills to temporary files; memory does not grow with them.

    Args:
        window_characters: Ideographs per window.
        threads: Threads of the database; the result does not depend on it.

    Raises:
        ValueError: If windows of that length cannot be compared.
    """

    def __init__(self, window_characters: int, *, threads: int = 1) -> None:
        if not MIN_WINDOW_CHARACTERS <= window_characters <= MAX_WINDOW_CHARACTERS:
            msg = (
                f"window_characters: expected {MIN_WINDOW_CHARACTERS} to {MAX_WINDOW_CHARACTERS}, "
                f"got {window_characters}"
            )
            raise ValueError(msg)
        self._window_characters = window_characters
        self._sieve: Bits = np.zeros(1 << (SIEVE_BITS - 3), np.uint8)
        self._directory = tempfile.TemporaryDirectory(prefix="enigma-audit-")
        self._memory_mb = MEMORY_MB * threads
        # What does not fit goes to the directory.
        config: dict[str, str | bool | int | float | list[str]] = {
            **CONFIG,
            "threads": threads,
            "memory_limit": f"{self._memory_mb}MB",
            "temp_directory": self._directory.name,
        }
        self.database = duckdb.connect(config=config)
        self.database.execute(TABLES)

    def __enter__(self) -> Self:
        """Return the comparison."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Delete the database.

        Raises:
            UserError: If the block ended as the database had too little memory.
        """
        self.database.close()
        self._directory.cleanup()
        if isinstance(error, duckdb.OutOfMemoryException):
            raise UserError(
                f"expected the comparison of windows to fit into {self._memory_mb} MB, it does not "
                f"({str(error).splitlines()[0]})",
                "hold out less text (clean.split in params.yaml, or the second corpus of an audit)",
            ) from error

    def hold_out(self, split: str, runs: Iterable[Run]) -> None:
        """Add texts that must not occur in those that are added later.

        Args:
            split: A name for these texts.
            runs: The texts; every document has a number of its own.
        """
        for batch in window_batches(runs, self._window_characters):
            places = self._places(batch)
            bits = np.left_shift(1, places & 7).astype(np.uint8)
            np.bitwise_or.at(self._sieve, places >> 3, bits)
            self._insert(split, batch, batch)

    def add(self, split: str, runs: Iterable[Run]) -> None:
        """Add texts in which the held-out ones must not occur; arguments as for `hold_out`."""
        for batch in window_batches(runs, self._window_characters):
            places = self._places(batch)
            candidates = self._sieve[places >> 3] >> (places & 7).astype(np.uint8) & 1
            self._insert(split, batch, batch.filter(pa.array(candidates.astype(np.bool_))))

    def add_documents(self, split: str, first: int, ids: list[str], titles: list[str]) -> None:
        """Add the ids and titles of consecutive documents.

        Args:
            split: The texts that they belong to.
            first: Number of the first document.
            ids: Their ids; an empty one is shared with nobody.
            titles: Their titles, likewise.
        """
        batch = pa.table(
            {
                "number": np.arange(first, first + len(ids)),
                "id": pa.array(ids, pa.string()),
                "title": pa.array(map(title_key, titles), pa.string()),
            }
        )
        self._run("INSERT INTO documents SELECT $split, * FROM batch", batch, split=split)

    def measure(self, earlier: str, heldout: str) -> None:
        """Compare two splits; the other methods then report on these.

        Args:
            earlier: What is trained on.
            heldout: What must not occur in it.
        """
        for statement in MEASURE.split(";"):
            known = {"earlier": earlier, "heldout": heldout, "least": MIN_WINDOWS}
            wanted = {name: value for name, value in known.items() if f"${name}" in statement}
            self.database.execute(statement, wanted)

    def shares(self, split: str, kind: Kind, bound: float) -> Shares:
        """Summarise the shares of the units of one of the two splits.

        Args:
            split: The split whose units are judged, by what the other one has.
            kind: Of the units.
            bound: The largest share that is allowed.

        Returns:
            The summary.
        """
        where = "FROM shares WHERE split = $split AND kind = $kind"
        compared, above, maximum, mean = self._row(
            "SELECT count(*), count(*) FILTER (share > $bound), max(share), avg(share) " + where,
            split=split, kind=kind, bound=bound,
        )  # fmt: skip
        if not compared:
            return Shares(0, 0, 0.0, 0.0, 0.0)
        (p99,) = self._row(
            f"SELECT share {where} ORDER BY share DESC LIMIT 1 OFFSET {compared // 100}",
            split=split, kind=kind,
        )  # fmt: skip
        return Shares(compared, above, maximum, p99, mean)

    def worst(self, split: str, kind: Kind, count: int) -> list[Unit]:
        """List the units with the largest shares, the largest first."""
        return [Unit(*row) for row in self._rows(WORST, split=split, kind=kind, count=count)]

    def source(self, split: str, kind: Kind, number: int, other: str) -> tuple[int, str] | None:
        """Find where most of what a unit shares stands.

        Args:
            split: The split of the unit.
            kind: Of the unit, and of what is looked for.
            number: Of the unit.
            other: The other split.

        Returns:
            The unit of the other split, and the longest text that both have, as its
            comparison key, cut at `EXAMPLE_CHARACTERS`; None if no single unit shares a window.
        """
        unit = {"split": split, "kind": kind, "number": number, "other": other}
        limit = EXAMPLE_CHARACTERS - self._window_characters + 1
        for giver, _ in self._rows(GIVER, **unit):
            rows = self._rows(SHARED_TEXT, **unit, giver=giver, limit=limit)
            return giver, window_text(rows)
        return None

    def shared_ids(self, earlier: str, heldout: str) -> tuple[int, str]:
        """Count the ids of documents that both splits have; also return one of them."""
        count, example = self._row(IDS, earlier=earlier, heldout=heldout)
        return count, example or ""

    def shared_titles(self, earlier: str, heldout: str, least: int) -> tuple[int, str]:
        """Count the titles that the two splits share, and name one of them.

        An equal title alone proves nothing: many documents have a placeholder for one. A title
        counts if a document of the earlier split has at least `least` windows of held-out
        documents of the same title.
        """
        count, example = self._row(TITLES, earlier=earlier, heldout=heldout, least=least)
        return count, example or ""

    def count_documents(self, split: str) -> int:
        """Count the documents of a split that were added by `add_documents`."""
        (count,) = self._row("SELECT count(*) FROM documents WHERE split = $split", split=split)
        return int(count)

    def document_id(self, split: str, number: int) -> str:
        """Return the id of a document."""
        (name,) = self._row(
            "SELECT min(id) FROM documents WHERE split = $split AND number = $number",
            split=split, number=number,
        )  # fmt: skip
        return str(name)

    def _row(self, query: str, **parameters: Any) -> tuple[Any, ...]:
        return self._rows(query, **parameters)[0]

    def _rows(self, query: str, **parameters: Any) -> list[tuple[Any, ...]]:
        # All of them: an unfinished result would block the connection.
        return self.database.execute(query, parameters).fetchall()

    def _run(self, query: str, batch: pa.Table, **parameters: Any) -> None:
        self.database.register("batch", batch)
        self.database.execute(query, parameters)
        self.database.unregister("batch")

    def _insert(self, split: str, batch: pa.RecordBatch, kept: pa.RecordBatch) -> None:
        """Count all windows of a batch by unit, and store some of them."""
        for kind in ("sequence", "document"):
            numbers = batch[kind].value_counts().flatten()
            self._run(
                "INSERT INTO counts SELECT $split, $kind, * FROM batch WHERE number >= 0",
                pa.table(numbers, ["number", "windows"]),
                split=split,
                kind=kind,
            )
        self._run("INSERT INTO windows SELECT $split, * FROM batch", pa.table(kept), split=split)

    def _places(self, batch: pa.RecordBatch) -> npt.NDArray[np.int64]:
        """Where each window stands in the sieve."""
        mixed = np.zeros(batch.num_rows, np.uint64)
        for name, multiplier in zip(COLUMNS, MULTIPLIERS, strict=True):
            mixed ^= batch[name].to_numpy() * np.uint64(multiplier)
            mixed ^= mixed >> np.uint64(32)
            mixed *= np.uint64(MULTIPLIERS[0])
        return (mixed >> np.uint64(64 - SIEVE_BITS)).astype(np.int64)
