"""Timing two ways of doing the same work in one process, in alternation, so that a busy machine slows both alike."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import lightning
import torch
from lightning.pytorch.callbacks import Callback

RESULTS = Path(__file__).parent / "results"
THREADS = (1, 2)  # each side is reported at the thread count that suits it better


@dataclass(frozen=True)
class Row:
    """One comparison: work per second of both sides (medians over rounds), and what the ratio should reach."""

    job: str
    unit: str
    ours: float
    our_threads: int
    other: str
    others: float
    their_threads: int
    target: float | None  # least ratio wanted; None: shown for information

    @property
    def ratio(self) -> float:
        return self.ours / self.others


@dataclass(frozen=True)
class Timing:
    """Seconds per step of one side: the median over rounds, at one number of threads."""

    seconds: float
    threads: int


def alternate(sides: dict[str, Callable[[], object]], *, steps: int, rounds: int) -> dict[str, Timing]:
    """Each side's median seconds per step at its better thread count; a round is ``steps`` steps of each in turn."""
    best: dict[str, Timing] = {}
    for threads in THREADS:
        torch.set_num_threads(threads)
        seconds: dict[str, list[float]] = {name: [] for name in sides}
        for step in sides.values():
            step()
        for _ in range(rounds):
            for name, step in sides.items():
                start = time.perf_counter()
                for _ in range(steps):
                    step()
                seconds[name].append((time.perf_counter() - start) / steps)
        for name, measured in seconds.items():
            timing = Timing(statistics.median(measured), threads)
            best[name] = min(best.get(name, timing), timing, key=lambda t: t.seconds)
    return best


class Interleave(Callback):
    """Times a Lightning run in segments of ``steps`` batches; after each segment the other side takes as many steps.

    The run is stopped after ``rounds`` segments. The first segment of each side warms up and is not counted.
    """

    def __init__(self, other: Callable[[], object], *, steps: int, rounds: int) -> None:
        self.other = other
        self.steps = steps
        self.rounds = rounds
        self.ours: list[float] = []
        self.others: list[float] = []
        self._batches = 0

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_train_batch_end(self, trainer: lightning.Trainer, *_: object) -> None:
        self._batches += 1
        if self._batches % self.steps:
            return
        now = time.perf_counter()
        self.ours.append((now - self._start) / self.steps)
        for _step in range(self.steps):
            self.other()
        self._start = time.perf_counter()
        self.others.append((self._start - now) / self.steps)
        trainer.should_stop = len(self.ours) > self.rounds

    def medians(self) -> tuple[float, float]:
        """Seconds per step, ours and the other's."""
        return statistics.median(self.ours[1:]), statistics.median(self.others[1:])


def machine() -> dict[str, str | int | None]:
    """What the numbers depend on."""
    model = platform.processor() or platform.machine()
    if (cpuinfo := Path("/proc/cpuinfo")).exists():
        lines = cpuinfo.read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
        model = names[0] if names else model
    return {
        "cpu": model,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lightning": lightning.__version__,
        "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY"),
    }


def report(name: str, rows: list[Row]) -> None:
    """Print the rows as a table and keep them in ``benchmarks/results/<name>.json``."""
    print(f"\n{name}: {machine()['cpu']}, {machine()['cores']} cores, torch {torch.__version__}")
    print("| job | ours | other | ratio | target |\n|---|---|---|---|---|")
    for row in rows:
        print(
            f"| {row.job} | {row.ours:,.4g} {row.unit} ({row.our_threads} threads) "
            f"| {row.other}: {row.others:,.4g} ({row.their_threads} threads) | {row.ratio:.3g} | {row.target or ''} |"
        )
    sys.stdout.flush()
    RESULTS.mkdir(exist_ok=True)
    content = {
        "command": f"python benchmarks/{name}.py",
        "machine": machine(),
        "rows": [{**asdict(row), "ratio": row.ratio} for row in rows],
    }
    (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")
