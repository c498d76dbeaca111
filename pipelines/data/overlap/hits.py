"""Find the windows of an earlier split that are held out; workers of `decontaminate` do this.

`scan` writes, for some documents of the split,

hits.bin, hits.npy            `HIT`, by block of the index; where each block starts
sequences.npz                 windows of each sequence, and how many of them are held out

and `join`, for a block of the index,

pairs.bin, pairs.npy          `PAIR`, by group of held-out documents; where each group starts
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.base.artifacts import write_array
from pipelines.data.overlap.stream import Part, read_pieces
from pipelines.data.overlap.window_index import WindowIndex
from pipelines.data.overlap.windows import Integers, select_windows, token_folder
from pipelines.data.text.shard_vocabulary import ShardVocabulary

Records = npt.NDArray[np.void]

# A window in more documents is commonplace, and no evidence that one was copied: GPT-3's rule
# (Brown et al., "Language Models are Few-Shot Learners", 2020, appendix C).
MAX_DOCUMENTS = 10
# A window that is repeated more often is not paired either, so that pairs stay linear in hits.
MAX_HITS = 32
DOCUMENTS_PER_GROUP = 8192

# A window of the split that is held out: its id, and where it stands.
HIT = np.dtype([(name, "<u4") for name in ("id", "document", "position", "first", "last")])
# A hit with one of the places where the window is held out.
PAIR = np.dtype([("held_document", "<u4"), ("held_position", "<u4"), *HIT.descr[1:]])


@dataclass(frozen=True)
class Scan:
    """What a worker needs to know to look up some documents.

    Args:
        part: The documents.
        index: Where the index is.
        tokens: The output of `tokenize`.
        window_characters: Characters per window.
    """

    part: Part
    index: Path
    tokens: Path
    window_characters: int


@dataclass(frozen=True)
class Join:
    """What a worker needs to know to pair the hits of a block with their places.

    Args:
        index: Where the index is.
        scans: What `scan` wrote, in order.
        block: Number of the block.
    """

    index: Path
    scans: tuple[Path, ...]
    block: int


def scan(task: Scan, directory: Path) -> None:
    """Look up the windows of some documents.

    Args:
        task: The documents.
        directory: Where the files described above go.
    """
    index, folder = open_index(task.index), token_folder(ShardVocabulary.read(task.tokens).tokens)
    found, hashes, counts = [], [], []
    for pieces in read_pieces(task.part, np.empty(0, np.int64)):
        if not len(pieces.ids_T):
            continue
        folded = folder.fold(pieces.ids_T, pieces.offsets)
        start = int(pieces.sequences_T[0])
        windows, whole_N = select_windows(
            folded, task.window_characters, pieces.sequences_T - start, index.filter
        )
        counts.append((start, whole_N))
        hits = np.empty(len(windows.hashes_W), HIT)
        hits["document"] = pieces.documents_P[windows.documents_W]
        hits["position"] = windows.positions_W
        hits["first"] = pieces.sequences_T[windows.first_W]
        hits["last"] = pieces.sequences_T[windows.last_W]
        found.append(hits)
        hashes.append(windows.hashes_W.copy())
    hits, blocks = np.concatenate([np.empty(0, HIT), *found]), []
    for rows, ids in index.look_up(np.concatenate([np.empty(0, np.uint64), *hashes])):
        hits["id"][rows] = ids
        blocks.append(hits[rows])
    write_groups(directory, "hits", blocks)
    _write_sequences(directory, counts, np.concatenate(blocks))


def _write_sequences(
    directory: Path, counts: Sequence[tuple[int, Integers]], hits: Records
) -> None:
    """Add up the windows of each sequence, counted from several first ones on."""
    start = counts[0][0] if counts else 0
    windows = np.zeros(counts[-1][0] + len(counts[-1][1]) - start if counts else 0, np.int64)
    for first, whole_N in counts:
        windows[first - start :][: len(whole_N)] += whole_N
    whole = hits["first"][hits["first"] == hits["last"]].astype(np.int64)
    known = np.bincount(whole - start, minlength=len(windows))
    np.savez(directory / "sequences.npz", start=start, windows=windows, known=known)


def open_index(directory: Path) -> WindowIndex:
    """Read an index once per process, not once per part: its filter is large."""
    return _index_of(directory, (directory / "facts.npz").stat().st_mtime_ns)


def close_index() -> None:
    """Forget the index that was opened last."""
    _index_of.cache_clear()


@lru_cache(maxsize=1)
def _index_of(directory: Path, _written_ns: int) -> WindowIndex:
    # Another run of this process may have written another index there.
    return WindowIndex(directory)


def read_hits(scans: Sequence[Path], block: int) -> Records:
    """Read all hits with one block of the index, in the order of the documents."""
    return np.concatenate([np.empty(0, HIT), *(read_group(p, "hits", HIT, block) for p in scans)])


def join(task: Join, directory: Path) -> None:
    """Pair the hits of a block with the places where the windows are held out.

    Args:
        task: The block.
        directory: Where the files described above go.
    """
    index = open_index(task.index)
    hits = read_hits(task.scans, task.block)
    hits = hits[np.argsort(hits["id"], kind="stable")]
    # Sorted by window, then by document.
    is_first = np.append(True, np.diff(hits["id"]) != 0)[: len(hits)]
    is_new = is_first | np.append(True, np.diff(hits["document"]) != 0)[: len(hits)]
    window = np.cumsum(is_first) - 1
    counts = np.bincount(window)
    rare = (np.bincount(window[is_new]) <= MAX_DOCUMENTS) & (counts <= MAX_HITS)
    hits = hits[rare[window]]
    row, places = index.expand(task.block, hits["id"].astype(np.int64))
    pairs = np.empty(len(row), PAIR)
    pairs["held_document"], pairs["held_position"] = places["document"], places["position"]
    for name in ("document", "position", "first", "last"):
        pairs[name] = hits[name][row]
    group = pairs["held_document"] // DOCUMENTS_PER_GROUP
    order = np.argsort(group, kind="stable")
    bounds = np.searchsorted(group[order], np.arange(1, num_groups(index)))
    write_groups(directory, "pairs", np.split(pairs[order], bounds))


def num_groups(index: WindowIndex) -> int:
    """The number of groups of held-out documents."""
    return -(-len(index.documents) // DOCUMENTS_PER_GROUP)


def write_groups(directory: Path, name: str, groups: Sequence[Records]) -> None:
    """Write records group by group, and where each group starts."""
    starts = np.append(0, np.cumsum([len(group) for group in groups]))
    np.savez(directory / f"{name}.npz", starts=starts)
    with (directory / f"{name}.bin").open("wb") as stream:
        for group in groups:
            write_array(stream, group)


def read_group(directory: Path, name: str, dtype: np.dtype, group: int) -> Records:
    """Read one group of what `write_groups` wrote."""
    start, stop = np.load(directory / f"{name}.npz")["starts"][group : group + 2].tolist()
    path = directory / f"{name}.bin"
    return np.fromfile(path, dtype, stop - start, offset=start * dtype.itemsize)
