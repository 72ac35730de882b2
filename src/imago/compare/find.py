"""Where the runs lie."""

import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

# What makes a folder a run. One that broke early has the first alone; one that was copied may have lost any of them.
SIGNS = ("config.yaml", "summary.json", "metrics.csv")
# Folders of a run, which hold such files too, but are none.
INSIDE = ("checkpoints", "samples", "wandb")


def find_runs(places: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The run directories that places mean, each once, and what to say of places that mean none.

    Args:
        places: run directories, folders that hold some at any depth (``logs``, a sweep), files of a run such as its
            checkpoint, or globs of all these.
    """
    found: dict[Path, Path] = {}
    empty = []
    for place in places:
        named = Path(place).expanduser()  # brackets in the name of a folder are no glob
        matches = [named] if named.exists() else [Path(m) for m in sorted(glob.glob(str(named), recursive=True))]  # noqa: PTH207
        below = [run for match in matches for run in _runs_at(match)]
        if not below:
            empty.append(f"{place}: {'no run below it' if matches else 'no such folder'}")
        for run in below:
            found.setdefault(run.resolve(), run)
    return list(found.values()), empty


def _runs_at(place: Path) -> Iterator[Path]:
    if place.is_file():
        folder = place.parent.parent if place.parent.name in INSIDE else place.parent
        if is_run(folder):
            yield folder
        return
    for folder_name, below, _ in os.walk(place):
        folder = Path(folder_name)
        if is_run(folder):
            below.clear()
            yield folder
        else:
            below[:] = sorted(name for name in below if name not in INSIDE and not name.startswith("."))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory."""
    return any((folder / name).is_file() for name in SIGNS) or any((folder / "checkpoints").glob("*.ckpt"))
