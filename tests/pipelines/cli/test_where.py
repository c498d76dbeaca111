"""`enigma where` shows what the store says as it stands."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from pipelines.cli import where


class Client:
    """A store with one version, whose tags anybody may have set."""

    def search_registered_models(self, _filter: str) -> list[Any]:
        return [SimpleNamespace(aliases={"a[b]": "1"})]

    def search_model_versions(self, _filter: str) -> list[Any]:
        return [SimpleNamespace(version="1", tags={"profile": "甲[b]乙", "git_commit": "[/x]"})]


def test_brackets_in_aliases_and_tags_are_shown(
    workspace: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setattr(where, "connect", Client)
    monkeypatch.setenv("COLUMNS", "200")
    where.show_places(["enigma-lm"])
    shown = capsys.readouterr().out
    for text in ("a[b]", "甲[b]乙", "[/x]"):
        assert text in shown
