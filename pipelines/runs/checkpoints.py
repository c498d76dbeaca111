"""Checkpoints that are either complete or absent.

`transformers.Trainer` writes a checkpoint file by file, so a kill could leave half of
one. Here it writes to `.building`; when all ranks have written their part, a manifest
with the SHA-256 of every file seals the checkpoint, and a rename moves it into place.
A resume takes the newest one that still matches its manifest.

Nothing that could run code is ever unpickled: weights are safetensors, and Trainer
reads optimiser, scheduler and RNG state with `torch.load(weights_only=True)`.
Its `training_args.bin`, a plain pickle that nothing reads, is deleted.
"""

import logging
import os
import shutil
from pathlib import Path
from pickle import UnpicklingError

from pipelines.base.artifacts import MANIFEST_NAME, verify_manifest, write_manifest
from pipelines.base.errors import UserError

PREFIX = "checkpoint-"
AVERAGED = "averaged"
BUILDING = ".building"
UNREAD_PICKLE = "training_args.bin"
KEEP_NEWEST = 2
# The suffixes of pickled files, as `torch.save` writes them.
PICKLED = {".bin", ".pkl", ".pt", ".pth"}

logger = logging.getLogger(__name__)


def checkpoint_path(directory: Path, step: int) -> Path:
    """The directory of the checkpoint of an optimiser step."""
    return directory / f"{PREFIX}{step}"


def steps_on_disk(directory: Path) -> list[int]:
    """The steps of all checkpoints, whole or not, in ascending order."""
    names = (path.name.removeprefix(PREFIX) for path in directory.glob(f"{PREFIX}*"))
    return sorted(int(name) for name in names if name.isdigit())


def building_path(directory: Path) -> Path:
    """Where a checkpoint is written before it is published."""
    return directory / BUILDING


def publish(directory: Path, step: int) -> None:
    """Seal a checkpoint and move it into place; call it when every rank has written.

    Args:
        directory: The directory of the checkpoints.
        step: The optimiser step.
    """
    built = checkpoint_path(building_path(directory), step)
    seal(built, step)
    final = checkpoint_path(directory, step)
    if final.exists():
        shutil.rmtree(final)
    built.rename(final)
    _fsync(directory)


def discard(directory: Path) -> None:
    """Delete what was written of a checkpoint that was not completed."""
    shutil.rmtree(building_path(directory), ignore_errors=True)


def seal(checkpoint: Path, step: int) -> None:
    """Declare a checkpoint complete: its files are on the disk, and the manifest names them."""
    (checkpoint / UNREAD_PICKLE).unlink(missing_ok=True)
    for path in checkpoint.rglob("*"):
        _fsync(path)
    write_manifest(checkpoint, stage="train", facts={"step": step})


def is_complete(checkpoint: Path) -> bool:
    """Hash every file and compare the hashes with the manifest."""
    if not (checkpoint / MANIFEST_NAME).is_file():
        return False
    try:
        verify_manifest(checkpoint)
    except (UserError, KeyError):
        return False
    return True


def find_code(checkpoint: Path) -> Path | None:
    """Find a pickle that holds more than tensors, without running it.

    A manifest does not protect: an attacker who can write a checkpoint can write that too.

    Returns:
        The first such file, or None.
    """
    import torch
    from transformers.trainer_pt_utils import safe_globals

    for path in sorted(checkpoint.rglob("*")):
        if path.suffix not in PICKLED:
            continue
        try:
            with safe_globals():
                torch.load(path, map_location="cpu", mmap=True, weights_only=True)
        except (UnpicklingError, RuntimeError, EOFError, ValueError):
            return path
    return None


def newest_complete(directory: Path) -> int | None:
    """Find where to resume; newer incomplete checkpoints are deleted with a warning.

    Returns:
        The step of the newest complete checkpoint, or None if there is none.
    """
    discard(directory)
    for step in reversed(steps_on_disk(directory)):
        checkpoint = checkpoint_path(directory, step)
        if not is_complete(checkpoint):
            logger.warning("%s is incomplete; falling back to the one before", checkpoint)
        elif unsafe := find_code(checkpoint):
            logger.warning("%s would run code when loaded: refused; falling back", unsafe)
        else:
            return step
        shutil.rmtree(checkpoint)
    return None


def prune(directory: Path, best_step: int | None) -> None:
    """Delete all checkpoints but the newest two and the best."""
    steps = steps_on_disk(directory)
    for step in steps[:-KEEP_NEWEST]:
        if step != best_step:
            shutil.rmtree(checkpoint_path(directory, step))


def _fsync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
