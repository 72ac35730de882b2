"""Jobs that a launcher runs in processes of their own, here or on a cluster.

Each speaks into a file of its folder. When it begins and when it ends it leaves word in ``.jobs`` of the sweep's
folder, which the processes of every launcher can reach, and the command that waits for it says so in a line.
"""

import json
import os
import secrets
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, read_write

from imago.errors import Interrupted, printable
from imago.files import AlreadyLocked, locked, write_text
from imago.sweeps import job_of
from imago.untrusted import read_json

# In a sweep's folder: what its jobs leave word in, while a command waits for them.
WORD = ".jobs"
# There: no more jobs are to begin.
STOP = "stop"
# What joblib and submitit raise when a job's process has ended without a result.
LOST = ("TerminatedWorkerError", "BrokenProcessPool", "UncompletedJobError", "FailedJobError")

# The runs of this process, and of the jobs that it has waited for.
ran: list[Path] = []
# Held until this process ends: its share of the machine.
_share = ExitStack()
_shared = threading.Event()


@dataclass(frozen=True)
class Command:
    """The process that carries a command out; a launcher hands it on to the processes of jobs."""

    process: tuple[str, int] = field(default_factory=lambda: (socket.gethostname(), os.getpid()))
    token: str = field(default_factory=lambda: secrets.token_hex(4))

    @property
    def is_this_process(self) -> bool:
        """Whether no launcher has begun another one."""
        return self.process == (socket.gethostname(), os.getpid())

    def word_in(self, sweep: Path) -> Path:
        """The folder that the jobs of a sweep leave word in."""
        return sweep / WORD / self.token


def carry_out(command: Command, name: str, action: Callable[[list[str]], int]) -> int:
    """Carry a job out in a process of its own; the command hears when it begins and how it ends.

    Args:
        command: waits for it.
        name: of the file that it speaks into, such as ``train``.
        action: gives the exit code, and adds what the user is to be told to a list.

    Returns:
        the exit code.
    """
    hydra = HydraConfig.get()
    sweep, output = Path(hydra.runtime.cwd, hydra.sweep.dir), Path(hydra.runtime.output_dir)
    word = command.word_in(sweep)
    word.mkdir(parents=True, exist_ok=True)
    if (word / STOP).exists():
        with suppress(OSError):
            output.rmdir()
        return 128 + signal.SIGTERM
    with suppress(OSError):  # a Ctrl-C is for the command, which asks its jobs to stop
        os.setpgid(0, 0)
    if launched_by(hydra, "JoblibLauncher"):
        _take_share(word, hydra.launcher.n_jobs)
    log = output / f"{name}.log"
    varied = " ".join(f"{key}={value}" for key, value in job_of(sweep, hydra.overrides.task).varied.items())
    facts = {"job": hydra.job.num, "pid": os.getpid(), "varied": varied, "log": str(log)}
    began, already = time.time(), len(ran)
    told: list[str] = []
    _leave(word / f"{hydra.job.num}-begun", facts, time=began)
    with spoken_into(log):
        code = action(told)
    if code == 2 and not (output / "summary.json").exists():  # no run: what there is to say of it is said in a line
        log.unlink(missing_ok=True)
        with suppress(OSError):
            output.rmdir()
    now, runs = time.time(), [str(run) for run in ran[already:]]
    _leave(word / f"{hydra.job.num}-ended", facts, time=now, seconds=now - began, code=code, told=told, runs=runs)
    if code in (128 + signal.SIGUSR1, 128 + signal.SIGUSR2) and callable(signal.getsignal(code - 128)):
        # A launcher of its own mind about the end of a job's time: submitit has Slurm begin it again.
        with suppress(Exception):
            signal.raise_signal(code - 128)
    return code


def _leave(path: Path, facts: dict[str, Any], **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps(facts | more))


@contextmanager
def spoken_into(path: Path) -> Iterator[None]:
    """Inside, whatever this process and those that it begins print goes to the end of a file."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    try:
        with path.open("ab", buffering=0) as log:
            os.dup2(log.fileno(), 1)
            os.dup2(log.fileno(), 2)
        yield
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, before in enumerate(kept, 1):
            os.dup2(before, descriptor)
            os.close(before)


def _take_share(word: Path, count: int) -> None:
    """Of several workers of this machine each has its share of it, for as long as it lives."""
    if _shared.is_set():
        return
    _shared.set()
    for k in range(count):
        try:
            _share.enter_context(locked(word / f"worker-{k}", wait=False))
        except AlreadyLocked:
            continue
        os.environ.update(shares(k, count))
        return


def shares(k: int, count: int) -> dict[str, str]:
    """What the k-th of several processes on this machine has to work with: of the cores a share, of the GPUs one."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    own = {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, cores // count))}
    devices = gpus()
    return own | ({"CUDA_VISIBLE_DEVICES": devices[k % len(devices)]} if devices else {})


def gpus() -> Sequence[str]:
    """The GPUs that this process may use, as ``CUDA_VISIBLE_DEVICES`` names them."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name for name in visible.split(",") if name.strip()]
    return [path.name.removeprefix("nvidia") for path in sorted(Path("/dev").glob("nvidia[0-9]*"))]


def launched_by(hydra: DictConfig | HydraConf, name: str) -> bool:
    """Whether the launcher is of a class."""
    return str(hydra.launcher.get("_target_", "")).endswith(f".{name}")


def make_ready(config: DictConfig) -> None:
    """Give jobs this imago, and let joblib run one for each GPU at a time, else two, where nobody has said how many."""
    source = Path(__file__).parents[2]
    if source.name == "src":  # of a copy of the repository, which need not be installed
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [str(source), os.environ.get("PYTHONPATH")]))
    launcher = config.hydra.launcher
    if launched_by(config.hydra, "JoblibLauncher") and launcher.n_jobs < 1:  # Hydra's default: one for each core
        with read_write(launcher):
            launcher.n_jobs = len(gpus()) or 2


def all_count(hydra: DictConfig | HydraConf) -> bool:
    """Whether each failing job is a failure of the command, as in a plain sweep; a search has its own idea of them."""
    return bool(hydra.sweeper.get("_target_", "").endswith("BasicSweeper"))


class Waiting:
    """A command that waits for its jobs: what they leave word of is said here.

    Args:
        word: the folder where they do.
        here: what shown paths are relative to.
        cluster: the jobs are not of this machine, and go on without the command.
    """

    def __init__(self, word: Path, here: Path, cluster: bool) -> None:
        self.word, self.here, self.cluster = word, here, cluster
        self.known: dict[str, dict[str, Any]] = {}
        self._read: dict[str, int] = {}
        self._done = threading.Event()
        self._before: dict[int, Any] = {}

    @property
    def codes(self) -> list[int]:
        """The exit codes of the jobs that have ended."""
        return [facts["code"] for name, facts in self.known.items() if name.endswith("-ended")]

    def __enter__(self) -> "Waiting":
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        for number in (signal.SIGINT, signal.SIGTERM):
            self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *error: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._done.set()
        self._thread.join()
        ran.extend(Path(run) for facts in self.known.values() for run in facts.get("runs", []))
        if not self.running:
            shutil.rmtree(self.word, ignore_errors=True)
            with suppress(OSError):  # another command waits too
                self.word.parent.rmdir()

    @property
    def running(self) -> list[dict[str, Any]]:
        """What is known of the jobs that have begun and not ended."""
        ended = {name.partition("-")[0]: facts["time"] for name, facts in self.known.items() if "-ended" in name}
        begun = {name.partition("-")[0]: facts for name, facts in self.known.items() if "-begun" in name}
        return [facts for job, facts in begun.items() if ended.get(job, 0.0) < facts["time"]]

    def _watch(self) -> None:
        while not self._done.wait(0.3):
            self._look()
        self._look()

    def _look(self) -> None:
        """Say what is new."""
        new = []
        for path in self.word.glob("[0-9]*-[be]*"):
            with suppress(OSError, ValueError):
                written = path.stat().st_mtime_ns
                if self._read.get(path.name) != written:
                    facts = read_json(path)
                    self._read[path.name] = written
                    new.append((facts["time"], path.name, facts))
        for _, name, facts in sorted(new, key=lambda word: word[:2]):
            self.known[name] = facts
            print(printable(self._line(facts)), flush=True)

    def _line(self, facts: dict[str, Any]) -> str:
        log = Path(facts["log"])
        shown = log.relative_to(self.here) if self.here in log.parents else log
        job = " ".join(filter(None, [f"job {facts['job']}", facts["varied"]]))
        if "code" not in facts:
            return f"{job}: begins, and writes to {shown}"
        code, seconds = facts["code"], f"after {facts['seconds']:,.0f} s"
        if not code:
            return f"{job}: done {seconds}"
        if code >= 128:
            return f"{job}: stopped by {signal.Signals(code - 128).name} {seconds}; see {shown}"
        said = " ".join([*facts["told"], "" if code == 2 else f"(see {shown})"]).strip()
        return f"{job}: failed with exit code {code} {seconds}: {said}"

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """Of this machine's jobs let none begin, and let those that run write their checkpoints."""
        for other in self._before:
            signal.signal(other, signal.default_int_handler)  # once more: at once
        if self.cluster:
            print("the cluster's jobs go on; squeue lists them and scancel ends them", file=sys.stderr, flush=True)
            raise Interrupted(number)
        with suppress(OSError):
            self.word.mkdir(parents=True, exist_ok=True)
            (self.word / STOP).touch()
        asked: set[int] = set()
        while running := self.running:
            for facts in running:
                if facts["pid"] not in asked:
                    asked.add(facts["pid"])
                    with suppress(OSError):
                        os.kill(facts["pid"], signal.SIGTERM)
            time.sleep(0.1)
        raise Interrupted(number)
