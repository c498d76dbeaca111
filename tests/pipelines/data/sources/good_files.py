"""Dumps of a wiki as tests write them."""

import bz2
from pathlib import Path

PAGE = """  <page><title>{title}</title><ns>{ns}</ns><id>{id}</id>{redirect}
    <revision><id>{id}1</id><timestamp>2023-11-01T00:00:00Z</timestamp>
      <contributor><username>x</username><id>5</id></contributor>
      <model>wikitext</model><format>text/x-wiki</format>
      <text xml:space="preserve">{text}</text></revision></page>
"""
HEAD = """<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10" xml:lang="zh">
  <siteinfo><sitename>Wikipedia</sitename><dbname>zhwiki</dbname>
    <base>https://zh.wikipedia.org/wiki/Wikipedia:%E9%A6%96%E9%A1%B5</base>
    <generator>MediaWiki</generator><case>first-letter</case>
    <namespaces><namespace key="0" case="first-letter" />
      <namespace key="10" case="first-letter">Template</namespace></namespaces></siteinfo>
"""
WIKITEXT = (
    "{{Infobox person|name=曹操}}\n"
    "'''曹操'''（155年－220年），字[[字|孟德]]。&lt;ref&gt;《三国志》&lt;/ref&gt;\n\n"
    "[[File:Cao.jpg|thumb|[[曹操]]像]]\n"
    "{| class=\"wikitable\"\n|-\n| 甲 || 乙\n|}\n"
    "== 生平 ==\n&lt;!-- 注 --&gt;曹操起兵&lt;br/&gt;於[[陳留]]。\n\n[[Category:三国]]"
)  # fmt: skip


def dump_xml(pages: int = 3, text: str = WIKITEXT) -> str:
    """A dump of some articles, two redirects, and a page of another namespace."""

    def page(number: int, **values: object) -> str:
        values = {"ns": 0, "redirect": "", "text": text, **values}
        return PAGE.format(title=f"曹 {number}", id=number, **values)

    body = "".join(page(number) for number in range(1, pages + 1))
    body += page(90, redirect='<redirect title="曹操" />', text="#重定向 [[曹操]]")
    body += page(91, text="#REDIRECT [[曹操]]") + page(92, ns=10)
    return f"{HEAD}{body}</mediawiki>\n"


def write_dump(path: Path, pages: int = 3) -> Path:
    """Write a dump, compressed by bzip2."""
    path.write_bytes(bz2.compress(dump_xml(pages).encode()))
    return path
