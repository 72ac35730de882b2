"""Which run ``resume`` means, from which of its checkpoints it goes on, and what a kill or a damage has left there."""

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from imago.checkpoints import read
from imago.config import Settings
from imago.data import ImageDataModule
from imago.data.identity import check_same_data
from imago.errors import UserError
from imago.files import in_the_way, remove_litter, set_aside
from imago.paths import CHECKPOINTS, RUN_FILES, RUN_FOLDERS, run_to_resume, whole_checkpoints
from imago.runs import Run, check_same_experiment, find_resumable, usable, written_config
from imago.sweeps import Job


@dataclass(frozen=True)
class Stopped:
    """A run that was stopped, as it was found.

    Attributes:
        checkpoint: the newest one that is whole.
        images_seen: when it was written.
        summary: the run's, then; ``None`` in an older one.
        wrong: by their names what is wrong with the run's other checkpoints.
    """

    checkpoint: Path
    images_seen: int
    summary: Any
    wrong: Mapping[str, str]


class NothingLeftError(UserError):
    """The run has reached its limit and is completed."""

    def __init__(self, message: str, directory: Path) -> None:
        super().__init__(message)
        self.directory = directory


def find_run(
    settings: Settings, config: Mapping[str, Any], data: ImageDataModule, job: Job | None = None
) -> Path | None:
    """The run directory that ``resume`` means: ``None``, a path, or with ``auto`` the newest of the same experiment.

    With ``auto`` a job of a sweep goes on with runs of that sweep alone.

    Raises:
        UserError: it is none.
    """
    if settings.resume is None:
        return None
    if settings.resume != "auto":
        return run_to_resume(settings.resume)
    directory = find_resumable(Path(settings.logs), config, data.splits, job)
    if directory is None:
        what = "experiment" if job is None else "experiment and sweep"
        print(f"resume=auto: no checkpoint of this {what} below {settings.logs}/, starting anew")
    return directory


def find_checkpoint(directory: Path, settings: Settings, config: Mapping[str, Any], data: ImageDataModule) -> Stopped:
    """Where a run goes on: its newest checkpoint that is whole.

    Raises:
        UserError: it is of another experiment or of other data, or there is none.
        NothingLeftError: it has nothing left to do.
    """
    files, wrong = whole_checkpoints(directory, "resume")
    path, content = files[0], read(files[0])
    check_same_experiment(content["config"], config, path, place="data" not in content)
    check_same_data(content, data, "put those back, give the place where they are, or leave resume out")
    limits = content["callbacks"].get("Limits", {})
    done_so_far = {
        "max_images": content["progress"]["images_seen"],
        "max_updates": content["progress"]["updates"],
        "max_seconds": content.get("seconds", limits.get("seconds", 0.0)),
        "max_cpu_seconds": content.get("cpu_seconds", 0.0),
        "max_wall_seconds": limits.get("wall_seconds", 0.0),
    }
    completed = Run(directory, write=False).summary.get("status") == "completed"  # with its closing work
    for limit, done in done_so_far.items():
        end = getattr(settings, limit)
        if end is not None and done >= end and completed:
            raise NothingLeftError(
                f"{limit}={end}: the run in {directory} is there already ({done}); give a larger one",
                directory,
            )
    return Stopped(path, content["progress"]["images_seen"], content.get("summary"), wrong)


def take_up(run: Run, stopped: Stopped) -> None:
    """Make a run ready to be continued: what cannot be used is set aside and told, what a kill has left is removed."""
    folder = stopped.checkpoint.parent
    for place in (run.path, folder, run.samples):
        remove_litter(place)
    told = []
    for name in (*RUN_FILES, *RUN_FOLDERS):
        place = run.path / name
        wanted = "file" if name in RUN_FILES else "folder"
        if in_the_way(place) if wanted == "file" else os.path.lexists(place) and not place.is_dir():
            told.append(f"{name} is no {wanted}, set aside as {set_aside(place).name}")
    for name, reason in stopped.wrong.items():
        if os.path.lexists(folder / name):
            told.append(f"checkpoints/{name} {reason}, set aside as {set_aside(folder / name).name}")
        elif name == CHECKPOINTS[0]:
            told.append(f"checkpoints/{name} {reason}")
    if stopped.checkpoint.name != CHECKPOINTS[0]:
        newest = f"{stopped.checkpoint.name} after {stopped.images_seen:,} images"
        told.append(f"goes on from the newest one that is whole, {newest}")
    if not written_config(run.path):
        told.append("config.yaml cannot be read, and is written anew")
    if run.defect:
        told.append(f"summary.json {run.defect}, and is written anew from the checkpoint")
    if run.defect or stopped.checkpoint.name != CHECKPOINTS[0]:
        with suppress(ValueError):  # an older checkpoint has none
            run.summary = usable(stopped.summary)
    if not run.best.exists():
        run.summary.pop("best", None)
    for past in ("error", "traceback"):  # of how it was stopped
        run.summary.pop(past, None)
    if told:
        print(f"note: {run.path}: {'; '.join(told)}", file=sys.stderr, flush=True)
