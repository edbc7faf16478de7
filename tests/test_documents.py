"""Everything a person would try on their own files is read, or counted and named."""

import csv
import json
import os
import shutil
import tempfile
import tracemalloc
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from smallm.documents import SOURCES, Dropped, files, source
from smallm.documents.packages import PACKAGES, read_packages
from smallm.documents.prose import paragraphs
from smallm.errors import SmallmError
from smallm.settings import CorpusSettings

FRENCH = (
    "Le modèle apprend très vite à prédire le mot suivant d'une phrase, même lorsque la phrase "
    "est longue et que les données sont rares. Après quelques époques, l'erreur décroît et le "
    "réseau généralise déjà à des textes qu'il n'a jamais lus. C'était l'été où nous avons "
    "commencé à mesurer la qualité de ces petits modèles, près de la forêt, à côté du château."
)


def read_folder(path, **settings):
    dropped = Dropped()
    corpus = CorpusSettings(source="folder", path=path, **settings)
    documents = list(source("folder").read(corpus, dropped, workers=1))
    dropped.check()
    return documents, dict(dropped.counts)


def read_hub(folder, **settings):
    dropped = Dropped()
    corpus = CorpusSettings(source="hub", dataset=str(folder), **settings)
    return list(source("hub").read(corpus, dropped, workers=1)), dict(dropped.counts)


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("utf-8", "plain ascii and emoji 🎉 日本"),
        ("utf-8-sig", "a byte order mark"),
        ("utf-16", "sixteen bits é"),
        (
            "cp1252",
            FRENCH,
        ),
    ],
)
def test_encodings_are_recognized(tmp_path, encoding, text):
    (tmp_path / "a.txt").write_bytes(text.encode(encoding))
    (document,), dropped = read_folder(tmp_path)
    assert document.text == text
    assert not dropped


def test_every_kind_of_file_gives_its_text(tmp_path):
    (tmp_path / "a.md").write_text("# Title\n\nSome *text* with `code`.\n\n```\nx = 1\n```\n")
    (tmp_path / "b.html").write_text(
        "<html><head><style>p{}</style></head><body><p>One</p><script>no()</script><p>Two"
    )
    (tmp_path / "c.jsonl").write_text('{"text": "first"}\n\n{"text": "second"}\n')
    with (tmp_path / "d.csv").open("w", newline="") as file:
        csv.writer(file).writerows(
            [["id", "text"], ["1", 'a "quoted",\nline'], ["2", "x" * 200_000]]
        )
    documents, dropped = read_folder(tmp_path)
    texts = [document.text for document in documents]
    assert texts[0] == "Title\n\nSome text with code."
    assert texts[1] == "One\nTwo"
    assert texts[2:4] == ["first", "second"]
    assert texts[4] == 'a "quoted",\nline'
    assert len(texts[5]) == 200_000
    assert not dropped


def test_what_cannot_be_used_is_counted_and_named(tmp_path):
    (tmp_path / "good.txt").write_text("good")
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "blank.txt").write_text(" \n\n ")
    (tmp_path / "binary.txt").write_bytes(b"\x00\x01\x02" * 50)
    (tmp_path / "picture.png").write_bytes(b"\x89PNG")
    (tmp_path / ".hidden.txt").write_text("hidden")
    (tmp_path / ".git").mkdir()
    (tmp_path / "bad.jsonl").write_text(
        '{"text": "fine"}\n{"text": \n[1]\n{"text": 3}\n{"no": 1}\n'
    )
    (tmp_path / "dangling.txt").symlink_to(tmp_path / "nowhere")
    documents, dropped = read_folder(tmp_path)
    assert sorted(each.text for each in documents) == ["fine", "good"]
    assert dropped == {
        "empty file": 1,
        "empty text": 1,
        "binary file": 1,
        "unknown kind of file .png": 1,
        "hidden file": 1,
        "hidden folder": 1,
        "line that is not JSON": 1,
        "record that is no object": 1,
        "record whose 'text' is no text": 1,
        "record without a column 'text'": 1,
        "neither file nor folder": 1,
    }


def test_what_may_not_be_read_is_counted():
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "secret.txt").write_text("secret")
        (folder / "secret.txt").chmod(0)
        (folder / "closed").mkdir(mode=0)
        if os.getuid() == 0:
            os.seteuid(65534)  # root reads everything
        try:
            documents, dropped = read_folder(folder)
        finally:
            os.seteuid(os.getuid())
    assert not documents
    assert dropped == {
        "unreadable file (Permission denied)": 1,
        "unreadable folder (Permission denied)": 1,
    }


def test_utf_8_with_a_damaged_byte_stays_utf_8(tmp_path):
    (tmp_path / "a.txt").write_bytes(FRENCH.encode() + b"\xe9" + b" fin")
    (document,), dropped = read_folder(tmp_path)
    assert document.text == f"{FRENCH}\ufffd fin"
    assert dropped == {"bytes outside the file's encoding, replaced": 1}


def test_the_encoding_is_that_of_the_whole_file_not_of_its_beginning(tmp_path):
    (tmp_path / "late.txt").write_bytes(b"Plain words. " * 20_000 + FRENCH.encode("cp1252"))
    (tmp_path / "late_binary.txt").write_bytes(b"Plain words. " * 20_000 + b"\0\1\2")
    documents, dropped = read_folder(tmp_path)
    assert documents[-1].text.endswith(FRENCH)
    assert {each.id.partition("#")[0] for each in documents} == {"late.txt"}
    assert dropped == {"binary file": 1}


def test_inline_tags_do_not_end_a_line_and_blocks_do(tmp_path):
    (tmp_path / "a.html").write_text(
        "<title>No</title><p>A <b>bo</b>ld\nmove &amp; more.<br>Next<div>x<p>y</p>z</div><td>1<td>2"
    )
    (document,), _ = read_folder(tmp_path)
    assert document.text == "A bold move & more.\nNext\nx\ny\nz\n12"


def test_markdown_code_never_becomes_prose_however_long_it_is(tmp_path):
    code = "x = f(1)\n\n" * 3_000
    (tmp_path / "a.md").write_text(
        f"---\ntitle: no\n---\n\nBefore [it][1].\n\n```python\n{code}```\n\n    indented()\n\n"
        f"| a | b |\n|---|---|\n| 1 | 2 |\n\n* item &amp; *more*\n\n~~~\n{code}~~~\nAfter.\n\n"
        "[1]: https://example.com\n"
    )
    (document,), _ = read_folder(tmp_path)
    assert document.text == "Before it.\n\nitem & more\n\nAfter."


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_csv_file_is_found(tmp_path, delimiter):
    with (tmp_path / "a.csv").open("w", newline="") as file:
        csv.writer(file, delimiter=delimiter).writerows([["n", "text"], [1, "one, two; three|x"]])
    (document,), dropped = read_folder(tmp_path)
    assert document.text == "one, two; three|x"
    assert not dropped


def test_json_that_is_too_deep_or_too_long_is_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "LARGEST_LINE", 300_000)
    long = json.dumps({"text": "x" * 1_000_000})
    (tmp_path / "a.jsonl").write_text(f'{"[" * 200_000}\n{long}\n{{"text": "fine"}}\n')
    (document,), dropped = read_folder(tmp_path)
    assert document.text == "fine"
    assert dropped == {"line that is not JSON": 1, "line over 300,000 characters": 1}


def test_a_csv_field_that_is_too_long_ends_its_file_with_a_count(tmp_path, monkeypatch):
    monkeypatch.setattr("smallm.documents.tables.LARGEST_FIELD", 1_000)
    rows = "".join(f"line {number}\n" for number in range(500))
    (tmp_path / "a.csv").write_text(f'text\nfine\n"never closed\n{rows}')
    (document,), dropped = read_folder(tmp_path)
    assert document.text == "fine"
    assert dropped == {"rest of a CSV file (field larger than field limit (1000))": 1}


def test_links_are_followed_once_and_loops_end(tmp_path):
    folder = tmp_path / "folder"
    (folder / "inside").mkdir(parents=True)
    (folder / "inside" / "a.txt").write_text("inside")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "b.txt").write_text("elsewhere")
    (folder / "loop").symlink_to(folder)
    (folder / "linked").symlink_to(tmp_path / "elsewhere")
    documents, dropped = read_folder(folder)
    assert [each.id for each in documents] == ["inside/a.txt#0", "linked/b.txt#0"]
    assert dropped == {"folder already read under another name": 1}


def test_a_file_name_of_any_bytes_gives_an_id_that_utf_8_holds(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/n\xe4me.txt")).write_text("text")
    (document,), _ = read_folder(tmp_path)
    assert document.id == "n\ufffdme.txt#0"
    source("folder").fingerprint(CorpusSettings(source="folder", path=tmp_path))


def test_a_huge_file_is_read_in_little_memory(tmp_path):
    line = "One line of text of a huge file as it comes. " * 4 + "\n"
    size = 8_000_000
    for name, head, row in (
        ("a.txt", "", line),
        ("b.csv", "text\n", line),
        ("c.jsonl", "", json.dumps({"text": line}) + "\n"),
    ):
        (tmp_path / name).write_text(head + row * (size // len(row)))
    tracemalloc.start()
    settings = CorpusSettings(source="folder", path=tmp_path)
    characters = sum(
        len(each.text) for each in source("folder").read(settings, Dropped(), workers=1)
    )
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert characters > 2.7 * size
    assert peak < 2_000_000


def test_a_long_text_is_cut_without_loss(tmp_path):
    paragraph = "Words in a paragraph that goes on for a while. " * 20
    text = "\n\n".join(f"{number} {paragraph}" for number in range(60))
    (tmp_path / "long.txt").write_text(text)
    documents, _ = read_folder(tmp_path)
    assert "".join(each.text for each in documents) == text
    assert len(documents) > 5
    assert all(each.text.endswith("\n\n") for each in documents[:-1])
    assert len({each.id for each in documents}) == len(documents)


def test_a_text_without_any_break_is_cut_as_well(tmp_path):
    (tmp_path / "solid.txt").write_text("x" * 100_000)
    documents, _ = read_folder(tmp_path)
    assert sum(len(each.text) for each in documents) == 100_000
    assert max(len(each.text) for each in documents) <= 8_000


def test_lone_surrogates_are_replaced_and_counted(tmp_path):
    (tmp_path / "a.jsonl").write_text('{"text": "broken \\ud800 text"}\n')
    (document,), dropped = read_folder(tmp_path)
    document.text.encode("utf-8")
    assert dropped == {"lone surrogates, replaced": 1}


def test_a_missing_text_column_names_those_found(tmp_path):
    (tmp_path / "a.csv").write_text("title,body\nx,y\n")
    with pytest.raises(SmallmError, match=r"unknown text column .*; frequent are title, body"):
        read_folder(tmp_path)
    (document,), _ = read_folder(tmp_path, text_field="body")
    assert document.text == "y"


def test_a_path_that_is_not_there_is_one_line(tmp_path):
    with pytest.raises(SmallmError, match="does not exist"):
        source("folder").fingerprint(CorpusSettings(source="folder", path=tmp_path / "none"))
    with pytest.raises(SmallmError, match="needs --path"):
        source("folder").fingerprint(CorpusSettings(source="folder"))


def test_a_changed_file_changes_the_fingerprint(tmp_path):
    (tmp_path / "a.txt").write_text("one")
    settings = CorpusSettings(source="folder", path=tmp_path)
    before = source("folder").fingerprint(settings)
    (tmp_path / "a.txt").write_text("three")
    assert source("folder").fingerprint(settings) != before


def test_a_dataset_folder_is_streamed(tmp_path):
    rows = [{"text": f"row {n}", "n": n} for n in range(5)] + [{"text": " ", "n": 9}]
    (tmp_path / "train.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    documents, dropped = read_hub(tmp_path)
    assert [each.text for each in documents] == [f"row {n}" for n in range(5)]
    assert dropped == {"empty text": 1}
    with pytest.raises(SmallmError, match="no column 'body'; columns found: text, n"):
        read_hub(tmp_path, text_field="body")
    with pytest.raises(SmallmError, match="nosuch"):
        read_hub(tmp_path, dataset_split="nosuch")


def test_a_parquet_dataset_counts_what_is_no_text(tmp_path):
    table = pyarrow.table({"text": ["one", None, "", "two 🎉"], "n": [1, 2, 3, 4]})
    pyarrow.parquet.write_table(table, tmp_path / "test-0.parquet")
    documents, dropped = read_hub(tmp_path, dataset_split="test")
    assert [each.text for each in documents] == ["one", "two 🎉"]
    assert dropped == {"row whose 'text' is no text": 1, "empty text": 1}
    with pytest.raises(SmallmError, match=r"Bad split: train. Available splits: \['test'\]"):
        read_hub(tmp_path)
    with pytest.raises(SmallmError, match="'other' not found"):
        read_hub(tmp_path, dataset_split="test", dataset_config="other")


def test_a_broken_dataset_is_one_line(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.parquet").write_bytes(b"not parquet at all")
    for folder in ("empty", "broken"):
        with pytest.raises(SmallmError) as caught:
            read_hub(tmp_path / folder)
        assert "\n" not in str(caught.value)


def test_a_dataset_in_the_cache_is_read_when_the_hub_is_off(tmp_path, monkeypatch):
    from datasets.packaged_modules.json.json import Json

    (tmp_path / "a.jsonl").write_text('{"text": "cached"}\n')
    built = Json(
        cache_dir=str(tmp_path),
        dataset_name="something",
        hash="abc123",
        data_files={"train": [str(tmp_path / "a.jsonl")]},
    )
    built.download_and_prepare()
    place = tmp_path / "cache" / "somebody___something" / "default" / "0.0.0" / "abc123"
    shutil.move(built.cache_dir, place)
    info = json.loads((place / "dataset_info.json").read_text())
    (place / "dataset_info.json").write_text(json.dumps({**info, "config_name": "default"}))
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    settings = CorpusSettings(source="hub", dataset="somebody/something")
    assert source("hub").fingerprint(settings)["revision"] == "cached abc123"
    (document,), _ = read_hub("somebody/something")
    assert document.text == "cached"


def test_a_hub_that_refuses_the_connection_is_one_line(monkeypatch, free_port):
    import huggingface_hub

    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    api = huggingface_hub.HfApi(endpoint=f"http://127.0.0.1:{free_port}")
    monkeypatch.setattr("huggingface_hub.dataset_info", api.dataset_info)
    with pytest.raises(SmallmError, match=r"cannot be reached .*HF_HUB_OFFLINE"):
        source("hub").fingerprint(CorpusSettings(source="hub", dataset="somebody/something"))


def test_an_unreachable_hub_is_one_line():
    settings = CorpusSettings(source="hub", dataset="somebody/something")
    with pytest.raises(SmallmError, match="cannot be reached"):
        source("hub").fingerprint(settings)


def test_every_source_describes_itself():
    assert all(source(name).describe() for name in SOURCES)


NUMPYDOC = """Compute the mean of the values.

    The mean is taken with :func:`numpy.mean` over `axis`, see [1]_ for
    the reason.

    .. versionadded:: 1.2

    .. note:: Only ``float`` arrays are
       supported by this function.

    .. math:: \\frac{a}{b}

    Parameters
    ----------
    values : array_like
        The values to be averaged, of any shape.
    axis : int, optional
        Axis along which to work. Default is 0.
    short : int
        no whole sentence

    See Also
    --------
    median : Compute the median of all the values.

    Notes
    -----
    Where :math:`\\alpha \\leq 1` holds, the result is **exact**. The old way was::

        mean(x) is slow. Do not use it here.

    ======  =====
    Name    Value
    ======  =====
    a       One value that is long.
    ======  =====

    References
    ----------
    .. [1] Somebody, "A paper about means", Journal of Means, 1999.

    Examples
    --------
    >>> mean([1, 2])
    1.5

    The mean of an empty list is not defined.
    """
GOOGLE = """mean(values, axis=0) -> Tensor

    Computes the mean of :attr:`values` along a `dimension <https://x.y/z>`_.

    Args:
        values (Tensor, optional): The values to be averaged, with a
            line that goes on.
        axis (`int`, *optional*, defaults to `0`):
            Axis along which to work here.

            .. warning::
                Other axes are not supported yet.

        last (dict[str, int]): The last argument of the function.

    Returns:
        Tensor: The average of the given values.

    Example::

        >>> mean(x)

    ```python
    It is code. All of it is code.
    ```

    <Tip>

    Read [`~models.Bert`] and [the guide](https://a.b/c) first.

    </Tip>
    """
REST = """Send a message to the other side.

    :param str to: The person that gets the message.
    :type to: str
    :returns: The number of the message sent.

    - The first item of the list is whole.
    - The second one goes on
      in a second line.

    Look at https://example.com for the rest of it. This sentence stays here.

    Licensed under the Apache License, version 2.0, for all of you.
    """


def test_numpydoc_leaves_its_prose():
    assert paragraphs(NUMPYDOC) == [
        "Compute the mean of the values.",
        "The mean is taken with numpy.mean over axis, see [1] for the reason.",
        "Only float arrays are supported by this function.",
        "The values to be averaged, of any shape.",
        "Axis along which to work. Default is 0.",
        "Where \N{GREEK SMALL LETTER ALPHA} ≤ 1 holds, the result is exact.",
        "The mean of an empty list is not defined.",
    ]


def test_google_style_leaves_its_prose():
    assert paragraphs(GOOGLE) == [
        "Computes the mean of values along a dimension.",
        "The values to be averaged, with a line that goes on.",
        "Axis along which to work here.",
        "Other axes are not supported yet.",
        "The last argument of the function.",
        "The average of the given values.",
        "Read Bert and the guide first.",
    ]


def test_rest_style_leaves_its_prose():
    assert paragraphs(REST) == [
        "Send a message to the other side.",
        "The person that gets the message.",
        "The number of the message sent.",
        "The first item of the list is whole.",
        "The second one goes on in a second line.",
        "This sentence stays here.",
    ]


def prose(topic):
    return f"This sentence tells a little about {topic}. " * 6


@pytest.fixture
def package(tmp_path, monkeypatch):
    """An installed package with one file of each kind that matters."""
    folder = tmp_path / "madeup"
    (folder / "tests").mkdir(parents=True)
    (folder / "__init__.py").write_text(f'"""{prose("modules")}"""\nraise SystemExit("imported")\n')
    (folder / "calls.py").write_text(
        f'add_docstr(torch.abs,\n    r"""\n{prose("calls")}\n""")\n'
        f'@auto_docstring(custom_intro="""\n    {prose("decorators")}""")\n'
        f'class Thing:\n    """{prose("classes")}"""\n    def method(self):\n'
        f'        """{prose("methods")}"""\n'
        f'def short():\n    """Does it."""\n'
        f'def again():\n    """{prose("again")}\n\n    {prose("classes")}"""\n'
    )
    (folder / "guide.rst").write_text(f"Title\n=====\n\n{prose('guides')}\n")
    (folder / "old.py").write_text('print "Python 2"; """docs"""\n')
    (folder / "odd.py").write_bytes(b'# coding: ascii\n"""\xff docs"""\n')
    (folder / "tests" / "test_it.py").write_text(f'"""{prose("tests")}"""\n')
    monkeypatch.syspath_prepend(tmp_path)
    return "madeup"


def test_a_package_is_parsed_and_never_imported(package):
    dropped = Dropped()
    documents = list(read_packages([package, "not_there"], dropped, workers=1))
    assert {each.id: each.text for each in documents} == {
        "madeup/__init__.py": prose("modules").strip(),
        "madeup/calls.py:torch.abs": prose("calls").strip(),
        "madeup/calls.py:Thing": "\n\n".join(
            prose(topic).strip() for topic in ("decorators", "classes", "methods")
        ),
        "madeup/calls.py:again": prose("again").strip(),
        "madeup/guide.rst": prose("guides").strip(),
    }
    assert dict(dropped.counts) == {
        "file that does not parse": 2,
        "less than 200 characters of prose": 1,
        "package not installed": 1,
        "repeated paragraph": 1,
    }


def test_several_workers_give_the_same_documents_in_the_same_order(package):
    one, two = Dropped(), Dropped()
    alone = list(read_packages([package], one, workers=1))
    together = list(read_packages([package], two, workers=2))
    assert together == alone
    assert two.as_dict() == one.as_dict()


def test_the_fingerprint_of_the_packages_is_their_versions():
    versions = source("docs").fingerprint(CorpusSettings())
    assert set(versions) == set(PACKAGES)


def test_prose_of_an_installed_package_is_clean():
    dropped = Dropped()
    documents = list(read_packages(["optuna"], dropped, workers=1))
    text = "\n".join(each.text for each in documents)
    assert len(text) > 50_000
    assert ">>>" not in text
    assert ":class:" not in text
    assert "``" not in text
    assert text.count("\n    ") < len(documents)
