"""Tables for a terminal, plain enough for a log file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def plain_table(title: str, left: Iterable[str], right: Iterable[str]) -> Table:
    """An empty table with columns of text on the left, names first, and figures on the right."""
    from rich import box
    from rich.table import Table

    table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
    table.padding, table.pad_edge = (0, 1, 0, 0), False
    for name in left:
        table.add_column(name, no_wrap=not table.columns)  # a narrow terminal wraps no name
    for name in right:
        table.add_column(name, justify="right", no_wrap=True)
    return table


def texts(cells: Iterable[object]) -> list[Any]:
    """Cells that rich does not search for its own markup."""
    from rich.text import Text

    return [Text(str(cell)) for cell in cells]
