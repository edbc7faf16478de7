"""Whatever a file holds, a source gives documents or counts what it could not read: no exception.

Files are arbitrary bytes, and good files of every format with bytes changed, cut out or repeated.
"""

import bz2
import gzip
import lzma
import zipfile
from io import BytesIO

import pytest
from dumps import json_lines, seven_zip, thread, wikipedia, xml_rows, zst
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from smallm.documents import Dropped, finished, source
from smallm.documents.arxiv import plain_abstract
from smallm.documents.markup import html_prose, html_with_code, markdown_prose
from smallm.documents.news import clean
from smallm.documents.reddit import prose
from smallm.documents.wikitext import wikitext_prose
from smallm.errors import SmallmError
from smallm.settings import CorpusSettings

POSTS = xml_rows([row for number in range(1, 6) for row in thread(number)]).encode()
PAPERS = json_lines(
    [{"title": "A $x$", "abstract": "We show\n  it.", "categories": "cs.LG"}] * 3
).encode()
COMMENTS = json_lines([{"body": "I like *it*.", "subreddit": "a", "score": 1}] * 3).encode()
PAGES = wikipedia([("A", 0, "'''A''' is {{b|c}} [[d]]. [[Category:Trees]]"), ("B", 0, None)])
RSS = (
    b'<rss version="2.0"><channel><item><title>T</title><description>&lt;p&gt;N'
    b"</description></item></channel></rss>"
)
HTML = b"<html><body><article><p>The council met. " + b"It agreed. " * 30 + b"</p></article>"
OPENML = (
    b'<oml:data_set_description xmlns:oml="http://openml.org/openml"><oml:name>a</oml:name>'
    b"<oml:description>**Text**</oml:description></oml:data_set_description>"
)


def zipped(name, content):
    packed = BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(name, content)
    return packed.getvalue()


def pdf():
    """A page with a line of text, as the standard describes it."""
    parts = [
        b"<< /Type /Catalog /Pages 2 0 R >>",
        b"<< /Type /Pages /Kids [3 0 R] /Count 1 >>",
        b"<< /Type /Page /Parent 2 0 R /MediaBox [0 0 200 200] /Contents 4 0 R /Resources "
        b"<< /Font << /F1 << /Type /Font /Subtype /Type1 /BaseFont /Helvetica >> >> >> >>",
    ]
    stream = b"BT /F1 12 Tf 10 100 Td (Gradients point up-) Tj 0 -14 Td (hill, always.) Tj ET"
    parts.append(b"<< /Length %d >>\nstream\n%b\nendstream" % (len(stream), stream))
    content, offsets = b"%PDF-1.4\n", []
    for number, part in enumerate(parts, 1):
        offsets.append(len(content))
        content += b"%d 0 obj\n%b\nendobj\n" % (number, part)
    table = b"".join(b"%010d 00000 n \n" % offset for offset in offsets)
    return (
        content
        + b"xref\n0 5\n0000000000 65535 f \n"
        + table
        + b"trailer << /Size 5 /Root 1 0 R >>\nstartxref\n%d\n%%%%EOF" % len(content)
    )


GOOD = {
    "posts": ("stackoverflow", "Posts.xml", POSTS, {"minimum_score": 1}),
    "posts.7z": ("stackoverflow", "a.7z", seven_zip({"Posts.xml": POSTS}), {}),
    "posts.zip": ("stackoverflow", "a.zip", zipped("Posts.xml", POSTS), {}),
    "posts.bz2": ("stackoverflow", "Posts.xml.bz2", bz2.compress(POSTS), {}),
    "papers": ("arxiv", "a.json", PAPERS, {"latex": "normalize"}),
    "papers.gz": ("arxiv", "a.json.gz", gzip.compress(PAPERS), {}),
    "papers.xz": ("arxiv", "a.json.xz", lzma.compress(PAPERS), {}),
    "comments": ("reddit", "RC_2012-01", COMMENTS, {"minimum_score": 0}),
    "comments.zst": ("reddit", "RC_2012-01.zst", zst(COMMENTS, window_log=20), {}),
    "news.csv": ("news", "a.csv", b'"3","T","B \\ #36;4 &lt;b&gt;"\n' * 3, {}),
    "news.jsonl": ("news", "a.jsonl", b'{"title": "T", "text": "B"}\n' * 3, {}),
    "news.rss": ("news", "a.rss", RSS, {}),
    "news.html": ("news", "a.html", HTML, {}),
    "pages": ("ml-text", "a.xml", PAGES.encode(), {"categories": ("*",)}),
    "openml": ("ml-text", "a.xml", OPENML, {}),
    "notes.md": ("ml-text", "a.md", b"---\na: b\n---\n# H\n\n{{< x >}} *Text*.\n", {}),
    "notes.pdf": ("ml-text", "a.pdf", pdf(), {}),
    "folder.html": ("folder", "a.html", HTML, {}),
    "folder.jsonl": ("folder", "a.jsonl", b'{"text": "a"}\n', {}),
    "folder.csv": ("folder", "a.csv", b"id,text\n1,a\n", {}),
}


def read(name, path, **settings):
    dropped = Dropped()
    corpus = CorpusSettings(source=name, path=path, **settings)
    documents = list(finished(source(name).read(corpus, dropped, workers=1), dropped))
    return documents, dropped


@pytest.mark.parametrize("kind", GOOD)
def test_the_good_files_are_good(tmp_path, kind):
    name, file, content, given_settings = GOOD[kind]
    (tmp_path / file).write_bytes(content)
    documents, dropped = read(name, tmp_path / file, **given_settings)
    assert documents
    assert not any("rest of" in reason for reason in dropped.counts)


def test_hyphens_at_line_ends_of_a_pdf_are_undone(tmp_path):
    (tmp_path / "a.pdf").write_bytes(pdf())
    ((document,), _) = read("ml-text", tmp_path / "a.pdf")
    assert document.text == "Gradients point uphill, always."


@st.composite
def damaged(draw, content):
    """The content with some bytes changed, removed or repeated, or cut off."""
    changed = bytearray(content)
    for _ in range(draw(st.integers(1, 6))):
        place = draw(st.integers(0, max(len(changed) - 1, 0)))
        length = draw(st.integers(0, 40))
        match draw(st.integers(0, 3)):
            case 0:
                changed[place : place + 1] = draw(st.binary(min_size=1, max_size=4))
            case 1:
                del changed[place : place + length]
            case 2:
                changed[place:place] = changed[place : place + length]
            case 3:
                del changed[place:]
    return bytes(changed)


@pytest.mark.parametrize("kind", GOOD)
def test_damaged_files_are_read_as_far_as_they_go(tmp_path, kind):
    name, file, content, given_settings = GOOD[kind]
    path = tmp_path / file

    @settings(max_examples=40, suppress_health_check=list(HealthCheck))
    @given(damaged(content) | st.binary(max_size=200))
    def survives(changed):
        path.write_bytes(changed)
        documents, dropped = read(name, path, **given_settings)
        for document in documents:
            assert document.text.strip()
            document.text.encode("utf-8")
        assert documents or dropped.counts

    survives()


FORMS = [html_prose, html_with_code, markdown_prose, wikitext_prose, prose, clean, plain_abstract]
PIECES = st.sampled_from(
    "< > </ <p> <pre> <code> <table> & &amp; &#x0; {{ }} [[ ]] {| |} | ''' == <ref> <math> \\ { } "
    "$ \\frac \\begin{a} \\end{a} ``` * _ # > \n \n\n a word é 日本 \x00 \x01 \ud800".split(" ")
)


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
def test_cleaning_takes_any_text(form):
    @settings(max_examples=120, suppress_health_check=list(HealthCheck))
    @given(st.text(max_size=60) | st.lists(PIECES, max_size=25).map("".join))
    def survives(text):
        assert isinstance(form(text), str)

    survives()


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("piece", ["[[", "{{", "<div>", "{", "> ", "<ref>", "{|\n", "$", "* " * 9])
def test_deep_nesting_ends(form, piece):
    assert isinstance(form(piece * 3_000 + "word"), str)


@pytest.mark.parametrize("kind", ["posts", "pages", "openml"])
def test_the_first_line_says_what_is_wrong_with_another_format(tmp_path, kind):
    name, file, _, _ = GOOD[kind]
    (tmp_path / file).write_bytes(b"PK this is no XML")
    documents, dropped = read(name, tmp_path / file)
    assert documents == []
    assert any(reason.startswith("file that is not XML") for reason in dropped.counts)


def test_smallm_errors_are_for_settings_alone(tmp_path):
    with pytest.raises(SmallmError):
        read("arxiv", tmp_path / "nowhere")
