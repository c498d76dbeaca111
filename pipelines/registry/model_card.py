"""The model card: Markdown for the registry, and one HTML file with its figures inside."""

import base64
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Any

from pipelines.base.artifacts import write_text

STYLE = (
    "body{font:16px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;"
    "color:#1d2733}table{border-collapse:collapse;margin:1rem 0}td{border:1px solid #ccd5e0;"
    "padding:.25rem .6rem;overflow-wrap:anywhere}td:first-child{white-space:nowrap}"
    "img{max-width:100%}figure{margin:1rem 0}"
)


@dataclass(frozen=True)
class ModelCard:
    """What is known about a version.

    Args:
        title: Its heading.
        summary: What it is, what it is for and what it is not for.
        tables: Heading to rows of name and value.
        samples: Generated texts, unedited.
        figures: PNG files.
    """

    title: str
    summary: str
    tables: Mapping[str, Mapping[str, Any]]
    samples: Sequence[str]
    figures: Sequence[Path]

    def markdown(self) -> str:
        """The card without its figures."""
        parts = [f"# {self.title}", self.summary]
        for heading, rows in self.tables.items():
            lines = [f"| {name} | {_cell(_show(value))} |" for name, value in rows.items()]
            parts.append("\n".join([f"## {heading}\n", "| | |", "|---|---|", *lines]))
        if self.samples:
            quoted = "\n\n".join("> " + " ".join(text.split()) for text in self.samples)
            parts.append(f"## Samples\n\n{quoted}")
        return "\n\n".join(parts) + "\n"

    def html(self) -> str:
        """The card with its figures; it loads nothing from anywhere."""
        parts = [f"<h1>{escape(self.title)}</h1><p>{escape(self.summary)}</p>"]
        for heading, rows in self.tables.items():
            cells = "".join(
                f"<tr><td>{escape(name)}</td><td>{escape(_show(value))}</td></tr>"
                for name, value in rows.items()
            )
            parts.append(f"<h2>{escape(heading)}</h2><table>{cells}</table>")
        if self.samples:
            quotes = "".join(f"<blockquote>{escape(text)}</blockquote>" for text in self.samples)
            parts.append(f"<h2>Samples</h2>{quotes}")
        if self.figures:
            parts.append("<h2>Figures</h2>" + "".join(_figure(path) for path in self.figures))
        return (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            f"<title>{escape(self.title)}</title><style>{STYLE}</style></head>"
            f"<body>{''.join(parts)}</body></html>\n"
        )

    def write(self, directory: Path) -> None:
        """Write `MODEL_CARD.md` with its figures beside it, and `model_card.html`."""
        shown = [f"![{_caption(path)}](figures/{path.name})" for path in self.figures]
        text = self.markdown() + ("\n## Figures\n\n" + "\n\n".join(shown) + "\n" if shown else "")
        write_text(directory / "MODEL_CARD.md", text)
        for path in self.figures:
            (directory / "figures").mkdir(exist_ok=True)
            shutil.copyfile(path, directory / "figures" / path.name)
        write_text(directory / "model_card.html", self.html())


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _caption(path: Path) -> str:
    return path.stem.replace("_", " ")


def _figure(path: Path) -> str:
    data = base64.b64encode(path.read_bytes()).decode()
    name = escape(_caption(path))
    return (
        f'<figure><img alt="{name}" src="data:image/png;base64,{data}">'
        f"<figcaption>{name}</figcaption></figure>"
    )
