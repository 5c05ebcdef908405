"""Tables for the terminal, drawn by rich: bordered ones for results, plain columns for lists."""

from collections.abc import Mapping, Sequence

NARROWEST = 160
"""Columns where standard output is no terminal, so that a table in a log is not wrapped."""


def print_table(title: str, rows: Sequence[Mapping[str, str]], *, sections: str | None = None) -> None:
    """Print the rows with borders on standard output; a line between them where the column `sections` changes."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(width=None if Console().is_terminal else NARROWEST)
    table = Table(box=box.HEAVY_HEAD if console.is_terminal else box.ASCII2, title=title)
    for number, column in enumerate(columns := columns_of(rows)):
        table.add_column(column, justify="right" if number else "left", no_wrap=not number)
    for before, row in zip([None, *rows], rows, strict=False):
        if sections and before is not None and before[sections] != row[sections]:
            table.add_section()
        table.add_row(*(row.get(column, "") for column in columns))
    console.print(table)


def columns_of(rows: Sequence[Mapping[str, object]]) -> list[str]:
    """The columns of all rows, each once, in the order of their first appearance."""
    return list(dict.fromkeys(column for row in rows for column in row))


def align(rows: Sequence[Sequence[str]], *, right: Sequence[int] = ()) -> list[str]:
    """One line a row, its cells in columns two spaces apart; columns numbered in `right` end flush, others begin so."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    pad = [str.rjust if number in right else str.ljust for number in range(len(widths))]
    return ["  ".join(f(cell, width) for f, cell, width in zip(pad, row, widths, strict=True)).rstrip() for row in rows]
