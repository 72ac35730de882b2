"""The lecture's claims as a page that needs nothing else, as Markdown, and as lines for the terminal."""

from contextlib import suppress
from pathlib import Path

from rich.console import Console
from rich.text import Text

from imago.board.claims import Answer, Runs, budgets
from imago.board.page import write_html
from imago.board.pictures import embedded
from imago.board.text import escaped
from imago.files import write_text

Claims = list[tuple[Runs, list[Answer]]]
# Verdicts for people, and the mark that the board has for states of a run.
SAID = {
    "agrees": "The numbers agree with the lecture",
    "disagrees": "The numbers disagree with the lecture",
    "undecided": "The numbers do not decide",
    "open": "Open: runs are missing",
}
MARKS = {"agrees": "completed", "disagrees": "failed", "undecided": "interrupted", "open": "open"}
WIDEST = 12
FEW = 3  # commands that the terminal shows for a claim


def show_claims(claims: Claims) -> None:
    """Print a line for each claim, and what would answer the open ones."""
    console = Console(highlight=False)
    for runs, answers in claims:
        console.print(Text(f"\nThe lecture's claims on {runs.data}", "bold"))
        for answer in answers:
            console.print(Text(f"  {answer.claim} {SAID[answer.verdict]}. {answer.words}".rstrip()), soft_wrap=True)
            needed = answer.needed if answer.verdict == "open" else []
            for command in needed[:FEW]:
                console.print(Text(f"    would answer it: {command}"), soft_wrap=True)
            if len(needed) > FEW:
                console.print(Text(f"    and {len(needed) - FEW} more commands, in claims.md"), soft_wrap=True)


def write_claims_markdown(claims: Claims, path: Path) -> None:
    """Write the answers as Markdown, without pictures."""
    lines = ["# The lecture's claims", ""]
    for runs, answers in claims:
        lines += [f"## {escaped(str(runs.data))}", "", escaped(budgets(runs)), ""]
        for answer in answers:
            lines += [f"### {escaped(answer.claim)}", "", f"The lecture: {escaped(answer.said)}", ""]
            lines += [f"**{SAID[answer.verdict]}.** {escaped(answer.words)}".rstrip(), ""]
            if answer.rows:
                lines.append(f"| {' | '.join(answer.head)} |")
                lines.append(f"|---|{'---:|' * (len(answer.head) - 1)}")
                lines += [f"| {' | '.join(map(escaped, row))} |" for row in answer.rows]
                lines.append("")
            lines += [escaped(f"Measured: {answer.measure}"), ""]
            if answer.needed:
                lines += [f"{answer.remedy}:", "", *(f"    {command}" for command in answer.needed), ""]
    write_text(path, "\n".join(lines))


def write_claims_page(claims: Claims, path: Path) -> None:
    """Write the answers as a page with their pictures; those that cannot be read are left out."""
    write_html(path, "claims.html", claims=claims, budgets=budgets, verdicts=SAID, marks=MARKS, pictures=_pictures)


def _pictures(answer: Answer) -> list[tuple[str, str]]:
    found = []
    for label, path in answer.pictures[:WIDEST]:
        with suppress(Exception):  # Pillow raises whatever a damaged picture leads it to
            found.append((label, embedded(path)))
    return found
