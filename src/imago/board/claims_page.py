"""The lecture's claims as a page that needs nothing else, as Markdown, and as lines for the terminal."""

import html
import re
from collections.abc import Iterator
from pathlib import Path

from rich.console import Console
from rich.text import Text

from imago.board.claims import Answer, Runs, budgets
from imago.board.page import PARTS, inline_hash
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


def show_claims(claims: Claims) -> None:
    """Print a line for each claim, and what would answer the open ones."""
    console = Console(highlight=False)
    for runs, answers in claims:
        console.print(Text(f"\nThe lecture's claims on {runs.data}", "bold"))
        for answer in answers:
            console.print(Text(f"  {answer.claim} {SAID[answer.verdict]}. {answer.words}".rstrip()), soft_wrap=True)
            for command in answer.needed if answer.verdict == "open" else []:
                console.print(Text(f"    would answer it: {command}"), soft_wrap=True)


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
                lines += [f"{_needed(answer)}:", "", *(f"    {command}" for command in answer.needed), ""]
    write_text(path, "\n".join(lines))


def write_claims_page(claims: Claims, path: Path) -> None:
    """Write the answers as a page with their pictures; those that cannot be read are left out."""
    style = (PARTS / "page.css").read_text(encoding="utf-8")
    parts = {
        "style": style,
        "style_hash": inline_hash(style),
        "sections": "".join(_section(runs, answers) for runs, answers in claims),
    }
    template = (PARTS / "claims.html").read_text(encoding="utf-8")
    write_text(path, re.sub(r"\{\{(\w+)\}\}", lambda match: parts[match[1]], template))


def _section(runs: Runs, answers: list[Answer]) -> str:
    told = "".join(_claim(answer) for answer in answers)
    return (
        f'<section><h2>{html.escape(str(runs.data))}</h2><p class="lead">{html.escape(budgets(runs))}</p>'
        f"{told}</section>"
    )


def _claim(answer: Answer) -> str:
    cards = "".join(_cards(answer))
    gallery = f'<div class="cards">{cards}</div>' if cards else ""
    needed = "".join(f"<li>{_needed(answer)}: <code>{html.escape(c)}</code></li>" for c in answer.needed)
    remedies = f'<ul class="needed">{needed}</ul>' if needed else ""
    return (
        f'<div class="claim"><h3>{html.escape(answer.claim)}</h3>'
        f'<p class="lead">The lecture: {html.escape(answer.said)}</p>'
        f'<p class="verdict"><span class="state {MARKS[answer.verdict]}">{SAID[answer.verdict]}.</span> '
        f"{html.escape(answer.words)}</p>{_table(answer)}"
        f'{gallery}<p class="reading">{html.escape(answer.measure)}</p>{remedies}</div>'
    )


def _needed(answer: Answer) -> str:
    return "Would answer it" if answer.verdict == "open" else "Would add to it"


def _table(answer: Answer) -> str:
    if not answer.rows:
        return ""
    head = "".join(f'<th scope="col"{_number(k)}>{html.escape(title)}</th>' for k, title in enumerate(answer.head))
    rows = "".join(
        f'<tr><th scope="row">{html.escape(row[0])}</th>'
        + "".join(f'<td class="num">{html.escape(text)}</td>' for text in row[1:])
        + "</tr>"
        for row in answer.rows
    )
    return (
        f'<div class="scroll" tabindex="0" role="region" aria-label="Numbers: {html.escape(answer.claim)}">'
        f"<table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>"
    )


def _number(column: int) -> str:
    return ' class="num"' if column else ""


def _cards(answer: Answer) -> Iterator[str]:
    for label, path in answer.pictures[:WIDEST]:
        try:
            picture = embedded(path)
        except Exception:  # Pillow raises whatever a damaged picture leads it to
            continue
        said = html.escape(label)
        image = f'<img class="picture" decoding="async" alt="{said}" src="{picture}">'
        yield f'<figure class="card">{image}<figcaption><b>{said}</b></figcaption></figure>'
