"""Folders that are there whole or not at all."""

from contextlib import suppress

import pytest

from smallm.files import whole_folder


@pytest.mark.parametrize(("replace", "left"), [(False, "old"), (True, "new")])
def test_an_older_folder_stays_unless_it_is_to_be_replaced(tmp_path, replace, left):
    target = tmp_path / "champion"
    target.mkdir()
    (target / "weights").write_text("old")
    (target / "old only").touch()
    with whole_folder(target, replace=replace) as temporary:
        (temporary / "weights").write_text("new")
    assert (target / "weights").read_text() == left
    assert (target / "old only").exists() != replace
    assert list(tmp_path.iterdir()) == [target]


def test_an_error_leaves_the_older_folder_as_it_was(tmp_path):
    target = tmp_path / "champion"
    target.mkdir()
    (target / "weights").write_text("old")
    with suppress(ZeroDivisionError), whole_folder(target, replace=True) as temporary:
        (temporary / "weights").write_text("half")
        raise ZeroDivisionError
    assert (target / "weights").read_text() == "old"
    assert list(tmp_path.iterdir()) == [target]
