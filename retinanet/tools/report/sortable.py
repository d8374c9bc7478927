"""Tables of a page, sorted by a click on a title and filtered by name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

from retinanet.tools.report.markup import NOT_DEFINED, attribute, colored, escape, number

# A table with more rows gets a box to filter them by name, and scrolls in itself.
FILTERED_ROWS = 12


class Column(NamedTuple):
    """How a column of a table is headed and shown."""

    title: str
    digits: int | None = None  # after the point; None: text and whole numbers as they are
    bar: float | None = None  # the number that a full bar beside it stands for; None: no bar
    meaning: str = ""  # seen when the pointer rests on the title


class Colored(NamedTuple):
    """A text with the color that stands for it in the pictures."""

    text: str
    color: str


Cell = str | int | float | None | Colored


@dataclass(frozen=True, slots=True)
class Table:
    """Rows that are sorted by a click on a title; with many rows also filtered."""

    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]
    what: str = "rows"  # what the rows are, in the plural
    sorted_by: str | None = None  # title of the column by which they come, the largest first

    def html(self) -> str:
        """As markup."""
        head = "".join(
            f'<th scope="col"{_kind(column, cells)}{self._order(column)}>'
            f'<button type="button"{attribute("title", column.meaning)}>{escape(column.title)}'
            "</button></th>"
            for column, cells in zip(self.columns, self._cells(), strict=True)
        )
        body = "\n".join(
            "<tr>"
            + "".join(
                _cell(column, cell, first=place == 0)
                for place, (column, cell) in enumerate(zip(self.columns, row, strict=True))
            )
            + "</tr>"
            for row in self.rows
        )
        long = len(self.rows) > FILTERED_ROWS
        box = (
            f'<p class="filter" hidden><label>Filter {escape(self.what)} '
            f'<input type="search" autocomplete="off" spellcheck="false"></label> '
            f"<output>{len(self.rows)} of {len(self.rows)}</output></p>"
            if long
            else ""
        )
        return (
            f'<div class="sortable">{box}<div class="scroll{" long" if long else ""}" tabindex="0"'
            f' role="region" aria-label="{escape(self.what)}"><table><thead><tr>{head}</tr></thead>'
            f"<tbody>\n{body}\n</tbody></table></div></div>"
        )

    def _order(self, column: Column) -> str:
        return ' aria-sort="descending"' if column.title == self.sorted_by else ""

    def _cells(self) -> list[Sequence[Cell]]:
        return list(zip(*self.rows, strict=True)) or [()] * len(self.columns)


def _cell(column: Column, cell: Cell, *, first: bool) -> str:
    """One cell; the first of a row heads it."""
    if isinstance(cell, str | Colored):
        inside = colored(*cell) if isinstance(cell, Colored) else f"<bdi>{escape(cell)}</bdi>"
        return f'<th scope="row">{inside}</th>' if first else f"<td>{inside}</td>"
    shown = number(cell, column.digits)
    if shown == NOT_DEFINED:
        return f'<td class="number none">{shown}</td>'
    bar = _bar(cell / column.bar) if column.bar else ""
    kind = "number barred" if bar else "number"
    return f'<td class="{kind}" data-value="{cell!r}">{bar}{shown}</td>'


def _bar(fraction: float) -> str:
    width = 100 * min(max(fraction, 0.0), 1.0)
    return (
        '<svg class="bar" viewBox="0 0 100 1" preserveAspectRatio="none" aria-hidden="true">'
        f'<rect width="{width:.1f}" height="1"/></svg>'
    )


def _kind(column: Column, cells: Sequence[Cell]) -> str:
    numbers = column.digits is not None or any(isinstance(cell, int | float) for cell in cells)
    return ' class="number"' if numbers else ""
