"""What a search keeps of itself, and refuses."""

import shutil

import pytest

from smallm.errors import SmallmError
from smallm.ledger import Ledger, new_search
from smallm.settings import CorpusSettings
from smallm.space import Space
from smallm.tracking import local_uri

SPACE = {
    "name": "small",
    "trials": 2,
    "seeds": [1],
    "settings": {"vocabulary": 400},
    "search": {"hidden": {"choices": [8, 16]}},
}


def test_a_search_does_not_go_on_with_another_text(tmp_path, small_corpus):
    folder = shutil.copytree(small_corpus, tmp_path / "corpus")
    corpus = CorpusSettings(source="folder", path=folder)
    search = new_search(tmp_path / "home", Space.model_validate(SPACE), corpus, name="one")

    def built():
        ledger = Ledger(search, uri=local_uri(tmp_path / "home"))
        try:
            ledger.build_corpus()
        finally:
            ledger.close(timeout=60)

    built()
    built()
    (folder / "000.txt").write_text("Another text altogether.", encoding="utf-8")
    with pytest.raises(SmallmError, match="the text of folder has changed since one began"):
        built()


@pytest.mark.parametrize("name", ["team/run", "../up", "", ".hidden", "a b"])
def test_a_name_that_is_no_folder_name_is_refused(tmp_path, name):
    space, corpus = Space.model_validate(SPACE), CorpusSettings()
    with pytest.raises(SmallmError, match="may have letters, digits"):
        new_search(tmp_path, space, corpus, name=name)
    assert not list(tmp_path.iterdir())
