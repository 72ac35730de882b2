"""One run as the board sees it, read from whatever its directory still holds."""

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from jaxtyping import Float

from imago.board.checkpoint import peek
from imago.config import CONF
from imago.errors import printable
from imago.legacy import today
from imago.measures import EACH, RELATIONS, Protocol
from imago.pretrained import SETTINGS, WEIGHTS
from imago.signatures import attribute_of
from imago.sweeps import in_short
from imago.tables import PROCESSOR, Table, read_table
from imago.untrusted import read_json, read_yaml, shortened

# Two hours: longer than any grid or measurement takes in which a run writes nothing.
SILENCE = 2 * 3600.0
# Characters of a text that are shown, pixels of a side, and numbers that a run can have counted or taken.
LONGEST = 300
WIDEST = 100_000
LARGEST = 1e18
T = TypeVar("T")


@dataclass(frozen=True)
class Measured:
    """One number and how it came about.

    Args:
        name: "nats", "fd_classifier", ...; without the split.
        value: the number.
        split: of a likelihood "test" or "val"; of samples "eval" if evaluate.py drew them, "val" if training did.
        protocol: as it was written; empty where there is none.
        checkpoint: its file, where that is known.
        images_seen: by the model then, where that is known.
        changes: of the model's settings for this measurement.
        seeds: of the runs whose mean it is; empty of a single run.
        each: the file with the value of every image, where there is one.
    """

    name: str
    value: float
    split: str
    protocol: Protocol = field(default_factory=Protocol)
    checkpoint: str | None = None
    images_seen: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    seeds: tuple[int, ...] = ()
    each: Path | None = None

    def of_each_image(self) -> Float[np.ndarray, " n"] | None:
        """The value of every image, in the order of their measurement; ``None`` where it is not known or damaged."""
        if self.each is None or not self.count:
            return None
        try:
            if self.each.stat().st_size > 8 * self.count + 1024:  # more than a header and so many numbers
                return None
            values = np.load(self.each, allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        whole = values.shape == (self.count,) and values.dtype.kind == "f" and np.isfinite(values).all()
        return values.astype(np.float64) if whole else None

    @property
    def relation(self) -> str:
        """``=`` for an exact likelihood, ``≤`` for a bound, ``≈`` for an estimate, nothing for a part."""
        likelihood = self.name.rsplit("/", 1)[-1] in ("nats", "bpd") or self.name == "kl"
        return self.protocol.relation if likelihood else ""

    @property
    def error(self) -> float | None:
        """The standard error of the mean, where there is one."""
        return self.protocol.error

    @property
    def count(self) -> int | None:
        """How many images or samples it is a mean of."""
        return self.protocol.samples if self.protocol.images is None else self.protocol.images

    @property
    def version(self) -> str | None:
        """The version of the data that the number is about."""
        return self.protocol.data_fingerprint or self.protocol.reference_fingerprint

    @property
    def comparison_key(self) -> str:
        """Numbers of one name may be ranked together if this is the same."""
        return self.protocol.comparison_key or f"unknown {self.split}"

    @property
    def told(self) -> str:
        """The protocol in one line."""
        entries = self.protocol.as_dict()
        caveat = entries.pop("caveat", "none")
        said = [f"{key.replace('_', ' ')} {_short(entry)}" for key, entry in entries.items()]
        if self.seeds:
            said.insert(0, f"mean ± its standard error over {len(self.seeds)} seeds: {', '.join(map(str, self.seeds))}")
        if not entries.keys() - {"likelihood"}:
            said.append("protocol unknown: from metrics.csv alone")
        if self.checkpoint:
            said.append(f"checkpoint {self.checkpoint}")
        if self.images_seen is not None:
            said.append(f"after {self.images_seen:,} images")
        said += [f"with {key}={value}" for key, value in flat(self.changes)]
        if caveat != "none":
            said.append(f"caveat: {caveat}")
        return "; ".join(said)


@dataclass(frozen=True)
class Data:
    """What a run was trained on. Likelihoods compare where all of it is equal.

    Args:
        name: "mnist".
        binarize: "dynamic", "threshold", or ``None`` for gray and colours.
        shape: channels, height, width, levels; ``None`` where the run broke before it was known.
        own: whether they are somebody's own images, which may have any name.
        val: how many images were held out of training, where the run chose that; ``None`` for as many as usual.
    """

    name: str
    binarize: str | None
    shape: tuple[int, int, int, int] | None
    own: bool = False
    val: int | None = None

    def __str__(self) -> str:
        said = [self.name, *["own images"] * self.own]
        if self.shape:
            channels, height, width, _ = self.shape
            said.append(f"{height}×{width} {'gray' if channels == 1 else 'RGB' if channels == 3 else f'×{channels}'}")
        if self.binarize:
            said.append(f"binarised ({self.binarize})")
        if self.val is not None:
            said.append(f"{self.val or 'no'} images held out")
        return ", ".join(said)


@dataclass(eq=False)
class Record:
    """One run; equal to itself alone.

    Attributes:
        path: the directory.
        name: the run's own name, or its directory's.
        started: the name of the directory, which is the time of its start unless someone renamed it.
        model: the choice of the model group, such as "diagonal_bilstm", or the class where none is like it.
        data: what it was trained on.
        status: "completed", "running", "interrupted", "failed", or "unknown".
        seed: of the run.
        likelihood: its kind, "exact", "lower_bound", "estimate" or "none"; "unknown" where no summary says it.
        leaf: of the taxonomy, a key of :data:`imago.taxonomy.LEAVES`; empty where it is not known.
        parameters: learned numbers by player, and their "total".
        images_seen: so far.
        training_seconds: so far, without measuring, drawing and writing.
        cpu_seconds: of the processor in that time, all threads together.
        peak_memory_mib: of the GPU, or of the process.
        machine: what it ran on.
        measured: every number that was measured, oldest first.
        table: the curves.
        grid: the newest picture of samples.
        settings: the configuration, flat.
        choices: of the groups of the configuration.
        varied: what the run's sweep varies, with its values.
        overrides: of the run's job in its sweep, ``KEY=VALUE`` each.
        runs: that it is the mean of, which differ in their seed alone; empty of a single run.
        notices: what it was told that will not become what one hopes for, a line each.
        defects: what is wrong with the directory, a line each.
    """

    path: Path
    name: str
    started: str
    model: str = "unknown"
    data: Data = Data("unknown", None, None)
    status: str = "unknown"
    seed: int | None = None
    likelihood: str = "unknown"
    leaf: str = ""
    parameters: dict[str, int] = field(default_factory=dict)
    images_seen: int | None = None
    training_seconds: float | None = None
    cpu_seconds: float | None = None
    peak_memory_mib: float | None = None
    machine: str = "machine unknown"
    measured: list[Measured] = field(default_factory=list)
    table: Table = field(default_factory=Table)
    grid: Path | None = None
    settings: dict[str, str] = field(default_factory=dict)
    choices: dict[str, str] = field(default_factory=dict)
    varied: dict[str, str] = field(default_factory=dict)
    overrides: list[str] = field(default_factory=list)
    runs: list["Record"] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    defects: list[str] = field(default_factory=list)

    @property
    def place(self) -> str:
        """The directory as one can show it."""
        return _line(str(self.path))

    @property
    def when(self) -> str:
        """The start, to the minute, where the directory's name is a time; else that name."""
        time_of = re.fullmatch(r"(\d{4}-\d\d-\d\d)_(\d\d)-(\d\d)-\d\d(-\d+)?", self.started)
        return f"{time_of[1]} {time_of[2]}:{time_of[3]}{time_of[4] or ''}" if time_of else self.started

    @property
    def name_and_start(self) -> str:
        """What tells runs of one name apart; of an export, whose folder has its name, that name once."""
        return self.name if self.when == self.name else f"{self.name} {self.when}"

    @property
    def by_processor(self) -> bool:
        """Whether its training was limited by the processor's seconds: those by the clock tell of others' work too."""
        return self.settings.get("max_cpu_seconds", "null") != "null" and bool(self.cpu_seconds)

    def setting(self, key: str) -> str:
        """The value of a setting or the choice of a group; empty where the run has none."""
        return self.varied.get(key) or self.choices.get(key) or self.settings.get(key.replace("/", "."), "")

    def headline(self, name: str) -> Measured | None:
        """The measurement of a name that a table shows.

        Of the model as it was trained; on the test split rather than the validation split, and by evaluate.py rather
        than during training; of as many images and as many seeds as possible; the newest of those.
        """
        return max(reversed(self.plain(name)), key=weight, default=None)

    def plain(self, name: str) -> list[Measured]:
        """All measurements of a name of the model as it was trained."""
        return [m for m in self.measured if m.name == name and not m.changes]

    def by_comparison_key(self, name: str) -> dict[str, Measured]:
        """Of each protocol by which a name was measured the one that :meth:`headline` would choose."""
        return {m.comparison_key: m for m in sorted(self.plain(name), key=weight)}

    @property
    def sampling(self) -> Measured | None:
        """The measurement of samples that tells what it takes to draw one, chosen as by :meth:`headline`."""
        costs = [m for m in self.measured if m.protocol.seconds_per_sample is not None and not m.changes]
        return max(reversed(costs), key=weight, default=None)


def weight(m: Measured) -> tuple[bool, int, int]:
    """By what a measurement counts more than others of its name."""
    return m.split != "val", m.count or 0, m.protocol.repeats or 1


def read_record(path: Path) -> Record:
    """Read a run directory; whatever is missing or damaged is left out and named in ``defects``."""
    record = Record(path, name=_line(path.parent.name or path.name), started=_line(path.name))
    try:
        _read_into(record)
    except Exception as error:  # of what nobody thought of, one line; the other runs are shown
        record.defects.append(f"cannot be read further ({_line(f'{type(error).__name__}: {error}')})")
    record.defects = [_line(defect) for defect in record.defects]
    return record


def _read_into(record: Record) -> None:
    exported = os.path.lexists(record.path / WEIGHTS)
    config = {} if exported else today(_read(record, "config.yaml", read_yaml, {}))
    summary = today(_read(record, "summary.json", read_json, {}))
    checkpoint = _checkpoint(record)
    if not config and checkpoint["config"]:
        record.defects += ["the configuration is the checkpoint's"] * (not exported)
        config = checkpoint["config"]
    spec = _mapping(summary.get("spec")) or checkpoint["spec"]
    record.name = str(summary.get("name") or record.name)
    record.data = _data(config, summary, spec)
    record.model = _model(config, summary)
    record.seed = _whole(summary.get("seed", config.get("seed")))
    record.likelihood = str(summary.get("likelihood", "unknown"))
    record.leaf = str(summary.get("leaf") or attribute_of(_made(config, summary), "leaf") or "")
    record.settings = dict(flat(config)) | _classes(spec)
    record.choices = {group: str(choice) for group, choice in _mapping(summary.get("choices")).items()}
    sweep = _mapping(summary.get("sweep"))
    record.varied = {key: in_short(str(value)) for key, value in _mapping(sweep.get("varied")).items()}
    record.overrides = _texts(sweep.get("overrides"))
    record.notices = _texts(summary.get("notices"))
    counts = {player: _whole(count) for player, count in _mapping(summary.get("parameters")).items()}
    record.parameters = {player: count for player, count in counts.items() if count is not None}
    if record.parameters:
        record.parameters.setdefault("total", sum(record.parameters.values()))
    device, threads = str(summary.get("device", "machine unknown")), summary.get("threads")
    record.machine = f"{device}, {threads} of them used" if "CPU" in device and threads is not None else device
    curves = partial(read_table, by_processor=config.get("max_cpu_seconds") is not None)
    record.table = Table() if exported else _read(record, "metrics.csv", curves, Table())
    record.defects += [f"metrics.csv: {problem}" for problem in record.table.problems]
    record.defects += [f"{what}: {told}" for what, told in _mapping(summary.get("problems")).items()]
    # The summary tells how far a run came that ended; the table goes on while it runs.
    last = record.table.last
    stands = checkpoint["progress"].get("images_seen")
    seen = [stands] if exported else [summary.get("images_seen"), last.get("images_seen"), stands]
    record.images_seen = _whole(_largest(seen))
    record.training_seconds = _largest([summary.get("training_seconds"), last.get("time/training_seconds")])
    record.cpu_seconds = _largest([summary.get("training_cpu_seconds"), last.get(PROCESSOR)])
    record.peak_memory_mib = _largest([summary.get("peak_memory_mib"), last.get("time/peak_memory_mib")])
    record.measured = [*_in_training(record, summary), *_evaluated(record)]
    _status(record, summary)
    _identity(record, config, spec, checkpoint)
    record.grid = newest(record, "images-")


def newest(record: Record, name: str) -> Path | None:
    """The last of a run's pictures whose name begins so."""
    try:
        return max((record.path / "samples").glob(f"{name}*.png"), default=None)
    except OSError:
        return None


def _classes(spec: Mapping[str, Any]) -> dict[str, str]:
    """The names of the classes as one more setting; of many the first ones."""
    names = spec.get("class_names")
    if not isinstance(names, list) or not names:
        return {}
    more = f", ... ({len(names)} in all)" if len(names) > 20 else ""
    return {"data.classes": ", ".join(str(name)[:40] for name in names[:20]) + more}


def _read(record: Record, name: str, parse: Callable[[Path], Any], default: T) -> T:
    """What a file of a run holds; of one that is missing, damaged or holds something else the default."""
    try:
        content = _cleaned(parse(record.path / name))
        if isinstance(content, type(default)):
            return content
        record.defects.append(f"{name} holds something else")
    except FileNotFoundError:
        record.defects.append(f"{name} is missing")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error).removeprefix("cannot be read: ")
        record.defects.append(f"{name} cannot be read ({reason})")
    return default


def _checkpoint(record: Record) -> dict[str, Any]:
    nothing: dict[str, Any] = {"config": {}, "spec": {}, "progress": {}}
    for name in ("checkpoints/last.ckpt", "checkpoints/best.ckpt", SETTINGS):
        if os.path.lexists(record.path / name):
            return _read(record, name, peek, nothing)
    record.defects.append("no checkpoint")
    return nothing


def _in_training(record: Record, summary: Mapping[str, Any]) -> Iterator[Measured]:
    """What training measured; from the table where an older run has no protocols."""
    known = set()
    for name, result in _mapping(summary.get("metrics")).items():
        if _is_number(_mapping(result).get("value"), finite=False):
            known.add(_bare(name))
            yield _measured(name, "val", result)
    kind = {"likelihood": record.likelihood} if record.likelihood in RELATIONS else {}
    for name, value in record.table.last.items():
        untrained = record.table.last_at[name] == 0 and record.images_seen
        if name.startswith("val/") and _bare(name) not in known and not untrained:
            protocol = kind if _bare(name) in ("nats", "bpd", "kl") else {}
            yield _measured(name, "val", {"value": value, "protocol": protocol})


def _evaluated(record: Record) -> Iterator[Measured]:
    """What evaluate.py measured."""
    if not os.path.lexists(record.path / "evaluation.json"):
        return
    entries: list[Any] = today(_read(record, "evaluation.json", read_json, []))
    usable = [e for e in entries if "name" in _mapping(e) and _is_number(e.get("value"), finite=False)]
    if len(usable) < len(entries):
        record.defects.append(f"evaluation.json: {len(entries) - len(usable)} without name and number, left out")
    for entry in usable:
        name = str(entry["name"])
        measured = _measured(name, name.split("/")[0] if name.startswith(("test/", "val/")) else "eval", entry)
        file = re.fullmatch(rf"{EACH}/(\w+\.npy)", str(entry.get("each")))
        yield replace(measured, each=record.path / EACH / file[1]) if file else measured


def _measured(name: str, split: str, entry: Mapping[str, Any]) -> Measured:
    protocol = {key: told for key, told in _mapping(entry.get("protocol")).items() if not _is_large(told)}
    return Measured(
        _bare(name),
        float(entry["value"]),
        split,
        Protocol.from_dict(protocol),
        str(entry["checkpoint"]) if "checkpoint" in entry else None,
        _whole(entry.get("images_seen")),
        _mapping(entry.get("changes")),
    )


def _status(record: Record, summary: Mapping[str, Any]) -> None:
    record.status = str(summary.get("status", "unknown"))
    if record.status == "failed":
        record.defects.append(f"failed: {summary.get('error', 'without a word')}")
    if record.status == "running":
        files = [record.path / name for name in ("metrics.csv", "summary.json")]
        silent = time.time() - max((file.stat().st_mtime for file in files if file.exists()), default=time.time())
        record.defects = [f"{d} yet" if d == "no checkpoint" else d for d in record.defects]
        if silent > SILENCE:
            record.defects.append(f"says running, but has written nothing for {silent / 3600:.0f} hours: killed?")


def _identity(
    record: Record, config: Mapping[str, Any], spec: Mapping[str, Any], checkpoint: Mapping[str, Any]
) -> None:
    """Whether checkpoint and measurements belong to this run and to one version of its data."""
    theirs = checkpoint["config"]
    if theirs:
        other = _data(theirs, {}, checkpoint["spec"])
        own = _data(config, {}, spec)
        if other != own:
            record.defects.append(f"the checkpoint is of another data set ({other}; the run: {own})")
        elif _model(theirs, {}) != _model(config, {}):
            record.defects.append(f"the checkpoint is of another model ({_model(theirs, {})})")
    foreign = {m.name: data for m in record.measured if (data := _data_of(m)) not in (None, record.data.name)}
    for name, data in foreign.items():
        record.defects.append(f"{name} was measured on {data}, the run is of {record.data.name}: left out")
    record.measured = [m for m in record.measured if _data_of(m) in (None, record.data.name)]
    versions = {m.version: None for m in record.measured if m.version is not None}
    if len(versions) > 1:
        record.defects.append(f"measured on different versions of {record.data.name} ({', '.join(versions)})")
    record.defects += _too_few(record)
    stands = _whole(checkpoint["progress"].get("images_seen"))
    measured = [m.images_seen for m in record.measured if m.checkpoint == "last.ckpt" and m.images_seen is not None]
    if stands is not None and measured and max(measured) < stands:
        record.defects.append(
            f"evaluated after {max(measured):,} images, but last.ckpt has seen {stands:,}; evaluate again"
        )


def _too_few(record: Record) -> list[str]:
    """Numbers that the table shows though they were measured on fewer images than their metric needs, by reason."""
    reasons: dict[str, list[str]] = {}
    for name in dict.fromkeys(m.name for m in record.measured):
        m = record.headline(name)
        caveat = (m and m.protocol.caveat) or ""
        if caveat.startswith("unreliable") or "too few" in caveat:
            reasons.setdefault(caveat, []).append(name)
    return [f"{', '.join(names)}: {caveat}" for caveat, names in reasons.items()]


def _data_of(measured: Measured) -> str | None:
    """The data set that a number is about; its protocol says it with the split."""
    said = measured.protocol.data or measured.protocol.reference
    return None if said is None else said.rsplit(" ", 1)[0]


def _data(config: Mapping[str, Any], summary: Mapping[str, Any], spec: Mapping[str, Any]) -> Data:
    node = _mapping(config.get("data"))
    source = str(_mapping(node.get("source")).get("_target_", node.get("_target_", "unknown"))).rsplit(".", 1)[-1]
    place = str(node.get("path") or "").rstrip("/").rsplit("/", 1)[-1]
    sizes = [spec.get(key) for key in ("channels", "height", "width", "levels")]
    known = all(type(size) is int and 0 < size <= WIDEST for size in sizes)
    binarize = node.get("binarize")
    return Data(
        str(summary.get("data") or place or source.lower()),
        None if binarize is None else str(binarize),
        tuple(sizes) if known else None,  # type: ignore[arg-type]
        own="path" in node,
        val=val if type(val := node.get("val")) is int else None,
    )


def _model(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The choice of the model group: as it was recorded, or of an older run the one that its settings are most like."""
    chosen = _mapping(summary.get("choices")).get("model")
    if isinstance(chosen, str) and chosen:
        return chosen
    made = _made(config, summary)
    settings, choices = dict(flat(_mapping(config.get("model")))), _choices(made)
    if not choices:
        return made.rsplit(".", 1)[-1]
    return max(choices, key=lambda name: sum(settings.get(key) == value for key, value in choices[name].items()))


def _made(config: Mapping[str, Any], summary: Mapping[str, Any]) -> str:
    """The full name of the class."""
    return str(_mapping(config.get("model")).get("_target_") or summary.get("model") or "unknown")


@cache
def _choices(made: str) -> dict[str, dict[str, str]]:
    """The choices of the model group that construct a class, flat."""
    found = {}
    for path in sorted((CONF / "model").glob("*.yaml")):
        node = read_yaml(path)
        if node.get("_target_") == made:
            found[path.stem] = dict(flat(node))
    return found


def flat(node: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """A configuration as (dotted key, value as text); a class by its name."""
    if isinstance(node, Mapping) and node:
        for name, value in node.items():
            if name != "_partial_":
                yield from flat(value, f"{key}.{name}" if key else str(name))
    elif key.endswith("_target_"):
        yield key.removesuffix("._target_"), str(node).rsplit(".", 1)[-1]
    elif key:
        yield key, _short(node)


def _short(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _bare(name: str) -> str:
    return name.split("/", 1)[1] if name.startswith(("test/", "val/")) else name


def _line(text: str) -> str:
    """Text of whatever origin as one line that can be shown anywhere."""
    first = next((line for line in text.splitlines() if line.strip()), "")
    return shortened(printable(first.replace("\t", " ")), LONGEST)


def _cleaned(value: Any) -> Any:
    """Plain data with every text and name as :func:`_line`."""
    if isinstance(value, dict):
        return {_line(str(name)): _cleaned(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_cleaned(item) for item in value]
    return _line(value) if isinstance(value, str) else value


def _texts(value: Any) -> list[str]:
    return [str(item) for item in value] if isinstance(value, list) else []


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _largest(values: list[Any]) -> float | None:
    return max((float(value) for value in values if _is_number(value)), default=None)


def _whole(value: Any) -> int | None:
    return int(value) if _is_number(value) else None


def _is_large(value: Any) -> bool:
    """Whether it is a number that no measurement has."""
    return isinstance(value, int | float) and not abs(value) < LARGEST


def _is_number(value: Any, finite: bool = True) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and (not finite or abs(value) < LARGEST)
