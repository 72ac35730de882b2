"""Which run ``resume`` means, from which of its checkpoints it goes on, and what a kill or a damage has left there."""

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from imago.checkpoints import DAMAGED, model_of, random_state, read, set_random_state
from imago.config import Settings
from imago.data import ImageDataModule
from imago.data.identity import check_same_data
from imago.errors import UserError
from imago.files import in_the_way, remove_litter, set_aside
from imago.paths import CHECKPOINTS, RUN_FILES, RUN_FOLDERS, run_to_resume, whole_checkpoints
from imago.runs import Run, check_same_experiment, find_resumable, usable, written_config
from imago.sweeps import Job
from imago.training.callbacks.checkpoints import FINITE, not_finite
from imago.untrusted import first_line

# Of a checkpoint what nobody needs but a run that goes on, beside the optimisers' states.
ENTRIES = {
    "callbacks": Mapping,
    "random": Mapping,
    "lr_schedulers": list,
    "rows": int,
    "pytorch-lightning_version": str,
}


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
        UserError: it is of another experiment or of other data, training could not go on from it, or there is none.
        NothingLeftError: it has nothing left to do.
    """
    files, wrong = whole_checkpoints(directory, "resume")
    path, content = files[0], read(files[0])
    check_same_experiment(content["config"], config, path, place="data" not in content)
    check_same_data(content, data, "put those back, give the place where they are, or leave resume out")
    with _told_of(path):
        check_entries(content)
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
    with _told_of(path):
        check_training_state(content)
    return Stopped(path, content["progress"]["images_seen"], content.get("summary"), wrong)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """Inside, what is wrong with a checkpoint is told with its name and the remedy."""
    try:
        yield
    except UserError as error:
        reason = str(error).removeprefix(f"checkpoint={path}: ")
        raise UserError(
            f"resume={path}: cannot be continued from: {reason}; rename that file to go on from the newest one that is "
            "left, or leave resume out to start anew"
        ) from None


def check_entries(content: Mapping[str, Any]) -> None:
    """Refuse a checkpoint without the entries that only a run that goes on asks for, or with others in their place.

    Raises:
        UserError: naming the entry.
    """
    for name, kind in ENTRIES.items():
        if not isinstance(content.get(name), kind):
            raise UserError(f"{name}: missing, or not as train.py writes it")
    for name, state in content["callbacks"].items():
        if not isinstance(state, Mapping):
            raise UserError(f"callbacks.{name}: not as train.py writes it")


def check_training_state(content: dict[str, Any]) -> None:
    """Refuse a checkpoint that training could not go on from: a copy of its model takes a step without a gradient.

    The global random generators are left as they were.

    Args:
        content: of the checkpoint; its optimisers' numbers move.

    Raises:
        UserError: naming what is wrong, and neither file nor remedy.
    """
    before = random_state()
    try:
        _check_model(content)
        _check_random(content["random"])
    finally:
        set_random_state(before)


def _check_random(state: dict[str, Any]) -> None:
    try:
        set_random_state(state)
    except DAMAGED as error:
        raise UserError(f"random: not as train.py writes it ({type(error).__name__}: {first_line(error)})") from None


def _check_model(content: dict[str, Any]) -> None:
    for part in FINITE:
        wrong = next(not_finite(content.get(part), part), None)
        if wrong is not None:
            raise UserError(f"{wrong} = nan or inf, as train.py never writes it")
    model = model_of(content, averaged=True)
    model.load_state_dict(content["state_dict"])  # where averages were, the last ones
    optimizers = dict(zip(model.networks, model.configure_optimizers(), strict=True))
    states = content.get("optimizer_states")
    if not isinstance(states, list) or len(states) != len(optimizers):
        raise UserError(f"optimizer_states: not one for each of {', '.join(optimizers)}")
    for k, (network, optimizer) in enumerate(optimizers.items()):
        try:
            _check_state(optimizer, states[k])
        except DAMAGED as error:
            raise UserError(f"optimizer_states.{k}: not of the optimiser of {network} ({first_line(error)})") from None


def _check_state(optimizer: torch.optim.Optimizer, state: Any) -> None:
    """Let an optimiser that has not moved yet go on from a state.

    Shapes are compared first, as torch's fused optimisers take what lies behind a tensor that is too short.

    Raises:
        Exception: one of ``DAMAGED``: it cannot, or it makes weights of it that are no numbers.
    """
    weights = [weight for group in optimizer.param_groups for weight in group["params"]]
    for weight in weights:
        weight.grad = torch.zeros_like(weight)
    try:
        optimizer.step()
    except (RuntimeError, TypeError):  # not on this device, say
        return
    own = optimizer.state_dict()
    _check_names(state, own, "it")
    optimizer.load_state_dict(state)
    loaded = optimizer.state_dict()
    for number, kept in loaded["state"].items():
        wanted = own["state"].get(number, {})
        _check_names(kept, wanted, f"state.{number}")
        for name, value in wanted.items():
            shapes = [list(tensor.shape) for tensor in (kept[name], value) if isinstance(tensor, torch.Tensor)]
            if len(shapes) == 2 and shapes[0] != shapes[1]:
                raise ValueError(f"state.{number}.{name}: of shape {shapes[0]} where {shapes[1]} belongs")
    for number, group in enumerate(loaded["param_groups"]):
        _check_names(group, own["param_groups"][number], f"param_groups.{number}")
    optimizer.step()
    if not all(bool(weight.isfinite().all()) for weight in weights):
        raise ValueError("its numbers make weights of nan or inf")


def _check_names(found: Any, wanted: Mapping[str, Any], place: str) -> None:
    lacking = [name for name in wanted if not isinstance(found, Mapping) or name not in found]
    if lacking:
        raise ValueError(f"{place} lacks {', '.join(lacking)}")


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
