"""The plots of `enigma analyze`."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.base.workspace import SPLITS

Counts = npt.NDArray[np.int64]

COLOURS = {"train": "#40618f", "validation": "#c98a2b", "test": "#6b8e4e"}


def draw_figures(
    analysis: Mapping[str, Any],
    histograms: Mapping[str, Counts],
    lengths: Mapping[str, Counts],
    directory: Path,
) -> dict[str, str]:
    """Draw the plots as SVG files.

    Args:
        analysis: The content of `analysis.json`.
        histograms: (0x110000,) int64 per split, how often each code point occurs.
        lengths: (D,) int64 per split, characters of each document.
        directory: Where the files go.

    Returns:
        SVG by title.
    """
    from matplotlib.figure import Figure

    figures = {}
    for name, title, draw in (
        ("lengths", "Length of documents", _draw_lengths),
        ("scripts", "Scripts", _draw_scripts),
        ("frequencies", "Frequencies of characters", _draw_frequencies),
    ):
        figure = Figure(figsize=(6.4, 3.4), layout="constrained")
        draw(figure.subplots(), {"analysis": analysis, "counts": histograms, "lengths": lengths})
        stream = io.StringIO()
        figure.savefig(stream, format="svg", metadata={"Date": None})
        svg = stream.getvalue()
        (directory / f"{name}.svg").write_text(svg, encoding="utf-8")
        figures[title] = svg[svg.index("<svg") :]
    return figures


def _draw_lengths(axes: Any, data: Mapping[str, Any]) -> None:
    longest = max(
        (int(values.max()) for values in data["lengths"].values() if len(values)), default=1
    )
    bins = np.geomspace(10, max(longest, 11), 40)
    for split, values in data["lengths"].items():
        weights = np.full(len(values), 1 / max(len(values), 1))
        axes.hist(values, bins, weights=weights, histtype="step", label=split, color=COLOURS[split])
    axes.set(xscale="log", xlabel="characters per document", ylabel="share of documents")
    axes.legend()


def _draw_scripts(axes: Any, data: Mapping[str, Any]) -> None:
    shares = {split: facts["script_shares"] for split, facts in data["analysis"]["splits"].items()}
    scripts = list(next(iter(shares.values())))
    for offset, split in enumerate(SPLITS):
        positions = np.arange(len(scripts)) + 0.27 * (offset - 1)
        axes.bar(positions, shares[split].values(), 0.25, label=split, color=COLOURS[split])
    axes.set_xticks(np.arange(len(scripts)), scripts, fontsize=8)
    axes.set(yscale="log", ylabel="share of characters")
    axes.legend()


def _draw_frequencies(axes: Any, data: Mapping[str, Any]) -> None:
    for split, counts in data["counts"].items():
        ordered = np.sort(counts[counts > 0])[::-1]
        if len(ordered):
            ranks = np.arange(1, len(ordered) + 1)
            axes.plot(ranks, ordered / ordered.sum(), label=split, color=COLOURS[split])
    axes.set(xscale="log", yscale="log", xlabel="rank of the character", ylabel="share")
    axes.legend()
