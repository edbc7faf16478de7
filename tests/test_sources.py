"""The five sources on files in every raw format, and on real samples with counts made apart."""

import bz2
import csv
import json
import os
import random
import re
import xml.etree.ElementTree as ElementTree
from collections import Counter
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from disks import full_disk
from dumps import PACKERS, json_lines, seven_zip, thread, wikipedia, xml_rows, zst

from smallm.documents import Dropped, finished, source
from smallm.errors import SmallmError
from smallm.settings import CorpusSettings
from smallm.tape_building import build_tape

SAMPLES = os.environ.get("SMALLM_SAMPLES")
needs_samples = pytest.mark.skipif(
    not SAMPLES, reason="SMALLM_SAMPLES names no folder of real samples"
)


def read(name, path=None, **settings):
    dropped = Dropped()
    corpus = CorpusSettings(source=name, path=path, **settings)
    found = list(finished(source(name).read(corpus, dropped, workers=1), dropped))
    dropped.check()
    return found, dict(dropped.counts)


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def hub_folder(folder, rows):
    folder.mkdir()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / "train.parquet")
    return str(folder)


# Streams


@pytest.mark.parametrize("ending", PACKERS)
def test_a_dump_reads_the_same_however_it_is_packed(tmp_path, ending):
    posts = xml_rows([row for number in range(1, 20) for row in thread(number)])
    plain, _ = read("stackoverflow", write(tmp_path / "Posts.xml", posts))
    packed = write(tmp_path / f"Posts.xml{ending}", PACKERS[ending](posts.encode()))
    found, dropped = read("stackoverflow", packed)
    assert [each.text for each in found] == [each.text for each in plain]
    assert len(found) == 19
    assert dropped == {}


@pytest.mark.parametrize("ending", [each for each in PACKERS if each])
def test_a_truncated_stream_gives_what_was_readable_and_the_offset(tmp_path, ending):
    lines = [{"abstract": f"We study case {n} of {os.urandom(20).hex()}."} for n in range(20_000)]
    packed = PACKERS[ending](json_lines(lines).encode())
    path = write(tmp_path / f"arxiv.json{ending}", packed[: len(packed) * 2 // 3])
    dropped = Dropped()
    corpus = CorpusSettings(source="arxiv", path=path)
    found = list(source("arxiv").read(corpus, dropped, workers=1))
    assert 0 < len(found) < 20_000
    (place,) = dropped.places["rest of a file: truncated or damaged"]
    assert re.search(r"after [\d,]+ bytes", place)


def test_a_plain_dump_that_ends_in_the_middle_of_a_post_is_told_with_its_offset(tmp_path):
    posts = xml_rows([row for number in range(1, 50) for row in thread(number)])
    path = write(tmp_path / "Posts.xml", posts.encode()[: len(posts) * 3 // 4])
    found, dropped = read("stackoverflow", path)
    assert 10 < len(found) < 49
    assert dropped["rest of a file: truncated or damaged"] == 1


def test_a_7z_holds_the_posts_beside_other_files(tmp_path):
    posts = xml_rows(thread(1) + thread(2))
    packed = seven_zip({"Users.xml": "<users/>", "Posts.xml": posts, "deep/in/badges.xml": "<a/>"})
    found, dropped = read("stackoverflow", write(tmp_path / "ai.stackexchange.com.7z", packed))
    assert [each.id for each in found] == [
        f"ai.stackexchange.com.7z/Posts.xml question {number}" for number in (1, 2)
    ]
    assert dropped == {}


def test_reddit_dumps_need_the_large_window(tmp_path):
    comments = [{"body": f"This is comment number {n}.", "subreddit": "a"} for n in range(30)]
    path = write(tmp_path / "RC_2015-01.zst", zst(json_lines(comments).encode()))
    found, dropped = read("reddit", path)
    assert [each.text for each in found] == [each["body"] for each in comments]
    assert dropped == {}


def test_a_bomb_ends_where_it_unpacks_to_a_thousand_times_its_size(tmp_path):
    bomb = zst(b" " * (100 * 2**20), window_log=27)
    _, dropped = read("arxiv", write(tmp_path / "arxiv.json.zst", bomb))
    assert any("unpacks to over 1000 times its size" in reason for reason in dropped)


@pytest.mark.parametrize("name", ["stackoverflow", "ml-text", "news"])
@pytest.mark.parametrize(
    "doctype",
    [
        '<!DOCTYPE a [<!ENTITY x "y"><!ENTITY z "&x;&x;&x;&x;">]>',
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/hostname">]>',
        '<!DOCTYPE a SYSTEM "http://example.com/a.dtd">',
    ],
)
def test_entities_are_refused(tmp_path, name, doctype):
    posts = xml_rows(thread(1)).replace("<posts>", f"{doctype}<posts>")
    found, dropped = read(name, write(tmp_path / "Posts.xml", posts))
    assert found == []
    assert dropped["XML with a document type, which may define entities: refused"] == 1


# Sources on their own formats


def test_threads_hold_question_and_answers_with_code_as_code(tmp_path):
    (found,), dropped = read(
        "stackoverflow", write(tmp_path / "Posts.xml", xml_rows(thread(7, answers=2)))
    )
    assert found.text == (
        "How to do 7?\n\nI want to do 7 & more.\n\n"
        "Answer 2 to 7.\nx = [\n    2,\n]\n\nAnswer 1 to 7.\nx = [\n    1,\n]"
    )
    assert dropped == {}


def test_two_sites_in_one_folder_keep_their_threads_apart(tmp_path):
    for site in ("a", "b"):
        (tmp_path / site).mkdir()
        write(tmp_path / site / "Posts.xml", xml_rows(thread(1)))
    found, dropped = read("stackoverflow", tmp_path)
    assert [each.id for each in found] == [f"{site}/Posts.xml question 1" for site in "ab"]
    assert all(each.text.count("Answer") == 1 for each in found)
    assert dropped == {}


def test_tags_and_scores_filter_questions_and_answers_and_say_how_many(tmp_path):
    rows = thread(1, answers=3) + thread(2, tags="|sql|") + thread(3, score=-1)
    path = write(tmp_path / "Posts.xml", xml_rows(rows))
    found, dropped = read("stackoverflow", path, tags=("python",), minimum_score=2)
    assert [each.id for each in found] == ["Posts.xml question 1"]
    assert "Answer 1" not in found[0].text
    assert dropped == {"not in --tags": 1, "below --minimum-score": 4}


@pytest.mark.parametrize(
    ("name", "file", "content", "setting", "known"),
    [
        ("stackoverflow", "Posts.xml", xml_rows(thread(1)), {"tags": ("pyton",)}, "python"),
        (
            "arxiv",
            "a.json",
            json_lines([{"abstract": "We prove it.", "categories": "cs.LG stat.ML"}]),
            {"categories": ("cs.LH",)},
            "cs.LG",
        ),
        (
            "reddit",
            "RC_2012-01",
            json_lines([{"body": "I like trains.", "subreddit": "trains"}]),
            {"subreddits": ("train",)},
            "trains",
        ),
        ("news", "a.csv", '"3","Title","Some text."\n', {"categories": ("Busines",)}, "Business"),
        (
            "ml-text",
            "a.xml",
            wikipedia([("A", 0, "Text. [[Category:Trees]]")]),
            {"categories": ("Treess",)},
            "Trees",
        ),
    ],
)
def test_an_unknown_category_names_the_near_ones(tmp_path, name, file, content, setting, known):
    path = write(tmp_path / file, content)
    (wanted,) = next(iter(setting.values()))
    with pytest.raises(SmallmError, match=rf"unknown \w+ '{wanted}'.*did you mean {known}\?"):
        read(name, path, **setting)


def test_when_filters_leave_nothing_the_error_says_which_took_what(tmp_path):
    papers = [{"abstract": f"Paper {n}.", "categories": "cs.LG"} for n in range(3)]
    papers.append({"abstract": "This paper has been withdrawn.", "categories": "math.CO"})
    path = write(tmp_path / "a.json", json_lines(papers))
    settings = CorpusSettings(source="arxiv", path=path, categories=("math.*",))
    with pytest.raises(SmallmError, match=r"3 not in --categories.*1 withdrawn paper"):
        build_tape(settings, home=tmp_path / "home")


@pytest.mark.parametrize("name", ["ml-text", "stackoverflow", "arxiv", "reddit", "news"])
def test_a_file_of_another_format_is_named(tmp_path, name):
    path = write(tmp_path / "table.parquet", b"PAR1....")
    with pytest.raises(SmallmError, match=r"no usable text.*file that is none of.*table.parquet"):
        build_tape(CorpusSettings(source=name, path=path), home=tmp_path / "home")


def test_abstracts_flow_and_latex_is_kept_or_normalized(tmp_path):
    paper = {
        "title": "On the\n  Erd\\H{o}s problem",
        "abstract": '  We show $\\alpha \\leq 1$\nfor all graphs.\n  Moreover, G\\"odel agrees.\n',
        "categories": "math.CO",
    }
    path = write(tmp_path / "a.json", json_lines([paper]))
    (kept,), _ = read("arxiv", path)
    assert kept.text == (
        "On the Erd\\H{o}s problem\n\nWe show $\\alpha \\leq 1$ for all graphs.\n"
        'Moreover, G\\"odel agrees.'
    )
    (plain,), _ = read("arxiv", path, latex="normalize")
    assert plain.text == (
        "On the Erdős problem\n\nWe show \N{GREEK SMALL LETTER ALPHA}≤ 1 for all graphs.\n"
        "Moreover, Gödel agrees."
    )


def test_reddit_comments_lose_quotes_bots_and_what_was_removed(tmp_path):
    comments = [
        {"body": "&gt; a quoted parent\n\nI *agree* &amp; [more](http://x.y).", "author": "a"},
        {"body": "[deleted]", "author": "[deleted]"},
        {"body": " [removed] ", "author": "b"},
        {"body": "Welcome to the subreddit!", "author": "Bitty_Bot"},
        {"body": "I am a bot, bleep.", "author": "c"},
        {"body": "> only a quote", "author": "d"},
        {"author": "e"},
    ]
    path = write(tmp_path / "RC_2015-01.bz2", bz2.compress(json_lines(comments).encode()))
    (found,), dropped = read("reddit", path)
    assert found.text == "I agree & more."
    assert dropped == {
        "deleted or removed comment": 2,
        "comment of a bot": 2,
        "quoted lines, cut out of a comment": 2,
        "empty text": 1,
        "record without a body": 1,
    }


def test_what_is_dropped_as_noise_is_a_setting(tmp_path):
    comments = [
        {"body": "&gt; quoted\n\nI agree.", "author": "a"},
        {"body": "[deleted]", "author": "a"},
        {"body": "I am a bot.", "author": "b"},
    ]
    path = write(tmp_path / "RC_2015-01", json_lines(comments))
    kept, dropped = read("reddit", path, drop=("none",))
    assert [each.text for each in kept] == ["quoted\n\nI agree.", "[deleted]", "I am a bot."]
    assert dropped == {}
    fewer, dropped = read("reddit", path, drop=("bots", "quotes"))
    assert [each.text for each in fewer] == ["I agree.", "[deleted]"]
    assert dropped == {"comment of a bot": 1, "quoted lines, cut out of a comment": 1}
    withdrawn = write(tmp_path / "a.json", json_lines([{"abstract": "Paper is withdrawn."}]))
    assert len(read("arxiv", withdrawn, drop=("none",))[0]) == 1
    assert read("arxiv", withdrawn) == ([], {"withdrawn paper": 1})
    with pytest.raises(ValueError, match="unknown noise 'bot'"):
        CorpusSettings(source="reddit", drop=("bot",))


def test_reddit_scores_may_be_numbers_or_digits(tmp_path):
    comments = [
        {"body": f"Comment {n}.", "subreddit": sub, "score": score}
        for n, (sub, score) in enumerate([("a", 5), ("a", "7"), ("a", 1), ("b", 9), ("a", None)])
    ]
    path = write(tmp_path / "RC_2015-01", json_lines(comments))
    found, dropped = read("reddit", path, subreddits=("A",), minimum_score=5)
    assert [each.text for each in found] == ["Comment 0.", "Comment 1."]
    assert dropped == {"below --minimum-score": 2, "not in --subreddits": 1}


FEEDS = {
    "a.rss": '<rss version="2.0"><channel><title>c</title>{}</channel></rss>',
    "a.atom": '<feed xmlns="http://www.w3.org/2005/Atom"><title>c</title>{}</feed>',
}
ENTRIES = {
    "a.rss": "<item><title>T{n}</title><description>&lt;p&gt;News {n} &amp;amp; more.&lt;/p&gt;"
    "&lt;script&gt;no()&lt;/script&gt;</description></item>",
    "a.atom": '<entry><title>T{n}</title><id>{n}</id><content type="html">'
    "&lt;p&gt;News {n} &amp;amp; more.&lt;/p&gt;&lt;script&gt;no()&lt;/script&gt;"
    "</content></entry>",
}


@pytest.mark.parametrize("name", FEEDS)
def test_feeds_give_their_entries(tmp_path, name):
    entries = "".join(ENTRIES[name].format(n=n) for n in range(3))
    found, dropped = read("news", write(tmp_path / name, FEEDS[name].format(entries)))
    assert [each.text for each in found] == [f"T{n}\n\nNews {n} & more." for n in range(3)]
    assert dropped == {}


def test_web_pages_give_their_main_text(tmp_path):
    prose = "The council met on Monday and agreed to repair the old bridge. " * 8
    page = (
        "<html><head><title>x</title><script>steal()</script></head><body><nav><a href=/>Home</a>"
        f"</nav><article><h1>Bridge</h1><p>{prose}</p></article><footer>Imprint</footer></body>"
    )
    (found,), dropped = read("news", write(tmp_path / "a.html", page))
    assert prose.strip() in found.text
    assert "Imprint" not in found.text
    assert "steal" not in found.text
    assert dropped == {}


def test_csv_with_a_header_and_ag_news_without(tmp_path):
    write(tmp_path / "a.csv", '"4","A #36;5 title","First\\line, &lt;b&gt;bold&lt;/b&gt; ""q""."\n')
    write(tmp_path / "b.csv", "id,title,text\n1,Head,Body text\n")
    found, dropped = read("news", tmp_path)
    assert [each.text for each in found] == [
        'A $5 title\n\nFirst line, bold "q".',
        "Head\n\nBody text",
    ]
    assert dropped == {}


def test_wikipedia_is_articles_of_the_categories_without_markup(tmp_path):
    text = (
        "{{Infobox|a=b}}'''Trees''' are [[plant|tall plants]].<ref>A book.</ref> "
        "They grow.\n\n{| class=wikitable\n| cell\n|}\n[[File:a.jpg|thumb|A picture]]\n"
        "== Uses ==\nWood.\n== References ==\n* A\n[[Category:Decision trees|*]]"
    )
    pages = [
        ("Tree", 0, text),
        ("Talk:Tree", 1, text),
        ("Trees", 0, None),
        ("Rock", 0, "A rock. [[Category:Stones]]"),
    ]
    path = write(
        tmp_path / "enwiki-pages-articles.xml.bz2", bz2.compress(wikipedia(pages).encode())
    )
    (found,), dropped = read("ml-text", path, categories=("*trees",))
    assert found.text == "Tree\n\nTrees are tall plants. They grow.\n\nUses\nWood."
    assert dropped == {
        "page that is no article": 1,
        "redirect": 1,
        "article outside --categories and --titles": 1,
    }
    titles = write(tmp_path / "titles.txt", "Rock\n")
    (rock,), _ = read("ml-text", path, titles=titles)
    assert rock.text == "Rock\n\nA rock."


def test_notes_lose_front_matter_and_shortcodes(tmp_path):
    note = '---\ntitle: x\n---\n\n# Head\n\nSee {{< ref "a" >}}the [notes]({{< base >}}/b).\n'
    (found,), dropped = read("ml-text", write(tmp_path / "a.md", note))
    assert found.text == "Head\n\nSee the notes."
    assert dropped == {}


HUB = {
    "arxiv": ({"title": "T", "abstract": "We prove.", "categories": ["cs.LG"]}, "T\n\nWe prove."),
    "reddit": ({"body": "Nice *one*.", "subreddit": "a"}, "Nice one."),
    "news": ({"text": "It rained.", "label": 0}, "It rained."),
    "ml-text": ({"title": "Perceptron", "text": "A unit."}, "Perceptron\n\nA unit."),
    "stackoverflow": (
        {
            "question": "<p>Why?</p>",
            "answers": [
                {"text": "<p>No.</p>", "pm_score": 1, "selected": False},
                {"text": "<p>So.</p>", "pm_score": 5, "selected": False},
            ],
        },
        "Why?\n\nSo.\n\nNo.",
    ),
}


@pytest.mark.parametrize("name", HUB)
def test_hub_rows_become_the_same_kind_of_documents(tmp_path, name):
    row, text = HUB[name]
    folder = hub_folder(tmp_path / "data", [row])
    (found,), dropped = read(name, dataset=folder)
    assert found.text == text
    assert found.source == name
    assert dropped == {}


@pytest.mark.parametrize("name", HUB)
def test_without_a_path_and_a_network_the_dataset_is_named(name):
    with pytest.raises(SmallmError, match=r"dataset '|needs --path, or --dataset"):
        source(name).fingerprint(CorpusSettings(source=name))


# Real samples, with counts made by other means


@needs_samples
def test_all_abstracts_of_the_sample_are_there():
    path = Path(SAMPLES, "arxiv")
    lines = (path / "arxiv-metadata-oai-snapshot.json").read_text(encoding="utf-8").splitlines()
    papers = [json.loads(line) for line in lines]
    found, dropped = read("arxiv", path)
    assert len(found) + dropped["withdrawn paper"] == len(papers)
    words = Counter(word for paper in papers for word in paper["categories"].split())
    for category in ("hep-ph", "math.CO"):
        kept, _ = read("arxiv", path, categories=(category,))
        assert len(kept) == words[category]


@needs_samples
def test_all_threads_of_the_sample_are_there():
    path = Path(SAMPLES, "stackexchange")
    for file in path.iterdir():
        text = file.read_text(encoding="utf-8-sig")
        questions = re.findall(r'<row Id="(\d+)" PostTypeId="1"', text)
        answers = Counter(re.findall(r'<row Id="\d+" PostTypeId="2" ParentId="(\d+)"', text))
        found, dropped = read("stackoverflow", file)
        assert [each.id for each in found] == [f"{file.name} question {n}" for n in questions]
        orphans = sum(n for parent, n in answers.items() if parent not in questions)
        assert dropped.get("answer whose question is not kept", 0) == orphans
        rows = ElementTree.fromstring(text)
        others = sum(row.get("PostTypeId") not in "12" for row in rows)
        assert dropped["post that is neither question nor answer"] == others


@needs_samples
def test_all_comments_of_the_sample_are_there():
    path = Path(SAMPLES, "reddit")
    array = json.loads((path / "RC_first_100.json").read_text(encoding="utf-8"))
    lines = (path / "test_comments.json").read_text(encoding="utf-8").splitlines()
    comments = array + [json.loads(line) for line in lines]
    gone = sum(each["body"] in ("[deleted]", "[removed]") for each in comments)
    found, dropped = read("reddit", path)
    assert dropped["deleted or removed comment"] == gone
    shortened = dropped.pop("quoted lines, cut out of a comment")
    assert shortened == sum(bool(re.search(r"^(>|&gt;)", each["body"], re.M)) for each in comments)
    assert len(found) + sum(dropped.values()) == len(comments)


@needs_samples
def test_all_articles_of_the_sample_are_there():
    path = Path(SAMPLES, "news", "ag_news_test.csv")
    with path.open(encoding="utf-8", newline="") as file:
        classes = Counter(row[0] for row in csv.reader(file))
    for number, name in enumerate(("World", "Sports", "Business", "Sci/Tech"), 1):
        found, dropped = read("news", path, categories=(name,))
        assert len(found) == classes[str(number)]
        assert dropped == {"not in --categories": sum(classes.values()) - len(found)}


@needs_samples
def test_all_pages_of_the_sample_are_there():
    path = Path(SAMPLES, "wikipedia")
    text = "".join(
        bz2.decompress(each.read_bytes()).decode("utf-8") for each in sorted(path.iterdir())
    )
    found, dropped = read("ml-text", path, categories=("*",))
    assert dropped["redirect"] == text.count("<redirect ")
    assert len(found) == text.count("<page>") - text.count("<redirect ")
    for each in found:
        assert not re.search(r"\{\{|\}\}|\[\[|\]\]|<ref|'''|\{\||Category:", each.text), each.id


@needs_samples
def test_descriptions_and_notes_of_the_samples_are_there():
    (description,), _ = read("ml-text", Path(SAMPLES, "openml"))
    assert description.text.startswith("anneal\n\nAuthor")
    notes, dropped = read("ml-text", Path(SAMPLES, "courses"))
    files = {each.id.partition("#")[0] for each in notes}
    assert files == {each.name for each in Path(SAMPLES, "courses").iterdir()}
    assert max(len(each.text) for each in notes) <= 8_000
    assert dropped == {}
    assert not any("{{<" in each.text or "content_type" in each.text for each in notes)


# Mixtures


@pytest.fixture
def mixture(tmp_path):
    papers = [
        {"abstract": f"We study {' '.join(f'q{n}x{m}' for m in range(60))}.", "categories": "cs.LG"}
        for n in range(120)
    ]
    write(tmp_path / "arxiv.json", json_lines(papers))
    comments = [
        {"body": f"I like {' '.join(f'r{n}y{m}' for m in range(60))} a lot.", "subreddit": "a"}
        for n in range(120)
    ]
    write(tmp_path / "RC_2015-01", json_lines(comments))
    text = "- {source: arxiv, path: arxiv.json, weight: 3}\n- {source: reddit, path: RC_2015-01}\n"
    return write(tmp_path / "mixture.yaml", text)


def test_a_mixture_has_the_bytes_of_its_weights_and_keeps_every_place(tmp_path, mixture):
    home = tmp_path / "home"
    tape = build_tape(CorpusSettings(source="mixture", path=mixture), home=home)
    sizes = {
        name: sum(len(tape.text(number).encode()) for number in rows.index)
        for name, rows in tape.documents.groupby("source")
    }
    assert sizes["arxiv"] / sizes["reddit"] == pytest.approx(3, rel=0.03)
    dropped = tape.manifest["dropped"]["reddit: more than its weight in the mixture"]
    assert len(tape) + dropped["count"] == 240
    alone = build_tape(
        CorpusSettings(source="arxiv", path=tmp_path / "arxiv.json"), home=home
    ).documents.set_index("hash")["place"]
    for _, row in tape.documents[tape.documents["source"] == "arxiv"].iterrows():
        assert alone[row["hash"]] == row["place"]


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("- {source: arxiv}", "must be a list of two parts or more"),
        ("source: arxiv", "must be a list of two parts or more"),
        ("- {source: arxiv}\n- {source: arxiv}", "need different names"),
        ("- {source: arxiv}\n- {source: rediit}", "part 2: .*unknown source 'rediit'"),
        ("- {source: arxiv}\n- {source: reddit, weight: 0}", "weight is 0: must be"),
        ("- {source: arxiv}\n- {source: reddit, wieght: 2}", "unknown 'wieght'; known: weight"),
        ("- {source: arxiv}\n- {source: mixture}", "cannot hold a mixture"),
        ("- {source: arxiv}\n- reddit", "part 2: must be a mapping"),
        ("- {source: arxiv}\n- {source: reddit, name: 'a/b'}", "name is 'a/b': letters, digits"),
        ("- {source: arxiv, tags: [a]}\n- {source: reddit}", "part 1: --tags has no effect"),
        (
            "- {source: reddit, path: RC}\n- {source: arxiv}",
            "mixture.yaml, part reddit: .*not exist",
        ),
        ("- {", "is not YAML"),
    ],
)
def test_a_wrong_mixture_names_the_part(tmp_path, text, wrong):
    path = write(tmp_path / "mixture.yaml", text)
    with pytest.raises(SmallmError, match=wrong):
        source("mixture").fingerprint(CorpusSettings(source="mixture", path=path))


def test_a_part_may_name_one_category_without_brackets(tmp_path, mixture):
    text = mixture.read_text()
    write(mixture, text.replace("path: arxiv.json", "path: arxiv.json, categories: cs.LH"))
    wrong = "unknown category for arxiv 'cs.LH': no record has it; did you mean cs.LG"
    with pytest.raises(SmallmError, match=wrong):
        build_tape(CorpusSettings(source="mixture", path=mixture), home=tmp_path / "home")


def test_a_part_without_text_is_named_with_the_reasons(tmp_path, mixture):
    text = mixture.read_text().replace("path: RC_2015-01", "path: RC_2015-01, minimum_score: 5")
    write(mixture, text)
    with pytest.raises(SmallmError, match=r"part 'reddit'.*120 reddit: below --minimum-score"):
        build_tape(CorpusSettings(source="mixture", path=mixture), home=tmp_path / "home")


# Buckets


@pytest.mark.parametrize("ending", ["", ".bz2", ".zst"])
def test_dumps_at_a_url_read_like_files(tmp_path, ending):
    (tmp_path / "dumps").mkdir()
    posts = xml_rows([row for number in range(1, 20) for row in thread(number)])
    write(tmp_path / "dumps" / f"Posts.xml{ending}", PACKERS[ending](posts.encode()))
    write(tmp_path / "dumps" / "site.7z", seven_zip({"Posts.xml": xml_rows(thread(1))}))
    by_path, _ = read("stackoverflow", tmp_path / "dumps")
    by_url, dropped = read("stackoverflow", (tmp_path / "dumps").as_uri())
    assert by_url == by_path
    assert len(by_url) == 20
    assert dropped == {}


@pytest.mark.parametrize("name", ["arxiv", "folder"])
@pytest.mark.parametrize(
    ("url", "wrong"),
    [("file:///nowhere/at/all", "does not exist"), ("gopher://a/b", "cannot be read")],
)
def test_a_url_that_leads_nowhere_is_one_line(name, url, wrong):
    with pytest.raises(SmallmError, match=wrong):
        source(name).fingerprint(CorpusSettings(source=name, path=url))


def test_a_folder_at_a_url(tmp_path):
    write(tmp_path / "a.txt", "Some text é.")
    write(tmp_path / "b.jsonl", '{"text": "more"}\n')
    found, _ = read("folder", tmp_path.as_uri())
    assert [each.text for each in found] == ["Some text é.", "more"]


# A full disk


@pytest.mark.parametrize("largest", [1_000, 30_000, 100_000, 200_000])
@pytest.mark.parametrize("name", ["stackoverflow", "reddit"])
def test_a_full_disk_in_the_middle_leaves_nothing_and_the_build_starts_again(
    tmp_path, name, largest
):
    rng = random.Random(0)
    words = [f"w{n}" for n in range(5_000)]
    bodies = [" ".join(rng.sample(words, 100)) for _ in range(400)]
    if name == "reddit":
        path = write(tmp_path / "RC_2012-01", json_lines([{"body": body} for body in bodies]))
    else:
        rows = [row for n in range(1, 401) for row in thread(n, answers=0)]
        for row, body in zip(rows, bodies, strict=True):
            row["Body"] = body
        path = write(tmp_path / "Posts.xml", xml_rows(rows))
    settings = CorpusSettings(source=name, path=path)
    with full_disk(largest), pytest.raises(SmallmError, match="cannot be written"):
        build_tape(settings, home=tmp_path / "home")
    assert list((tmp_path / "home" / "tapes").iterdir()) == []
    assert len(build_tape(settings, home=tmp_path / "home")) == 400
