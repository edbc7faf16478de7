"""Small dump files in every raw format, made by the tests themselves."""

import bz2
import gzip
import io
import json
import lzma
from xml.sax.saxutils import quoteattr

import py7zr

from smallm.documents.streams import zstd


def xml_rows(rows):
    """A StackExchange Posts.xml: byte order mark, a row a line."""
    lines = [
        "  <row " + " ".join(f"{k}={quoteattr(str(v))}" for k, v in row.items()) + " />"
        for row in rows
    ]
    return "\ufeff" + "\n".join(
        ['<?xml version="1.0" encoding="utf-8"?>', "<posts>", *lines, "</posts>"]
    )


def thread(number, *, answers=1, tags="<python><numpy>", score=3):
    """A question and its answers; the first answer stands before the question."""
    rows = [
        {
            "Id": number * 100 + each,
            "PostTypeId": 2,
            "ParentId": number,
            "Score": each,
            "Body": f"<p>Answer {each} to {number}.</p>\n"
            f"<pre><code>x = [\n    {each},\n]</code></pre>",
        }
        for each in range(1, answers + 1)
    ]
    question = {
        "Id": number,
        "PostTypeId": 1,
        "Score": score,
        "Title": f"How to do {number}?",
        "Tags": tags,
        "Body": f"<p>I want to do {number} &amp; more.</p>",
    }
    return [*rows[:1], question, *rows[1:]]


def wikipedia(pages):
    """A MediaWiki export of (title, namespace, text or None for a redirect)."""
    parts = ['<mediawiki xmlns="http://www.mediawiki.org/xml/export-0.10/" version="0.10">']
    for title, namespace, text in pages:
        redirect = '<redirect title="Elsewhere" />' if text is None else ""
        shown = (text or "#REDIRECT [[Elsewhere]]").replace("&", "&amp;").replace("<", "&lt;")
        parts.append(
            f"<page><title>{title}</title><ns>{namespace}</ns><id>1</id>{redirect}"
            f'<revision><id>2</id><text xml:space="preserve">{shown}</text></revision></page>'
        )
    return "\n".join([*parts, "</mediawiki>"])


def json_lines(records):
    return "".join(json.dumps(each) + "\n" for each in records)


def zst(content, *, window_log=31):
    """As Reddit's dumps are packed: with a window that must be allowed for."""
    return zstd.compress(content, options={zstd.CompressionParameter.window_log: window_log})


def seven_zip(members):
    packed = io.BytesIO()
    with py7zr.SevenZipFile(packed, "w") as archive:
        for name, content in members.items():
            archive.writestr(content, name)
    return packed.getvalue()


PACKERS = {
    "": bytes,
    ".bz2": bz2.compress,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": lambda content: zst(content, window_log=20),
}
