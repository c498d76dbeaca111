"""Convert wikitext, as it stands in the dumps of Wikipedia, to plain text."""

import re
from typing import Any

UNREAD_TAGS = frozenset(
    {"ref", "table", "gallery", "math", "chem", "timeline", "syntaxhighlight", "source", "score"}
)
FILE_PREFIX = re.compile(
    r"\s*(?:File|Image|Media|Category|文件|檔案|档案|图像|圖像|分类|分類)\s*[:：]", re.IGNORECASE
)


def plain_text(wikitext: str) -> str:
    """Convert wikitext to plain text."""
    import mwparserfromhell

    code = mwparserfromhell.parse(wikitext, skip_style_tags=False)
    # `strip_code` would leave the content of these in the text.
    for tag in code.filter_tags(recursive=True, matches=_is_unread):
        _remove(code, tag)
    for link in code.filter_wikilinks(recursive=True):
        if FILE_PREFIX.match(str(link.title)):
            _remove(code, link)
    return str(code.strip_code(normalize=True, collapse=True, keep_template_params=False))


def _is_unread(tag: Any) -> bool:
    return str(tag.tag).strip().lower() in UNREAD_TAGS


def _remove(code: Any, node: Any) -> None:
    try:
        code.remove(node)
    except ValueError:
        # It was inside another one that has been removed.
        return
