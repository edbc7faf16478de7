"""What libraries say becomes the end of one line."""

import pytest

from smallm.errors import LONGEST, in_one_line


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (ValueError("two\n  lines"), "two lines"),
        (KeyError(), "KeyError"),
        (OSError(" \n"), "OSError"),
        (RuntimeError("x" * 2000), "x" * LONGEST),
    ],
)
def test_an_error_becomes_one_short_line_that_says_something(error, line):
    assert in_one_line(error) == line
