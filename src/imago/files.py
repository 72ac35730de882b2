"""Files that are whole or absent, whoever is killed, and locks that end with their process."""

import errno
import fcntl
import itertools
import os
import secrets
import stat
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

# What stands beside a file while it is written: hidden, and never taken for the file.
UNFINISHED = ".unfinished"


class AlreadyLocked(Exception):  # noqa: N818 - not an error of the program
    """Another process holds the lock."""


def claim_folder(path: Path) -> Path:
    """Make a folder that nobody else has made: ``path``, or with ``-2``, ``-3``, ... behind it.

    Raises:
        OSError: nothing can be made there.
    """
    for count in itertools.count(1):
        candidate = path if count == 1 else path.with_name(f"{path.name}-{count}")
        with suppress(FileExistsError):
            candidate.mkdir(parents=True)
            return candidate
        if not candidate.exists():  # a file stands where a folder above it should be
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), str(path))
    raise AssertionError


@contextmanager
def replacing(path: Path, durable: bool = True) -> Iterator[BinaryIO]:
    """A new file, open for writing, that takes the place of ``path`` when the block ends well.

    Readers see the old file or the new one, after a power cut too. A link at ``path`` is replaced, not followed, and
    the temporary beside it is always a file of our own, so a folder that others can write to is no danger. Permissions
    are those that the umask gives to any new file. Whatever goes wrong, nothing is left behind but the old file; what a
    kill leaves, :func:`remove_litter` removes.

    Args:
        path: the file; its folder exists.
        durable: wait until it outlives a power cut; not for thousands of files that can be made again.

    Raises:
        OSError: nothing can be written there, or not all of it; also where a writer has made another error of it.
    """
    unfinished = _sibling(path)
    flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    try:
        file = os.fdopen(os.open(unfinished, flags, 0o666), "w+b")
    except OSError as error:
        error.filename = str(path)
        raise
    try:
        with file:
            _try_lock(file.fileno())  # held while it is written: that is how litter is told from work
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
            unfinished.replace(path)
    except BaseException as error:
        unfinished.unlink(missing_ok=True)
        # torch.save makes "unexpected pos" of a full disk, and of a signal.
        cause: BaseException | None = error if type(error) is RuntimeError else None
        while isinstance(cause, Exception) and not isinstance(cause, OSError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(error, OSError) and error.filename == str(unfinished):
            raise OSError(error.errno, error.strerror, str(path)) from None  # what the user knows
        if cause is not None:
            raise cause from None
        raise
    if durable:
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Replace a text file in one step, in UTF-8; see :func:`replacing`."""
    with replacing(path) as file:
        file.write(text.encode())


def state_folder() -> Path:
    """Where this user's programs keep what they have met; it need not be there.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "imago"


def cache_folder() -> Path:
    """Where this user's programs keep what can be fetched again; it need not be there.

    Raises:
        RuntimeError: the user has no home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "imago"


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[None]:
    """Keep others out of what a lock file stands for; the kernel lets go of it when this process ends, however.

    On file systems without locks nothing is kept out.

    Args:
        path: the lock file; created where it is missing, and left. A link there is not followed.
        wait: for others to finish.

    Raises:
        AlreadyLocked: another process has it, and ``wait`` is false.
        OSError: the file cannot be made.
    """
    descriptor = None
    try:
        while descriptor is None or not _stands_at(descriptor, path):  # its last holder may have removed it
            if descriptor is not None:
                os.close(descriptor)
                descriptor = None
            try:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
            except PermissionError:  # another user's, in a folder of several: reading is enough for a lock
                descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
            if wait:
                with suppress(OSError):
                    fcntl.flock(descriptor, fcntl.LOCK_EX)
            elif not _try_lock(descriptor):
                raise AlreadyLocked(str(path))
        yield
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def one_at_a_time(path: Path, waiting: str) -> Iterator[None]:
    """Let one process at a time make what is to stand at ``path``; who had to wait looks whether it is there now.

    Args:
        path: its folder exists. The lock file beside it is hidden, and gone afterwards.
        waiting: told on standard error by a process that has to wait.

    Raises:
        OSError: the lock file cannot be made.
    """
    lock = path.with_name(f".{path.name[:150]}.lock")
    with ExitStack() as stack:
        try:
            stack.enter_context(locked(lock, wait=False))
        except AlreadyLocked:
            print(waiting, file=sys.stderr)
            stack.enter_context(locked(lock))
        try:
            yield
        finally:
            with suppress(OSError):
                lock.unlink(missing_ok=True)


def keep_as(path: Path, other: Path) -> None:
    """Give a file a second name in one step, in place of what has that name: whoever replaces the file leaves it there.

    On file systems without second names it moves there. Nothing happens where there is no file.

    Raises:
        OSError: ``other`` is a folder, or nothing can be written there.
    """
    second = _sibling(other)
    try:
        os.link(path, second, follow_symlinks=False)
    except OSError:
        with suppress(FileNotFoundError):
            path.replace(other)
        return
    try:
        second.replace(other)
    finally:
        second.unlink(missing_ok=True)  # it stays where both are names of one file already


def in_the_way(path: Path) -> bool:
    """Whether something stands at ``path`` that is neither a file nor a link, and so cannot be replaced as one."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISLNK(mode)


def set_aside(path: Path) -> Path:
    """Rename what cannot be used to make room for another; nothing is deleted.

    Returns:
        Where it is now: ``.damaged`` behind its name, or with a number.
    """
    aside, count = path.with_name(f"{path.name}.damaged"), 1
    while os.path.lexists(aside):
        count += 1
        aside = path.with_name(f"{path.name}.damaged-{count}")
    path.rename(aside)
    return aside


def remove_litter(folder: Path) -> None:
    """Remove what killed writers left in a folder; what somebody is writing stays."""
    with suppress(OSError):
        for path in folder.glob(f".*{UNFINISHED}"):
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
                try:
                    if _try_lock(descriptor):
                        path.unlink(missing_ok=True)
                finally:
                    os.close(descriptor)


def _sibling(path: Path) -> Path:
    """A name beside ``path`` that nobody else has, not longer than a name may be."""
    return path.with_name(f".{path.name[:150]}.{secrets.token_hex(6)}{UNFINISHED}")


def _try_lock(descriptor: int) -> bool:
    """Whether the lock is ours now, or the file system has none."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        return error.errno not in (errno.EWOULDBLOCK, errno.EACCES)
    return True


def _stands_at(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.lstat())
    except FileNotFoundError:
        return False


def _sync_folder(folder: Path) -> None:
    """Let the new name outlive a power cut, where folders can be synced."""
    with suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
