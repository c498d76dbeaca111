"""The page of `enigma analyze`: tables and plots that need nothing from elsewhere."""

import io
from collections.abc import Mapping
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from pipelines.base.workspace import SPLITS
from pipelines.data.audit.validation_page import STYLE

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
        analysis: What `analysis.json` holds.
        histograms: (0x110000,) int64 a split, how often each code point occurs.
        lengths: (D,) int64 a split, characters of each document.
        directory: Where the files go.

    Returns:
        Each SVG by its title, to be put into the page.
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
        places = np.arange(len(scripts)) + 0.27 * (offset - 1)
        axes.bar(places, shares[split].values(), 0.25, label=split, color=COLOURS[split])
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


def render_analysis(analysis: Mapping[str, Any], figures: Mapping[str, str]) -> str:
    """Write the page.

    Args:
        analysis: What `analysis.json` holds.
        figures: SVG by title.

    Returns:
        A whole HTML document.
    """
    heading = f"Data of {escape(analysis['profile'])}"
    splits = analysis["splits"]
    top = "".join(
        f"<p><b>{split}</b>: "
        + " ".join(escape(character) for character, _ in splits[split]["top_characters"])
        + "</p>"
        for split in SPLITS
    )
    return "\n".join(
        [
            "<!doctype html>",
            f'<html lang="en"><head><meta charset="utf-8"><title>{heading}</title>',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            f"<style>{STYLE} svg {{ max-width: 100%; height: auto; }}</style></head><body>",
            f"<h1>{heading}</h1>",
            f'<p class="note">Documents <code>{analysis["documents_root"]}</code></p>',
            f'<p class="note">Shards <code>{analysis["shards_root"]}</code></p>',
            *_tables(splits),
            _counts("Documents dropped by clean", analysis["dropped_documents"]),
            _counts("Leftovers cut out by clean", analysis["removed_leftovers"]),
            "<h2>Most frequent characters</h2>",
            top,
            *(f"<h2>{escape(title)}</h2>\n{svg}" for title, svg in figures.items()),
            "</body></html>\n",
        ]
    )


def _tables(splits: Mapping[str, Any]) -> list[str]:
    plain = (
        "documents", "characters", "distinct_characters", "sequences", "unk_rate",
        "duplicate_rate", "drift_bits",
    )  # fmt: skip
    figures_of = {name: [splits[split][name] for split in SPLITS] for name in plain}
    for name in ("unk_rate", "duplicate_rate"):
        figures_of[name] = [f"{rate:.3%}" for rate in figures_of[name]]
    lengths = {
        name: [splits[split]["length_quantiles"][name] for split in SPLITS]
        for name in splits["train"]["length_quantiles"]
    }
    scripts = {
        name: [f"{splits[split]['script_shares'][name]:.3%}" for split in SPLITS]
        for name in splits["train"]["script_shares"]
    }
    removed = {
        name: [splits[split]["removed_by_decontaminate"][name] for split in SPLITS]
        for name in ("before", "removed", "after")
    }
    shared = {
        f"shared with {other}, {method}": [
            splits[split]["removed_by_decontaminate"]["shared_with"].get(other, {}).get(method, "")
            for split in SPLITS
        ]
        for other in ("validation", "test")
        for method in splits["train"]["removed_by_decontaminate"]["shared_with"]["test"]
    }
    return [
        _by_split("Splits", figures_of),
        _by_split("Characters per document", lengths),
        _by_split("Share of characters by script", scripts),
        _by_split("Overlap: sequences before, removed and after", {**removed, **shared}),
    ]


def _by_split(title: str, rows: Mapping[str, list[Any]]) -> str:
    head = "".join(f'<th class="number">{split}</th>' for split in SPLITS)
    body = "".join(
        f"<tr><td>{escape(name.replace('_', ' '))}</td>"
        + "".join(f'<td class="number">{_figure(value)}</td>' for value in values)
        + "</tr>\n"
        for name, values in rows.items()
    )
    return f"<h2>{escape(title)}</h2><table><tr><th></th>{head}</tr>\n{body}</table>"


def _counts(title: str, counts: Mapping[str, int]) -> str:
    body = "".join(
        f'<tr><td>{escape(name.replace("_", " "))}</td><td class="number">{count:,}</td></tr>\n'
        for name, count in counts.items()
    )
    return f"<h2>{escape(title)}</h2>" + (f"<table>{body}</table>" if body else "<p>none</p>")


def _figure(value: Any) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.0f}" if value >= 100 else f"{value:.4g}"
    return f"{int(value):,}"
