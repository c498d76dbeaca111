"""The file that every metric goes to first, and how much of it MLflow has.

metrics.jsonl   one record per logged step
mlflow.json     the MLflow run, and how far the file has been sent to it
"""

import hashlib
import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from pipelines.base.artifacts import read_json, write_json, write_text

# When a record was made, in seconds since 1970.
TIME = "time_s"


@dataclass(frozen=True)
class Sent:
    """How much of a metrics file has been sent.

    Args:
        run_id: The MLflow run that it was sent to.
        offset: Bytes that the store has accepted.
        sha256: Hash of these bytes; a file that was rewritten does not begin with them.
    """

    run_id: str
    offset: int = 0
    sha256: str = hashlib.sha256().hexdigest()


@dataclass(frozen=True)
class MetricsFile:
    """Records of a run, one JSON object per line, each with its `step`.

    Args:
        path: `metrics.jsonl`; `mlflow.json` is in the same directory.
    """

    path: Path

    def append(self, record: Mapping[str, float]) -> None:
        """Add one record and the time; NaN and infinities are refused."""
        line = _line(record)
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("a", encoding="utf-8") as stream:
            stream.write(line)

    def read(self) -> list[dict[str, float]]:
        """All records; an empty list before the first. A line that is being written is none."""
        content = self._content()
        return [json.loads(line) for line in content[: content.rfind(b"\n") + 1].splitlines()]

    def rewrite(self, records: Iterable[Mapping[str, float]]) -> None:
        """Replace all records; sending starts again at the first."""
        write_text(self.path, "".join(map(_line, records)))

    @property
    def run_id(self) -> str | None:
        """The MLflow run of this file; None until the store has assigned one."""
        return None if self._sent is None else self._sent.run_id

    def belongs_to(self, run_id: str) -> None:
        """Store the id of the MLflow run. A new run has not received any of the file yet."""
        if run_id != self.run_id:
            write_json(self._note, asdict(Sent(run_id)))

    def unsent(self) -> list[bytes]:
        """The complete lines that the store has not accepted; all of a rewritten file."""
        content = self._content()
        complete = content[: content.rfind(b"\n") + 1]
        return complete[self._offset(content) :].splitlines(keepends=True)

    def accept(self, lines: list[bytes]) -> None:
        """Advance the offset past the first lines of `unsent`, which the store has accepted.

        Nothing happens if the file was rewritten in the meantime.
        """
        content, sent, new = self._content(), self._sent, b"".join(lines)
        start = self._offset(content)
        end = start + len(new)
        if sent is not None and content[start:end] == new:
            digest = hashlib.sha256(content[:end]).hexdigest()
            write_json(self._note, asdict(Sent(sent.run_id, end, digest)))

    @property
    def _note(self) -> Path:
        return self.path.with_name("mlflow.json")

    @property
    def _sent(self) -> Sent | None:
        return Sent(**read_json(self._note)) if self._note.is_file() else None

    def _content(self) -> bytes:
        return self.path.read_bytes() if self.path.is_file() else b""

    def _offset(self, content: bytes) -> int:
        sent = self._sent
        if sent is None or hashlib.sha256(content[: sent.offset]).hexdigest() != sent.sha256:
            return 0
        return sent.offset


def _line(record: Mapping[str, float]) -> str:
    return json.dumps({TIME: time.time(), **record}, allow_nan=False) + "\n"
