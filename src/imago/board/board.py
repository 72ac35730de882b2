"""Which runs may be compared, in which numbers, and who leads."""

import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from statistics import fmean, stdev

from imago.board.records import Data, Measured, Record, weight
from imago.measures import MEASURES, Better, kind_of
from imago.sweeps import short_names

MISSING = "–"
FEATURELESS = ("nats", "bpd", "kl", "kl_histogram", "modes", "high_quality", "copies", "edge_width", "cas")
QUALITIES = tuple(name for name in MEASURES if name not in ("nats", "bpd"))
# Kinds of measures: Fréchet distances of the samples that were drawn, and all distances of these.
FRECHET = ("fid", "fd_")
LOW = (*FRECHET, "kid", "kd_")
# What a sample takes, in a batch and alone.
SECONDS = ("seconds_per_sample", "seconds_alone")
# Settings that say where a run lay and who watched, not what it was.
NOT_TELLING = re.compile(r"data\.(dir|seed)|logs|resume|name|tags|callbacks\..+\.every|model\.conditional|logger\..*")
# What tables have columns for already.
SHOWN = ("model", "data", "name", "data.path")
# Always there, so that one sees what was not measured.
EXPECTED = {"fid": FRECHET, "kid": ("kid", "kd_"), "precision": ("precision",), "recall": ("recall",)}


@dataclass(frozen=True)
class Cell:
    """One number as it is shown.

    Args:
        value: the number, ``nan`` where there is none.
        text: the number for people; an en dash where there is none.
        tag: what one must know beside it: the split and the count.
        note: everything else: the exact value and the protocol.
        comparison_key: only cells of a column with the same comparison_key are ranked together.
        block: the place of the comparison_key among those of its column and group, from 0.
        best: whether it leads its block, which has others.
        source: what it shows, where it is a measurement.
    """

    value: float = math.nan
    text: str = MISSING
    tag: str = ""
    note: str = ""
    comparison_key: str = ""
    block: int = 0
    best: bool = False
    source: Measured | None = None


@dataclass(frozen=True)
class Column:
    """One column of the board.

    Args:
        key: its name in board.csv.
        title: for people.
        cell: of a run.
        better: which numbers lead; ``None`` where none do.
        help: what the number is.
    """

    key: str
    title: str
    cell: Callable[[Record], Cell]
    better: Better = None
    help: str = ""


@dataclass
class Row:
    """A run and its cells by the keys of their columns."""

    record: Record
    cells: dict[str, Cell]


@dataclass
class Group:
    """Runs on the same data in the same form: the only ones whose numbers compare.

    Attributes:
        data: theirs.
        rows: a run each.
        means: a row for each set of completed runs that differ in their seed alone: the mean over these.
        held_out: what held-out images have by the protocol that most runs were measured by, where that is known: no
            sample can be better.
    """

    data: Data
    rows: list[Row] = field(default_factory=list)
    means: list[Row] = field(default_factory=list)
    held_out: Row | None = None

    @property
    def settings(self) -> dict[str, str]:
        """What sweeps vary and these runs differ in, with a title for each; what has a column anyway left out."""
        keys = dict.fromkeys(key for row in self.rows for key in row.record.varied if key not in SHOWN)
        return short_names(key for key in keys if len({row.record.setting(key) for row in self.rows}) > 1)

    @property
    def settled(self) -> list[Row]:
        """The means over seeds, and the runs that are part of none."""
        within = {id(run) for row in self.means for run in row.record.runs}
        return [*self.means, *(row for row in self.rows if id(row.record) not in within)]

    def filled(self, columns: Iterable[Column]) -> list[Column]:
        """Those of the columns that are not empty."""
        return [c for c in columns if any(not math.isnan(row.cells[c.key].value) for row in self.rows)]

    def rank(self, columns: Iterable[Column], place: Callable[[Row], tuple[object, ...]]) -> None:
        """Mark the leaders, and sort."""
        for rows in (self.rows, self.means):
            for column in columns:
                rank_by(rows, column)
            rows.sort(key=place)

    @property
    def labels(self) -> dict[Record, str]:
        """Names of the runs, each once and as short as it can be."""
        records = [row.record for row in self.rows]
        ways = [
            [r.model for r in records],
            [r.name for r in records],
            [f"{r.model}, seed {r.seed}" for r in records],
            [f"{r.model} {r.when.rsplit(' ', 1)[-1]}" for r in records],
            [r.name_and_start for r in records],
            [r.place for r in records],
        ]
        counts = [Counter(way) for way in ways]
        return {
            record: next((way[k] for way, count in zip(ways, counts, strict=True) if count[way[k]] == 1), f"run {k}")
            for k, record in enumerate(records)
        }


class Board:
    """All runs, grouped by their data, sorted by what compares.

    Args:
        records: the runs.

    Attributes:
        columns: of numbers, from left to right.
        groups: the one with the most runs first.
    """

    def __init__(self, records: Iterable[Record]) -> None:
        records = list(records)
        self.columns = columns_for(records)
        groups: dict[Data, Group] = {}
        for record in sorted(records, key=lambda r: r.data.shape is None):
            data = record.data
            if data.shape is None:  # it broke before it knew: to the runs that it would have been compared with
                data = next((d for d in groups if replace(d, shape=None) == data), data)
            group = groups.setdefault(data, Group(data))
            group.rows.append(Row(record, {column.key: column.cell(record) for column in self.columns}))
        self.groups = sorted(groups.values(), key=lambda g: (-len(g.rows), str(g.data)))
        for group in self.groups:
            _note_versions(group)
            for record in means(row.record for row in group.rows):
                group.means.append(Row(record, {column.key: column.cell(record) for column in self.columns}))
            group.rank(self.columns, self._place)
            group.held_out = _held_out(group, self.columns)

    @property
    def records(self) -> list[Record]:
        """All runs in the order of the board."""
        return [row.record for group in self.groups for row in group.rows]

    def told(self, lines: Callable[[Record], list[str]]) -> dict[str, list[Record]]:
        """What is said of runs, once, with those that it is said of."""
        found: dict[str, list[Record]] = {}
        for record in self.records:
            for line in lines(record):
                found.setdefault(line, []).append(record)
        return found

    def _place(self, row: Row) -> tuple[object, ...]:
        """By likelihood; where there is none by the first distance of samples; then by name."""
        leading = [c.key for c in self.columns if kind_of(c.key) in ("nats", *LOW)]
        cells = [row.cells[key] for key in leading]
        order = [(math.isnan(cell.value), cell.block, 0 if math.isnan(cell.value) else cell.value) for cell in cells]
        return (*order, row.record.name, row.record.started)


def means(records: Iterable[Record]) -> Iterator[Record]:
    """The mean of each set of completed runs that differ in their seed alone; of runs of one seed the last counts."""
    together: dict[tuple[object, ...], dict[int, Record]] = {}
    for record in records:
        if record.status == "completed" and record.seed is not None and record.settings:
            telling = {k: v for k, v in record.settings.items() if k != "seed" and not NOT_TELLING.fullmatch(k)}
            together.setdefault((record.model, *sorted(telling.items())), {})[record.seed] = record
    for by_seed in together.values():
        if len(by_seed) > 1:
            yield _mean([by_seed[seed] for seed in sorted(by_seed)])


def without_seed(name: str) -> str:
    """The name of a run of a sweep without its seed."""
    return re.sub(r" seed=\S+", "", name)


def _mean(runs: list[Record]) -> Record:
    """A record whose numbers are means: each of the protocol that most of the runs share, else of the weightiest."""
    measured = []
    for name in dict.fromkeys(m.name for run in runs for m in run.measured):
        found: dict[str, list[tuple[Record, Measured]]] = {}
        for run in runs:
            for key, m in run.by_comparison_key(name).items():
                if math.isfinite(m.value):
                    found.setdefault(key, []).append((run, m))
        shared = max(found.values(), key=lambda pairs: (len(pairs), weight(pairs[-1][1])), default=[])
        if len(shared) > 1:
            values = [m.value for _, m in shared]
            batched, alone = (
                [s for _, m in shared if (s := getattr(m.protocol, entry)) is not None] for entry in SECONDS
            )
            first = shared[0][1]
            protocol = replace(
                first.protocol,
                standard_error=stdev(values) / math.sqrt(len(values)),
                deviation=None,
                seed=None,
                seconds_per_sample=fmean(batched) if len(batched) == len(shared) else None,
                seconds_alone=fmean(alone) if len(alone) == len(shared) else None,
            )
            seeds = tuple(run.seed for run, _ in shared if run.seed is not None)
            measured.append(replace(first, value=fmean(values), protocol=protocol, seeds=seeds))

    def of(values: Iterable[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return fmean(known) if known else None

    seen = of(run.images_seen for run in runs)
    return replace(
        runs[0],
        name=without_seed(runs[0].name),
        started=f"{len(runs)} seeds",
        seed=None,
        images_seen=None if seen is None else round(seen),
        training_seconds=of(run.training_seconds for run in runs),
        cpu_seconds=of(run.cpu_seconds for run in runs),
        peak_memory_mib=of(run.peak_memory_mib for run in runs),
        machine=runs[0].machine if len({run.machine for run in runs}) == 1 else "several machines",
        measured=measured,
        varied={key: value for key, value in runs[0].varied.items() if key != "seed"},
        runs=runs,
        defects=[],
    )


def rank_by(rows: list[Row], column: Column) -> None:
    """Number the comparison_keys of a column, test before validation, the most common first; mark the leaders."""
    blocks: dict[str, list[Row]] = {}
    for row in rows:
        if not math.isnan(row.cells[column.key].value):
            blocks.setdefault(row.cells[column.key].comparison_key, []).append(row)

    def place(key: str) -> tuple[bool, int, str]:
        sources = [row.cells[column.key].source for row in blocks[key]]
        return all(m is not None and m.split == "val" for m in sources), -len(sources), key

    for block, key in enumerate(sorted(blocks, key=place)):
        values = [row.cells[column.key].value for row in blocks[key]]
        ranked = [
            v for row, v in zip(blocks[key], values, strict=True) if not _beyond(row.cells[column.key], column.better)
        ]
        lead = {"low": min(ranked, default=math.nan), "high": max(ranked, default=math.nan), None: math.nan}[
            column.better
        ]
        for row, value in zip(blocks[key], values, strict=True):
            best = len(values) > 1 and value == lead and not _beyond(row.cells[column.key], column.better)
            row.cells[column.key] = replace(row.cells[column.key], block=block, best=best)


def _held_out(group: Group, columns: list[Column]) -> Row | None:
    """The row of held-out images: of each column what the first runs that are ranked have beside them."""
    record, cells = Record(Path(), "held-out images", "", model=MISSING, data=group.data, status=MISSING), {}
    for column in columns:
        ranked = [cell.source for row in group.rows if (cell := row.cells[column.key]).block == 0 and cell.source]
        beside = next((m.protocol for m in ranked if m.protocol.held_out_value is not None), None)
        cells[column.key] = Cell()
        if beside is not None and beside.held_out_value is not None:
            count = "" if beside.held_out_images is None else f" {si(beside.held_out_images)}"
            tag = f"{(beside.held_out or '').rsplit(' ', 1)[-1]}{count}"
            text = f"{beside.held_out_value:.4g}"
            cells[column.key] = Cell(beside.held_out_value, text, tag, f"{beside.held_out_value:.8g}")
    return Row(record, cells) if any(not math.isnan(cell.value) for cell in cells.values()) else None


def _beyond(cell: Cell, better: Better) -> bool:
    """Whether samples are, by this number and two of its errors, better than held-out images: no praise of them."""
    real = cell.source.protocol.held_out_value if cell.source else None
    if cell.source is None or real is None or better is None:
        return False
    margin = 2 * (cell.source.error or 0)
    return cell.value < real - margin if better == "low" else cell.value > real + margin


def _note_versions(group: Group) -> None:
    """Name the runs that were measured on another version of the data than most of their group."""
    versions = {row.record: m.version for row in group.rows for m in row.record.measured if m.version is not None}
    usual = Counter(versions.values()).most_common(1)
    for row in group.rows:
        version = versions.get(row.record)
        if version is not None and version != usual[0][0]:
            row.record.defects.append(
                f"another version of {group.data.name} ({version}) than in most runs ({usual[0][0]}): its numbers are "
                "not ranked with theirs"
            )


def columns_for(records: list[Record]) -> list[Column]:
    """The columns: those that every board has, and one for every kind of sample quality that was measured."""
    measured = {m.name for record in records for m in record.measured if not m.changes}
    return [
        _column("nats", lambda r: _likelihood(r, "nats", 2)),
        _column("bpd", lambda r: _likelihood(r, "bpd", 3)),
        *(_column(name, partial(_samples, name=name)) for name in _quality_names(measured)),
        Column("parameters", "Parameters", _parameters, help="Learned numbers of all networks."),
        Column("images_seen", "Images", _images, help="Training images seen, repetitions included."),
        Column("training_seconds", "Training", _training, help="Time spent training, without measurements."),
        *([_CPU] if any(record.by_processor for record in records) else []),
        Column("seconds_per_sample", "Per sample", _per_sample, "low", "Time to draw one image."),
        Column("nfe", "Calls", _calls, help="Network calls to draw an image, one after another."),
        Column("peak_memory_mib", "Memory", _memory, help="Peak while training: of the GPU, or of the process."),
    ]


def _quality_names(measured: set[str]) -> list[str]:
    """Names of sample quality in the order of their columns, with the expected ones where nothing like them is."""
    names = {name for name in measured if name.startswith(QUALITIES)}
    names |= {name for name, alike in EXPECTED.items() if not any(other.startswith(alike) for other in measured)}
    return sorted(names, key=lambda name: (list(MEASURES).index(kind_of(name)), name))


def _column(name: str, cell: Callable[[Record], Cell]) -> Column:
    way, title, explained = MEASURES[kind_of(name)]
    extractor = name.removeprefix(kind_of(name)).strip("_").replace("_", " ")
    features = "" if kind_of(name) in FEATURELESS else f", in the features of {extractor or 'Inception'}"
    return Column(name, f"{title} {extractor}".strip(), cell, way, f"{explained}{features}.")


def _likelihood(record: Record, name: str, digits: int) -> Cell:
    m = record.headline(name)
    if m is None:
        return Cell()
    if m.error is not None and 0 < m.error < 10**-digits:
        digits = min(math.ceil(-math.log10(m.error)), 12)  # one digit of the error at least
    return _measured(m, number(m, digits))


def number(m: Measured, digits: int) -> str:
    """A likelihood or distance with its relation and error, and so many digits behind the point."""
    error = "" if m.error is None else f" ± {m.error:.{digits}f}"
    return f"{m.relation} {m.value:,.{digits}f}{error}".strip()


def tag(m: Measured) -> str:
    """The split and the count, and the number of seeds of a mean over runs."""
    seeds = f", {len(m.seeds)} seeds" if m.seeds else ""
    return f"{m.split}{'' if m.count is None else f' {si(m.count)}'}{seeds}"


def _samples(record: Record, name: str) -> Cell:
    m = record.headline(name)
    if m is None:
        return Cell()
    error = "" if m.error is None else f" ± {m.error:.2g}"
    return _measured(m, f"{m.relation} {m.value:.4g}{error}{' †' if m.protocol.doubtful else ''}".strip())


def _measured(m: Measured, text: str) -> Cell:
    return Cell(m.value, text, tag(m), f"{m.value:.8g}; {m.told}", m.comparison_key, source=m)


def _known(value: float | None, text: Callable[[float], str], note: Callable[[float], str], key: str = "") -> Cell:
    """A number that a record may lack."""
    return Cell() if value is None else Cell(value, text(value), note=note(value), comparison_key=key)


def _parameters(r: Record) -> Cell:
    networks = "; ".join(f"{player} {count:,}" for player, count in r.parameters.items())
    return _known(r.parameters.get("total"), si, lambda _: networks)


def _images(r: Record) -> Cell:
    return _known(r.images_seen, si, lambda n: f"{n:,} images")


def _training(r: Record) -> Cell:
    known = None if r.by_processor else r.training_seconds
    return _known(known, lambda s: f"{s:,.0f} s", lambda s: f"{s:,.1f} s; {r.machine}")


def _training_cpu(r: Record) -> Cell:
    clock = "" if r.training_seconds is None else f"; {r.training_seconds:,.1f} s by the clock"
    known = r.cpu_seconds if r.by_processor else None
    return _known(known, lambda s: f"{s:,.0f} s", lambda s: f"{s:,.1f} s of the processor{clock}; {r.machine}")


_CPU = Column(
    "training_cpu_seconds",
    "Training, CPU",
    _training_cpu,
    help="The processor's seconds of training, all threads together, of runs that these limited (max_cpu_seconds).",
)


def _memory(r: Record) -> Cell:
    return _known(r.peak_memory_mib, lambda m: f"{m:,.0f} MiB", lambda m: f"{m:,.1f} MiB; {r.machine}")


def _per_sample(r: Record) -> Cell:
    m = r.sampling
    note = f"{r.machine}; {m.told}" if m else ""
    return _known(m.protocol.seconds_per_sample if m else None, duration, lambda s: f"{s:.4g} s; {note}", r.machine)


def _calls(r: Record) -> Cell:
    m = r.sampling
    told = f"calls, one after another; {m.told}" if m else ""
    return _known(m.protocol.nfe if m else None, lambda n: f"{n:,}", lambda n: f"{n:,} {told}")


def si(count: float) -> str:
    """A count with three digits: 1.36M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(count) >= 0.9995 * size:
            return f"{count / size:.3g}{letter}"
    return f"{count:.3g}" if count % 1 else f"{count:.0f}"


def duration(seconds: float) -> str:
    """A time with three digits: 12.3 ms."""
    for size, unit in ((1.0, "s"), (1e-3, "ms")):
        if seconds >= size:
            return f"{seconds / size:,.3g} {unit}" if seconds < 1000 else f"{seconds:,.0f} s"
    return f"{seconds / 1e-6:.3g} µs"
