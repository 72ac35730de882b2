"""Paths that a command names, looked at without torch: a slip in one costs neither seconds nor a file."""

import functools
import os
import re
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from imago import pretrained
from imago.errors import UserError
from imago.untrusted import opened, read_archive

# What sample.py writes, by the ending of its name; a name without one means a folder.
ENDINGS = (".png", ".npz", "")
# In a folder of samples: the file that says what they are.
SETTINGS = "settings.json"
# What a run leaves in its directory, and in folders there.
RUN_FILES = ("config.yaml", "summary.json", "metrics.csv", "curves.png", "evaluation.json")
RUN_FOLDERS = ("checkpoints", "samples", "wandb", "tensorboard")
# In a run's folder ``checkpoints``: the last one, the one before it, and the best; a run can be continued from each.
CHECKPOINTS = ("last.ckpt", "previous.ckpt", "best.ckpt")
_LISTED = 20  # of a sweep's runs
_DEEPEST = 200  # folders inside each other: Python makes those above a folder by recursion
# Words of a command or message: addresses whole, everything else between spaces, quotes and brackets.
_WORD = re.compile(r"(?!file:)\w+://[^\s'\"]+|[^\s'\",=\[\](){}]+")
# Above, at home, on a server, on Windows.
_ELSEWHERE = re.compile(r"(file://)?((\.\.)?/|~[^/\\]*[/\\]|\\\\|[A-Za-z]:[/\\])")
_WHAT = (
    "a checkpoint is a run directory (logs/NAME/TIME), a .ckpt file in its folder checkpoints, an exported model or "
    "the name of a pretrained one"
)


def checkpoint_file(path: str | Path, key: str = "checkpoint") -> Path:
    """The checkpoint file that a path means: itself, or the last one of a run directory, see :func:`run_of`.

    Where a run's last checkpoint is damaged or missing, an older one that is whole is meant, which is said. Of an
    exported model it is the file of its weights. Where there is no such path, the name of a pretrained model is meant.

    Args:
        path: as it was given.
        key: the setting that it was given as, for messages.

    Raises:
        UserError: there is no such file, it is damaged, or anything else than a checkpoint.
    """
    path = file = Path(path)
    try:
        if not path.exists():
            found = pretrained.folder_of(str(path))
            if found is None:
                raise UserError(f"{key}={path}: no such file or folder; {_WHAT}; {pretrained.meant(str(path))}")
            path = found
        if path.is_dir() and (path / pretrained.WEIGHTS).is_file():
            path = file = path / pretrained.WEIGHTS
        if path.is_dir():
            path = run_of(path, key)
            files, wrong = whole_checkpoints(path, key)
            file = next((file for file in files if file.name == CHECKPOINTS[0]), files[0])
            if file.name != CHECKPOINTS[0]:
                _say(f"note: {key}={path}: {CHECKPOINTS[0]} {wrong[CHECKPOINTS[0]]}; {file.name} is used instead")
            return file
        if not file.is_file():  # of a pipe the first byte may never come
            raise UserError(f"{key}={file}: a pipe or a device; {_WHAT}")
        with file.open("rb") as start:
            archive = start.read(2) == b"PK"  # torch writes zip archives; other files need no closer look
        if archive:
            with zipfile.ZipFile(file) as content:
                archive = any(name.endswith("/data.pkl") for name in content.namelist())
        if archive:
            _check_sums(str(file), *_version(file))
        if file.name == pretrained.WEIGHTS:
            if not (file.parent / pretrained.SETTINGS).is_file():
                raise UserError(f"{key}={file}: no {pretrained.SETTINGS} beside it; give a whole exported folder")
            return file
    except (zipfile.BadZipFile, _DamagedError):
        raise UserError(f"{key}={file}: cannot be read, it is cut short or damaged; use another one") from None
    except OSError as error:
        raise UserError(f"{key}={file}: cannot be read ({error.strerror}); use another one") from None
    if not archive:
        raise UserError(f"{key}={file}: no checkpoint of this program; {_WHAT}")
    return file


def run_of(folder: Path, key: str = "checkpoint") -> Path:
    """The run directory that a folder means: itself, or of the runs in it the newest with a checkpoint, which is said.

    Args:
        folder: that is there.
        key: the setting that it was given as, for messages.

    Raises:
        UserError: the runs in it are those of a sweep, several of them: none stands for the others.
    """
    if any(os.path.lexists(folder / name) for name in ("checkpoints", "config.yaml")):
        return folder
    files = [file for name in CHECKPOINTS for file in folder.glob(f"*/checkpoints/{name}") if file.is_file()]
    runs = list(dict.fromkeys(file.parent.parent for file in sorted(files, key=lambda file: -file.stat().st_mtime_ns)))
    if not runs:
        return folder
    if len(runs) > 1 and (folder / "multirun.yaml").is_file():
        names = sorted((run.name for run in runs), key=lambda name: (len(name.partition("-")[0]), name))
        listed = ", ".join(names[:_LISTED]) + ", ..." * (len(names) > _LISTED)
        raise UserError(f"{key}={folder}: a sweep of {len(names)} runs; give one of them, {folder}/NAME: {listed}")
    among = f"of the {len(runs)} runs in it the newest" if len(runs) > 1 else "the run in it"
    _say(f"note: {key}={folder}: {among} is used, {runs[0].name}")
    return runs[0]


def whole_checkpoints(run: Path, key: str = "checkpoint") -> tuple[list[Path], dict[str, str]]:
    """A run's checkpoints: the whole ones, the newest first, and by their names what is wrong with the others.

    Every byte is held against the checksums in the files, which torch does not do.

    Args:
        run: its directory.
        key: the setting that it was given as, for messages.

    Raises:
        UserError: none is whole.
    """
    found: list[tuple[int, Path]] = []
    wrong = {}
    for name in CHECKPOINTS:
        file = run / "checkpoints" / name
        try:
            found.append((_images_seen(str(file), *_version(file)), file))
        except FileNotFoundError:
            wrong[name] = "is missing"
        except OSError as error:
            wrong[name] = f"cannot be read ({error.strerror})"
        except ValueError as error:
            wrong[name] = str(error)
    if found:
        return [file for _, file in sorted(found, key=lambda pair: -pair[0])], wrong
    if set(wrong.values()) == {"is missing"}:
        raise UserError(f"{key}={run}: a folder without checkpoints/{CHECKPOINTS[0]}; {_WHAT}")
    raise UserError(
        f"{key}={run}: none of its checkpoints is whole: {', '.join(f'{name} {why}' for name, why in wrong.items())}; "
        + ("leave resume out to start anew" if key == "resume" else "use another run")
    )


def run_to_resume(path: str | Path) -> Path:
    """The directory of the run that ``resume=PATH`` means, see :func:`run_of`.

    Raises:
        UserError: it is none, or none of its checkpoints is whole.
    """
    path = Path(path)
    last = path.name == CHECKPOINTS[0] and path.parent.name == "checkpoints"
    if not last and not path.is_dir():
        checkpoint_file(path, "resume")
        raise UserError(
            f"resume={path}: a run continues in its own directory, where it stopped; give that directory "
            f"or its checkpoints/{CHECKPOINTS[0]}"
        )
    if not last and os.path.lexists(path / pretrained.WEIGHTS):
        raise UserError(
            f"resume={path}: an exported model, without the optimisers' states; give the run that it was exported from"
        )
    run = path.parent.parent if last else run_of(path, "resume")
    whole_checkpoints(run, "resume")
    return run


class _DamagedError(ValueError):
    """A file does not fit its checksums."""


def _version(file: Path) -> tuple[int, ...]:
    """What changes when a file does."""
    status = file.stat()
    return status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns


def check_whole(file: Path) -> None:
    """Hold every byte of a zip archive against its checksums, which torch does not do.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    _check_sums(str(file), *_version(file))


@functools.lru_cache(maxsize=64)
def _check_sums(file: str, *version: int) -> None:
    """Read a zip archive whole.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged.
    """
    try:
        with opened(Path(file)) as content, zipfile.ZipFile(content) as archive:
            if archive.testzip() is None:
                return
    except OSError:
        raise
    except Exception:  # a damaged archive raises whatever it likes
        raise _DamagedError("is cut short or damaged") from None
    raise _DamagedError("is damaged: its checksums do not fit")


@functools.lru_cache(maxsize=64)
def _images_seen(file: str, *version: int) -> int:
    """After how many images a checkpoint was written.

    Raises:
        OSError: it cannot be read.
        ValueError: it is damaged, or none.
    """
    if Path(file).is_dir():
        raise ValueError("is a folder")
    with opened(Path(file)) as content:
        if not content.read(1):
            raise ValueError("is empty")
        content.seek(0)
        progress = read_archive(content, ["progress"]).get("progress")
    images = progress.get("images_seen") if isinstance(progress, dict) else None
    if type(images) is not int:
        raise ValueError("is no checkpoint of this program")
    _check_sums(file, *version)
    return images


@functools.cache
def _say(line: str) -> None:
    """Say something once: a path is looked at before torch is loaded and again when it is read."""
    print(line, file=sys.stderr, flush=True)


def folder_of(checkpoint: Path) -> Path:
    """The run directory of a checkpoint file, or the folder in which it lies alone or as an exported model."""
    of_a_run = checkpoint.parent.name == "checkpoints" and checkpoint.name != pretrained.WEIGHTS
    return checkpoint.parent.parent if of_a_run else checkpoint.parent


def anonymous(value: Any) -> Any:
    """The same with the last part alone of every path from a root, a home or above: nobody else has such a folder."""
    if isinstance(value, dict):
        return {key: anonymous(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [anonymous(entry) for entry in value]
    return _WORD.sub(_last_part, value) if isinstance(value, str) else value


def _last_part(word: re.Match[str]) -> str:
    parts = re.split(r"[/\\]", word[0].rstrip("/\\"))
    return parts[-1] if _ELSEWHERE.match(word[0]) and parts[-1] else word[0]


def results_file(checkpoint: Path, name: str) -> Path:
    """Where what is made of a checkpoint goes by default: its run directory, of a pretrained model the current folder.

    There the name of the model goes before ``name``, so that of two models both stay.
    """
    if pretrained.is_pretrained(checkpoint):
        return Path(f"{checkpoint.resolve().parent.name}-{name}")
    return folder_of(checkpoint) / name


def check_file_place(path: Path, make_parents: bool = False, ours: Callable[[Path], bool] | None = None) -> None:
    """Find out whether a file can be written at ``path``; one that is there stays as it is, and so does a link.

    Args:
        path: the file.
        make_parents: whoever writes makes the folders above it.
        ours: whether a file that is there was made by the same command; others are not replaced. May raise OSError or
            ValueError for what it cannot read. Without it any file is replaced.

    Raises:
        UserError: a folder, a pipe or a device has this name, it is one of a run's own files or somebody else's, its
            folder is missing, or nothing can be written there.
    """
    with writing_to(path):
        if make_parents and not path.parent.is_dir():
            check_folder_place(path.parent)
            return
        _check_parent(path)
        if not path.name or path.is_dir():
            raise UserError(f"out={path}: is a folder; give another name")
        if _is_there(path):
            _check_replaceable(path)
            known = ours is None
            with suppress(OSError, ValueError):
                known = ours is None or ours(path)
            if not known:
                raise UserError(f"out={path}: is there already, and no file of this command's; give another name")
        trial = path.with_name(f".{path.name[:150]}.{os.getpid()}")
        os.close(os.open(trial, os.O_WRONLY | os.O_CREAT | os.O_EXCL))
        trial.unlink()


def check_folder_place(path: Path, key: str = "out") -> None:
    """Find out whether files can be written inside ``path``, a folder that is there or can be made.

    Raises:
        UserError: something else has its name, or one of those above it, or nothing can be written there.
    """
    with writing_to(path, key):
        if len(path.parts) > _DEEPEST:
            raise UserError(f"{key}: a path of {len(path.parts):,} folders is too long; choose another place")
        _is_there(path)  # the name can be one
        there = next(place for place in (path, *path.parents) if place == Path() or _is_there(place))
        if not there.is_dir():
            raise UserError(f"{key}={path}: {there} is no folder; choose another place")
        trial = there / f".imago.{os.getpid()}"
        trial.mkdir()
        trial.rmdir()


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
    if path.suffix not in ENDINGS or (path.name and path.name in ENDINGS):
        raise UserError(
            f"out={path}: cannot write {path.suffix or 'nameless'} files; give a name ending in .png (one picture of "
            "all images) or .npz (arrays), or a name without a suffix (a folder of PNG files)"
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
    with writing_to(path):
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


@contextmanager
def writing_to(path: Path, key: str = "out") -> Iterator[None]:
    """Tell whatever keeps a file or folder from being written in one line."""
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{key}={path}: cannot be written ({error.strerror or error}); choose another place, or make room there"
        ) from None


def _check_parent(path: Path) -> None:
    if not path.parent.is_dir():
        raise UserError(f"out={path}: there is no folder {path.parent}; create it, or choose another place")


def images_place(path: str | Path | None) -> Path:
    """The folder or zip file of images that ``data.path`` names.

    Raises:
        UserError: it names none, or there is nothing.
    """
    if path is None:
        raise UserError(
            "data.path is missing: data=folder needs data.path=FOLDER or data.path=FILE.zip, your own images, and "
            "data=stream the folder of shards that prepare wrote."
        )
    place = Path(path).expanduser()
    try:
        place.stat()
    except (OSError, ValueError) as error:
        raise UserError(
            f"data.path={path}: there is no such folder, zip or tar file "
            f"({getattr(error, 'strerror', None) or error}). Give the folder, zip or tar file that holds the images."
        ) from None
    return place
