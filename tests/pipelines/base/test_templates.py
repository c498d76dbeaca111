"""Templates: escaped as HTML and nowhere else, and strict about their variables."""

from pathlib import Path

import jinja2
import pytest

from pipelines.base.templates import render


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A package with two templates; its name is new for every test, as they are cached."""
    name = f"package_of_{tmp_path.name}"
    (tmp_path / name / "templates").mkdir(parents=True)
    (tmp_path / name / "__init__.py").touch()
    for template in ("page.html.j2", "card.md.j2"):
        path = tmp_path / name / "templates" / template
        path.write_text("{% if name %}\n{{ name }}\n{% endif %}\n", encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    return name


def test_only_html_is_escaped(package: str) -> None:
    assert render(package, "page.html.j2", name="<曹操>") == "&lt;曹操&gt;\n"
    assert render(package, "card.md.j2", name="<曹操>") == "<曹操>\n"


def test_a_missing_variable_is_an_error(package: str) -> None:
    with pytest.raises(jinja2.UndefinedError, match="'name' is undefined"):
        render(package, "page.html.j2")
