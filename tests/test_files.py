"""Files that are whole or absent, and locks that end with their process."""

import errno
import io
import os
import re
import signal
import stat
import threading
from pathlib import Path

import pytest
import torch

from imago.errors import Interrupted
from imago.files import UNFINISHED, AlreadyLocked, locked, one_at_a_time, remove_litter, replacing, write_text


def test_the_old_file_stays_until_the_new_one_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def break_off() -> None:
        with replacing(path) as file:
            file.write(b"half")
            assert path.read_text() == "old"
            raise RuntimeError("broke")

    with pytest.raises(RuntimeError, match="broke"):
        break_off()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]
    write_text(path, "new ±")
    assert path.read_bytes() == "new ±".encode()


def test_what_ends_a_writer_is_told_through_its_own_errors(tmp_path: Path) -> None:
    def save(what: BaseException) -> None:
        class Broken(io.BytesIO):
            def write(self, content: object) -> int:
                raise what

        with replacing(tmp_path / "x"):
            torch.save({"a": torch.zeros(9)}, Broken())

    for error in (KeyboardInterrupt(), Interrupted(signal.SIGTERM), OSError(errno.ENOSPC, "full")):
        with pytest.raises(type(error)):
            save(error)
    assert not list(tmp_path.iterdir())


def test_an_error_names_the_file_and_not_its_temporary(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    for path in (tmp_path / "folder", tmp_path / "nowhere" / "a"):
        with pytest.raises(OSError, match=re.escape(f"'{path}'") + "$"):
            write_text(path, "new")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_planted_link_is_replaced_and_not_followed(tmp_path: Path) -> None:
    victim, path, lock = tmp_path / "victim", tmp_path / "a.txt", tmp_path / "lock"
    victim.write_text("mine")
    path.symlink_to(victim)
    lock.symlink_to(victim)
    write_text(path, "new")
    assert victim.read_text() == "mine"
    assert not path.is_symlink()
    with pytest.raises(OSError, match="symbolic"), locked(lock):
        pass


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_permissions_are_those_of_any_new_file(mask: int, tmp_path: Path) -> None:
    before = os.umask(mask)
    try:
        write_text(tmp_path / "a.txt", "")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "a.txt").stat().st_mode) == 0o666 & ~mask


def test_a_name_as_long_as_names_may_be(tmp_path: Path) -> None:
    write_text(tmp_path / ("x" * 255), "long")
    assert [len(path.name) for path in tmp_path.iterdir()] == [255]


def test_litter_of_the_dead_is_removed_and_work_of_the_living_stays(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with replacing(tmp_path / "a") as file:
            file.write(b"half")
            os.write(writer, b"x")
            signal.pause()
        os._exit(0)
    os.read(reader, 1)
    with replacing(tmp_path / "b") as file:
        remove_litter(tmp_path)  # of both writers one is another process
        assert len(list(tmp_path.glob(f".*{UNFINISHED}"))) == 2
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        remove_litter(tmp_path)
        assert [path.name[:3] for path in tmp_path.iterdir()] == [".b."]
        file.write(b"whole")
    assert [path.name for path in tmp_path.iterdir()] == ["b"]
    os.close(reader)
    os.close(writer)


def test_a_lock_keeps_others_out_and_ends_with_its_process(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with locked(path):
            os.write(writer, b"x")
            signal.pause()
        os._exit(0)
    os.read(reader, 1)
    with pytest.raises(AlreadyLocked), locked(path, wait=False):
        pass
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with locked(path, wait=False), pytest.raises(AlreadyLocked), locked(path, wait=False):
        pass
    with locked(path):
        pass
    os.close(reader)
    os.close(writer)


def test_a_lock_whose_file_its_holder_removed_is_taken_at_its_new_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made = []

    def make(number: int) -> None:
        with one_at_a_time(tmp_path / "a", "waiting"):
            assert (tmp_path / ".a.lock").exists()
            assert made.count("in") == made.count("out"), "two at once"
            made.append("in")
            os.sched_yield()
            made.append("out")

    with one_at_a_time(tmp_path / "a", "waiting"):
        threads = [threading.Thread(target=make, args=(k,)) for k in range(20)]
        for thread in threads:
            thread.start()
    for thread in threads:
        thread.join()
    assert made == ["in", "out"] * 20
    assert list(tmp_path.iterdir()) == []
    assert "waiting" in capsys.readouterr().err


def test_a_lock_file_of_another_user_is_taken_by_reading_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lock, opened = tmp_path / "lock", os.open
    lock.touch()

    def closed(path: Path, flags: int, mode: int = 0o777) -> int:
        if flags & os.O_RDWR:
            raise PermissionError(13, "Permission denied")
        return opened(path, flags, mode)

    monkeypatch.setattr(os, "open", closed)
    with locked(lock), pytest.raises(AlreadyLocked), locked(lock, wait=False):
        pass
