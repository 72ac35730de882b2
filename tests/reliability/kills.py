"""Kills runs at random moments and continues them: in the end each must be the run that was never killed, bit for bit.

    python tests/reliability/kills.py --kills 200
    python tests/reliability/kills.py --kills 50 --signals TERM,INT,HUP,USR1,USR2

A third of the kills waits for a checkpoint that is being written, a third for the closing phase. Processes are forked
from one that has imported everything and trained nothing (autograd does not survive a fork).
"""

import argparse
import csv
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2] / "src")]

import rich.panel
import torch

from helpers import TINY, configuration
from imago.checkpoints import read
from imago.files import UNFINISHED
from imago.paths import CHECKPOINTS
from imago.runs import Run
from imago.training import run as training
from imago.training.continuing import NothingLeftError
from imago.training.run import train
from imago.untrusted import read_archive

LAZY = rich.panel  # what a run imports on its way
UPDATES = 24
AIMS = ("moment", "checkpoint", "closing")
RUN = "x"


def options(model: str, folder: Path) -> dict[str, Any]:
    """A run of a second or two that logs, measures, draws and writes checkpoints, in a folder of its own."""
    return configuration(
        f"model={model}", "data=digits", *TINY[model], "data.batch_size=16", "trainer=cpu", "logger=csv",
        "metrics=classifier", "metrics.samples=64", "max_images=null", f"max_updates={UPDATES}", "every.log=32",
        "every.checkpoints=64", "every.likelihood=96", "every.quality=192", "every.samples=128",
        "callbacks.averaging.half_life=64", "callbacks.likelihood.images=48", "callbacks.samples.rows=2",
        "callbacks.samples.columns=4", f"logs={folder}", "resume=auto",
    )  # fmt: skip


def forked(action: Callable[[], object], log: Path) -> int:
    """Start an action in a process of its own; gives its number."""
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        with log.open("a") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        action()
        code = 0
    except NothingLeftError:  # killed after the last word of a run that is complete
        code = 0
    except KeyboardInterrupt:  # before the run minds signals, or after: as imago.start ends then
        code = 130
    except BaseException as error:
        code = getattr(error, "exit_code", 1)
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def ended(child: int) -> int | None:
    """The exit code of a process, negative after a signal; ``None`` while it lives."""
    number, status = os.waitpid(child, os.WNOHANG)
    return os.waitstatus_to_exitcode(status) if number else None


def closing(folder: Path, end: int) -> bool:
    """Whether a run has written the checkpoint at its end: what follows is measuring and drawing."""
    for file in folder.glob(f"*/checkpoints/{CHECKPOINTS[0]}"):
        with suppress(OSError, ValueError), file.open("rb") as opened:
            return bool(read_archive(opened, ["progress"])["progress"]["images_seen"] >= end)
    return False


def attacked(child: int, folder: Path, number: int, aim: str, seconds: float, end: int) -> int:
    """Wait for the moment, send the signal, and give the exit code.

    Args:
        child: the process.
        folder: in which it writes.
        number: of the signal.
        aim: ``moment``, ``checkpoint`` or ``closing``.
        seconds: to wait before; with ``checkpoint`` until one is looked for, with ``closing`` from its begin.
        end: number of images after which it begins.
    """
    moment = time.monotonic() + seconds
    begun = aim != "closing"
    while (code := ended(child)) is None:
        writing = aim != "checkpoint" or any(folder.glob(f"*/checkpoints/.*{UNFINISHED}"))
        if not begun and closing(folder, end):
            begun, moment = True, time.monotonic() + seconds
        if begun and time.monotonic() >= moment and writing:
            os.kill(child, number)
            return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        time.sleep(0.0005)
    return code


def phase(folder: Path, began: float, end: int) -> str:
    """Where a run that began then was when it ended, by what it left."""
    if any(file.stat().st_mtime >= began for file in folder.glob(f"*/checkpoints/.*{UNFINISHED}")):
        return "while a checkpoint was written"
    found = [file for name in CHECKPOINTS for file in folder.glob(f"*/checkpoints/{name}")]
    if not found:
        return "before the first checkpoint"
    newest = max(found, key=lambda file: file.stat().st_mtime)
    return "in the closing phase" if read(newest)["progress"]["images_seen"] >= end else "between checkpoints"


def difference(one: Any, other: Any, where: str) -> str:
    """The first place at which two values differ by a bit; empty if there is none."""
    if isinstance(one, torch.Tensor):
        return "" if isinstance(other, torch.Tensor) and torch.equal(one, other) else where
    if isinstance(one, dict):
        if not isinstance(other, dict) or one.keys() != other.keys():
            return where
        return next(filter(None, (difference(one[key], other[key], f"{where}.{key}") for key in one)), "")
    if isinstance(one, list | tuple):
        if not isinstance(other, list | tuple) or len(one) != len(other):
            return where
        pairs = zip(one, other, strict=True)
        return next(filter(None, (difference(a, b, f"{where}[{k}]") for k, (a, b) in enumerate(pairs))), "")
    return "" if one == other else where


def state(run: Path) -> dict[str, Any]:
    """All that must be equal of a run: weights, averages, random states, rows, pictures, numbers."""
    last, summary = read(run / "checkpoints" / "last.ckpt"), Run(run, write=False).summary
    with (run / "metrics.csv").open() as file:
        rows = [{k: v for k, v in row.items() if not k.startswith("time/")} for row in csv.DictReader(file)]
    measured = {
        name: {k: v for k, v in result.items() if k != "protocol"} for name, result in summary["metrics"].items()
    }
    return {
        "last": {key: last[key] for key in ("state_dict", "optimizer_states", "progress", "random", "rows")},
        "average": last["callbacks"]["EMA"],
        "best": read(run / "checkpoints" / "best.ckpt")["state_dict"],
        "rows": rows,
        "pictures": {file.name: file.read_bytes() for file in sorted((run / "samples").glob("*.png"))},
        "summary": {**{key: summary[key] for key in ("status", "images_seen", "updates", "best", "train")}, **measured},
    }


def whole(model: str, root: Path) -> tuple[dict[str, Any], float]:
    """The state of a run that is never killed, and the seconds that it takes."""
    folder = root / "whole"
    config, began = options(model, folder), time.monotonic()
    child = forked(lambda: train(config, RUN, folder / "run"), root / "whole.txt")
    if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]):
        sys.exit((root / "whole.txt").read_text())
    return state(folder / "run"), time.monotonic() - began


def series(
    model: str, root: Path, kills: int, numbers: list[int], reference: tuple[dict[str, Any], float]
) -> list[str]:
    """Kill one run again and again, let it end, and compare.

    Returns:
        The phases in which it was killed.

    Raises:
        AssertionError: something was lost.
    """
    expected, seconds = reference
    folder, log, phases = root / "logs", root / "log.txt", []
    config = options(model, folder)
    for _ in range(kills):
        number, aim = random.choice(numbers), random.choice(AIMS)
        began = time.time()
        child = forked(lambda: train(config, RUN, folder / "run"), log)
        wait = random.uniform(0, 0.01 if aim == "closing" else 0.7) * seconds
        code = attacked(child, folder, number, aim, wait, expected["summary"]["images_seen"])
        if code == 0:
            break
        assert code in (-number, 128 + number), f"{model}: ended with {code}\n{log.read_text()}"
        phases.append(phase(folder, began, expected["summary"]["images_seen"]))
    child = forked(lambda: train(config, RUN, folder / "run"), log)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    (run,) = [
        file.parent for file in folder.glob("*/summary.json") if Run(file.parent).summary["status"] == "completed"
    ]
    assert code in (0, 1), f"{model}: ended with {code}\n{log.read_text()}"
    wrong = difference(expected, state(run), model)
    assert not wrong, f"{wrong} is another one\n{log.read_text()}"
    litter = [file for file in run.rglob("*") if UNFINISHED in file.name or file.name.endswith(".damaged")]
    assert not litter, f"{model}: left {litter}"
    return phases


def main() -> None:
    """Kill runs of each model in turn until there were enough kills, and say what was lost."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--models", default=",".join(TINY))
    parser.add_argument("--signals", default="KILL")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    torch.set_num_threads(1)
    random.seed(given.seed)
    training.draw_curves = lambda *_: None  # half of the time, and of no number's concern
    gc.freeze()  # a collection touches every object: it would copy the memory of each fork
    numbers = [getattr(signal, f"SIG{name}") for name in given.signals.split(",")]
    models, phases, runs, lost = given.models.split(","), Counter[str](), 0, 0
    root = Path(tempfile.mkdtemp(prefix="kills-"))
    os.environ["IMAGO_DATA_DIR"] = str(root)  # for what is computed once
    try:
        references = {}
        for model in models:
            (root / model).mkdir()
            references[model] = whole(model, root / model)
            print(f"{model}: {references[model][1]:.1f} s", file=sys.stderr, flush=True)
        while sum(phases.values()) < given.kills:
            model = models[runs % len(models)]
            place = Path(tempfile.mkdtemp(dir=root))
            try:
                least = min(random.randint(1, 5), given.kills - sum(phases.values()))
                phases += Counter(series(model, place, least, numbers, references[model]))
            except AssertionError as error:
                lost += 1
                print(f"LOST: {error}", flush=True)
            runs += 1
            shutil.rmtree(place)
            print(f"{sum(phases.values())} of {given.kills}, {lost} lost", file=sys.stderr, flush=True)
    finally:
        shutil.rmtree(root)
    print(f"{sum(phases.values())} signals ({given.signals}), {runs} runs of {len(models)} models, seed {given.seed}")
    for name, count in phases.most_common():
        print(f"  {count:4d} {name}")
    print(f"{lost} lost")
    sys.exit(lost > 0)


if __name__ == "__main__":
    main()
