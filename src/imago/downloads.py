"""One file from the network: checked, atomic, and quick to give up."""

import hashlib
import http.client
import os
import tempfile
import urllib.request
from collections.abc import Callable
from pathlib import Path


class DownloadError(Exception):
    """The file could not be had; the text says why."""


def sha256_of(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def download(
    url: str, path: Path, sha256: str, *, timeout: float, progress: Callable[[int, int], None] | None = None
) -> None:
    """Fetch ``url`` to ``path``; the file appears there whole and with the right checksum, or not at all.

    Args:
        url: http or https address.
        path: where the file is to lie; its folder is created.
        sha256: the expected hexadecimal digest.
        timeout: seconds to wait for a connection, and for each piece of data.
        progress: called with (bytes so far, bytes in all).

    Raises:
        DownloadError: no connection, no such file, a broken transfer, the wrong content or nowhere to write it.
    """
    temporary = None
    digest = hashlib.sha256()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(url, timeout=timeout) as response:
            total, done = int(response.headers.get("Content-Length") or 0), 0
            descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
            with os.fdopen(descriptor, "wb") as file:
                while piece := response.read(1 << 20):
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, max(total, done))
        if digest.hexdigest() != sha256:
            raise DownloadError(f"{url} has the SHA-256 {digest.hexdigest()} instead of {sha256}")
        Path(temporary).chmod(0o644)  # mkstemp's files are private
        Path(temporary).replace(path)
        temporary = None
    except (OSError, http.client.HTTPException) as error:
        raise DownloadError(f"{url}: {getattr(error, 'reason', error)}") from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
