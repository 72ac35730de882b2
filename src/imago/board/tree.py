"""The runs at the leaves of the taxonomy of generative models, as one page and one picture."""

import base64
import io
import math
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from imago.board.board import FRECHET, Board, Group, Row, si
from imago.board.grids import MARGIN, factor_of
from imago.board.page import rendered, write_html
from imago.board.pictures import LARGEST_FILE, picture_of
from imago.board.records import Record
from imago.config import CONF
from imago.files import write_text
from imago.measures import kind_of
from imago.signatures import attribute_of
from imago.taxonomy import LEAVES, Leaf
from imago.untrusted import read_bytes, read_yaml, shortened

# Pixels of the picture: of a leaf's column, of what lies between two, of the branches above, and of a line of text.
COLUMN, GAP, BRANCHES, LINE = 160, 8, 190, 15
STRIP = (144, 58)  # of a strip of samples
SAMPLES = (5, 2)  # images of a strip, across and down
LETTERS = 30  # of a line of a card


@dataclass
class Card:
    """A model of a leaf: its best run.

    Args:
        model: its name.
        lines: likelihood with its kind, distance, cost of a sample; those that are known.
        strip: samples, as an address that holds them; empty where there are none.
        link: to the run.
        top: where it is drawn.
    """

    model: str
    lines: list[str]
    strip: str
    link: str
    top: int = 0

    @property
    def text(self) -> int:
        """Where its first line is drawn."""
        return self.top + (STRIP[1] + 42 if self.strip else 36)

    @property
    def height(self) -> int:
        """Pixels of its box."""
        return self.text - self.top + LINE * len(self.lines) - 4


@dataclass
class Place:
    """A leaf of the tree with its runs.

    Args:
        leaf: of the taxonomy.
        cards: its models that have runs.
        others: names of those that have none.
        page: link to its page of the documentation, where that is at hand.
    """

    leaf: Leaf
    cards: list[Card] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    page: str = ""


@dataclass
class Branch:
    """What stands above neighbouring leaves: its name, and the first and last of their columns."""

    title: str
    first: int
    last: int


def write_tree(board: Board, page: Path, picture: Path) -> None:
    """Write the tree of every data set as a page, and that of the one with the most models as a picture.

    Args:
        board: the runs.
        page: an HTML file; links in it are relative to its folder.
        picture: an SVG file, which needs no other.
    """
    trees = [(group, places_of(group, page.parent)) for group in board.groups]
    trees.sort(key=lambda tree: -sum(len(place.cards) for place in tree[1]))
    drawings = [(str(group.data), _drawing(places, str(group.data))) for group, places in trees]
    write_html(page, "tree.html", drawings=drawings)
    write_text(picture, drawings[0][1])


def places_of(group: Group, folder: Path) -> list[Place]:
    """The leaves of the taxonomy with the best run of each model on one data set.

    Args:
        group: the runs.
        folder: that links are relative to.
    """
    places = {name: Place(leaf) for name, leaf in LEAVES.items()}
    docs = CONF.parent / "docs"
    for place in places.values():
        if (docs / place.leaf.page).is_file():
            place.page = _link(docs / place.leaf.page, folder)
    known = set()
    distance = _distance(group.settled)
    for row in group.settled:
        if row.record.leaf in places and row.record.model not in known and row.record.status != "failed":
            known.add(row.record.model)
            places[row.record.leaf].cards.append(_card(row, folder, distance))
    for model, leaf in _models().items():
        if model not in known and leaf in places:
            places[leaf].others.append(model)
    return list(places.values())


@cache
def _models() -> dict[str, str]:
    """The leaf of each choice of the model group that has one."""
    found = {}
    for path in sorted((CONF / "model").glob("*.yaml")):
        leaf = attribute_of(str(read_yaml(path).get("_target_")), "leaf")
        if leaf:
            found[path.stem] = str(leaf)
    return found


def _distance(rows: list[Row]) -> str:
    """The Fréchet distance of samples that most runs have; empty where none has one."""
    counts = Counter(
        k for row in rows for k in row.cells if kind_of(k) in FRECHET and not math.isnan(row.cells[k].value)
    )
    return counts.most_common(1)[0][0] if counts else ""


def _card(row: Row, folder: Path, distance: str) -> Card:
    cells, record = row.cells, row.record
    binary = record.data.shape is not None and record.data.shape[-1] <= 2
    key, unit = ("nats", "nats") if binary else ("bpd", "bits/dim")
    lines = [] if math.isnan(cells[key].value) else [f"{cells[key].text} {unit}"]
    if distance and (m := cells[distance].source) is not None:
        lines.append(f"FD {cells[distance].text}{f' of {si(m.count)}' if m.count else ''}")
    cost = [cells[key] for key in ("seconds_per_sample", "nfe")]
    if not math.isnan(cost[0].value):
        calls = "" if math.isnan(cost[1].value) else f", {cost[1].text} call{'s' * (cost[1].text != '1')}"
        lines.append(f"{cost[0].text}/sample{calls}")
    strip = ""
    with suppress(Exception):  # Pillow raises whatever a damaged picture leads it to
        strip = strip_of(record)
    return Card(
        shortened(record.model, LETTERS), [shortened(line, LETTERS) for line in lines], strip,
        _link(record.path, folder) + "/",
    )  # fmt: skip


def _link(path: Path, folder: Path) -> str:
    return quote(os.fsencode(Path(os.path.relpath(path, folder)).as_posix()))


def strip_of(record: Record) -> str:
    """The first images of a run's newest grid as an address that holds them; empty where there is none.

    Raises:
        Exception: of many kinds; the picture cannot be read.
    """
    if record.grid is None:
        return ""
    with picture_of(read_bytes(record.grid, LARGEST_FILE)) as picture:
        box = (0, 0, *picture.size)
        if record.data.shape is not None and record.data.shape[1] * record.data.shape[2] > 1:
            _, height, width, _ = record.data.shape
            factor = factor_of(picture.size, record.data.shape)
            across, down = SAMPLES
            right, bottom = (width + MARGIN) * factor * across, (height + MARGIN) * factor * down
            box = (0, 0, min(right, picture.width), min(bottom, picture.height))
        cut = picture.crop(box).convert("RGB")
        cut.thumbnail((3 * STRIP[0], 3 * STRIP[1]), Image.Resampling.BOX)
        written = io.BytesIO()
        cut.save(written, "PNG", optimize=True)
    return f"data:image/png;base64,{base64.b64encode(written.getvalue()).decode()}"


def _drawing(places: list[Place], data: str) -> str:
    """The tree as SVG; names of whatever origin become text."""
    levels = [list(_branches(places, depth)) for depth in range(2)]
    ends = []
    for place in places:
        ends.append(BRANCHES)
        for card in place.cards:
            card.top = ends[-1]
            ends[-1] += card.height + GAP
    height = max(end + LINE * len(place.others) for end, place in zip(ends, places, strict=True)) + GAP
    return rendered(
        "tree.svg", places=places, levels=levels, ends=ends, data=data, width=len(places) * (COLUMN + GAP) + GAP,
        height=height, column=COLUMN, gap=GAP, line=LINE, strip=STRIP,
    )  # fmt: skip


def _branches(places: list[Place], depth: int) -> Iterator[Branch]:
    numbered = enumerate(place.leaf.branches[: depth + 1] for place in places)
    for key, same in groupby(numbered, key=lambda pair: pair[1]):
        columns = [number for number, _ in same]
        if len(key) > depth:
            yield Branch(key[depth], columns[0], columns[-1])
