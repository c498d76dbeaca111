"""A long line is broken on a terminal alone: a program reads whole lines in a file."""

import io
import sys

import pytest

from pipelines.base.console import tree_console

LINE = "一" * 200


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.mark.parametrize(("stream", "lines"), [(io.StringIO(), 1), (Terminal(), 8)])
def test_a_long_line_is_broken_on_a_terminal_alone(
    monkeypatch: pytest.MonkeyPatch, stream: io.StringIO, lines: int
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.setattr(sys, "stdout", stream)
    tree_console().print(LINE)
    printed = stream.getvalue().splitlines()
    # A Chinese character is two columns wide.
    assert len(printed) == lines
    assert "".join(printed) == LINE
