"""Put runs side by side: ``python src/compare.py runs=logs``. Needs their directories alone, and no torch."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import Field

from imago import cli
from imago.config import check_settings, plain
from imago.errors import UserError, reason_of
from imago.paths import check_folder_place


@dataclass(frozen=True)
class Settings:
    """What compare.yaml explains."""

    runs: str | Annotated[list[str], Field(min_length=1)]
    out: Annotated[str, Field(min_length=1)]
    report: Literal["board", "claims", "tree"]


def main(config: DictConfig) -> None:
    """Read the runs, write the board to ``out``, and print it, or what ``report`` asks for instead."""
    settings = check_settings(plain(config), Settings)
    out = Path(settings.out)
    check_folder_place(out)
    from imago.board.board import Board
    from imago.board.claims import answers
    from imago.board.claims_page import show_claims, write_claims_markdown, write_claims_page
    from imago.board.find import find_runs
    from imago.board.page import write_page
    from imago.board.records import read_record
    from imago.board.text import show, write_csv, write_markdown
    from imago.board.tree import write_tree

    places = [settings.runs] if isinstance(settings.runs, str) else settings.runs
    runs, empty = find_runs(places)
    if not runs:
        raise UserError(
            f"{'; '.join(f'runs={line}' for line in empty)}; a run holds config.yaml, summary.json or metrics.csv. "
            f"Train one with {cli.program('train')}, or name the folder that holds yours"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        board = Board(read_record(run) for run in runs)
        write_page(board, out / "board.html")
        write_csv(board, out / "board.csv")
        write_markdown(board, out / "board.md")
        claims = answers(board) if settings.report == "claims" else []
        if claims:
            write_claims_page(claims, out / "claims.html")
            write_claims_markdown(claims, out / "claims.md")
        if settings.report == "tree":
            write_tree(board, out / "tree.html", out / "tree.svg")
    except OSError as error:
        raise UserError(f"out={out}: {reason_of(error)}; choose another folder") from None
    if settings.report == "board":
        show(board)
    show_claims(claims)
    for line in empty:
        print(f"runs: {line}")
    if settings.report != "board":
        print(f"all numbers: {out / 'board.html'}, board.csv and board.md")
    written = {
        "board": ["board.html", "board.csv", "board.md"],
        "claims": ["claims.html", "claims.md"] * bool(claims),
        "tree": ["tree.html", "tree.svg"],
    }
    for name in written[settings.report]:
        print(out / name)


def command() -> None:
    """Carry out ``compare`` as the command line says."""
    cli.run(main, "compare")
