"""Language variants: what a reader of one script sees of `-{zh-hans:计算机; zh-hant:電腦}-`.

The flags and rules are those of MediaWiki's `ConverterRule`. Rules that apply to the rest of a
page (flags A and H) are not applied to it: they replace words of one region by another's.
"""

import re
from collections.abc import Callable
from typing import Literal

Script = Literal["as_is", "simplified"]

NAMES = {
    "zh": "不转换",
    "zh-hans": "简体",
    "zh-hant": "繁體",
    "zh-cn": "大陆简体",
    "zh-tw": "臺灣正體",
    "zh-hk": "香港繁體",
    "zh-mo": "澳門繁體",
    "zh-sg": "新加坡简体",
    "zh-my": "大马简体",
}
# Preferences, as in MediaWiki's `ZhConverter`; without any of these the first form is shown.
SIMPLIFIED = ("zh-hans", "zh-cn", "zh-sg", "zh-my", "zh")
TRADITIONAL = ("zh-hant", "zh-tw", "zh-hk", "zh-mo", "zh")

# A semicolon separates rules only before another rule: `&nbsp;` is text.
_SEPARATOR = re.compile(r";(?=\s*+(?:[^;:=]*+=>\s*+)?zh(?:-[a-z]+)?\s*+:|\s*+$)", re.IGNORECASE)
_MARKUP = re.compile(r"-\{[^{}]*\}-")
_ONLY_SIMPLIFIED = re.compile(
    "[国会来们为说时对这学经过进开关从还实点动产长间问题无现机业书东车马门]"
)
_ONLY_TRADITIONAL = re.compile(
    "[國會來們為說時對這學經過進開關從還實點動產長間問題無現機業書東車馬門]"
)


def preference(text: str, script: Script) -> tuple[str, ...]:
    """Return the variants to look for, best first.

    Args:
        text: The document. With `as_is`, its own script decides, simplified if that is unclear.
        script: The parameter `clean.script`.
    """
    if script == "as_is":
        around = _MARKUP.sub("", text)
        if len(_ONLY_TRADITIONAL.findall(around)) > len(_ONLY_SIMPLIFIED.findall(around)):
            return TRADITIONAL
    return SIMPLIFIED


def shown(content: str, order: tuple[str, ...]) -> str:
    """Return what a reader sees.

    Args:
        content: What stands between `-{` and `}-`, with no markup left in it.
        order: Variants, best first, of `preference`.
    """
    flags, rules = _flags(content)
    if "N" in flags:
        return NAMES.get(rules.strip().lower(), "")
    if flags & {"-", "H"} or flags == {"T"}:
        return ""
    forms = {} if "R" in flags else _forms(rules)
    if "D" in flags and forms:
        return "；".join(f"{NAMES[variant]}：{form}" for variant, form in forms.items())
    if not forms:
        return rules
    return next((forms[name] for name in order if name in forms), next(iter(forms.values())))


def undecided(content: str) -> str:
    """Return what every reader sees, or the markup if that depends on the variant."""
    if "zh" not in content.lower():
        return shown(content, ())
    seen = {shown(content, (variant,)) for variant in NAMES}
    return seen.pop() if len(seen) == 1 else f"-{{{content}}}-"


def chooser(text: str, script: Script) -> Callable[[str], str]:
    """Return `shown` for one document, whose script is looked at when first needed."""
    order: list[tuple[str, ...]] = []

    def choose(content: str) -> str:
        if not order:
            order.append(preference(text, script))
        return shown(content, order[0])

    return choose


def _flags(content: str) -> tuple[set[str], str]:
    """Divide `flags|rules`; raw text (R) outranks names (N), and these the other flags."""
    before, bar, after = content.partition("|")
    if not bar:
        return set(), content
    flags = {flag.strip() for flag in before.split(";")}
    for strongest in ("R", "N", "-"):
        if strongest in flags:
            return {strongest}, after
    return flags & {"A", "T", "H", "D", "S"}, after


def _forms(rules: str) -> dict[str, str]:
    """Return the form of each variant; nothing if the text is no list of rules."""
    forms: dict[str, str] = {}
    for rule in _SEPARATOR.split(rules):
        if not rule.strip():
            continue
        name, colon, form = rule.partition(":")
        # `word=>zh-cn:other` replaces a word for one variant only.
        variant = name.rpartition("=>")[2].strip().lower()
        if not colon or variant not in NAMES:
            return {}
        forms.setdefault(variant, form.strip())
    return forms
