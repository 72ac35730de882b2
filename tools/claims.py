"""The answers of docs/claims-NAME.md and the picture of their page, from runs: ``make claims NAME=mnist RUNS='…'``.

What stands above the heading "Claims" is written by hand and stays.
"""

import argparse
import tempfile
from pathlib import Path

from photo import ROOT, photograph

from imago.board.board import Board
from imago.board.claims import answers
from imago.board.claims_page import Claims, write_claims_markdown, write_claims_page
from imago.board.find import find_runs
from imago.board.records import read_record

HEADING = "## Claims\n"


def answered(page: str, claims: Claims) -> str:
    """A page with other answers below its heading.

    Raises:
        SystemExit: it has no such heading, or the runs are of several data sets.
    """
    above, heading, _ = page.partition(HEADING)
    if not heading:
        raise SystemExit(f"error: the page lacks the heading {HEADING.strip()!r}, below which the answers go")
    if len(claims) != 1:
        raise SystemExit(f"error: RUNS: a page is of one data set, these are of {len(claims)}")
    with tempfile.TemporaryDirectory() as folder:
        written = Path(folder) / "claims.md"
        write_claims_markdown(claims, written)
        _, _, answers_ = written.read_text(encoding="utf-8").partition("\n## ")
    return f"{above}{HEADING}{answers_.partition(chr(10))[2].rstrip()}\n"


def main() -> None:
    """Answer, write, and take the picture."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split(":")[0])
    parser.add_argument("name", help="of the page docs/claims-NAME.md")
    parser.add_argument("runs", nargs="+", help="run directories, folders that hold some, or globs")
    given = parser.parse_args()
    page = ROOT / "docs" / f"claims-{given.name}.md"
    if not page.exists():
        raise SystemExit(
            f"error: NAME={given.name}: write {page.relative_to(ROOT)} with the heading {HEADING.strip()!r}"
        )
    runs, empty = find_runs([place for place in given.runs if not Path(place).is_file()])
    if not runs:
        raise SystemExit(f"error: RUNS={' '.join(given.runs)}: {'; '.join(empty)}")
    claims = answers(Board(map(read_record, runs)))
    page.write_text(answered(page.read_text(encoding="utf-8"), claims), encoding="utf-8")
    with tempfile.TemporaryDirectory() as folder:
        write_claims_page(claims, Path(folder) / "claims.html")
        photograph(Path(folder) / "claims.html", ROOT / "docs" / "images" / f"claims-{given.name}.png", width=1200)
    print("\n".join([*empty, f"{len(runs)} runs: {page.relative_to(ROOT)}"]))


if __name__ == "__main__":
    main()
