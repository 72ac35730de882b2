"""Where the runs lie."""

import fnmatch
import glob
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from imago import pretrained
from imago.errors import UserError, printable

# What makes a folder a run. One that broke early has the first alone; one that was copied may have lost any of them.
SIGNS = ("config.yaml", "summary.json", "metrics.csv")
# Folders of a run, which hold such files too, but are none.
INSIDE = ("checkpoints", "samples", "wandb")


def find_runs(places: Iterable[str]) -> tuple[list[Path], list[str]]:
    """The run directories that places mean, each once, and what to say of places that mean none.

    Args:
        places: run directories, folders that hold some at any depth (``logs``, a sweep), files of a run such as its
            checkpoint, names of pretrained models, or globs of all these; of pretrained models the package's alone.
    """
    found: dict[Path, Path] = {}
    empty = []
    for place in places:
        unreadable: list[str] = []
        try:
            named = Path(place).expanduser()  # brackets in the name of a folder are no glob
            matches = [named] if named.exists() else _matches(named) or _pretrained(str(named))
            below = [run for match in matches for run in _runs_at(match, unreadable)]
        except (OSError, ValueError, RuntimeError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            empty.append(printable(f"{place}: cannot be read ({reason})"))
            continue
        except UserError as error:  # of a pretrained model, which cannot be fetched
            empty.append(f"{place}: {str(error).removeprefix(f'checkpoint={place}: ')}")
            continue
        empty += unreadable
        if not below:
            empty.append(printable(f"{place}: {'no run below it' if matches else 'no such folder'}"))
        for run in below:
            found.setdefault(run.resolve(), run)
    return list(found.values()), empty


def _pretrained(place: str) -> list[Path]:
    folder = pretrained.folder_of(place)
    names = pretrained.packaged() if folder is None else []
    return [pretrained.PACKAGED / name for name in fnmatch.filter(names, place)] if folder is None else [folder]


def _matches(named: Path) -> list[Path]:
    """What a glob means. ``**`` follows no links, which may lead in circles."""
    if "**" not in named.parts:
        return [Path(match) for match in sorted(glob.glob(str(named)))]  # noqa: PTH207 - takes absolute ones too
    start = named.parts.index("**")
    return sorted(Path(*named.parts[:start]).glob(str(Path(*named.parts[start:]))))


def _runs_at(place: Path, unreadable: list[str]) -> Iterator[Path]:
    def name(error: OSError) -> None:
        unreadable.append(printable(f"{error.filename}: cannot be read ({error.strerror})"))

    if not place.is_dir():
        folder = place.parent.parent if place.parent.name in INSIDE else place.parent
        if is_run(folder):
            yield folder
        return
    for folder_name, below, _ in os.walk(place, onerror=name):
        folder = Path(folder_name)
        if is_run(folder):
            yield folder
        below[:] = sorted(name for name in below if name not in INSIDE and not name.startswith("."))


def is_run(folder: Path) -> bool:
    """Whether a folder is a run directory, which what is in it need not be readable for."""
    try:
        signs = [folder / name for name in SIGNS]
        found = any(os.path.lexists(sign) and not sign.is_dir() for sign in signs)
        return found or any((folder / "checkpoints").glob("*.ckpt"))
    except OSError:
        return False
