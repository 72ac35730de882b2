"""Published files of data sets in ``data.dir``: verified, and downloaded where they are missing."""

from dataclasses import dataclass
from pathlib import Path

from imago.data.base import check_file
from imago.downloads import DownloadError, digest_of, download
from imago.errors import UserError
from imago.paths import writing_to
from imago.progress import progress_bar


@dataclass(frozen=True)
class Download:
    """A published file: its path inside ``data.dir``, its addresses (tried in turn), its size in bytes and its MD5."""

    name: str
    urls: tuple[str, ...]
    size: int
    md5: str


def fetch(wanted: Download, directory: Path, *, instead: str) -> Path:
    """DIRECTORY/name, verified; downloaded if it is not there, by one process at a time.

    Args:
        wanted: what to get.
        directory: the folder of all data sets, ``data.dir``; must exist.
        instead: second half of the advice to the user who has to bring the file himself, e.g. "or unpack it there".

    Raises:
        UserError: the file that is there has another checksum, no address gave the right one, or it cannot be written.
    """
    target, published = directory / wanted.name, f"{wanted.size:,} bytes, MD5 {wanted.md5}"
    if not target.exists():
        try:
            with writing_to(target, "data.dir"), progress_bar(f"Downloading {target.name}") as progress:
                download(wanted.urls, target, f"md5:{wanted.md5}", size=wanted.size, progress=progress)
        except DownloadError as error:
            raise UserError(
                f"data.dir={directory}: {target} is missing and could not be downloaded ({error}). Get "
                f"{wanted.urls[0]} ({published}) with another machine or a browser and put it at {target}, {instead}. "
                "If the data lies elsewhere, set data.dir to its folder."
            ) from None
    check_file(target)
    found = digest_of(target, "md5")
    if found != wanted.md5:
        raise UserError(
            f"{target}: has {target.stat().st_size:,} bytes, MD5 {found}, expected {published}: it is damaged or "
            "another file. Delete it to have it fetched again."
        )
    return target
