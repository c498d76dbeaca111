"""The model card: Markdown for the registry, and one HTML file with its figures inside."""

import base64
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipelines.base.artifacts import write_text
from pipelines.base.templates import render


@dataclass(frozen=True)
class ModelCard:
    """What is known about a version.

    Args:
        title: Its heading.
        summary: What it is, what it is for and what it is not for.
        tables: Heading to rows of name and value.
        samples: Generated texts, unedited.
        figures: PNG files.
        metadata: Front matter as Hugging Face reads it, with its `model-index`.
    """

    title: str
    summary: str
    tables: Mapping[str, Mapping[str, Any]]
    samples: Sequence[str]
    figures: Sequence[Path]
    metadata: str = ""

    def markdown(self) -> str:
        """Return the card without its figures."""
        return self._render("model_card.md.j2", figures=[])

    def write(self, directory: Path) -> None:
        """Write `MODEL_CARD.md` with its figures beside it, and `model_card.html`.

        The HTML file holds its figures and loads nothing from elsewhere.
        """
        figures = [
            {
                "name": path.name,
                "caption": path.stem.replace("_", " "),
                "base64": base64.b64encode(path.read_bytes()).decode(),
            }
            for path in self.figures
        ]
        for file, template in (
            ("MODEL_CARD.md", "model_card.md.j2"),
            ("model_card.html", "model_card.html.j2"),
        ):
            front = f"---\n{self.metadata}\n---\n" if self.metadata and file.endswith("md") else ""
            write_text(directory / file, front + self._render(template, figures))
        for path in self.figures:
            (directory / "figures").mkdir(exist_ok=True)
            shutil.copyfile(path, directory / "figures" / path.name)

    def _render(self, template: str, figures: Sequence[Mapping[str, str]]) -> str:
        tables = {
            heading: {name: _show(value) for name, value in rows.items()}
            for heading, rows in self.tables.items()
        }
        return render(
            "pipelines.registry",
            template,
            title=self.title,
            summary=self.summary,
            tables=tables,
            samples=self.samples,
            figures=figures,
        )


def _show(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
