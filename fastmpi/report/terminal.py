"""Tables for the terminal."""

from __future__ import annotations

from rich import box
from rich.table import Table as RichTable
from rich.text import Text

from fastmpi.report.content import Table


def text_table(table: Table, title: str = "") -> RichTable:
    """A rich table of the same numbers without what stands small, the best of a column in bold."""
    shown = RichTable(title=title or None, title_justify="left", box=box.SIMPLE_HEAD)
    shown.add_column(table.corner, no_wrap=True)
    for heading, unit in table.columns:
        shown.add_column(f"{heading}\n{unit}" if unit else heading, justify="right")
    for row in table.rows:
        cells = (Text(cell.text, style="bold" if cell.best else "") for cell in row.cells)
        shown.add_row(Text(row.name), *cells)
    return shown
