"""Marks that are removed one by one: tags, quotes, magic words, marks of headings."""

import re

# Attributes have a value, so `a <b and c> d` is no tag.
TAG = re.compile(
    r"</?(?:ref|br|div|span|p|b|i|u|s|small|big|sub|sup|center|font|table|caption|tr|td|th|ul|ol|li|dl|"
    r"dt|dd|blockquote|nowiki|noinclude|includeonly|onlyinclude|gallery|timeline|poem|code|pre|"
    r"references|templatestyles|section|ruby|rb|rt|rp|math|chem|ce|abbr|cite|del|ins|em|strong|tt|kbd|"
    r"samp|var|q|hr|wbr|bdi|bdo|strike|h[1-6])(?:\s*+/?|\s[^<>\n=]*=[^<>\n]*)>",
    re.IGNORECASE,
)
# A formula without TeX commands can be read as it stands: `HNO3`, `n`, `a^2+b^2`.
PLAIN_FORMULA = re.compile(r"<(math|chem|ce)\b[^<>]*(?<!/)>([^<\\]*)</\1\s*>", re.IGNORECASE)
# A reading above its word is `<rp>(</rp><rt>...</rt><rp>)</rp>`, mostly without the brackets.
READING = re.compile(
    r"(<rp\s*>[^<>]*</rp\s*>\s*)?<rt\b[^<>]*(?<!/)>([^<>]*)(?:</rt\s*>|(?=<r[tbp]\b|</ruby))",
    re.IGNORECASE,
)
QUOTES = re.compile("'{2,5}")
MAGIC_WORD = re.compile(
    r"__(?:(?:NO|FORCE)?TOC|NO(?:EDITSECTION|GALLERY|INDEX|CONTENTCONVERT|CC|TITLECONVERT|TC|"
    r"NEWSECTIONLINK|GLOBAL)|INDEX|NEWSECTIONLINK|HIDDENCAT|STATICREDIRECT|DISAMBIG|"
    r"(?:无|無|强显|強顯|不显示|不顯示)?(?:目录|目錄)|消歧义|消歧義|无编辑段落|無編輯段落|隐藏分类|隱藏分類)__"
)
HEADING_LINE = re.compile(r"^[ \t]*==.*$", re.MULTILINE)


def formula_text(match: re.Match[str]) -> str:
    """Return what is read of a match of `PLAIN_FORMULA`."""
    return re.sub(r"[{}$_]", "", match[2]).replace("->", "→").strip()


def reading_text(match: re.Match[str]) -> str:
    """Put a match of `READING` in brackets, as `{{ruby}}` prints it, unless it has some."""
    bare = match[1] is None and match[2].strip()
    return f"（{match[2].strip()}）" if bare else match[0]


def bare_heading(match: re.Match[str]) -> str:
    """Return the words of a line of `HEADING_LINE`, or the line if it is no heading."""
    line = match[0].strip(" \t")
    level = min(len(line) - len(line.lstrip("=")), len(line) - len(line.rstrip("=")), 6)
    words = line[level:-level].strip(" \t") if level >= 2 else ""
    return words if words.strip("=") else match[0]
