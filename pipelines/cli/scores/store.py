"""The scores of documents on disk, in an SQLite file that outlives a killed run.

SQLite sorts on disk, so memory does not grow with the documents; a transaction is a part of them,
which is there whole or not at all.

Shape legend: N documents.
"""

import json
import shlex
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.base.errors import UserError

Row = dict[str, Any]

TEXT_CHARACTERS = 300
"""Characters of a document that are kept, to be shown."""
SCHEMA = """
CREATE TABLE IF NOT EXISTS parts (number INTEGER PRIMARY KEY, key TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS documents (
    part INTEGER, place INTEGER, atypicality REAL, state_deviation REAL, loss_deviation REAL,
    scores TEXT, text TEXT, PRIMARY KEY (part, place)
);
CREATE INDEX IF NOT EXISTS oddest ON documents (atypicality DESC, part, place);
"""
IN_ORDER = "SELECT scores, text FROM documents ORDER BY atypicality DESC, part, place LIMIT ?"
NO_LIMIT = -1


class ScoreStore:
    """Scores of documents by part.

    Args:
        database: An open database; its tables are made.
    """

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database
        # Held to the end: a second run with the same output is refused at once.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.executescript(f"BEGIN EXCLUSIVE; {SCHEMA} COMMIT;")

    def has(self, number: int, key: str) -> bool:
        """Whether part `number` is there, with this key."""
        found = self._database.execute("SELECT key FROM parts WHERE number = ?", (number,))
        return found.fetchall() == [(key,)]

    def add(self, number: int, key: str, scores: list[Row], texts: list[str]) -> None:
        """Add a part, in the place of another one with its number.

        Args:
            number: Its number.
            key: What its scores depend on.
            scores: What is to be written of each document.
            texts: The documents; only their beginnings are kept.
        """
        rows = [
            (
                number,
                place,
                row["atypicality"],
                row["state_deviation"],
                row["loss_deviation"],
                json.dumps(row, ensure_ascii=False),
                text[:TEXT_CHARACTERS],
            )
            for place, (row, text) in enumerate(zip(scores, texts, strict=True))
        ]
        with self._database as database:
            database.execute("DELETE FROM documents WHERE part = ?", (number,))
            database.executemany("INSERT INTO documents VALUES (?, ?, ?, ?, ?, ?, ?)", rows)
            database.execute("REPLACE INTO parts VALUES (?, ?)", (number, key))

    def forget_after(self, number: int) -> None:
        """Remove the parts after `number`: an earlier run may have had more."""
        with self._database as database:
            database.execute("DELETE FROM documents WHERE part > ?", (number,))
            database.execute("DELETE FROM parts WHERE number > ?", (number,))

    def lines(self) -> Iterator[str]:
        """Return the scores of every document as JSON, the most atypical first."""
        return (scores for scores, _ in self._database.execute(IN_ORDER, (NO_LIMIT,)))

    def oddest(self, count: int) -> list[Row]:
        """Return scores and `text`, the beginning, of the most atypical documents."""
        rows = self._database.execute(IN_ORDER, (count,))
        return [json.loads(scores) | {"text": text} for scores, text in rows]

    def values(self) -> npt.NDArray[np.float64]:
        """Return atypicality, and the deviations of state and loss, of every document, (N, 3)."""
        rows = self._database.execute(
            "SELECT atypicality, state_deviation, loss_deviation FROM documents"
        )
        return np.fromiter(rows, np.dtype((np.float64, 3)))


@contextmanager
def open_store(output: Path | None) -> Iterator[ScoreStore]:
    """Open the store of a run, and delete it after the run.

    Args:
        output: What the run writes; the store is a hidden file beside it, and is kept if the run
            fails. None for a store that no later run finds.

    Raises:
        UserError: If the store cannot be written, is held by another run, or is damaged.
    """
    # SQLite deletes a nameless database by itself, even after a kill.
    path = "" if output is None else str(output.with_name(f".{output.name}.unfinished"))
    try:
        with closing(sqlite3.connect(path, timeout=0)) as database:
            yield ScoreStore(database)
    except sqlite3.Error as error:
        raise UserError(
            f"--output: expected to keep scores in {path}, got: {error}",
            "name a file in a folder where you may write; wait, if another run writes there; free "
            f"disk space; or discard the unfinished run: rm {shlex.quote(path)}",
        ) from None
    if output is not None:
        Path(path).unlink()
