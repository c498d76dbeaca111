"""Describe the data of each split: `enigma analyze`.

Reads the clean documents and the final shards of the profile in use, and writes
`reports/<profile>/analyze/`: `analysis.json`, plots, and a page that needs nothing from the
network. Prints a summary, and logs everything to MLflow.
"""

import unicodedata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.base.artifacts import (
    publish_directory,
    read_json,
    read_manifest,
    write_json,
    write_text,
)
from pipelines.base.run_stage import progress
from pipelines.base.workspace import SPLITS, Workspace
from pipelines.data.audit.evidence import documents_table, shards_table
from pipelines.data.audit.figures import draw_figures
from pipelines.data.audit.pages import render_analysis
from pipelines.data.text.scripts import HAN, HANGUL, KANA
from pipelines.params import load_params

Counts = npt.NDArray[np.int64]

CODE_POINTS = 0x110000
QUANTILES = {"shortest": 0.0, "5 %": 0.05, "median": 0.5, "95 %": 0.95, "longest": 1.0}
TOP_CHARACTERS = 30
SCRIPTS = ("Han", "kana", "Hangul", "Latin", "digit", "punctuation", "space", "other")


def analyze(workspace: Workspace) -> dict[str, Any]:
    """Describe the data of a profile.

    Args:
        workspace: Where its files are.

    Returns:
        The content of `analysis.json`.

    Raises:
        UserError: If a stage up to `decontaminate` has not run.
    """
    documents = read_manifest(workspace.documents)
    shards = read_manifest(workspace.shards)
    overlap = read_json(workspace.overlap_report)
    sequences = shards_table(workspace.shards, documents_table(workspace.documents)).set_index(
        "split"
    )
    histograms: dict[str, Counts] = {}
    lengths: dict[str, Counts] = {}
    for split in progress(SPLITS, total=len(SPLITS), unit="split", label="analyze"):
        histograms[split], lengths[split] = _read(workspace.documents / f"{split}.parquet")
    splits = {
        split: {
            "documents": len(lengths[split]),
            "characters": int(lengths[split].sum()),
            "distinct_characters": int(np.count_nonzero(histograms[split])),
            "length_quantiles": _quantiles(lengths[split]),
            "script_shares": script_shares(histograms[split]),
            "top_characters": _top(histograms[split]),
            "sequences": int(sequences["sequences"][split]),
            "unk_rate": float(sequences["unk_rate"][split]),
            "duplicate_rate": float(sequences["duplicate_rate"][split]),
            "drift_bits": float(sequences["drift_bits"][split]),
            "removed_by_decontaminate": overlap[split],
        }
        for split in SPLITS
    }
    analysis = {
        "profile": workspace.profile,
        "documents_root": documents["root"],
        "shards_root": shards["root"],
        "dropped_documents": documents["dropped"],
        "removed_leftovers": documents["removed"],
        "near_duplicate_pairs": documents["near_duplicate_pairs"],
        "clusters_of_several": documents["clusters_of_several"],
        "splits": splits,
    }
    with publish_directory(workspace.report("analyze")) as building:
        write_json(building / "analysis.json", analysis)
        figures = draw_figures(analysis, histograms, lengths, building)
        write_text(building / "index.html", render_analysis(analysis, figures))
    return analysis


def _read(path: Path) -> tuple[Counts, Counts]:
    """Count the code points of a split's documents, and their lengths."""
    histogram = np.zeros(CODE_POINTS, np.int64)
    lengths = [np.empty(0, np.int64)]
    with pq.ParquetFile(path, pre_buffer=False) as parquet:
        for batch in parquet.iter_batches(1024, columns=["text"]):
            texts = batch.column(0)
            lengths.append(pc.utf8_length(texts).cast(pa.int64()).to_numpy())
            points = np.frombuffer("".join(texts.to_pylist()).encode("utf-32-le"), dtype="<u4")
            found, counts = np.unique(points, return_counts=True)
            histogram[found] += counts
    return histogram, np.concatenate(lengths)


def _quantiles(lengths: Counts) -> dict[str, float]:
    if not len(lengths):
        return dict.fromkeys(QUANTILES, 0.0)
    return {name: float(np.quantile(lengths, q)) for name, q in QUANTILES.items()}


def _top(histogram: Counts) -> list[tuple[str, int]]:
    order = np.argsort(-histogram, kind="stable")
    visible = [p for p in order[: TOP_CHARACTERS + 20].tolist() if not chr(p).isspace()]
    return [(chr(p), int(histogram[p])) for p in visible[:TOP_CHARACTERS] if histogram[p]]


def script_shares(histogram: Counts) -> dict[str, float]:
    """Divide characters among `SCRIPTS`.

    Args:
        histogram: (0x110000,) int64, how often each code point occurs.

    Returns:
        Shares that add up to 1; all 0 for no text.
    """
    totals = dict.fromkeys(SCRIPTS, 0)
    for point in np.flatnonzero(histogram).tolist():
        totals[_script(point)] += int(histogram[point])
    total = max(sum(totals.values()), 1)
    return {script: count / total for script, count in totals.items()}


def _script(point: int) -> str:
    for script, ranges in (("Han", HAN), ("kana", KANA), ("Hangul", HANGUL)):
        if any(start <= point < stop for start, stop in ranges):
            return script
    character = chr(point)
    category = unicodedata.category(character)
    if character.isspace():
        return "space"
    if category.startswith("N"):
        return "digit"
    if category.startswith("P"):
        return "punctuation"
    if category.startswith("L") and "LATIN" in unicodedata.name(character, ""):
        return "Latin"
    return "other"


def print_summary(analysis: Mapping[str, Any]) -> None:
    """Print a summary of an analysis as a table with one column per split."""
    from rich.console import Console
    from rich.table import Table

    splits = analysis["splits"]
    table = Table("", *SPLITS, title=f"Data of {analysis['profile']}")
    rows: dict[str, Any] = {
        "documents": lambda s: f"{s['documents']:,}",
        "characters": lambda s: f"{s['characters']:,}",
        "distinct characters": lambda s: f"{s['distinct_characters']:,}",
        "median length (characters)": lambda s: f"{s['length_quantiles']['median']:,.0f}",
        "Han": lambda s: f"{s['script_shares']['Han']:.1%}",
        "sequences": lambda s: f"{s['sequences']:,}",
        "[UNK] tokens": lambda s: f"{s['unk_rate']:.2%}",
        "repeated sequences": lambda s: f"{s['duplicate_rate']:.2%}",
        "drift from train (bits)": lambda s: f"{s['drift_bits']:.3f}",
        "removed as shared": lambda s: f"{s['removed_by_decontaminate']['removed']:,}",
    }
    for name, show in rows.items():
        table.add_row(name, *(show(splits[split]) for split in SPLITS))
    console = Console()
    console.print(table)
    console.print(f"dropped documents: {analysis['dropped_documents'] or 'none'}", markup=False)
    console.print(f"leftovers cut out: {analysis['removed_leftovers'] or 'none'}", markup=False)


def log_analysis(workspace: Workspace, analysis: Mapping[str, Any]) -> None:
    """Log figures, files and data sets to MLflow."""
    from pipelines.tracking.run_log import RunLog

    roots = {
        name: {"root": analysis[f"{name}_root"], "source": str(path)}
        for name, path in (("documents", workspace.documents), ("shards", workspace.shards))
    }
    profile = workspace.profile
    run_log = RunLog.open(run_name=f"analyze/{profile}", params={}, tags={"profile": profile})
    for name, where in roots.items():
        run_log.dataset(name=f"{profile}/{name}", context="analysis", **where)
    numbers = ("documents", "characters", "sequences", "unk_rate", "duplicate_rate", "drift_bits")
    splits = analysis["splits"]
    run_log.log(0, {f"{s}_{name}": float(splits[s][name]) for s in SPLITS for name in numbers})
    run_log.artifact(workspace.report("analyze"), "analyze")
    run_log.finish("FINISHED")


def main() -> None:
    """Analyze the profile in use."""
    workspace = Workspace(load_params().name)
    analysis = analyze(workspace)
    print_summary(analysis)
    log_analysis(workspace, analysis)
