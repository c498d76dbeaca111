"""What `enigma score --output` writes: every score, a picture of them, a page with the oddest.

Documents come from anywhere: the page shows a bounded part of their text, escaped.

Shape legend: N documents.
"""

import base64
import io
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pipelines.base.artifacts import whole_file, write_text
from pipelines.base.errors import UserError
from pipelines.base.templates import render
from pipelines.cli.scores.store import Row, ScoreStore

Floats = npt.NDArray[np.float64]

ENDING = ".jsonl"
QUANTILES = (0.5, 0.9, 0.99, 0.999, 1.0)
TYPICAL = 3.0
"""Most normal documents have a lower atypicality."""
NAME_CHARACTERS = 100
COLOUR, MARK = "#40618f", "#c98a2b"
BINS = 60


def check_output(output: Path) -> None:
    """Refuse what cannot be written, before anything is scored; make the folder.

    Raises:
        UserError: If the name ends in something else than `.jsonl`, is that of a folder, or is in
            a folder that cannot be made.
    """
    if output.suffix != ENDING:
        raise UserError(
            f"--output: expected a name that ends in {ENDING}, got {output}",
            f"name a file such as scores{ENDING}; the picture and the page have its name, with "
            ".png and .html",
        )
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise _unwritable(output, error.strerror) from None
    if output.is_dir():
        raise _unwritable(output, "Is a directory")


def write_report(output: Path, source: str, store: ScoreStore, oddest: list[Row]) -> None:
    """Write the scores of every document, and a picture and a page beside them.

    Args:
        output: The file of the scores; the others differ from it in their endings.
        source: What was scored, as the user named it.
        store: The scores.
        oddest: The documents to show on the page.

    Raises:
        UserError: If a file cannot be written.
    """
    values_N3 = store.values()
    picture = draw_scores(values_N3)
    try:
        with whole_file(output.with_suffix(".png")) as stream:
            stream.write(picture)
        write_text(output.with_suffix(".html"), page(source, values_N3, picture, oddest))
        with whole_file(output) as stream:
            stream.writelines(f"{line}\n".encode() for line in store.lines())
    except OSError as error:
        raise _unwritable(output, error.strerror) from None


def _unwritable(output: Path, reason: str | None) -> UserError:
    return UserError(
        f"--output: expected a file that can be written, got {output}: {reason}",
        "name a file in a folder where you may write",
    )


def page(source: str, values_N3: Floats, picture: bytes, oddest: list[Row]) -> str:
    """Return an HTML page that needs no other file.

    Args:
        source: What was scored.
        values_N3: (N, 3), atypicality and the deviations of state and of loss.
        picture: A PNG.
        oddest: Scores, `id`, `title`, `characters` and `text` of the documents to show.
    """
    atypicality_N = values_N3[:, 0]
    rows = [row | {name: _shortened(row[name]) for name in ("id", "title")} for row in oddest]
    return render(
        "pipelines.cli.scores",
        "scores.html.j2",
        source=source,
        count=len(atypicality_N),
        typical=TYPICAL,
        share=float((atypicality_N < TYPICAL).mean()),
        quantiles=dict(zip(QUANTILES, np.quantile(atypicality_N, QUANTILES), strict=True)),
        picture=base64.b64encode(picture).decode(),
        rows=rows,
    )


def _shortened(name: str) -> str:
    return name if len(name) <= NAME_CHARACTERS else f"{name[:NAME_CHARACTERS]}…"


def draw_scores(values_N3: Floats) -> bytes:
    """Draw how the scores are distributed, alone and by the deviations of state and loss.

    Args:
        values_N3: (N, 3), atypicality and the deviations of state and of loss; at least one
            document.

    Returns:
        A PNG.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator, SymmetricalLogLocator

    figure = Figure(figsize=(10, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    atypicality_N, state_N, loss_N = values_N3.T
    left.hist(atypicality_N, bins=_edges(atypicality_N), color=COLOUR)
    left.axvline(TYPICAL, color=MARK, linestyle="--")
    left.set(yscale="log", xlabel="atypicality", ylabel="documents")
    left.set_title(f"most normal documents are below {TYPICAL:g} (dashed)", fontsize="medium")
    counts, x_edges, y_edges = np.histogram2d(loss_N, state_N, [_edges(loss_N), _edges(state_N)])
    shown = np.ma.masked_equal(counts.T, 0)
    mesh = right.pcolormesh(x_edges, y_edges, shown, norm="log", cmap="viridis")
    figure.colorbar(mesh, ax=right, label="documents")
    angle = np.linspace(0, 2 * np.pi, 200)
    # Where the sum of their fourth powers is that of the line on the left.
    circle = np.array([np.cos(angle), np.sin(angle)])
    edge = TYPICAL * np.sign(circle) * np.sqrt(np.abs(circle))
    right.plot(*edge, color=MARK, linestyle="--")
    right.set(xlabel="deviation of the loss", ylabel="deviation of the state")
    for set_scale, axis in (
        (left.set_xscale, left.xaxis),
        (right.set_xscale, right.xaxis),
        (right.set_yscale, right.yaxis),
    ):
        set_scale("asinh")
        axis.set_major_locator(SymmetricalLogLocator(base=10, linthresh=1, subs=[1, 3]))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
    left.set_xlim(left=0)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=120)
    return stream.getvalue()


def _edges(values_N: Floats) -> Floats:
    """Bins that are even near 0 and grow with the distance from it: tails are long."""
    low, high = min(values_N.min(), -1e-3), max(values_N.max(), TYPICAL)
    edges: Floats = np.sinh(np.linspace(np.arcsinh(low), np.arcsinh(high), BINS + 1))
    # Rounded, the last one may be below the largest value.
    edges[[0, -1]] = low, high
    return edges
