"""Tables as wide as the terminal: what has no room is left out, the least important first; no number is ever cut."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Wide enough for all columns where the output goes into a file and nobody says how wide it may be.
WIDE = 220
GAP = 2
# Names are broken where there is little room: longer ones at this width, all at the other where there is none.
NAMES, SHORTEST = 32, 12


def output() -> Console:
    """Standard output: as wide as the terminal or as ``COLUMNS`` says; a file without that as wide as needed."""
    console = Console(highlight=False)
    told = console.is_terminal or os.environ.get("COLUMNS", "").isdigit()
    return console if told else Console(highlight=False, width=WIDE)


@dataclass
class Shown:
    """A column as a terminal shows it.

    Args:
        title: above it, broken between words where there is little room.
        cells: each a text that is never broken, and what may stand below it; names are broken.
        rank: columns of a higher one are left out first; those of 0 never.
        is_name: whether its cells are names.
        right: whether they are flush right.
        styles: of the cells; none for plain ones.
    """

    title: str
    cells: list[tuple[str, str]]
    rank: int = 0
    is_name: bool = False
    right: bool = True
    styles: list[str] = field(default_factory=list)

    @property
    def widths(self) -> tuple[int, int, int]:
        """The width of everything on one line, with the title broken, and the least one."""
        words = max(map(cell_len, self.title.split()), default=0)
        whole = max((cell_len(" ".join(filter(None, cell))) for cell in self.cells), default=0)
        least = max((cell_len(part) for cell in self.cells for part in cell), default=0)
        least = min(least, NAMES) if self.is_name else least
        return max(cell_len(self.title), whole), max(words, whole), max(words, least)


def tables(drafts: Sequence[tuple[str, list[Shown]]], width: int) -> tuple[list[Table], list[str]]:
    """Tables of so many characters, and the titles of the columns for which there is no room in all of them.

    Args:
        drafts: title and columns of each.
        width: characters of a line.
    """
    ranks = {column.rank: column.title for _, columns in drafts for column in columns if column.rank}
    gone: list[int] = []
    for rank in sorted(ranks, reverse=True):
        kept = [[column for column in columns if column.rank not in gone] for _, columns in drafts]
        if all(_total([column.widths[2] for column in columns]) <= width for columns in kept):
            break
        gone.append(rank)
    made = [_table(title, [c for c in columns if c.rank not in gone], width) for title, columns in drafts]
    return made, [ranks[rank] for rank in reversed(gone)]


def _total(widths: list[int]) -> int:
    return sum(widths) + GAP * (len(widths) - 1)


def _table(title: str, columns: list[Shown], width: int) -> Table:
    """One table, its columns as wide as they need to be, or less: first titles are broken, then names, then cells."""
    widths = [column.widths[0] for column in columns]
    names_last = sorted(range(len(columns)), key=lambda k: (columns[k].is_name, k))
    for step in (1, 2):
        for k in reversed(names_last):
            excess = max(0, _total(widths) - width)
            widths[k] = max(columns[k].widths[step], widths[k] - excess)
    for k in names_last:
        if columns[k].is_name:
            widths[k] = max(min(widths[k], SHORTEST), widths[k] - max(0, _total(widths) - width))
    table = Table(
        title=Text(title) if title else None, title_justify="left", title_style="bold", box=SIMPLE_HEAD,
        show_edge=False, pad_edge=False, padding=(0, GAP - 1, 0, 0), width=_total(widths),
    )  # fmt: skip
    for column, wide in zip(columns, widths, strict=True):
        justify, overflow = ("right" if column.right else "left"), "fold"
        table.add_column(Text(column.title), justify=justify, overflow=overflow, width=wide)  # type: ignore[arg-type]
    for row in range(len(columns[0].cells)):
        cells = []
        for column, wide in zip(columns, widths, strict=True):
            whole = " ".join(filter(None, column.cells[row]))
            text = whole if cell_len(whole) <= wide else "\n".join(column.cells[row])
            cells.append(Text(text, column.styles[row] if column.styles else ""))
        table.add_row(*cells)
    return table
