"""Render the Jinja2 templates that a package keeps in its folder `templates`."""

from functools import lru_cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape


def render(package: str, template: str, **values: Any) -> str:
    """Fill in a template.

    Values are escaped in `.html.j2` files and nowhere else. A line that holds only a
    statement or a comment leaves no blank line behind.

    Args:
        package: The package that holds the template, as its dotted name.
        template: File name in the package's folder `templates`.
        values: The variables of the template.

    Returns:
        The text.

    Raises:
        jinja2.UndefinedError: If the template uses a variable that was not passed.
    """
    return _environment(package).get_template(template).render(values)


@lru_cache
def _environment(package: str) -> Environment:
    return Environment(
        loader=PackageLoader(package),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
