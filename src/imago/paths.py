"""Paths that a command names, looked at without torch: a slip in one shall cost neither seconds nor a file."""

import os
import zipfile
from pathlib import Path

from imago.errors import UserError

# What sample.py writes, by the ending of its name; a name without one means a folder.
ENDINGS = (".png", ".npz", "")
# In a folder of samples: the file that says what they are.
SETTINGS = "settings.json"
# What a run leaves in its directory, and in folders there.
RUN_FILES = ("config.yaml", "summary.json", "metrics.csv", "curves.png", "evaluation.json")
RUN_FOLDERS = ("checkpoints", "samples", "wandb", "tensorboard")


def checkpoint_file(path: str | Path, key: str = "checkpoint") -> Path:
    """The checkpoint file that a path means: itself, or the last one of a run directory.

    Args:
        path: as it was given.
        key: the setting that it was given as, for messages.

    Raises:
        UserError: there is no such file, it is damaged, or anything else than a checkpoint.
    """
    path = file = Path(path)
    what = "a checkpoint is a run directory (logs/NAME/TIME) or a .ckpt file in its folder checkpoints"
    try:
        if not path.exists():
            raise UserError(f"{key}={path}: no such file or folder; {what}")
        if path.is_dir():
            file = path / "checkpoints" / "last.ckpt"
        if file.exists() and not file.is_file():
            raise UserError(f"{key}={file}: a pipe, a device or a folder; {what}")
        if not file.exists():
            inside = sorted(path.glob("*/checkpoints/last.ckpt"), key=lambda found: found.stat().st_mtime)
            remedy = f"the newest run inside is {inside[-1].parent.parent}" if inside else what
            raise UserError(f"{key}={path}: a folder without checkpoints/last.ckpt; {remedy}")
        if not file.is_file():  # of a pipe the first byte may never come
            raise UserError(f"{key}={file}: is no regular file; {what}")
        with file.open("rb") as opened:
            archive = opened.read(2) == b"PK"  # torch writes zip archives; other files need no closer look
        if archive:
            with zipfile.ZipFile(file) as content:
                archive = any(name.endswith("/data.pkl") for name in content.namelist())
    except zipfile.BadZipFile:
        raise UserError(f"{key}={file}: cannot be read, it is cut short or damaged; use another one") from None
    except OSError as error:
        raise UserError(f"{key}={file}: cannot be read ({error.strerror}); use another one") from None
    if not archive:
        raise UserError(f"{key}={file}: no checkpoint of this program; {what}")
    return file


def check_file_place(path: Path, make_parents: bool = False) -> None:
    """Find out whether a file can be written at ``path``; one that is there stays as it is, and so does a link.

    Args:
        path: the file.
        make_parents: whoever writes makes the folders above it.

    Raises:
        UserError: a folder, a pipe or a device has this name, it is one of a run's own files, its folder is missing, or
            nothing can be written there.
    """
    try:
        if make_parents and not path.parent.is_dir():
            check_folder_place(path.parent)
            return
        _check_parent(path)
        if not path.name or path.is_dir():
            raise UserError(f"out={path}: is a folder; give another name")
        if _is_there(path):
            _check_replaceable(path)
        trial = path.with_name(f".{path.name[:150]}.{os.getpid()}")
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        trial.unlink()
    except OSError as error:
        raise unwritable(path, error) from None


def check_folder_place(path: Path, key: str = "out") -> None:
    """Find out whether files can be written inside ``path``, a folder that is there or can be made.

    Raises:
        UserError: something else has its name, or one of those above it, or nothing can be written there.
    """
    try:
        _is_there(path)  # the name can be one
        there = next(place for place in (path, *path.parents) if place == Path() or _is_there(place))
        if not there.is_dir():
            raise UserError(f"{key}={path}: {there} is no folder; choose another place")
        trial = there / f".imago.{os.getpid()}"
        trial.mkdir()
        trial.rmdir()
    except OSError as error:
        raise unwritable(path, error, key) from None


def _is_there(path: Path) -> bool:
    try:
        os.lstat(path)
    except (FileNotFoundError, NotADirectoryError):
        return False
    return True


def _check_replaceable(path: Path) -> None:
    """Refuse what is no file, and what a run has left: it is not made again."""
    if not path.is_symlink() and not path.is_file():
        raise UserError(f"out={path}: is a pipe or a device, which a file would replace; give another name")
    folder = path.parent.absolute()
    run = folder if path.name in RUN_FILES else folder.parent if folder.name in RUN_FOLDERS else None
    if run is not None and (run / "config.yaml").is_file():
        raise UserError(f"out={path}: belongs to the run in {run}; give another name")


def check_sample_place(path: Path, overwrite: bool) -> None:
    """Find out whether sample.py may write to ``path``: a new file, or a folder, new or to be continued.

    Args:
        path: ends in one of ``ENDINGS``.
        overwrite: arrays that are there may be replaced. A picture may always, as those of figure.py.

    Raises:
        UserError: another ending, something else is there, or nothing can be written.
    """
    if path.suffix not in ENDINGS:
        raise UserError(
            f"out={path}: cannot write {path.suffix} files; give a name ending in .png (one picture of all images) or "
            ".npz (arrays), or a name without a suffix (a folder of PNG files)"
        )
    if path.suffix:
        check_file_place(path)
        if path.suffix == ".npz" and path.exists() and not overwrite:
            raise UserError(f"out={path}: is there already; give another name, or replace it with overwrite=true")
        return
    if overwrite:
        raise UserError(
            f"overwrite=true: out={path} is a folder, which is continued and not replaced; leave it out, or choose "
            "another folder"
        )
    try:
        _check_parent(path)
        if path.exists() and not path.is_dir():
            raise UserError(
                f"out={path}: is a file, and a name without a suffix means a folder; give another name, .png or .npz"
            )
        others = path.is_dir() and any(not file.name.startswith(".") for file in path.iterdir())
        if others and not (path / SETTINGS).is_file():
            raise UserError(
                f"out={path}: a folder with files in it and no {SETTINGS}, so nothing says what they are samples of; "
                "choose another folder, or empty it"
            )
    except OSError as error:
        raise unwritable(path, error) from None


def unwritable(path: Path, error: OSError, key: str = "out") -> UserError:
    """What to say of a place where nothing can be written."""
    return UserError(f"{key}={path}: cannot be written ({error.strerror}); choose another place")


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"out={path}: there is no folder {path.parent}; create it, or choose another place")
