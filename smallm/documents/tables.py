"""Rows of CSV, whatever its delimiter, as far as they can be read."""

from __future__ import annotations

import csv
from collections.abc import Collection, Iterable, Iterator
from itertools import chain

from smallm.documents import Dropped

LARGEST_FIELD = 64 * 2**20  # characters


def rows(
    lines: Iterable[str],
    name: str,
    dropped: Dropped,
    *,
    columns: Collection[str],
    headed: bool = True,
) -> Iterator[list[str]]:
    """The rows, the header too; where the rest cannot be read it is counted.

    The delimiter is the one under which the first line has one of the columns; else that of the
    most columns where the first line is known to be a header, or the comma.
    """
    csv.field_size_limit(LARGEST_FIELD)
    waiting = iter(lines)
    first = next(waiting, "")

    def fit(delimiter: str) -> tuple[bool, int]:
        names = next(csv.reader([first], delimiter=delimiter), [])
        found = {each.strip().lower() for each in names} & {*columns}
        return bool(found), len(names) if headed else 0

    done = quotes = width = 0
    last = ""

    def read() -> Iterator[str]:
        nonlocal quotes, last
        for last in chain([first], waiting):
            quotes += last.count('"')
            yield last

    try:
        for row in csv.reader(read(), delimiter=max(",;\t|", key=fit)):
            open_end = not last.endswith(("\n", "\r"))
            if open_end and (quotes % 2 or len(row) < width):
                dropped.add("rest of a file: truncated or damaged", f"{name}:{done + 1}")
                return
            done, quotes, width = done + 1, 0, width or len(row)
            yield row
    except csv.Error as error:
        dropped.add(f"rest of a CSV file ({error})", f"{name}:{done + 1}")
