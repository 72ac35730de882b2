"""How far something is that takes its time: a bar on the terminal, lines where there is none."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress as Bars

from imago.errors import printable
from imago.processes import launched_rank

Progress = Callable[[int, int], None]
"""Called with (done, total) as work goes on."""


@contextmanager
def progress_bar(description: str, line_seconds: float = 15.0) -> Iterator[Progress]:
    """Show a bar on standard error, or lines; the function it gives is called with (done, total).

    Of several processes the first one shows it.
    """
    if launched_rank():
        yield lambda done, total: None
        return
    console, description = Console(stderr=True), printable(description)  # which may hold the name of somebody's folder
    if not console.is_terminal:
        yield lines(description, line_seconds)
        return
    with Bars(console=console) as bars:
        task = bars.add_task(escape(description), total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def lines(description: str, seconds: float) -> Progress:
    """What prints a line when called with (done, total), not more often than every so many seconds."""
    began = time.monotonic()
    following = began + seconds

    def report(done: int, total: int) -> None:
        nonlocal following
        now = time.monotonic()
        if now >= following and 0 < done < total:
            following = now + seconds
            left = (now - began) * (total - done) / done
            print(f"{description}: {done / total:.0%} · {left:,.0f} s left", file=sys.stderr, flush=True)

    return report
