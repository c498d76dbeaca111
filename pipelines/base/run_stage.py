"""What every stage shares: analytics off, logs, errors without tracebacks."""

import errno
import io
import logging
import os
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TypeVar

from pipelines.base.errors import UserError

T = TypeVar("T")

logger = logging.getLogger(__name__)

QUIET_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_LOGGING_LEVEL": "WARNING",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
    # Without this, torchrun cannot restart a gloo group that lost a rank.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}
# They tell of every table that they make and of every expectation that they check.
NOISY = ("alembic", "great_expectations", "mlflow", "httpx", "datasets")
FULL = {errno.ENOSPC, errno.EDQUOT}
NOT_ALLOWED = "let this user read and write there (`ls -ld` shows who may)"
IN_THE_WAY = "move away the file in place of a directory, there or above it (or the reverse)"
REMEDIES = {
    errno.EROFS: "make that disk writable (`mount` shows how it is mounted), or use another one",
    errno.EACCES: NOT_ALLOWED,
    errno.EPERM: NOT_ALLOWED,
    errno.EEXIST: IN_THE_WAY,
    errno.ENOTDIR: IN_THE_WAY,
    errno.EISDIR: IN_THE_WAY,
}


def quiet_libraries() -> None:
    """Turn off the analytics of every library, unless the user set a value."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if not sys.stderr.isatty():
        # Its bars redraw themselves with carriage returns.
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage or command; a `UserError` or a disk's refusal ends in exit code 1, no traceback.

    Args:
        main: The stage, without arguments; it raises `UserError` for bad input.
    """
    open_standard_streams()
    quiet_libraries()
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    for name in NOISY:
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.captureWarnings(capture=True)
    try:
        check_arguments(sys.argv)
        try:
            main()
        finally:
            sys.stdout.flush()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except OSError as error:
        explained = _explained(error)
        if explained is None:
            raise
        # Python would try to write what is left of the output once more, and say so.
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        sys.stderr.write(f"error: {explained}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; finished work is kept, run the same command to resume\n")
        sys.exit(130)


def _explained(error: OSError) -> UserError | None:
    """Say what the user can do about a disk; None if the error is of another kind."""
    if error.errno in FULL:
        return UserError(
            f"expected room to write {error.filename or 'the output'}, got: {error.strerror}",
            "free disk space, then run the same command again; finished work is kept",
        )
    if error.errno in REMEDIES and error.filename:
        return UserError(
            f"expected a place to read and write {error.filename}, got: {error.strerror}",
            f"{REMEDIES[error.errno]}, then run the same command again",
        )
    return None


def open_standard_streams() -> None:
    """Open what of stdin, stdout and stderr is closed, and let no character end a command.

    Otherwise the next file that is opened, for example a database, would take the number of the
    stream, and what a library prints would be written into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # The lowest free number is this one.
            os.open(os.devnull, os.O_RDWR)
        if getattr(sys, name) is None:
            mode = "r" if name == "stdin" else "w"
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def check_arguments(arguments: Sequence[str]) -> None:
    """Refuse arguments that are not UTF-8: nothing could print or store them.

    Raises:
        UserError: If Python kept bytes of one as lone surrogates.
    """
    for number, argument in enumerate(arguments):
        try:
            argument.encode()
        except UnicodeEncodeError:
            shown = argument.encode(errors="backslashreplace").decode()
            raise UserError(
                f"argument {number}: expected text in UTF-8, got bytes in another encoding "
                f"({shown})",
                "set the terminal to UTF-8, or convert the text: iconv -f GBK -t UTF-8",
            ) from None


def progress(
    items: Iterable[T], *, total: int | None, unit: str, label: str, interval_s: float = 10.0
) -> Iterable[T]:
    """Show a bar on a terminal, and a line every ten seconds elsewhere.

    Args:
        items: What to iterate over.
        total: Number of items, where known.
        unit: Name of one item ("document").
        label: Name of the work ("clean").
        interval_s: Seconds between two lines.

    Returns:
        The same items.
    """
    if not sys.stderr.isatty():
        return _logged(items, total, f" {unit}s", label, interval_s)
    from tqdm import tqdm

    return tqdm(items, total=total, unit=f" {unit}", desc=label, mininterval=0.5)


def _logged(
    items: Iterable[T], total: int | None, unit: str, label: str, interval_s: float
) -> Iterator[T]:
    """Log how far the work is: one line per record, as a bar would redraw itself."""
    began_s = shown_s = time.monotonic()
    count = 0
    for count, item in enumerate(items, start=1):
        yield item
        now_s = time.monotonic()
        if now_s - shown_s >= interval_s:
            shown_s = now_s
            logger.info(_how_far(label, count, total, unit, now_s - began_s))
    logger.info(_how_far(label, count, total, unit, time.monotonic() - began_s))


def _how_far(label: str, count: int, total: int | None, unit: str, elapsed_s: float) -> str:
    done = f"{count}{unit}" if not total else f"{100 * count // total}% ({count}/{total}{unit})"
    return f"{label}: {done} in {elapsed_s:.0f} s"
