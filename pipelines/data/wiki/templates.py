"""Templates that carry text, and which of their arguments a reader sees.

A template that is not in the table prints nothing: most are boxes, notes and navigation.
"""

import re
from collections.abc import Sequence

# The first pattern whose arguments are all there is printed: `{1}` is the first argument without
# a name, `{lt}` a named one, `{*}` all of those without a name, joined by the text that follows.
_PATTERNS: dict[tuple[str, ...], str] = {
    ("{1}", "{text}"): """nowrap nobr nowr small smaller big larger large huge bold b strong
        em i italic u underline s strike sup sub center left right red green blue orange gray grey
        abbr tooltip code kbd mono tt var math mvar chem2 ce ipa ipa-all unicode polytonic angbr
        quote cquote quotation blockquote plainlist flatlist 古文 僻字 缺字 pua
        flag flagcountry flagu lj nihongo2 noitalic nobold
        hans hant zh-hans zh-hant zh-cn zh-tw zh-hk tq formatnum lc uc ucfirst jl""",
    ("{2}", "{text}"): "lang langi lang2 script",
    ("{2}", "{1}"): "color colour fontcolor 顏色 颜色 bgcolor size resize",
    ("{3}", "{2}", "{1}"): "transl transliteration",
    ("{3}", "{d}", "{1}", "{2}"): "le lsl link internallink",
    ("{lt}", "{d}", "{1}"): "ilh ill interlanguage_link internal_link_helper illm",
    ("{4}", "{3}", "{2}"): "tsl translink liw",
    ("{1}（{2}）", "{1}"): "ruby ruby-ja ruby-zh-p ruby-zh-b rubyh nihongo jpn-ruby",
    ("{1}/{2}", "1/{1}"): "frac sfrac fraction",
    ("{1} {u}", "{1} {ul}", "{1}"): "val",
    # Born and died; the days may be missing.
    (
        "（{1}{2}－{3}{4}）", "（{1}－{3}{4}）", "（{1}{2}－{3}）", "（{1}－{3}）",
        "（{1}{2}－）", "（{1}－）",
    ): "bd",
    ("约{1}",): "circa c. ca.",
    ("{*、}",): "ubl unbulleted_list hlist",
    ("{*}",): "linktext chem",
    ("{s}（{p}）", "{s}", "{t}", "{c}", "{1}"): "zh",
    ("|",): "!",
    ("=",): "=",
    ("·",): "· • dot bull",
    (" ",): "nbsp sp space spaces",
    (" – ",): "snd spnd",
    ("–",): "ndash",
    ("—",): "mdash",
}  # fmt: skip
TEMPLATES = {name: patterns for patterns, names in _PATTERNS.items() for name in names.split()}
# `{{lang-en|text}}` and `{{link-en|text|title}}`, for every language.
FAMILIES = {"lang-": ("{1}", "{text}"), "link-": TEMPLATES["le"], "ipa-": ("{1}",)}
# Between two numbers of `{{convert|10|to|20|km}}`.
RANGES = {
    "to": "至", "-": "–", "–": "–", "and": "和", "or": "或", "x": "×", "by": "×", "to(-)": "–",
    "至": "至", "到": "到", "和": "和",
}  # fmt: skip
UNITS_OF = frozenset({"convert", "cvt", "conv"})

_NAMED = re.compile(r"\s*([^\W\d][\w-]{0,20}|\d+)\s*=")
_FIELD = re.compile(r"\{(\w+|\*[^}]*)\}")


def template_text(arguments: Sequence[str]) -> str:
    """Return what a reader sees of a template.

    Args:
        arguments: What `|` separates, the name first, with no markup left in it.

    Returns:
        The text that the template carries, or "" if it is not known to carry any.
    """
    name, *rest = arguments
    name = name.strip()
    function, colon, value = name.partition(":")
    if colon and function.lower() in TEMPLATES:
        # A parser function: `{{formatnum:1234}}`.
        name, rest = function, [value, *rest]
    name = re.sub(r"^(?:template|模板):", "", name, flags=re.IGNORECASE)
    name = name.strip().replace(" ", "_").lower()
    if name in UNITS_OF:
        return _measure([argument.strip() for argument in rest if not _NAMED.match(argument)])
    family = next((FAMILIES[start] for start in FAMILIES if name.startswith(start)), ())
    values = _values(rest)
    for pattern in TEMPLATES.get(name, family):
        text = _fill(pattern, values)
        if text is not None:
            return text
    return ""


def _values(arguments: Sequence[str]) -> dict[str, str]:
    """Return arguments by name; those without one are numbered from 1."""
    values: dict[str, str] = {}
    number = 0
    for argument in arguments:
        named = _NAMED.match(argument)
        if named:
            values[named[1]] = argument[named.end() :].strip()
        else:
            number += 1
            values[str(number)] = argument.strip()
    return values


def _fill(pattern: str, values: dict[str, str]) -> str | None:
    """Return the pattern with its arguments filled in, or None if one is missing."""
    if pattern.startswith("{*"):
        numbers = sorted(int(name) for name in values if name.isdecimal())
        return pattern[2:-1].join(filter(None, (values[str(number)] for number in numbers)))
    if not all(values.get(field) for field in _FIELD.findall(pattern)):
        return None
    return _FIELD.sub(lambda field: values[field[1]], pattern)


def _measure(arguments: Sequence[str]) -> str:
    """Return the measure as it was given: `10 km`, or `10至20 km`."""
    number = " ".join(arguments[:1])
    rest = list(arguments[1:])
    while len(rest) > 1 and rest[0] in RANGES:
        number += RANGES[rest[0]] + rest[1]
        rest = rest[2:]
    return " ".join(filter(None, (number, *rest[:1])))
