"""The run directory: what a run leaves behind, readable without this program.

``config.yaml`` (resolved), ``metrics.csv`` (every logged row), ``summary.json`` (status, final numbers with their
protocols, cost), ``curves.png``, ``samples/*.png``, ``checkpoints/last.ckpt`` and ``best.ckpt``, and ``wandb/``.
"""

import csv
import gc
import importlib.metadata
import io
import json
import math
import os
import platform
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import UnionType
from typing import Any, cast

import torch
import yaml
from lightning.pytorch.loggers.logger import Logger

from imago.errors import UserError, printable, reason_of
from imago.files import AlreadyLocked, in_the_way, locked, set_aside, write_text
from imago.legacy import today
from imago.measures import Protocol
from imago.paths import CHECKPOINTS
from imago.sweeps import Job
from imago.tables import cells_of, read_lines
from imago.untrusted import opened, read_archive, read_json, read_yaml

# Keys whose change makes another experiment; a run is continued only where these agree.
IDENTITY = ("seed", "conditional", "data", "model")
# In a run directory: locked by the process that writes there.
LOCK = ".lock"


class Run:
    """A run directory and its summary.

    Args:
        path: the directory; made if need be.
        write: whether this process writes (one process of several does).

    Attributes:
        summary_path: summary.json.
        metrics: metrics.csv.
        samples: the folder of sample grids.
        last: the checkpoint to continue from.
        previous: the checkpoint before the last one.
        best: the checkpoint with the best headline metric.
        defect: what was wrong with summary.json; empty if nothing was.
    """

    def __init__(self, path: Path, *, write: bool = True) -> None:
        self.path, self.write = path, write
        self.summary_path, self.metrics, self.samples = path / "summary.json", path / "metrics.csv", path / "samples"
        self.last, self.previous, self.best = (path / "checkpoints" / name for name in CHECKPOINTS)
        self.summary: dict[str, Any] = {}
        self._said: set[str] = set()
        if write:
            path.mkdir(parents=True, exist_ok=True)
        self.defect = ""
        try:
            self.summary = usable(today(read_json(self.summary_path)))
        except FileNotFoundError:
            self.defect = "is missing"
        except OSError as error:
            self.defect = f"cannot be read ({error.strerror})"
        except ValueError as error:
            self.defect = f"cannot be used ({error})"

    def update(self, **entries: Any) -> None:
        """Add to the summary and write it; where it cannot be written, that is said once, and it is tried again."""
        self.summary.update(entries)
        if self.write:
            try:
                write_text(self.summary_path, json.dumps(self.summary, indent=2, allow_nan=True) + "\n")
            except OSError as error:
                note(self._said, "summary.json", error)

    @contextmanager
    def beside(self, what: str) -> Iterator[None]:
        """Inside, something beside the training: what breaks there ends nothing. It is said once, and in the summary.

        Args:
            what: is done there, such as ``sample grid``.
        """
        try:
            yield
        except Exception as error:
            problems = self.summary.get("problems", {})
            self.update(problems=problems | {what: note(self._said, what, error)})

    def write_config(self, config: Mapping[str, Any]) -> None:
        """Write config.yaml.

        Raises:
            UserError: it cannot be written.
        """
        if self.write:
            try:
                write_text(self.path / "config.yaml", yaml.safe_dump(dict(config), sort_keys=False))
            except OSError as error:
                raise UserError(f"logs: {one_line(error)}; make room, or name a folder with logs=PATH") from None

    def withdraw(self) -> None:
        """Nothing was trained: leave no trace of a run that has none of its own yet."""
        if self.write and not any((self.path / "checkpoints").glob("*")) and not self.metrics.exists():
            shutil.rmtree(self.path, ignore_errors=True)
            with suppress(OSError):
                self.path.parent.rmdir()


def usable(summary: Any) -> dict[str, Any]:
    """A summary that a run can go on with.

    Raises:
        ValueError: it is none, or an entry is not what a run writes there.
    """
    if not isinstance(summary, dict):
        raise ValueError("no entries")
    groups = {name: summary.get(name, {}) for name in ("metrics", "untrained", "best", "problems")}
    _check_kind(groups, dict)
    results, best = groups["metrics"], groups["best"].get("value", 0)
    _check_kind({"seconds": summary.get("seconds", 0), "best": best, **groups["untrained"]}, int | float)
    _check_kind(results, dict)
    _check_kind({name: result.get("protocol") for name, result in results.items()}, dict)
    for key in ("value", "best"):
        _check_kind({f"{name}: {key}": result.get(key, 0) for name, result in results.items()}, int | float)
    return summary


def _check_kind(entries: Mapping[str, Any], kind: type | UnionType) -> None:
    for name, entry in entries.items():
        if not isinstance(entry, kind):
            raise ValueError(f"{name} is damaged")


def one_line(error: BaseException) -> str:
    """What an error says, on one line; of the system's errors the reason and the file."""
    if isinstance(error, OSError) and error.strerror:
        return reason_of(error)
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def note(said: set[str], what: str, error: Exception) -> str:
    """What an error says, on one line; printed if nothing was said of ``what`` before, which ``said`` remembers."""
    told = one_line(error)
    if what not in said:
        said.add(what)
        print(f"note: {what}: {told}; the run goes on", file=sys.stderr, flush=True)
    return told


def claim(path: Path) -> Path:
    """Make a directory for a run of this process alone: ``path``, or with ``-2``, ``-3``, ... behind it.

    The lock file is the claim: of several processes one makes it, in a folder too that was there before, as Hydra makes
    those of a sweep.

    Raises:
        OSError: nothing can be made there.
    """
    count, vanished = 1, 0
    while True:
        candidate = path if count == 1 else path.with_name(f"{path.name}-{count}")
        try:
            candidate.mkdir(parents=True, exist_ok=True)
            if not (candidate / "config.yaml").exists():  # of a run that knew no locks
                (candidate / LOCK).open("x").close()
                return candidate
        except FileExistsError:
            if not os.path.lexists(candidate):
                raise
        except FileNotFoundError:  # another process, which had made the folder too, has just tidied it up: once more
            vanished += 1
            if vanished == 100:
                raise
            continue
        count += 1


@contextmanager
def alone_in(directory: Path) -> Iterator[None]:
    """Keep other processes out of a run directory, for as long as this one lives and is inside.

    Raises:
        UserError: another process is in it, or nothing can be written there.
    """
    lock = directory / LOCK
    with ExitStack() as stack:
        try:
            if in_the_way(lock) or lock.is_symlink():
                aside = set_aside(lock).name
                print(f"note: {lock}: is no file, set aside as {aside}", file=sys.stderr, flush=True)
            stack.enter_context(locked(lock, wait=False))
        except AlreadyLocked:
            raise UserError(
                f"{directory}: another process is at work on this run; wait until it has ended, or stop it"
            ) from None
        except OSError as error:
            where = lock if directory.is_dir() else directory
            raise UserError(f"{where}: {error.strerror}; a run continues in its own directory, and locks it") from None
        yield


def differences(old: Any, new: Any, key: str = "") -> list[str]:
    """The keys at which two plain configurations differ, with both values; of different classes their names alone."""
    if isinstance(old, Mapping) and isinstance(new, Mapping) and old.get("_target_") == new.get("_target_"):
        found = []
        for name in sorted({*old, *new}):
            found += differences(old.get(name), new.get(name), f"{key}.{name}" if key else name)
        return found
    return [] if old == new else [f"{key}: {_class_of(old)} there, {_class_of(new)} now"]


def _class_of(value: Any) -> Any:
    """The class that a configuration names, or the value itself."""
    return str(value["_target_"]).rpartition(".")[2] if isinstance(value, Mapping) and "_target_" in value else value


def identity(config: Mapping[str, Any], *, place: bool = False) -> dict[str, Any]:
    """The part of a configuration that makes the experiment what it is, not where the data lies or how long it runs.

    Args:
        config: resolved.
        place: with the path of the user's own images, for runs that do not know their data otherwise.
    """
    chosen = {name: config[name] for name in IDENTITY}
    skipped = ("dir", "on_device") if place else ("dir", "on_device", "path")
    chosen["data"] = {k: v for k, v in chosen["data"].items() if k not in skipped}
    return chosen


def find_resumable(
    logs: Path, config: Mapping[str, Any], data: Mapping[str, Any] | None = None, job: Job | None = None
) -> Path | None:
    """The newest run directory below ``logs`` of the same experiment and ``name`` with a checkpoint, or ``None``.

    Args:
        logs: where to look.
        config: resolved.
        data: the splits of the data that are there now; a run whose images were elsewhere is found if it had the same.
        job: of the sweep that goes on, whose runs alone are found.
    """
    runs = [Path(folder) for folder, names, _ in os.walk(logs) if "checkpoints" in names]
    for written, directory in sorted(((_written(run), run) for run in runs), reverse=True):
        old = config_of(directory) if written else {}
        if written and not old:
            told = f"{directory} is passed over: neither config.yaml nor a checkpoint can be read there"
            print(printable(f"resume=auto: {told}"))
        if (
            not set(IDENTITY) <= old.keys()
            or not isinstance(old["data"], dict)
            or old.get("name") != config.get("name")
            or (job is not None and not job.may_continue(directory, _summary_of(directory).get("sweep")))
        ):
            continue
        moved = differences(identity(old, place=True), identity(config, place=True))
        if not moved or (not differences(identity(old), identity(config)) and data and _splits_of(directory) == data):
            return directory
    return None


def _written(run: Path) -> float:
    """When the newest checkpoint of a run was written; 0 if it has none."""
    newest = 0.0
    for name in CHECKPOINTS:
        with suppress(OSError):
            newest = max(newest, (run / "checkpoints" / name).stat().st_mtime)
    return newest


def config_of(run: Path) -> dict[str, Any]:
    """The configuration of a run of whatever origin, from config.yaml or else a checkpoint; empty if none has it."""
    return written_config(run) or _in_checkpoints(run, "config")


def written_config(run: Path) -> dict[str, Any]:
    """What config.yaml says; empty if it is missing or damaged."""
    with suppress(OSError, ValueError):
        config = today(read_yaml(run / "config.yaml"))
        if isinstance(config, dict) and set(IDENTITY) <= config.keys():
            return config
    return {}


def _in_checkpoints(run: Path, part: str) -> dict[str, Any]:
    """A part of the first of a run's checkpoints that has it; empty if none has."""
    for name in CHECKPOINTS:
        with suppress(OSError, ValueError), opened(run / "checkpoints" / name) as file:
            found = read_archive(file, [part]).get(part)
            if isinstance(found, dict):
                return cast(dict[str, Any], today(found))
    return {}


def _splits_of(directory: Path) -> Any:
    """What a run's summary, or else a checkpoint, says of its data; ``None`` where it cannot be asked."""
    return _summary_of(directory).get("splits") or _in_checkpoints(directory, "data").get("splits")


def _summary_of(directory: Path) -> dict[str, Any]:
    """The summary of a run of whatever origin; empty if it cannot be read."""
    with suppress(OSError, ValueError):
        summary = read_json(directory / "summary.json")
        if isinstance(summary, dict):
            return summary
    return {}


def check_same_experiment(old: Mapping[str, Any], new: Mapping[str, Any], path: Path, *, place: bool = True) -> None:
    """Refuse to continue a run as another experiment.

    Args:
        old, new: resolved configurations.
        path: of the checkpoint.
        place: whether the path of the user's own images belongs to it, see :func:`identity`.

    Raises:
        UserError: naming the settings that differ.
    """
    changed = differences(identity(old, place=place), identity(new, place=place))
    if changed:
        raise UserError(
            f"resume={path}: that run is another experiment ({'; '.join(changed[:5])}); "
            "give the settings it was started with, or leave resume out"
        )


class CSVLogger(Logger):
    """Every logged row in one table, ``metrics.csv``; written row by row, so that a killed run keeps its rows.

    Lightning's own CSV logger starts a new file whenever it is built; this one can continue at a given row. Rows that
    cannot be written, which is said once, are written with the next one that can.
    """

    name, version = "csv", ""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = []
        self.rows: list[dict[str, Any]] = []
        self._behind = False  # whether the file lacks rows or columns
        self._said: set[str] = set()

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        """config.yaml holds them."""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Append a row."""
        self.rows.append(dict(metrics))
        new = [name for name in metrics if name not in self.columns]
        self.columns += new
        self._behind |= bool(new)
        if self._behind:
            self.save()
            return
        size = None
        try:
            size = self.path.stat().st_size
            with self.path.open("a", newline="") as file:
                csv.DictWriter(file, self.columns).writerow(dict(metrics))
        except OSError as error:
            self._behind = True
            note(self._said, self.path.name, error)
            with suppress(OSError):
                if size is not None:
                    os.truncate(self.path, size)  # half a row would be taken for a row

    def save(self) -> None:
        """Write what could not be written before; the rows outlive a power cut, as the checkpoint that counts them."""
        try:
            if self._behind:
                self._rewrite()
            elif self.rows:
                with self.path.open("rb") as file:
                    os.fsync(file.fileno())
        except OSError as error:
            self._behind = True
            note(self._said, self.path.name, error)
        else:
            self._behind = False

    def _rewrite(self) -> None:
        text = io.StringIO()
        writer = csv.DictWriter(text, self.columns)
        writer.writeheader()
        writer.writerows(self.rows)
        write_text(self.path, text.getvalue())

    def continue_at(self, rows: int, images_seen: float = math.inf) -> None:
        """Keep the first ``rows`` rows of an existing table and go on behind them.

        Of a damaged table the rows that are whole are kept, and the damaged one is set aside, which is said.

        Args:
            rows: that a checkpoint counted.
            images_seen: when it did; later rows are not kept, wherever they stand.
        """
        names: list[str] = []
        found: list[dict[str, str]] = []
        with suppress(OSError, ValueError):
            names, lines, _ = read_lines(self.path)
            found = [row for line in lines[:rows] if (row := cells_of(line, names))]
            found = [row for row in found if float(row["images_seen"]) <= images_seen]
        if len(found) < rows:
            aside = f", the damaged one is {set_aside(self.path).name}" if os.path.lexists(self.path) else ""
            lost = f"{rows - len(found)} of {rows} rows before the checkpoint are lost{aside}"
            print(f"note: {self.path}: {lost}; the run goes on", file=sys.stderr, flush=True)
        self.rows = found
        self.columns = [name for name in names if any(name in row for row in found)]
        self._behind = bool(names)
        self.save()


def environment() -> dict[str, Any]:
    """Versions, threads, git commit and command, for the summary."""
    packages = ("torch", "torchvision", "lightning", "torchmetrics", "torch-fidelity", "hydra-core", "wandb")
    versions = {"python": platform.python_version()}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    commit = None
    here = str(Path(__file__).parent)
    command = ["git", "-C", here, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=+changes"]
    with suppress(OSError, subprocess.CalledProcessError):
        commit = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    return {
        "versions": versions,
        "git_commit": commit,
        "threads": torch.get_num_threads(),
        "command": given_command(sys.argv),
    }


def given_command(arguments: list[str]) -> str:
    """The command that started this process, as one would give it again."""
    own = Path(arguments[0])
    if own.name == "imago" or own.parts[-2:] == ("imago", "__main__.py"):
        return " ".join(["imago", os.environ.get("IMAGO_COMMAND", ""), *arguments[1:]])
    return " ".join(["python", *arguments])


def device_name(device: torch.device) -> str:
    """What a run ran on, for the summary."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"{os.cpu_count()} CPU cores"


def forget_peak_memory(device: torch.device) -> None:
    """From here on the peak is measured anew, so that a run of a sweep does not report an earlier one's.

    Of a process only Linux can do that; elsewhere its peak stays what it was.
    """
    gc.collect()  # what an earlier run left in cycles
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def peak_memory_mib(device: torch.device) -> float:
    """Largest memory since it was last forgotten, in MiB: of the GPU if that is the device, else of the process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def _short(value: float, digits: int) -> str:
    """So many digits, and thousands in full instead of powers of ten."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.{digits}g}"


def closing_words(run: Run, evaluate: str) -> str:
    """Where a finished run's pictures and numbers lie, and what was not measured, for people.

    Args:
        run: that ended.
        evaluate: how the script that measures is called.
    """
    summary = run.summary
    lines = [f"{summary['name']}: {summary['images_seen']:,} images, {summary['updates']:,} updates"]
    for name, result in summary.get("metrics", {}).items():
        untrained = summary.get("untrained", {}).get(name)
        before = f" (untrained {_short(untrained, 4)})" if untrained is not None else ""
        protocol = Protocol.from_dict(result["protocol"])
        sign = f"{protocol.relation} ".lstrip()
        error = "" if protocol.standard_error is None else f" ± {_short(protocol.standard_error, 2)}"
        lines.append(f"  {name} {sign}{_short(result['value'], 4)}{error}{before}")
    measuring = f"{evaluate} {shlex.quote(f'checkpoint={run.path}')}"
    lines += [f"  {name} not measured; {measuring} does it" for name in summary.get("unmeasured", [])]
    grids = sorted(run.samples.glob("images-*.png"))
    if grids:
        lines.append(f"  samples    {grids[-1]}")
    if (run.path / "curves.png").exists():
        lines.append(f"  curves     {run.path / 'curves.png'}")
    lines.append(f"  numbers    {' and '.join(str(path) for path in (run.summary_path, run.metrics) if path.exists())}")
    if run.last.exists():
        lines.append(f"  checkpoint {run.last}")
    lines += [f"  broke      {what}: {told}" for what, told in summary.get("problems", {}).items()]
    offline = sorted((run.path / "wandb").glob("offline-run-*"))
    if offline:
        lines.append(f"  W&B        {offline[-1]} (offline; `wandb sync` it to see it in a dashboard)")
    return "\n".join(lines)
