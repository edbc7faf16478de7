"""The prose of wikitext: without templates, tables, references, files and categories."""

from __future__ import annotations

import re

CATEGORY = re.compile(r"\[\[\s*Category\s*:\s*([^\]|]+)", re.IGNORECASE)
# Links whose text is no part of the sentence: files, categories, other languages.
ASIDE = re.compile(r"\s*(?:(?i:file|image|media|category)\s*:|[a-z]{2,3}(?:-[a-z]+)*:\S)")
NO_PROSE = frozenset(
    {
        "table",
        "ref",
        "references",
        "gallery",
        "math",
        "timeline",
        "score",
        "imagemap",
        "syntaxhighlight",
    }
)
LAST_SECTIONS = re.compile(
    r"^==\s*(?:references|external links|see also|further reading|notes|sources|bibliography)"
    r"\s*==.*?(?=^==[^=]|\Z)",
    re.IGNORECASE | re.MULTILINE | re.DOTALL,
)


def categories_in(text: str) -> list[str]:
    """The categories that an article names."""
    return [name.strip() for name in CATEGORY.findall(text)]


def wikitext_prose(text: str) -> str:
    """The sentences and headings of an article."""
    import mwparserfromhell
    from mwparserfromhell.nodes import Tag, Wikilink

    code = mwparserfromhell.parse(LAST_SECTIONS.sub("", text), skip_style_tags=True)
    # Emptied, not removed: to remove a node the whole article is searched for it.
    for node in code.ifilter(recursive=True, matches=lambda each: isinstance(each, Tag | Wikilink)):
        if isinstance(node, Tag) and str(node.tag).strip().lower() in NO_PROSE:
            node.contents = ""
        elif isinstance(node, Wikilink) and ASIDE.match(str(node.title)):
            node.title, node.text = "", None
    plain = code.strip_code(normalize=True, collapse=True)
    plain = re.sub(r"'{2,}|__[A-Z]+__", "", plain)
    lines = (" ".join(line.split()) for line in plain.splitlines())
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip()
