"""One file from the network: checked, atomic, and quick to give up."""

import hashlib
import http.client
import urllib.request
from collections.abc import Callable
from pathlib import Path

from imago.files import one_at_a_time, remove_litter, replacing


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
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(path, f"{path}: another process downloads it; waiting"):
            remove_litter(path.parent)
            if path.is_file() and sha256_of(path) == sha256:  # by the process that this one waited for
                return
            with urllib.request.urlopen(url, timeout=timeout) as response, replacing(path) as file:
                total, done, digest = int(response.headers.get("Content-Length") or 0), 0, hashlib.sha256()
                while piece := response.read(1 << 20):
                    file.write(piece)
                    digest.update(piece)
                    done += len(piece)
                    if progress is not None:
                        progress(done, max(total, done))
                if digest.hexdigest() != sha256:
                    raise DownloadError(f"{url} has the SHA-256 {digest.hexdigest()} instead of {sha256}")
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise DownloadError(f"{url}: {getattr(error, 'reason', error)}") from error
