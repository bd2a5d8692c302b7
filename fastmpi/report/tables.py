"""Tables as HTML: numbers with their intervals, a dot on a line, cells coloured by their share."""

from __future__ import annotations

from fastmpi.report.content import Axis, Cell, Row, Span, Table
from fastmpi.report.figures import signed
from fastmpi.report.markup import element, escape, folded

NUM_SHADES = 9
FEW = 4  # columns of a table that need not be as wide as the page


def table_block(table: Table) -> str:
    """The table with its title and notes; a folded one opens on a click."""
    notes = [element("p", escape(note), class_="note") for note in table.notes]
    grid = element("div", _table(table), class_="scroll", tabindex=0, role="region",
                   aria_label=table.title or table.corner)  # fmt: skip
    if table.folded:
        return folded(escape(table.title), grid, *notes)
    title = element("h3", escape(table.title)) if table.title else ""
    return element("div", title, grid, *notes, class_="block")


def shade(share: float) -> str:
    """The class of a share's colour: s0 for none right up to s8 for all."""
    return f"s{min(NUM_SHADES - 1, max(0, round(share * (NUM_SHADES - 1))))}"


def _table(table: Table) -> str:
    kind = "words" if table.words else "heat" if table.heat else "numbers"
    kind += " lined" if table.axis is not None else ""
    kind += " many" if len(table.columns) > FEW else ""
    body = [_row(row, table) for row in table.rows]
    return element("table", _head(table), element("tbody", *body), class_=f"table {kind}")


def _head(table: Table) -> str:
    if not any(heading or unit for heading, unit in table.columns):
        return ""
    cells = [element("th", escape(table.corner), scope="col")]
    if table.axis is not None:
        cells.append(_line_heading(table.axis))
    for heading, unit in table.columns:
        small = element("small", escape(unit)) if unit else ""
        cells.append(element("th", escape(heading), small, scope="col"))
    return element("thead", element("tr", *cells))


def _line_heading(axis: Axis) -> str:
    ends = ("0", "100 %") if axis.low == 0 else (signed(axis.low), signed(axis.high))
    scale = element("span", *(element("span", escape(end)) for end in ends), class_="ends")
    caption = element("span", escape(axis.caption)) if axis.caption else ""
    return element("th", caption, scale, scope="col", class_="line")


def _row(row: Row, table: Table) -> str:
    note = element("small", escape(row.note)) if row.note else ""
    cells = [element("th", escape(row.name), note, scope="row")]
    if table.axis is not None:
        drawing = _line(row.span, table.axis, row.marked) if row.span is not None else ""
        cells.append(element("td", drawing, class_="line"))
    cells += [_cell(cell) for cell in row.cells]
    return element("tr", *cells, class_="marked" if row.marked else None)


def _cell(cell: Cell) -> str:
    text = element("b" if cell.best else "span", escape(cell.text))
    detail = element("small", escape(cell.detail)) if cell.detail else ""
    return element("td", text, detail, class_=None if cell.share is None else shade(cell.share))


def _line(span: Span, axis: Axis, marked: bool) -> str:
    """A dot at the value, its interval as a thick stroke; as wide as the column happens to be."""

    def at(value: float) -> float:
        return 100 * min(1.0, max(0.0, (value - axis.low) / (axis.high - axis.low)))

    low, high = at(span.low), at(span.high)
    parts = [element("i", class_="span", style=f"left:{low:.2f}%;width:{high - low:.2f}%")]
    if axis.mark is not None:
        parts.append(element("i", class_="chance", style=f"left:{at(axis.mark):.2f}%"))
    parts.append(element("i", class_="dot", style=f"left:{at(span.value):.2f}%"))
    return element("div", *parts, class_="dots best" if marked else "dots", aria_hidden="true")
