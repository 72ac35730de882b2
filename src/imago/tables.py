"""metrics.csv of a run: whole rows, and curves, thinned: what a picture shows and where a run stood last."""

import math
import re
from bisect import bisect_left
from collections import defaultdict
from dataclasses import dataclass, field
from pathlib import Path

from imago.errors import printable
from imago.untrusted import read_bytes, shortened

# Rows of training that are read, and points that a curve keeps. A curve is some 600 pixels wide.
ROWS = 400
POINTS = 200
LARGEST_FILE = 2**30
# Columns that are no curves of learning.
LEFT_OUT = ("images_seen", "updates", "time/")
CLOCK, PROCESSOR = "time/training_seconds", "time/training_cpu_seconds"


@dataclass
class Block:
    """Curves that were measured at the same moments.

    Attributes:
        images: images seen, in the order of the table.
        seconds: training seconds then, by the table's clock; ``nan`` where the table has none.
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
        clock: the column that the blocks' seconds are of.
    """

    blocks: list[Block] = field(default_factory=list)
    last: dict[str, float] = field(default_factory=dict)
    last_at: dict[str, float] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)
    clock: str = CLOCK


def read_lines(path: Path) -> tuple[list[str], list[str], str]:
    """The names of a table's columns, its lines, and the beginning of one that the end of the file cuts short.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, too large, or no table of a run.
    """
    lines = read_bytes(path, LARGEST_FILE).decode(errors="replace").split("\n")
    rest = lines.pop()
    if not lines:
        raise ValueError("empty")
    names = [shortened(printable(name.strip())) for name in lines[0].split(",")]
    if "images_seen" not in names or len(set(names)) < len(names):
        raise ValueError("no table with a column images_seen and no other name twice")
    return names, lines[1:], rest


def cells_of(line: str, names: list[str]) -> dict[str, str] | None:
    """The cells of a line that are not blank, by their columns; ``None`` of a damaged line."""
    fields = line.rstrip("\r").split(",")
    row = {name: text for name, text in zip(names, fields, strict=False) if text.strip()}
    try:
        numbers = {name: float(text) for name, text in row.items()}
        return row if len(fields) == len(names) and math.isfinite(numbers["images_seen"]) else None
    except (ValueError, KeyError):
        return None


def read_table(path: Path, by_processor: bool = False) -> Table:
    """Read a metrics.csv. Of a long one some rows of training are left out, but no measurement.

    A row that the end of the file cuts short, or that does not fit the header, is left out and named.

    Args:
        path: of the file.
        by_processor: tell seconds of the processor, where the table has them.

    Raises:
        OSError, ValueError: as of :func:`read_lines`.
    """
    names, lines, rest = read_lines(path)
    table, damaged = Table(clock=PROCESSOR if by_processor and PROCESSOR in names else CLOCK), 0
    points: dict[str, list[tuple[float, float]]] = defaultdict(list)  # (images, value)
    for line in _chosen([line for line in lines if line.strip()], names.index(CLOCK) if CLOCK in names else None):
        row = cells_of(line, names)
        if row is None:
            damaged += 1
            continue
        numbers = {name: float(text) for name, text in row.items()}
        for name, value in numbers.items():
            points[name].append((numbers["images_seen"], value))
        table.last |= numbers
    if rest.strip():
        table.problems.append("the last row is cut short and left out")
    if damaged:
        table.problems.append(f"{damaged} damaged row{'s' if damaged > 1 else ''} left out")
    table.last_at = {name: seen[-1][0] for name, seen in points.items()}
    together: dict[tuple[float, ...], dict[str, list[float]]] = defaultdict(dict)
    for name, seen in points.items():
        if not name.startswith(LEFT_OUT):
            kept = _thinned(seen)
            together[tuple(images for images, _ in kept)][name] = [value for _, value in kept]
    times = [point for point in points[table.clock] if math.isfinite(point[1])]
    clock = sorted({0.0: 0.0, **dict(times)}.items()) if times else []
    table.blocks = [Block(list(at), [_time(clock, x) for x in at], curves) for at, curves in together.items()]
    return table


def _chosen(lines: list[str], clock: int | None) -> list[str]:
    """All measurements and evenly chosen rows of training, those that say the time; of both the last row always."""
    stride = -(-len(lines) // ROWS)
    if stride <= 1:
        return lines
    # Whether a row says the time: a pattern, because splitting half a million rows takes a second.
    says = (lambda line: True) if clock is None else re.compile(rf"(?:[^,]*,){{{clock}}}\s*[^,\s]").match
    last = next((k for k in range(len(lines) - 1, -1, -1) if says(lines[k])), 0)
    return [
        line for k, line in enumerate(lines) if k % stride == 0 or k == last or len(lines) - k <= 2 or not says(line)
    ]


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
