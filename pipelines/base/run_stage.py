"""What every stage shares: analytics off, logs, errors without tracebacks."""

import logging
import os
import sys
from collections.abc import Callable, Iterable
from typing import TypeVar

from pipelines.base.errors import UserError

T = TypeVar("T")

QUIET_ENVIRONMENT = {
    "DO_NOT_TRACK": "true",
    "DVC_NO_ANALYTICS": "1",
    "GX_ANALYTICS_ENABLED": "false",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
    "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
    "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
    "TOKENIZERS_PARALLELISM": "false",
    # Without this, torchrun cannot restart a gloo group that lost a rank.
    "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
}


def quiet_libraries() -> None:
    """Turn off the analytics of every library, unless the user set a value."""
    for name, value in QUIET_ENVIRONMENT.items():
        os.environ.setdefault(name, value)


def run_stage(main: Callable[[], None]) -> None:
    """Run a stage or command; a `UserError` ends in exit code 1 without a traceback.

    Args:
        main: The stage, without arguments; it raises `UserError` for bad input.
    """
    quiet_libraries()
    logging.basicConfig(
        level=logging.INFO,
        format="%(asctime)s %(levelname)s %(name)s: %(message)s",
        datefmt="%H:%M:%S",
    )
    logging.captureWarnings(capture=True)
    try:
        main()
    except UserError as error:
        sys.stderr.write(f"error: {error}\n")
        sys.exit(1)
    except KeyboardInterrupt:
        sys.stderr.write("interrupted; finished work is kept, run the same command to resume\n")
        sys.exit(130)


def progress(items: Iterable[T], *, total: int | None, unit: str, label: str) -> Iterable[T]:
    """Show a bar on a terminal, and a line every ten seconds in a log file.

    Args:
        items: What to iterate over.
        total: Number of items, where known.
        unit: Name of one item ("document").
        label: Name of the work ("clean").

    Returns:
        The same items.
    """
    from tqdm import tqdm

    interactive = sys.stderr.isatty()
    return tqdm(
        items,
        total=total,
        unit=f" {unit}",
        desc=label,
        mininterval=0.5 if interactive else 10.0,
        ascii=not interactive,
        ncols=None if interactive else 80,
    )
