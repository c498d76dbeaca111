"""Bring text that means the same into one form, by versioned rules.

The manifest of `clean` carries `NORMALISATION` and `LEFTOVERS` (`data/cleaning/leftovers.py`):
together they identify the rules that made a text.
"""

import re
import unicodedata
from collections.abc import Callable
from functools import lru_cache

# Increase it with every change of `normalise`.
NORMALISATION = 1
LINE_END = re.compile("\r\n|[\r\v\f\x1c-\x1e\x85\u2028\u2029]")
# All control characters except the newline, and the byte-order mark.
CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\ufeff]")
# Any character that one of the two above changes, or a tab.
UNUSUAL = re.compile("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028\u2029\ufeff]")
BLANK_LINES = re.compile("\n{3,}")


def normalise(text: str) -> str:
    r"""Normalise what carries no content, by the rules of version `NORMALISATION`.

    Unicode NFC; every line end becomes \n and a tab a space; other control characters are
    removed; lines lose the white space at both ends (U+3000 too), and several blank lines
    become one.

    Args:
        text: Any text.

    Returns:
        The text with every visible character kept. Normalising twice changes nothing.
    """
    text = unicodedata.normalize("NFC", text)
    if UNUSUAL.search(text):
        text = LINE_END.sub("\n", text).replace("\t", " ")
        text = CONTROL.sub("", text)
    text = "\n".join([line.strip() for line in text.split("\n")])
    if "\n\n\n" in text:
        text = BLANK_LINES.sub("\n\n", text)
    return text.strip()


@lru_cache
def to_simplified() -> Callable[[str], str]:
    """Load OpenCC's conversion of traditional to simplified text (`t2s`), phrases included."""
    import opencc

    convert: Callable[[str], str] = opencc.OpenCC("t2s").convert
    return convert
