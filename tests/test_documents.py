"""Everything a person would try on their own files is read, or counted and named."""

import csv
import json
import os

import pytest

from smallm.documents import SOURCES, Dropped, source
from smallm.documents.packages import read_packages
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


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads every file")
def test_an_unreadable_file_is_counted(tmp_path):
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "secret.txt").chmod(0)
    _, dropped = read_folder(tmp_path)
    assert dropped == {"unreadable file (Permission denied)": 1}


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
    with pytest.raises(SmallmError, match=r"no text column|columns found: body, title"):
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


def test_an_unreachable_hub_is_one_line():
    settings = CorpusSettings(source="hub", dataset="somebody/something")
    with pytest.raises(SmallmError, match="cannot be reached"):
        source("hub").fingerprint(settings)


def test_every_source_describes_itself():
    assert all(source(name).describe() for name in SOURCES)


def test_prose_of_an_installed_package_is_clean():
    dropped = Dropped()
    documents = list(read_packages(["optuna"], dropped, workers=1))
    text = "\n".join(each.text for each in documents)
    assert len(text) > 50_000
    assert ">>>" not in text
    assert ":class:" not in text
    assert "``" not in text
    assert text.count("\n    ") < len(documents)
