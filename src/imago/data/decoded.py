"""Images decoded once into one file of uint8, which is memory-mapped from then on.

Data larger than the memory stream, and unchanged images are never decoded again. Two files are kept in a folder that
others may share: the array, and beside it what could not be read and a checksum. Both are replaced whole, and believed
only if they are what they should be; of processes that start together one decodes and the others wait for it.
"""

import errno
import json
import math
import os
import shutil
import sys
import warnings
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from imago.data.decode import Fit, Header, ImageFile, decode, read_header
from imago.data.listing import Container
from imago.data.metadata import UnreadableError
from imago.errors import UserError
from imago.files import one_at_a_time, remove_litter, replacing, write_text
from imago.paths import writing_to
from imago.progress import Progress, progress_bar

Shape = tuple[int, int, int]  # channels, height, width

_SHOWN = 10  # of a list of bad files
_CHUNK = 1024  # files handed to the threads at a time, which bounds what waits in memory
_CHECKED_BYTES = 2**28  # a quarter of a second of CRC-32; of more than that, evenly spaced images
# What fails for a while and says nothing of the file. Pillow's own OSErrors have no number.
_PASSING = {errno.EIO, errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE, errno.EAGAIN, errno.ETIMEDOUT}
_PASSING |= {errno.ENXIO, errno.ENODEV, errno.ENOTCONN, errno.ECONNRESET, errno.EHOSTDOWN, errno.EHOSTUNREACH}


@dataclass(frozen=True)
class Decoder:
    """Brings the images of a container to one size and number of channels.

    Args:
        container: their bytes.
        size: height and width; ``None`` takes images as they are, all of one size.
        fit: how an image of other proportions comes to ``size``.
        channels: 1 for gray, 3 for RGB; ``None`` is 1 if all files are stored as gray, else 3.
    """

    container: Container
    size: tuple[int, int] | None
    fit: Fit
    channels: int | None

    def images(self, names: list[str], cache: Path) -> tuple[np.ndarray, dict[str, str]]:
        """The images of these names in their order, without the unreadable ones; and those, with what is wrong.

        Args:
            names: of files in the container.
            cache: the .npy file that keeps the images; it is made if it is not there or damaged.

        Returns:
            uint8 (n, channels, height, width), a memory map that can be written to without changing the file.

        Raises:
            UserError: the images have several sizes and none is asked for; the file cannot be written; or a fault that
                passes, of the disk or of memory, kept an image from being read.
        """
        found = self._kept(names, cache)
        if found is not None:
            return found
        waiting = f"data.path={self.container.path}: another process is decoding these images; waiting for it"
        with writing_to(cache.parent, "data.dir"), ExitStack() as stack:
            cache.parent.mkdir(exist_ok=True)
            stack.enter_context(one_at_a_time(cache, waiting))
            found = self._kept(names, cache)
            if found is None:
                remove_litter(cache.parent)
                if os.path.lexists(cache):
                    print(f"{cache}: is damaged, or closed to this user; the images are decoded anew", file=sys.stderr)
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")
                    self._decode_into(cache, names)
                found = self._kept(names, cache)
        if found is None:
            raise UserError(f"{cache}: is not what was written. Set data.dir to a folder that nobody else changes.")
        return found

    def _kept(self, names: list[str], cache: Path) -> tuple[np.ndarray, dict[str, str]] | None:
        """What the cache holds, if it is there and whole."""
        report = cache.with_suffix(".json")
        try:
            if not cache.is_file() or not report.is_file():  # a pipe would never end
                return None
            kept = json.loads(report.read_bytes())
            bad = kept["unreadable"]
            images = np.load(cache, mmap_mode="c")  # "c": torch warns of a map that is read-only
            fits = (
                isinstance(images, np.memmap)
                and images.dtype == np.uint8
                and images.ndim == 4
                and len(images) == len(names) - len(bad)
                and set(bad) <= set(names)
                and _checksum(images, kept["every"]) == kept["crc32"]
            )
        except Exception:  # numpy and json raise a handful of types
            return None
        return (images, bad) if fits else None

    def _decode_into(self, cache: Path, names: list[str]) -> None:
        """Decode all images into the .npy file ``cache``; the unreadable ones go into a .json beside it."""
        shape, bad = self.looked_at(names)
        good = [name for name in names if name not in bad]
        needed, free = len(good) * math.prod(shape), shutil.disk_usage(cache.parent).free
        if needed >= free:  # asked before hours of decoding
            raise OSError(f"{needed:,} bytes, and {free:,} are free")
        with replacing(cache) as file:
            _write_header(file, len(good), shape)
            rows, crc32, every = 0, 0, max(1, -(-needed // _CHECKED_BYTES))
            with progress_bar("Decoding") as progress:
                for name, pixels in self.decoded(good, shape, progress):
                    if isinstance(pixels, str):
                        bad[name] = pixels
                    else:
                        file.write(pixels.data)
                        crc32 = crc32 if rows % every else zlib.crc32(pixels.data, crc32)
                        rows += 1
            if not rows:
                raise UserError(
                    f"data.path={self.container.path}: {bad_files(bad)}\nNo image is left. Repair or convert them."
                )
            file.seek(0)
            _write_header(file, rows, shape)
            report = {"path": str(self.container.path), "unreadable": bad, "every": every, "crc32": crc32}
            write_text(cache.with_suffix(".json"), json.dumps(report, indent=1))

    def looked_at(self, names: list[str]) -> tuple[Shape, dict[str, str]]:
        """Channels, height and width that the images will have, and what is wrong with those that cannot be read.

        Raises:
            UserError: the images have several sizes and none is asked for; or a fault that passes, see :meth:`images`.
        """
        with progress_bar("Looking at images") as progress, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            headers = dict(_in_threads(partial(self._attempt, read_header), names, progress))
        bad = {name: header for name, header in headers.items() if isinstance(header, str)}
        good = {name: header for name, header in headers.items() if isinstance(header, Header)}
        height, width = self.size or self._common_size(good)
        return (self.channels or (1 if all(header.gray for header in good.values()) else 3), height, width), bad

    def decoded(self, names: list[str], shape: Shape, progress: Progress) -> Iterator[tuple[str, np.ndarray | str]]:
        """The images of these names in their order, uint8 of this shape, or in words why one cannot be read.

        Decoders warn of much that is wrong with a file; either the pixels can be had, or the file is named.

        Args:
            names: of files in the container.
            shape: channels, height and width.
            progress: called with how many of them are done, and their number.

        Raises:
            UserError: a fault that passes, see :meth:`images`.
        """
        channels, height, width = shape
        read = partial(decode, channels=channels, height=height, width=width, fit=self.fit)
        return _in_threads(partial(self._attempt, read), names, progress)

    def _attempt(self, read: Callable[[ImageFile], Any], name: str) -> Any:
        """What ``read`` makes of a file, or in words why it could not."""
        try:
            with self.container.open(name) as file:
                return read(file)
        except UnreadableError as error:
            return str(error)
        except Exception as error:  # decoders raise whatever the bytes lead them to: a dozen types, none documented
            fault = " ".join(f"{type(error).__name__}: {error}".split())
            if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _PASSING):
                raise UserError(
                    f"data.path={self.container.path}: {name} could not be read ({fault}), which need not be the "
                    "file's fault; nothing was kept. Try again; if it comes back, mend the disk or remove the file."
                ) from None
            return fault

    def _common_size(self, headers: dict[str, Header]) -> tuple[int, int]:
        first: dict[tuple[int, int], str] = {}
        for name, header in headers.items():
            first.setdefault((header.height, header.width), name)
        if len(first) > 1:
            examples = ", ".join(f"{name} is {height}x{width}" for (height, width), name in list(first.items())[:3])
            raise UserError(
                f"data.size=null: the images of {self.container.path} have {len(first)} sizes ({examples}; height x "
                "width). Set data.size=[HEIGHT,WIDTH], and data.fit to crop or stretch."
            )
        return next(iter(first), (1, 1))  # where no image is left, which is told when all are decoded


def bad_files(bad: dict[str, str]) -> str:
    """How many files are unreadable and the first ones with what is wrong, one a line."""
    shown = "".join(f"\n  {name}: {fault}" for name, fault in sorted(bad.items())[:_SHOWN])
    more = f"\n  and {len(bad) - _SHOWN:,} more" if len(bad) > _SHOWN else ""
    return f"{len(bad):,} unreadable image file{'s' if len(bad) > 1 else ''}:{shown}{more}"


def _checksum(images: np.ndarray, every: int) -> int:
    """The CRC-32 of every so many-th image (n, C, H, W), from the first on."""
    crc32 = 0
    for first in range(0, len(images), every * _CHUNK):
        crc32 = zlib.crc32(np.ascontiguousarray(images[first : first + every * _CHUNK : every]).data, crc32)
    return crc32


def _write_header(file: Any, rows: int, shape: tuple[int, ...]) -> None:
    """The first bytes of a .npy file; numpy leaves room there for any number of rows."""
    header = {"descr": "|u1", "fortran_order": False, "shape": (rows, *shape)}
    np.lib.format.write_array_header_1_0(file, header)


def _in_threads(work: Callable[[str], Any], names: list[str], progress: Progress) -> Iterator[tuple[str, Any]]:
    """(name, work(name)) in order. Threads suffice: decoders release the interpreter's lock."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(0, len(names), _CHUNK):
            chunk = names[first : first + _CHUNK]
            yield from zip(chunk, pool.map(work, chunk), strict=True)
            progress(first + len(chunk), len(names))
