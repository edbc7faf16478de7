"""Input that once broke a source or was lost without a word: each stays mended."""

import bz2
import gzip
import io
import json
import zipfile

import py7zr
import pytest
from dumps import json_lines, seven_zip, thread, wikipedia, xml_rows

from smallm.documents import SOURCES, Dropped, check_heeded, finished, source
from smallm.documents.markup import FRONT_MATTER, html_with_code
from smallm.documents.news import clean, clean_ag_news
from smallm.documents.wikitext import wikitext_prose
from smallm.errors import SmallmError
from smallm.settings import CorpusSettings, TokenizerSettings
from smallm.tape_building import build_tape
from smallm.tokens import train_tokenizer

TRUNCATED = "rest of a file: truncated or damaged"


def read(name, path, **settings):
    dropped = Dropped()
    corpus = CorpusSettings(source=name, path=path, **settings)
    found = list(finished(source(name).read(corpus, dropped, workers=1), dropped))
    return found, dropped


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("Id", value) for value in ("²", "9" * 25, "1e30", "-", "")),
        *(("ParentId", value) for value in ("1e30", "x")),
        *(("Score", value) for value in ("1e300", "nan", "inf", "9" * 25)),
        ("AcceptedAnswerId", "9" * 25),
    ],
)
def test_a_post_with_an_odd_number_does_not_end_the_dump(tmp_path, field, value):
    odd = {"Id": 7, "PostTypeId": 2, "ParentId": 1, "Body": "<p>Odd.</p>"} | {field: value}
    found, _ = read("stackoverflow", write(tmp_path / "Posts.xml", xml_rows([*thread(1), odd])))
    assert [each.id for each in found] == ["Posts.xml question 1"]


@pytest.mark.parametrize("encoding", ["shift_jis", "euc-jp", "big5", "gb18030"])
def test_xml_in_a_declared_encoding_is_read(tmp_path, encoding):
    rows = [thread(1, answers=0)[0] | {"Title": "日本"}]
    text = xml_rows(rows).lstrip("\ufeff").replace('"utf-8"', f'"{encoding}"')
    (found,), dropped = read("stackoverflow", write(tmp_path / "Posts.xml", text.encode(encoding)))
    assert found.text.startswith("日本")
    assert not dropped.counts


def test_xml_in_an_unknown_encoding_is_counted(tmp_path):
    text = xml_rows(thread(1)).lstrip("\ufeff").replace('"utf-8"', '"nonsense"')
    found, dropped = read("stackoverflow", write(tmp_path / "Posts.xml", text))
    assert found == []
    assert any(reason.startswith("file that is not XML") for reason in dropped.counts)


def test_xml_whose_first_bytes_come_alone_is_read(tmp_path):
    posts = xml_rows(thread(1)).encode()
    packed = gzip.compress(posts[:40]) + gzip.compress(posts[40:])
    found, dropped = read("stackoverflow", write(tmp_path / "Posts.xml.gz", packed))
    assert len(found) == 1
    assert not dropped.counts


def test_every_truncated_file_is_told(tmp_path):
    posts = xml_rows(thread(1) + thread(2)).encode()
    for number in range(3):
        (tmp_path / str(number)).mkdir()
        write(tmp_path / str(number) / "Posts.xml", posts[: -30 - number])
    _, dropped = read("stackoverflow", tmp_path)
    assert dropped.counts[TRUNCATED] == 3


def test_json_lines_that_end_in_the_middle_are_told_with_the_offset(tmp_path):
    text = json_lines([{"abstract": "We prove."}, {"abstract": "We measure."}])
    (found,), dropped = read("arxiv", write(tmp_path / "a.json", text[:-8]))
    assert found.text == "We prove."
    (place,) = dropped.places[TRUNCATED]
    assert place == "a.json#2, after 26 bytes"


def zipped(name, content, **options):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", **options) as archive:
        archive.writestr(name, content)
    return packed.getvalue()


@pytest.mark.parametrize("ending", ["zip", "7z"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_a_truncated_archive_says_that_its_index_is_missing(tmp_path, ending, part):
    posts = xml_rows([row for number in range(50) for row in thread(number + 1)])
    packed = zipped("Posts.xml", posts) if ending == "zip" else seven_zip({"Posts.xml": posts})
    path = write(tmp_path / f"a.{ending}", packed[: int(len(packed) * part)])
    found, dropped = read("stackoverflow", path)
    assert found == []
    assert dropped.counts == {"archive whose index, at its end, is missing, damaged or locked": 1}


@pytest.mark.parametrize("header", [True, False])
def test_a_locked_archive_is_counted(tmp_path, header, capfd):
    path = tmp_path / "a.7z"
    with py7zr.SevenZipFile(path, "w", password="secret", header_encryption=header) as archive:
        archive.writestr(xml_rows(thread(1)), "Posts.xml")
    found, dropped = read("stackoverflow", path)
    assert found == []
    assert dropped.counts.total() == 1
    assert "Traceback" not in capfd.readouterr().err


def test_a_zip_of_a_later_version_or_with_a_broken_name_is_counted(tmp_path):
    packed = bytearray(zipped("Posts.xml", xml_rows(thread(1))))
    index = packed.index(b"PK\x01\x02")
    later, broken = bytearray(packed), bytearray(packed)
    later[index + 6] = 100
    broken[index + 9] |= 8  # names are UTF-8, it says
    broken[index + 46] = 0xFF
    for changed in (later, broken):
        found, dropped = read("stackoverflow", write(tmp_path / "a.zip", bytes(changed)))
        assert found == []
        assert dropped.counts.total() == 1


def test_members_of_an_archive_may_be_packed_themselves(tmp_path):
    inside = gzip.compress(json_lines([{"body": "A comment."}]).encode())
    path = write(tmp_path / "a.zip", zipped("RC_2012-01.gz", inside))
    (found,), _ = read("reddit", path)
    assert found.text == "A comment."


def test_an_archive_of_many_members_is_bounded_as_a_whole(tmp_path):
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.json", b" " * (30 * 2**20))
        archive.filelist *= 20  # in the index so often, packed once
    _, dropped = read("arxiv", write(tmp_path / "a.zip", packed.getvalue()))
    assert any("unpacks to over" in reason for reason in dropped.counts)


@pytest.mark.parametrize("latex", ["\\sqrt", "\\date", "\\frac \\input{x}", "We bound \\frac", "{"])
def test_cut_off_latex_stays_as_it_is(tmp_path, latex):
    path = write(tmp_path / "a.json", json_lines([{"abstract": f"We show {latex}"}]))
    (found,), _ = read("arxiv", path, latex="normalize")
    assert found.text.startswith("We show")
    assert "%s" not in found.text


def test_a_feed_with_an_impossible_character_is_counted(tmp_path):
    item = "<item><title>T &#x110000; x</title><description>News.</description></item>"
    rss = f'<rss version="2.0"><channel>{item}</channel></rss>'
    found, dropped = read("news", write(tmp_path / "a.rss", rss))
    assert found or dropped.counts


def test_endless_white_space_is_tokenized(tmp_path):
    text = "word" + "\n" * 1_200_000 + "word " + "a" * 300_000 + " " + "!" * 300_000
    tokenizer = train_tokenizer(["a word, words!"], TokenizerSettings(vocabulary=300))
    (ids,) = tokenizer.encode([text])
    assert tokenizer.decode(ids) == text


def test_rules_in_a_text_are_no_front_matter():
    text = "# Notes\n\n---\nThe important middle.\n---\nThe end.\n"
    assert FRONT_MATTER.sub("", text, count=1) == text


def test_one_endless_csv_line_is_left_out(tmp_path):
    content = b'"3","T","B"\n"3","T2","' + b"x" * (20 * 2**20) + b'"\n"3","T3","B3"\n'
    found, dropped = read("news", write(tmp_path / "a.csv.gz", gzip.compress(content)))
    assert [each.text for each in found] == ["T\n\nB", "T3\n\nB3"]
    assert dropped.counts == {"line over 16,777,216 bytes": 1}


def test_a_flood_of_elements_ends_the_file(tmp_path):
    content = b"<posts>" + b"<a/>" * 3_000_000 + xml_rows(thread(1)).encode() + b"</posts>"
    found, dropped = read("stackoverflow", write(tmp_path / "Posts.xml", content))
    assert found == []
    assert dropped.counts[TRUNCATED] == 1


@pytest.mark.parametrize("encoding", ["cp1252", "utf-16"])
def test_other_encodings_are_read_and_a_guess_is_told(tmp_path, encoding):
    text = '"3","Le café est fermé","L\'été où le modèle a appris à prédire la forêt."\n' * 20
    found, dropped = read("news", write(tmp_path / "a.csv", text.encode(encoding)))
    assert found[0].text.startswith("Le café est fermé")
    guessed = {"encoding of a file, guessed as cp1252": 1} if encoding == "cp1252" else {}
    assert dropped.counts == guessed


def test_replaced_bytes_are_counted(tmp_path):
    content = b'{"abstract": "caf\xc3\xa9 et th\xe9"}\n'
    text = json_lines([{"abstract": "plain"}] * 9000).encode() + content
    found, dropped = read("arxiv", write(tmp_path / "a.json", text))
    assert found[-1].text == "café et th\ufffd"
    assert dropped.counts == {"bytes outside the file's encoding, replaced": 1}


def test_links_with_colons_are_kept_and_those_to_other_languages_are_not():
    text = (
        "The standard is [[SQL:2016]] and the game [[Re:Zero]] or [[CSI: Miami|CSI]]; see "
        "[[:Category:Trees|trees]]. [[de:Baum]][[zh-yue:X]][[Category:A]][[file:b.png|c]]"
    )
    assert wikitext_prose(text) == (
        "The standard is SQL:2016 and the game Re:Zero or CSI; see trees."
    )


def test_an_article_with_thousands_of_references_is_cleaned_at_once():
    text = "Fact.<ref>A [[book]].</ref> " * 4_000
    assert wikitext_prose(text).replace(" ", "") == "Fact." * 4_000


def test_code_deep_in_a_page_is_found_at_once():
    page = "<div>" * 200 + "<pre>a\n  b</pre>" + "<div>x" * 8_000
    assert "a\n  b" in html_with_code(page)


def test_news_keeps_what_only_looks_like_markup():
    text = "First by <bob@example.com>.\nIf a <b and c> d, see C:\\Users, ranked #12; she won."
    assert clean(text) == text
    assert clean_ag_news("cost #36;5\\now") == "cost $5 now"


@pytest.mark.parametrize("name", SOURCES)
def test_a_setting_that_a_source_would_ignore_is_refused(name):
    given = {
        "path": "a.txt",
        "text_field": "body",
        "dataset": "a/b",
        "dataset_config": "c",
        "dataset_split": "test",
        "categories": ("a",),
        "titles": "t.txt",
        "tags": ("a",),
        "subreddits": ("a",),
        "minimum_score": 1,
        "drop": ("none",),
        "latex": "normalize",
    }
    heeded = source(name).HEEDS
    for field, value in given.items():
        settings = CorpusSettings(source=name, **{field: value})
        if field in heeded:
            check_heeded(settings)
        else:
            flag = f"--{field.replace('_', '-')}"
            with pytest.raises(SmallmError, match=f"{flag} has no effect on source '{name}'"):
                check_heeded(settings)


def test_categories_need_a_column_on_the_hub(tmp_path):
    import pyarrow
    import pyarrow.parquet

    table = pyarrow.Table.from_pylist([{"title": "Perceptron", "text": "A unit.", "question": "Q"}])
    pyarrow.parquet.write_table(table, tmp_path / "train.parquet")
    for name, field in (("ml-text", "categories"), ("stackoverflow", "tags")):
        settings = CorpusSettings(source=name, dataset=str(tmp_path), **{field: ("trees",)})
        with pytest.raises(SmallmError, match=r"the dataset has no (categories|tags)"):
            list(source(name).read(settings, Dropped(), workers=1))


def test_with_a_limit_a_category_may_lie_in_what_was_not_read(tmp_path):
    papers = [{"abstract": f"Paper {n} is here.", "categories": "cs.LG"} for n in range(40)]
    papers.append({"abstract": "The last.", "categories": "math.CO"})
    path = write(tmp_path / "a.json", json_lines(papers))
    settings = CorpusSettings(
        source="arxiv", path=path, categories=("cs.LG", "math.CO"), max_documents=20
    )
    tape = build_tape(settings, home=tmp_path / "home")
    assert len(tape) + sum(tape.manifest["duplicates"].values()) == 20


def test_posts_wait_in_the_folder_of_the_tape(tmp_path):
    path = write(tmp_path / "Posts.xml", xml_rows(thread(1)))
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    settings = CorpusSettings(source="stackoverflow", path=path)
    documents = source("stackoverflow").read(settings, Dropped(), workers=1, scratch=scratch)
    next(documents)
    assert [each.name.startswith("smallm-posts-") for each in scratch.iterdir()] == [True]
    documents.close()
    assert list(scratch.iterdir()) == []


def test_a_page_in_another_namespace_is_no_article(tmp_path):
    path = write(tmp_path / "a.xml", wikipedia([("Talk:A", 1, "Words."), ("A", 0, "Words.")]))
    found, dropped = read("ml-text", path, categories=("*",))
    assert len(found) == 0  # without a category no article is in one
    assert dropped.counts["page that is no article"] == 1


@pytest.mark.parametrize("part", [0.3, 0.6, 0.95])
def test_a_truncated_json_array_gives_what_was_readable_and_the_offset(tmp_path, part):
    records = [{"title": f"T{n}", "abstract": f"Abstract é {n}."} for n in range(20)]
    whole = json.dumps(records, ensure_ascii=False).encode()
    cut = whole[: int(part * len(whole))]
    found, dropped = read("arxiv", write(tmp_path / "a.json", cut))
    ended = cut.count(b"}")
    assert [each.text for each in found] == [f"T{n}\n\nAbstract é {n}." for n in range(ended)]
    (place,) = dropped.places[TRUNCATED]
    offset = int(place.split()[2].replace(",", ""))
    assert cut[offset - 2 : offset].strip(b", ") in (b"", b"{")
    assert dropped.counts == {TRUNCATED: 1}


@pytest.mark.parametrize("end", ["3,A title,'the mid", "3,A title,'one\n\ntwo", "3,A ti"])
def test_a_csv_file_that_ends_in_a_row_is_told(tmp_path, end):
    rows = "class,title,text\n1,First,A text.\n2,Second,'A, text.'\n"
    path = write(tmp_path / "a.csv", (rows + end).replace("'", '"'))
    found, dropped = read("news", path)
    assert [each.text for each in found] == ["First\n\nA text.", "Second\n\nA, text."]
    assert dropped.counts == {TRUNCATED: 1}
    assert dropped.places[TRUNCATED] == ["a.csv:4"]


def test_a_csv_file_may_end_without_a_line_end(tmp_path):
    path = write(tmp_path / "a.csv", 'class,title,text\n1,First,A 5" disk.\n2,Second,A text.')
    found, dropped = read("news", path)
    assert len(found) == 2
    assert not dropped.counts


def test_a_tag_that_only_low_scores_have_is_not_unknown(tmp_path):
    rows = [*thread(1, score=9), *thread(2, score=0, tags="<sql>")]
    path = write(tmp_path / "Posts.xml", xml_rows(rows))
    found, dropped = read("stackoverflow", path, tags=("sql", "python"), minimum_score=1)
    dropped.check()
    assert [each.id for each in found] == ["Posts.xml question 1"]


def test_titles_that_no_article_has_are_told(tmp_path):
    path = write(tmp_path / "w.xml", wikipedia([("Perceptron", "0", "A unit.")]))
    titles = write(tmp_path / "titles.txt", "Perceptron\nPerceptrom\n")
    found, dropped = read("ml-text", path, titles=titles)
    assert len(found) == 1
    assert dropped.places == {"title in --titles that no article has": ["Perceptrom"]}


def test_comments_are_no_news(tmp_path):
    path = write(tmp_path / "RC.json", json_lines([{"body": "So true.", "subreddit": "news"}]))
    found, dropped = read("news", path)
    assert not found
    assert dropped.counts == {"comment of Reddit: it has a source of its own": 1}


def test_a_path_and_a_dataset_exclude_each_other(tmp_path):
    path = str(write(tmp_path / "a.json", "{}"))
    with pytest.raises(SmallmError, match="--path and --dataset are two places"):
        source("arxiv").fingerprint(CorpusSettings(source="arxiv", path=path, dataset="a/b"))


def test_a_truncated_packed_dump_has_one_reason(tmp_path):
    packed = bz2.compress(wikipedia([("Perceptron", "0", "A unit. " * 500)]).encode())
    _, dropped = read("ml-text", write(tmp_path / "w.xml.bz2", packed[: len(packed) // 2]))
    assert list(dropped.counts) == [TRUNCATED]
