"""Files from the network: complete and right, or not there at all."""

import hashlib
import http.client
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, cast

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from imago.data.base import check_file
from imago.errors import UserError
from imago.files import one_at_a_time, remove_litter, replacing

_TIMEOUT = 20.0  # seconds without an answer
_ATTEMPTS = 3
_CHUNK = 2**18


@dataclass(frozen=True)
class Download:
    """A published file: its path inside ``data.dir``, its addresses (tried in turn), its size in bytes and its MD5."""

    name: str
    urls: tuple[str, ...]
    size: int
    md5: str

    def at(self, url: str) -> "Download":
        """The same file at another address."""
        return replace(self, urls=(url,))


class _TransferError(Exception):
    """The address does not give the file; the text says why."""


class _InterruptedTransferError(_TransferError):
    """The transfer began and broke off: worth another attempt, unlike a server that is not there."""


def fetch(download: Download, directory: Path, *, instead: str) -> Path:
    """DIRECTORY/name, verified; downloaded if it is not there, by one process at a time.

    Args:
        download: what to get.
        directory: the folder of all data sets, ``data.dir``; must exist.
        instead: second half of the advice to the user who has to bring the file himself, e.g. "or unpack it there".

    Raises:
        UserError: the file that is there has another checksum, no address gave the right one, or it cannot be written.
    """
    target = directory / download.name
    if not target.exists():
        with (
            writing(target.parent, directory),
            one_at_a_time(target, f"{target}: another process downloads it; waiting"),
        ):
            remove_litter(target.parent)
            if not target.exists():
                _get_from_any(download, target, directory, instead)
    check_file(target)
    size, found = target.stat().st_size, _md5(target)
    if found != download.md5:
        raise UserError(
            f"{target}: has MD5 {found} and {size:,} bytes, expected {download.md5} and "
            f"{download.size:,}: it is damaged or another file. Delete it to have it fetched again."
        )
    return target


@contextmanager
def writing(folder: Path, directory: Path) -> Iterator[None]:
    """Make ``folder`` and write into it; a full disk or missing permissions end in one line."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as error:
        raise UserError(
            f"data.dir={directory}: {folder} cannot be written to ({error.strerror or error}). Make room or change its "
            "permissions, or set data.dir to another folder."
        ) from None


def _get_from_any(download: Download, target: Path, directory: Path, instead: str) -> None:
    failures = []
    for url in download.urls:
        try:
            _get(url, target, download)
        except (_TransferError, ValueError) as error:
            failures.append(f"{url}: {error}")
        else:
            return
    raise UserError(
        f"data.dir={directory}: {target} is missing and could not be downloaded ({'; '.join(failures)}). "
        f"Get {download.urls[0]} ({download.size:,} bytes, MD5 {download.md5}) with another machine or a browser and "
        f"put it at {target}, {instead}. If the data lies elsewhere, set data.dir to its folder."
    )


def _get(url: str, target: Path, download: Download) -> None:
    """Download to a temporary beside the target, verify, rename."""
    with replacing(target) as file:
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                found = _stream(url, file, download)
                break
            except _InterruptedTransferError:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(attempt)
        if found != download.md5:
            raise ValueError(
                f"the file received has MD5 {found} and {file.tell():,} bytes, expected {download.md5} and "
                f"{download.size:,}"
            )


def _stream(url: str, file: BinaryIO, download: Download) -> str:
    """Write what the address gives from the file's beginning; returns its MD5."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    file.seek(0)
    file.truncate()
    digest = hashlib.md5(usedforsecurity=False)
    try:
        response = urllib.request.urlopen(url, timeout=_TIMEOUT)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise _TransferError(str(getattr(error, "reason", error))) from error
    with response, Progress(*columns, console=Console(stderr=True)) as progress:
        promised = int(response.headers.get("Content-Length", download.size))
        task = progress.add_task(Path(download.name).name, total=promised)
        received = 0
        while chunk := _received(response, received, promised):
            received += len(chunk)
            if received > max(promised, download.size):
                raise _TransferError(f"sends more than {download.size:,} bytes")
            file.write(chunk)
            digest.update(chunk)
            progress.update(task, completed=received)
        if received < promised:
            raise _InterruptedTransferError(f"broke off after {received:,} of {promised:,} bytes")
    return digest.hexdigest()


def _received(response: Any, received: int, promised: int) -> bytes:
    """The next piece; an error of the network is told from one of the disk here."""
    try:
        return cast(bytes, response.read(_CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedTransferError(f"broke off after {received:,} of {promised:,} bytes ({error})") from error


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
