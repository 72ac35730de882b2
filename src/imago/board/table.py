"""metrics.csv of a run as curves, thinned: what a page draws and where a run stood last."""

import math
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from imago.errors import printable
from imago.untrusted import read_bytes, shortened

# Rows of training that are read, and points that a curve keeps. A curve is some 600 pixels wide.
ROWS = 400
POINTS = 200
LARGEST_FILE = 2**28
# Columns that are no curves of learning.
LEFT_OUT = ("images_seen", "updates", "time/", "train/gradient_norm")
CLOCK = "time/training_seconds"


@dataclass
class Block:
    """Curves that were measured at the same moments.

    Attributes:
        images: images seen, in the order of the table.
        seconds: training seconds then; ``nan`` where the table has none.
        curves: by column, values; ``nan`` and infinities as they were written.
    """

    images: list[float]
    seconds: list[float]
    curves: dict[str, list[float]]


@dataclass
class Table:
    """What metrics.csv holds.

    Attributes:
        blocks: the curves, thinned.
        last: the last value of every column, images seen and time too.
        last_at: after how many images that was.
        problems: what is wrong with the file; empty if nothing is.
    """

    blocks: list[Block] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)
    last_at: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)


def read_table(path: Path) -> Table:
    """Read a metrics.csv. Of a long one some rows of training are left out, but no measurement.

    A row that the end of the file cuts short, or that does not fit the header, is left out and named.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or too large.
    """
    table = Table()
    content = read_bytes(path, LARGEST_FILE)
    lines = content.split(b"\n")
    if lines.pop().strip():
        table.problems.append("the last row is cut short and left out")
    header = (
        [shortened(printable(name.strip().decode(errors="replace"))) for name in lines[0].split(b",")] if lines else []
    )
    if "images_seen" not in header:
        table.problems = ["empty" if not content.strip() else "no table with a column images_seen"]
        return table
    damaged, columns = 0, _Columns(header)
    for line in _chosen(lines[1:], header.index(CLOCK) if CLOCK in header else None):
        damaged += not columns.add(line)
    if damaged:
        table.problems.append(f"{damaged} damaged row{'s' if damaged > 1 else ''} left out")
    table.last = columns.last
    table.last_at = {name: points[-1][0] for name, points in columns.values.items()}
    table.blocks = columns.blocks()
    return table


def _chosen(lines: list[bytes], clock: int | None) -> list[bytes]:
    """All measurements and every so manieth row of training, which is one that says the time; the last row always."""
    stride = -(-len(lines) // ROWS)
    if stride <= 1:
        return lines
    return [
        line
        for k, line in enumerate(lines)
        if k % stride == 0 or len(lines) - k <= 2 or (clock is not None and _is_blank(line, clock))
    ]


def _is_blank(line: bytes, column: int) -> bool:
    fields = line.split(b",", column + 1)
    return len(fields) <= column or not fields[column].strip()


class _Columns:
    """Collects rows by column."""

    def __init__(self, header: list[str]) -> None:
        self.header = header
        self.values: dict[str, list[tuple[float, float]]] = defaultdict(list)  # (images, value)
        self.last: dict[str, float] = {}

    def add(self, line: bytes) -> bool:
        """Take a row; ``False`` if it is damaged."""
        if not line.strip():
            return True
        fields = line.split(b",")
        if len(fields) != len(self.header):
            return False
        try:
            row = {name: float(text) for name, text in zip(self.header, fields, strict=True) if text.strip()}
        except ValueError:
            return False
        if not math.isfinite(row.get("images_seen", math.nan)):
            return False
        for name, value in row.items():
            self.values[name].append((row["images_seen"], value))
        self.last |= row
        return True

    def blocks(self) -> list[Block]:
        """The curves, thinned; those with the same moments together."""
        together: dict[tuple[float, ...], dict[str, list[float]]] = defaultdict(dict)
        for name, points in self.values.items():
            if not name.startswith(LEFT_OUT):
                kept = _thinned(points)
                together[tuple(images for images, _ in kept)][name] = [value for _, value in kept]
        times = [point for point in self.values[CLOCK] if math.isfinite(point[1])]
        clock = sorted({0.0: 0.0, **dict(times)}.items()) if times else []
        return [Block(list(at), [_time(clock, x) for x in at], curves) for at, curves in together.items()]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    stride = -(-len(points) // POINTS)
    return points if stride <= 1 else [*points[:-1:stride], points[-1]]


def _time(clock: list[tuple[float, float]], images: float) -> float:
    """Training seconds after so many images, between the rows that say it; as in the last one behind it."""
    if not clock:
        return math.nan
    k = bisect_left(clock, (images, -math.inf))
    if k == len(clock):
        return clock[-1][1]
    if clock[k][0] == images or k == 0:
        return clock[k][1]
    (x0, t0), (x1, t1) = clock[k - 1], clock[k]
    return t0 + (t1 - t0) * (images - x0) / (x1 - x0)
