"""Remove what extractors of Wikipedia leave behind: empty brackets, markup, tables, references.

Each rule first looks for one or two characters, so text without them costs next to nothing.
What a rule removes is counted, and the first pieces are kept.
"""

import html
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

# Change it with the rules.
LEFTOVERS = 1
KEPT_PIECES = 100
PIECE_CHARACTERS = 500

REFERENCES = re.compile(
    r"^=*[ \t]*(?:参考(?:文献|资料|来源|书目)?|參考(?:文獻|資料|來源|書目)?|注释|註釋|注解|註解|"
    r"脚注|腳註|外部(?:链接|連結|链結|連接)|参见|參見|参看|參看|延伸阅读|延伸閱讀|"
    r"相关条目|相關條目)[ \t]*=*$.*\Z",
    re.MULTILINE | re.DOTALL,
)
PUNCTUATION = r"\s,，、;；:：.。/／|-"
LINK = re.compile(r"\[\[(?:[^\[\]|]*\|)?([^\[\]|]*)\]\]")
FILE_LINK = re.compile(
    r"\[\[(?:File|Image|Category|文件|檔案|图像|圖像|分类|分類)[:：]"
    r"[^\[\]]*(?:\[\[[^\[\]]*\]\][^\[\]]*)*\]\]",
    re.IGNORECASE,
)
VARIANT = re.compile(r"-\{(?:[^{}|]*\|)?([^{}]*)\}-")


@dataclass
class Removed:
    """What was removed, by rule.

    Args:
        counts: How often each rule removed something.
        pieces: (document id, rule, text), the first of each rule.
    """

    counts: Counter[str] = field(default_factory=Counter)
    pieces: list[tuple[str, str, str]] = field(default_factory=list)

    def add(self, document: str, rule: str, piece: str) -> None:
        """Record one piece."""
        self.counts[rule] += 1
        if self.counts[rule] <= KEPT_PIECES:
            self.pieces.append((document, rule, piece[:PIECE_CHARACTERS]))


@dataclass(frozen=True)
class Rule:
    """One kind of leftover.

    Args:
        name: How counts and samples name it.
        signs: The rule is applied if the text has one of these.
        pattern: What it removes.
        replacement: What takes its place: a text, or a function of the match.
        nests: Whether the result may match again.
    """

    name: str
    signs: tuple[str, ...]
    pattern: re.Pattern[str]
    replacement: str | Callable[[re.Match[str]], str]
    nests: bool = False


def _variant(match: re.Match[str]) -> str:
    """Choose the simplified form of `-{zh-hans:...; zh-hant:...}-`, else the first."""
    forms: dict[str, str] = {}
    for part in match[1].split(";"):
        name, colon, text = part.partition(":")
        forms[name.strip() if colon else ""] = (text if colon else part).strip()
    for name in ("zh-hans", "zh-cn", *forms):
        if forms.get(name):
            return forms[name]
    return ""


RULES: Sequence[Rule] = (
    Rule("comment", ("<!--",), re.compile(r"<!--.*?(?:-->|\Z)", re.DOTALL), ""),
    Rule(
        "formula",
        ("<math", "<chem", "{\\displaystyle"),
        re.compile(
            r"<(math|chem)\b[^<>]*>.*?</\1>|\{\\displaystyle(?:[^{}]|\{(?:[^{}]|\{[^{}]*\})*\})*\}",
            re.DOTALL,
        ),
        "",
    ),
    Rule(
        "reference",
        ("<ref",),
        re.compile(r"<ref\b[^<>]*?/>|<ref\b[^<>]*>.*?</ref\s*>", re.DOTALL),
        "",
    ),
    Rule(
        "tag",
        ("<",),
        re.compile(
            r"</?(?:ref|br|div|span|p|b|i|u|s|small|big|sub|sup|center|font|table|tr|td|th|ul|ol|"
            r"li|blockquote|nowiki|noinclude|includeonly|onlyinclude|gallery|timeline|poem|code|"
            r"pre|references|templatestyles|section|ruby|rb|rt|rp|math|chem)\b[^<>\n]*>",
            re.IGNORECASE,
        ),
        "",
    ),
    Rule(
        "entity",
        ("&",),
        re.compile(r"&(?:#\d{1,7}|#[xX][0-9a-fA-F]{1,6}|nbsp|amp|lt|gt|quot|ensp|emsp|thinsp|ndash|mdash|middot|hellip|times);"),
        lambda match: html.unescape(match[0]).replace("\xa0", " "),
    ),
    Rule("table", ("{|",), re.compile(r"^[ \t:]*\{\|.*?^[ \t]*\|\}", re.MULTILINE | re.DOTALL), ""),
    Rule("variant", ("-{",), VARIANT, _variant),
    Rule("template", ("{{",), re.compile(r"\{\{[^{}]*\}\}"), "", nests=True),
    Rule("file", ("[[",), FILE_LINK, ""),
    Rule("link", ("[[",), LINK, lambda match: match[1], nests=True),
    Rule("quotes", ("''",), re.compile("'{2,5}"), ""),
    Rule("magic word", ("__",), re.compile(r"__[A-Z]{3,}__"), ""),
    Rule(
        "category",
        ("ategory:", "分类:", "分類:"),
        re.compile(r"^[ \t]*(?:Category|分类|分類):.*$", re.MULTILINE),
        "",
    ),
    Rule(
        "reference section",
        ("参考", "參考", "注释", "註釋", "注解", "註解", "脚注", "腳註", "外部", "参见", "參見",
         "参看", "參看", "延伸", "相关条目", "相關條目"),
        REFERENCES,
        "",
    ),
    Rule(
        "heading marks",
        ("==",),
        re.compile(r"^[ \t]*(={2,6})[ \t]*(.*?)[ \t]*\1[ \t]*$", re.MULTILINE),
        lambda match: match[2],
    ),
    Rule(
        "empty brackets",
        ("（", "(", "「", "《", "【", "〈", "『"),
        # A character class first: the search skips to its characters, but not to alternatives.
        re.compile(
            rf"[（(「『《〈【](?:(?<=（)[{PUNCTUATION}]*）|(?<=\()[{PUNCTUATION}]*\)|"
            r"(?<=「)\s*」|(?<=『)\s*』|(?<=《)\s*》|(?<=〈)\s*〉|(?<=【)\s*】)"
        ),
        "",
        nests=True,
    ),
    Rule(
        "bracket's first comma",
        ("（", "("),
        re.compile(r"([（(])[\s,，、;；]*[,，、;；][\s,，、;；]*"),
        lambda match: match[1],
    ),
)  # fmt: skip

# The first character of a sign is found in half the time, and most texts lack it.
SIGNS = tuple((rule, tuple((sign[0], sign) for sign in rule.signs)) for rule in RULES)


def remove_leftovers(document: str, text: str, removed: Removed) -> str:
    """Remove what a wiki extractor left in a text; rules of version `LEFTOVERS`.

    Args:
        document: The document's id, for the samples.
        text: A normalised text.
        removed: Counts and samples are added to it.

    Returns:
        The text; normalise it again if it changed.
    """
    for rule, signs in SIGNS:
        # A loop, as `any` of a generator costs more than all the searches.
        for first, sign in signs:
            if first in text and sign in text:
                text = _apply(rule, document, text, removed)
                break
    return text


def _apply(rule: Rule, document: str, text: str, removed: Removed) -> str:
    def replace(match: re.Match[str]) -> str:
        removed.add(document, rule.name, match[0])
        new = rule.replacement
        return new if isinstance(new, str) else new(match)

    while True:
        changed = rule.pattern.sub(replace, text)
        # Templates and links nest: repeat until nothing changes.
        if changed == text or not rule.nests:
            return changed
        text = changed
