"""`enigma monitor`: a training run in the terminal, live or once."""

import sys
import time
from itertools import pairwise
from pathlib import Path

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.panel import Panel
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from pipelines.base.errors import UserError
from pipelines.runs.status import Gpu, RunStatus, newest_run, read_gpus, read_machine, read_status

REFRESH_S = 2.0
CURVE_WIDTH, CURVE_HEIGHT = 60, 8
BARS = " ▁▂▃▄▅▆▇█"
SHORT_NAME_CHARACTERS = 30


def monitor(run: Path | None, runs: Path, *, once: bool) -> None:
    """Show a run until Ctrl-C, or once.

    Args:
        run: The directory of the run; None for the newest one.
        runs: The directory of all runs.
        once: Print one view and return.

    Raises:
        UserError: If there is no run.
    """
    console = Console()
    if once or not sys.stdout.isatty():
        console.print(view(read_status(run or newest_run(runs)), read_gpus(), read_machine()))
        return
    read_status(run or newest_run(runs))
    with Live(console=console, auto_refresh=False) as live:
        while True:
            live.update(_present(run, runs), refresh=True)
            time.sleep(REFRESH_S)


def _present(run: Path | None, runs: Path) -> RenderableType:
    """The present view; a file that cannot be read at this moment does not end the watch."""
    try:
        return view(read_status(run or newest_run(runs)), read_gpus(), read_machine())
    except (UserError, OSError, ValueError) as error:
        return Text(f"cannot be read now, trying again: {error}", style="yellow")


def view(status: RunStatus, gpus: list[Gpu] | str, machine: str) -> Panel:
    """Lay out the present state of a run.

    Args:
        status: The run.
        gpus: The GPUs, or why there are none.
        machine: CPU and memory, in one line.

    Returns:
        What rich prints.
    """
    recipe = status.config.train
    losses = status.curve("train_loss_nats")
    colour = "green" if status.state == "running" else "yellow"
    parts: list[RenderableType] = [
        Text(status.state, style=colour),
        ProgressBar(total=status.config.steps, completed=status.step, width=CURVE_WIDTH),
        "",
        figures(status),
        Text(f"train loss, nats per token: {losses[0]:.3f} ... {losses[-1]:.3f}") if losses else "",
        Text(draw(losses, CURVE_WIDTH, CURVE_HEIGHT), style="cyan"),
        gpu_table(gpus) if isinstance(gpus, list) else Text(f"GPU    {gpus}"),
        Text(f"CPU    {machine}"),
        Text(f"rank 0 {', '.join(map(' '.join, status.device.items()))}") if status.device else "",
    ]
    title = f"{status.config.profile}  {status.path.name}  {recipe.ranks} rank(s)"
    # Text: names and reasons are shown as they stand, and read as no markup.
    return Panel(Group(*parts), title=Text(title), width=80)


def figures(status: RunStatus) -> Table:
    """Return the newest figures, two per row."""
    checkpoint = (
        "none yet"
        if status.checkpoint_step is None
        else f"step {status.checkpoint_step}, {span(status.checkpoint_age_s)} ago"
    )
    values = {
        "step": f"{status.step:,} of {status.config.steps:,}",
        "time left": span(status.remaining_s),
        "train loss": figure(status.newest("train_loss_nats"), ".3f"),
        "tokens/s": figure(status.newest("tokens_per_s"), ",.0f"),
        "validation loss": figure(status.newest("validation_loss_nats"), ".3f"),
        "waiting for data": figure(status.newest("data_wait_fraction"), ".2%"),
        "perplexity": figure(status.newest("validation_perplexity"), ",.1f"),
        "learning rate": figure(status.newest("learning_rate"), ".2e"),
        "bits/character": figure(status.newest("validation_bits_per_character"), ".3f"),
        "gradient norm": figure(status.newest("gradient_norm"), ".3f"),
        "checkpoint": checkpoint,
        "memory per rank": figure(status.newest("peak_memory_mib"), ",.0f", " MiB"),
        "epoch": figure(status.newest("epoch"), ".2f"),
        "MFU": figure(status.newest("mfu"), ".1%"),
    }
    grid = Table.grid(padding=(0, 2))
    cells = [cell for name, value in values.items() for cell in (Text(name, style="dim"), value)]
    for start in range(0, len(cells), 4):
        grid.add_row(*cells[start : start + 4])
    return grid


def gpu_table(gpus: list[Gpu]) -> Table:
    """Return a table with one row per GPU."""
    table = Table("GPU", "use", "memory", "temperature", box=None)
    for index, gpu in enumerate(gpus):
        table.add_row(
            f"{index} {gpu.name[:SHORT_NAME_CHARACTERS]}",
            f"{gpu.use_percent} %",
            f"{gpu.memory_mib:,.0f} of {gpu.total_memory_mib:,.0f} MiB",
            f"{gpu.temperature_c} C",
        )
    return table


def figure(value: float | None, form: str, unit: str = "") -> str:
    """Format a number; a dash if it is not known."""
    return "-" if value is None else f"{value:{form}}{unit}"


def span(seconds: float | None) -> str:
    """Format a time span for people.

    Example:
        >>> span(75), span(3700), span(200000), span(None)
        ('1 min 15 s', '1 h 1 min', '2 d 7 h', '-')
    """
    if seconds is None:
        return "-"
    minutes, s = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    days, hours = divmod(hours, 24)
    parts = [(days, "d"), (hours, "h"), (minutes, "min"), (s, "s")]
    first = next((i for i, (value, _) in enumerate(parts) if value), len(parts) - 1)
    return " ".join(f"{value} {unit}" for value, unit in parts[first : first + 2])


def draw(values: list[float], width: int, height: int) -> str:
    """Draw a curve in block characters, with the newest value at the right.

    Args:
        values: The values; more than `width` are averaged in groups.
        width: Columns.
        height: Lines.

    Returns:
        `height` lines; empty unless two values differ.

    Example:
        >>> print(draw([0.0, 1.0, 2.0], width=3, height=2))
          █
         ██
    """
    columns = min(width, len(values))
    edges = [len(values) * i // columns for i in range(columns + 1)] if columns else []
    means = [sum(values[start:stop]) / (stop - start) for start, stop in pairwise(edges)]
    low, high = min(means, default=0.0), max(means, default=0.0)
    if high == low:
        return ""
    steps = len(BARS) - 1
    levels = [round((mean - low) / (high - low) * height * steps) for mean in means]
    return "\n".join(
        "".join(BARS[min(max(level - line * steps, 0), steps)] for level in levels)
        for line in reversed(range(height))
    )
