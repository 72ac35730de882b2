"""Files from the network: whole and right, or not there at all."""

import hashlib
import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

from imago.files import one_at_a_time, remove_litter, replacing, state_folder, write_text

_ATTEMPTS = 3
_PIECE = 2**18  # bytes
_UNREACHABLE = "unreachable.json"
_QUIET_SECONDS = 600


class DownloadError(Exception):
    """No address gives the file; the text says why."""


class UnreachableError(DownloadError):
    """No address could be connected to: there is no network, or the servers are not there."""


class _InterruptedTransferError(DownloadError):
    """The transfer began and broke off: worth another attempt, unlike a server that is not there."""


def digest_of(path: Path, algorithm: str) -> str:
    """The hexadecimal digest of a file, by one of :mod:`hashlib`'s algorithms."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, algorithm).hexdigest()


def download(
    urls: Sequence[str],
    path: Path,
    digest: str,
    *,
    size: int | None = None,
    timeout: float = 20.0,
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Fetch a published file, by one process at a time; a transfer that breaks off is tried again.

    Args:
        urls: http or https addresses, tried in turn.
        path: where the file is to lie; its folder is created.
        digest: algorithm and hexadecimal digest, "md5:c32a..." or "sha256:...".
        size: in bytes, where it is known.
        timeout: seconds to wait for a connection, and for each piece of data.
        progress: called with (bytes so far, bytes in all).

    Raises:
        UnreachableError: no connection, to any address.
        DownloadError: no such file, a broken transfer or the wrong content, at every address.
        OSError: nothing can be written there.
    """
    algorithm, expected = digest.split(":")
    path.parent.mkdir(parents=True, exist_ok=True)
    with one_at_a_time(path, f"{path}: another process downloads it; waiting"):
        remove_litter(path.parent)
        if path.is_file() and digest_of(path, algorithm) == expected:  # by the process that this one waited for
            return
        failures: dict[str, DownloadError] = {}
        for url in urls:
            try:
                with replacing(path) as file:
                    for attempt in range(1, _ATTEMPTS + 1):
                        try:
                            _transfer(url, file, size, timeout, progress)
                            break
                        except _InterruptedTransferError:
                            if attempt == _ATTEMPTS:
                                raise
                            time.sleep(attempt)
                    file.seek(0)
                    found = hashlib.file_digest(file, algorithm).hexdigest()  # type: ignore[arg-type]
                    if found != expected:
                        name = {"md5": "MD5", "sha256": "SHA-256"}[algorithm]
                        raise DownloadError(f"gives {file.tell():,} bytes of {name} {found} instead of {expected}")
                return
            except DownloadError as error:
                failures[url] = error
        dead = all(isinstance(error, UnreachableError) for error in failures.values())
        raise (UnreachableError if dead else DownloadError)("; ".join(f"{url}: {e}" for url, e in failures.items()))


def remember_unreachable(url: str) -> None:
    """Note for this user that an address could not be connected to; where nothing can be kept, nothing."""
    with suppress(OSError, RuntimeError):
        file = state_folder() / _UNREACHABLE
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        write_text(file, json.dumps({**_unreachable(), url: time.time()}))


def known_unreachable(url: str) -> str:
    """Of an address that could not be connected to in the last ten minutes, in words when; of others nothing."""
    at = _unreachable().get(url)
    if at is None:
        return ""
    when = time.strftime("%H:%M", time.localtime(at))
    return (
        f"there was no connection at {when}; it is tried again ten minutes later, or at once if "
        f"{state_folder() / _UNREACHABLE} is deleted"
    )


def _unreachable() -> dict[str, float]:
    """When each address could not be connected to last, in seconds since the epoch."""
    with suppress(OSError, RuntimeError, ValueError):
        found, now = json.loads((state_folder() / _UNREACHABLE).read_text("utf-8")), time.time()
        found = found if isinstance(found, dict) else {}
        return {url: at for url, at in found.items() if isinstance(at, float) and 0 <= now - at < _QUIET_SECONDS}
    return {}


def _transfer(
    url: str, file: BinaryIO, size: int | None, timeout: float, progress: Callable[[int, int], None] | None
) -> None:
    """Write what an address gives, from the file's beginning; errors of the disk pass as they are."""
    file.seek(0)
    file.truncate()
    try:
        response = urllib.request.urlopen(url, timeout=timeout)
        promised = int(response.headers.get("Content-Length") or size or 0)
    except (OSError, http.client.HTTPException, ValueError) as error:
        dead = isinstance(error, OSError) and not isinstance(error, urllib.error.HTTPError)
        kind = UnreachableError if dead else DownloadError
        if isinstance(error, urllib.error.HTTPError):
            error.close()
        raise kind(str(getattr(error, "reason", error))) from error
    with response:
        received = 0
        while piece := _piece(response, received, promised):
            received += len(piece)
            if size is not None and received > size:
                raise DownloadError(f"sends more than {size:,} bytes")
            file.write(piece)
            if progress is not None:
                progress(received, max(promised, received))
        if received < promised:
            raise _InterruptedTransferError(f"broke off after {received:,} of {promised:,} bytes")


def _piece(response: Any, received: int, promised: int) -> bytes:
    try:
        return cast(bytes, response.read(_PIECE))
    except (OSError, http.client.HTTPException) as error:
        raise _InterruptedTransferError(f"broke off after {received:,} of {promised:,} bytes ({error})") from error
