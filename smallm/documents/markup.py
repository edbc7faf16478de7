"""The prose of Markdown and HTML texts: without code, tables of Markdown, scripts and styles."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from markdown_it.token import Token

FENCE = re.compile(r"\s*(?P<mark>`{3,}|~{3,})(?P<info>[^`]*)$")
FRONT_MATTER = re.compile(r"\A---[ \t]*\r?\n.*?\n---[ \t]*(?:\r?\n|$)", re.DOTALL)
LINE_BREAKS = {"softbreak": " ", "hardbreak": "\n"}
BLOCKS = {
    "address", "article", "aside", "blockquote", "body", "br", "caption", "center", "dd", "details",
    "div", "dl", "dt", "fieldset", "figcaption", "figure", "footer", "form", "h1", "h2", "h3", "h4",
    "h5", "h6", "header", "hr", "legend", "li", "main", "nav", "ol", "option", "p", "pre",
    "section", "summary", "table", "td", "th", "tr", "ul",
}  # fmt: skip


def without_fences(lines: Iterable[str]) -> Iterator[str]:
    """The lines of a Markdown text outside ``` and ~~~, so that no later cut opens one."""
    mark = ""
    for line in lines:
        fence = FENCE.match(line)
        if mark:
            if fence and fence["mark"].startswith(mark) and not fence["info"].strip():
                mark = ""
        elif fence:
            mark = fence["mark"]
            yield "\n"
        else:
            yield line


def markdown_prose(text: str) -> str:
    """The paragraphs, headings and list items of a Markdown text, a blank line between them."""
    from markdown_it import MarkdownIt

    found = []
    in_table = False
    for token in MarkdownIt("commonmark").enable("table").parse(text):
        if token.type in ("table_open", "table_close"):
            in_table = token.type == "table_open"
        elif token.type == "inline" and not in_table:
            found.append(_inline(token.children or []))
    return "\n\n".join(each for each in found if each.strip())


def _inline(children: list[Token]) -> str:
    kept = ("text", "code_inline", *LINE_BREAKS)
    return "".join(
        LINE_BREAKS.get(child.type, child.content) for child in children if child.type in kept
    )


def html_prose(page: str) -> str:
    """The visible text of an HTML page, one line a block element."""
    return _visible(page, keep_code=False)


def html_with_code(page: str) -> str:
    """The same, with the line breaks and blanks of <pre> kept, as code needs them."""
    return _visible(page, keep_code=True)


# HTML has no control characters: here they mark what white space in the page does not.
LINE_END, KEPT = "\0", {"\n": "\1", " ": "\2", "\t": "\3"}
KEEP = str.maketrans(KEPT)
FREE = str.maketrans({mark: sign for sign, mark in KEPT.items()})
CONTROLS = str.maketrans(dict.fromkeys([LINE_END, *KEPT.values()], " "))


def _visible(page: str, *, keep_code: bool) -> str:
    from selectolax.lexbor import LexborHTMLParser

    tree = LexborHTMLParser(page)
    tree.strip_tags(["head", "script", "style", "noscript", "template"])
    if tree.body is None:
        return ""
    code = set()
    if keep_code:
        code = {
            inside.mem_id
            for block in tree.css("pre")
            for inside in block.traverse(include_text=True)
        }
    parts = []
    for node in tree.body.traverse(include_text=True):
        if node.tag in BLOCKS or (node.prev is not None and node.prev.tag in BLOCKS):
            parts.append(LINE_END)
        if node.tag == "-text":
            text = (node.text_content or "").translate(CONTROLS)
            parts.append(text.translate(KEEP) if node.mem_id in code else text)
    lines = (" ".join(line.split()) for line in "".join(parts).split(LINE_END))
    kept = (line.strip(KEPT["\n"]).translate(FREE).rstrip() for line in lines)
    return "\n".join(line for line in kept if line.strip())
