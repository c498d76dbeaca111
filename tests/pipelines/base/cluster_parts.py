"""Parts that name or kill their worker, for `test_part_workers.py`."""

import os
import signal
import time
from pathlib import Path

from pipelines.base.errors import UserError
from pipelines.data.cleaning.part import Part, clean_part


def write_worker(item: float, directory: Path) -> None:
    """Wait for `item` seconds and write down which process made the part."""
    time.sleep(item)
    (directory / "process").write_text(str(os.getpid()), encoding="utf-8")


def clean_or_die(part: Part, directory: Path) -> None:
    """Clean a part; the first worker that has nearly finished the fourth one is killed."""
    clean_part(part, directory)
    died = directory.parent.parent / "died"
    if part.path.name == "part-00003.parquet" and not died.exists():
        died.write_text(str(os.getpid()), encoding="utf-8")
        os.kill(os.getpid(), signal.SIGKILL)


def die_once(died: Path, directory: Path) -> None:
    """Write nothing; the first process that does so is killed, as one is that takes all memory."""
    if not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)


def refuse(_item: int, _directory: Path) -> None:
    """Refuse the input."""
    raise UserError("expected text, got none", "add some")
