"""What a terminal shows after some bytes: as much of one as `rich` makes use of."""

from __future__ import annotations

import re

from rich.cells import cell_len

_PIECE = re.compile(r"\x1b\[(?P<number>[0-9;?]*)(?P<code>[A-Za-z])|(?P<control>[\r\n])|(?P<character>.)", re.DOTALL)


def show(sent: str, columns: int) -> list[str]:
    """The lines on a terminal of so many columns, those that have scrolled out too, without the blanks at their ends.

    A character of two columns is followed by an empty cell.
    """
    rows: list[list[str]] = [[]]
    row = column = 0
    for piece in _PIECE.finditer(sent):
        if piece["control"] == "\r":
            column = 0
        elif piece["control"] == "\n":
            row += 1
            rows += [[] for _ in range(row + 1 - len(rows))]
        elif piece["code"] == "A":
            row = max(0, row - int(piece["number"] or 1))
        elif piece["code"] == "K":
            rows[row] = []
        elif character := piece["character"]:
            width = cell_len(character)
            if column + width > columns:
                row, column = row + 1, 0
                rows += [[] for _ in range(row + 1 - len(rows))]
            cells = rows[row]
            cells += [" "] * (column + width - len(cells))
            cells[column : column + width] = [character, *[""] * (width - 1)]
            column += width
    lines = ["".join(cells).rstrip() for cells in rows]
    while lines and not lines[-1]:
        lines.pop()
    return lines
