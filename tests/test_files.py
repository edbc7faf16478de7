"""Files and folders that are there whole or not at all."""

import errno
import os
from contextlib import ExitStack, suppress

import pytest
from disks import full_disk

from smallm.errors import SmallmError
from smallm.files import keep_first_json, read_json, whole_folder


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


@pytest.fixture(params=["links", *sorted({errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS})])
def disk(request, tmp_path, monkeypatch):
    """A folder on a file system with hard links, and on those that refuse them in their ways."""
    if request.param != "links":

        def refuse(*_):
            raise OSError(request.param, os.strerror(request.param))

        monkeypatch.setattr(os, "link", refuse)
    return tmp_path


def test_the_first_of_several_writers_of_a_file_counts(disk):
    for number in range(3):
        keep_first_json(disk / "folder" / "seconds.json", {"number": number})
    assert read_json(disk / "folder" / "seconds.json") == {"number": 0}
    assert [path.name for path in (disk / "folder").iterdir()] == ["seconds.json"]


def test_a_disk_that_is_full_leaves_no_half_of_a_file(disk):
    with full_disk(largest_file=100), pytest.raises(SmallmError, match="cannot be written"):
        keep_first_json(disk / "seconds.json", ["x" * 200])
    assert list(disk.iterdir()) == []


def test_a_disk_that_fills_while_it_takes_a_name_leaves_no_half_of_a_file(tmp_path, monkeypatch):
    def refuse(*_):
        filled.enter_context(full_disk(largest_file=100))
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with ExitStack() as filled, pytest.raises(SmallmError, match="cannot be written"):
        keep_first_json(tmp_path / "seconds.json", ["x" * 200])
    assert list(tmp_path.iterdir()) == []


def test_another_refusal_of_the_disk_is_told(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(SmallmError, match="Read-only"):
        keep_first_json(tmp_path / "seconds.json", {})
    assert list(tmp_path.iterdir()) == []
