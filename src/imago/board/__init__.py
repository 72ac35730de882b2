"""The board: run directories of any age, side by side. Reads files alone: no torch, no data, no model.

``find`` where runs lie → ``records`` what each left → ``board`` what may be compared with what → ``text`` and ``page``.
``claims`` asks a board what the lecture asks → ``claims_page``.
"""

from imago.board.board import Board
from imago.board.claims import answers
from imago.board.claims_page import show_claims, write_claims_markdown, write_claims_page
from imago.board.find import find_runs
from imago.board.page import write_page
from imago.board.records import Record, read_record
from imago.board.text import READING, short_tables, show, write_csv, write_markdown

__all__ = [
    "READING",
    "Board",
    "Record",
    "answers",
    "find_runs",
    "read_record",
    "short_tables",
    "show",
    "show_claims",
    "write_claims_markdown",
    "write_claims_page",
    "write_csv",
    "write_markdown",
    "write_page",
]
