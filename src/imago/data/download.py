"""Files from the network: complete and right, or not there at all."""

import hashlib
import http.client
import os
import time
import urllib.error
import urllib.request
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from imago.errors import UserError

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


class _InterruptedTransferError(OSError):
    """The transfer began and broke off: worth another attempt, unlike a server that is not there."""


def fetch(download: Download, directory: Path, *, instead: str) -> Path:
    """DIRECTORY/name, verified; downloaded if it is not there.

    Args:
        download: what to get.
        directory: the folder of all data sets, ``data.dir``; must exist.
        instead: second half of the advice to the user who has to bring the file himself, e.g. "or unpack it there".

    Raises:
        UserError: the file that is there has another checksum, or no address gave the right one.
    """
    target = directory / download.name
    if target.exists():
        found = _md5(target)
        if found != download.md5:
            raise UserError(
                f"{target}: has MD5 {found} and {target.stat().st_size:,} bytes, expected {download.md5} and "
                f"{download.size:,}: it is damaged or another file. Delete it to have it fetched again."
            )
        return target
    failures = []
    for url in download.urls:
        try:
            _get(url, target, download)
        except (OSError, http.client.HTTPException, ValueError) as error:
            failures.append(f"{url}: {getattr(error, 'reason', error)}")
        else:
            return target
    raise UserError(
        f"data.dir={directory}: {target} is missing and could not be downloaded ({'; '.join(failures)}). "
        f"Get {download.urls[0]} ({download.size:,} bytes, MD5 {download.md5}) with another machine or a browser and "
        f"put it at {target}, {instead}. If the data lies elsewhere, set data.dir to its folder."
    )


def _get(url: str, target: Path, download: Download) -> None:
    """Download to a temporary name beside the target, verify, rename."""
    partial = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for attempt in range(1, _ATTEMPTS + 1):
            try:
                _stream(url, partial, download)
                break
            except _InterruptedTransferError:
                if attempt == _ATTEMPTS:
                    raise
                time.sleep(attempt)
        found = _md5(partial)
        if found != download.md5:
            raise ValueError(
                f"the file received has MD5 {found} and {partial.stat().st_size:,} bytes, expected {download.md5} and "
                f"{download.size:,}"
            )
        partial.replace(target)
    finally:
        partial.unlink(missing_ok=True)


def _stream(url: str, partial: Path, download: Download) -> None:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(),
    )
    with (
        urllib.request.urlopen(url, timeout=_TIMEOUT) as response,
        partial.open("wb") as file,
        Progress(*columns, console=Console(stderr=True)) as progress,
    ):
        promised = int(response.headers.get("Content-Length", download.size))
        task = progress.add_task(Path(download.name).name, total=promised)
        received = 0
        try:
            while chunk := response.read(_CHUNK):
                file.write(chunk)
                received += len(chunk)
                progress.update(task, completed=received)
        except (OSError, http.client.HTTPException) as error:
            raise _InterruptedTransferError(f"broke off after {received:,} of {promised:,} bytes ({error})") from error
        if received < promised:
            raise _InterruptedTransferError(f"broke off after {received:,} of {promised:,} bytes")


def _md5(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "md5").hexdigest()
