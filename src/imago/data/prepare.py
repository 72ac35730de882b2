"""What ``prepare`` does: images of any origin are decoded once and written as shards, see :mod:`imago.data.shards`.

A preparation that was stopped goes on where it was: each shard is written whole, and belongs to a key made of the
images' names, sizes and dates and of their treatment. Shards that are there are read and held against their checksums.
"""

import hashlib
import json
import math
import os
import shutil
import sys
import time
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, Literal

import numpy as np
import PIL

from imago.data.base import ImageSet, damaged
from imago.data.decode import DECODER, Fit, decode, read_header
from imago.data.decoded import Decoder, Shape, bad_files
from imago.data.listing import displayable, natural
from imago.data.named import read_npz
from imago.data.shards import INDEX, PLAN, Index, Shard, arrow, check_shard, write_shard
from imago.data.sources import imagenet32
from imago.data.sources.folder import Folder, Size, sides_of
from imago.errors import UserError, printable
from imago.files import one_at_a_time, remove_litter, write_text
from imago.paths import check_folder_place, images_place, writing_to
from imago.progress import Progress, progress_bar

_SHARD = 2**28  # bytes; of more than 256 of them, shards are larger
_MOST = 256  # shards, for each stays open
_BATCH = 2**26  # bytes in memory at a time
_TRIED = 64  # images whose decoding is timed beforehand
_BYTES_PER_SECOND = 3e8  # of checksums and writing, by one core


@dataclass(frozen=True)
class Treatment:
    """How images are treated; see :class:`imago.data.sources.Folder`."""

    size: tuple[int, int] | None
    fit: Fit
    channels: Literal[1, 3] | None
    on_bad: Literal["refuse", "skip"]


class Origin(ABC):
    """Images in their publisher's form, of which any can be had.

    Attributes:
        path: where they are.
        shape: channels, height and width that they will have.
        labels: int64 (n,), or ``None``.
        classes: their names.
        told: in words, where the labels come from.
        stamps: what tells that the images changed.
        test, val: see :class:`imago.data.shards.Index`.
    """

    path: Path
    shape: Shape
    labels: np.ndarray | None
    classes: tuple[str, ...]
    told: str
    stamps: Any
    test: int = 0
    val: int | None = None

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def read(self, first: int, last: int, progress: Progress) -> Iterator[tuple[str, np.ndarray | str]]:
        """The names of the images first..last-1 and their pixels, or in words why one cannot be read."""


class Pictures(Origin):
    """Image files in a folder, a zip file or tar files."""

    def __init__(self, path: Path, treatment: Treatment) -> None:
        listed = Folder(str(path), treatment.size, treatment.fit, treatment.channels, treatment.on_bad).listed()
        self.path, self.names, self.classes, self.told = path, listed.names, listed.classes, listed.origin
        self.labels = None if listed.labels is None else listed.labels.numpy()
        self.decoder = Decoder(listed.container, treatment.size, treatment.fit, treatment.channels)
        if treatment.size is None or treatment.channels is None:
            self.shape, bad = self.decoder.looked_at(self.names)
            _check_bad(path, bad, treatment)
        else:
            self.shape = (treatment.channels, *treatment.size)
        self.stamps = [(name, listed.container.stamps[name]) for name in self.names]

    def __len__(self) -> int:
        return len(self.names)

    def read(self, first: int, last: int, progress: Progress) -> Iterator[tuple[str, np.ndarray | str]]:
        """See :meth:`Origin.read`."""
        return self.decoder.decoded(self.names[first:last], self.shape, progress)


class Parquet(Origin):
    """Parquet files with a column of encoded images, as Hugging Face's are, and perhaps one of classes.

    The image column is the only one of binary values, or of structures with a field ``bytes``; the classes are the
    column ``label``, ``labels`` or ``fine_label``.
    """

    def __init__(self, path: Path, files: list[Path], treatment: Treatment) -> None:
        arrow()
        import pyarrow.parquet as parquet  # type: ignore[import-not-found,unused-ignore]

        self.path, self.fit = path, treatment.fit
        self.files: list[Any] = []
        try:
            for file in files:
                self.files.append(parquet.ParquetFile(file))
            schema = self.files[0].schema_arrow
            self.column = _image_column(schema)
            label = next((name for name in ("label", "labels", "fine_label") if name in schema.names), None)
            tables = [] if label is None else [file.read([label]) for file in self.files]
            labels = [np.asarray(table.column(label)) for table in tables]
        except Exception as error:  # a dozen types
            at = files[min(len(self.files), len(files) - 1)]
            said = str(error).partition("\n")[0]
            raise UserError(f"data.path={at}: no Parquet file of images that can be read ({said}).") from None
        self.groups = [(file, k) for file in self.files for k in range(file.num_row_groups)]
        rows = [file.metadata.row_group(k).num_rows for file, k in self.groups]
        self.first = np.cumsum([0, *rows])
        self.labels = np.concatenate(labels) if labels else None
        if self.labels is not None and (self.labels.dtype.kind not in "iu" or self.labels.min(initial=0) < 0):
            raise UserError(f"data.path={path}: its column {label} holds no classes 0, 1, ... Remove or mend it.")
        self.classes = _names_of(schema, label, self.labels)
        self.told = f"labelled by the column {label}" if label else "unlabelled"
        self.stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        if not len(self):
            raise UserError(f"data.path={path}: its Parquet files hold no rows.")
        self.contents = lru_cache(maxsize=1)(self._contents)
        try:
            header = read_header(BytesIO(next(filter(None, self.contents(0)))))
        except Exception as error:
            raise UserError(f"data.path={path}: its first image cannot be read ({error}). Mend or remove it.") from None
        height, width = treatment.size or (header.height, header.width)
        self.asked = treatment.size is not None
        self.shape = treatment.channels or (1 if header.gray else 3), height, width
        self.gray = treatment.channels is None and self.shape[0] == 1

    def __len__(self) -> int:
        return int(self.first[-1])

    def read(self, first: int, last: int, progress: Progress) -> Iterator[tuple[str, np.ndarray | str]]:
        """See :meth:`Origin.read`; one row group is in memory at a time."""
        group = int(np.searchsorted(self.first, first, "right")) - 1
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            for number in range(first, last):
                if number == first or number == self.first[group + 1]:
                    group = int(np.searchsorted(self.first, number, "right")) - 1
                    begin, end = number - self.first[group], min(last, self.first[group + 1]) - self.first[group]
                    decoded = pool.map(self._decoded, self.contents(group)[begin:end])
                yield f"row {number:,}", next(decoded)
                progress(number + 1 - first, last - first)

    def _contents(self, group: int) -> list[bytes | None]:
        file, k = self.groups[group]
        column = file.read_row_group(k, columns=[self.column]).column(0).to_pylist()
        return [(value or {}).get("bytes") if isinstance(value, dict) else value for value in column]

    def _decoded(self, content: bytes | None) -> np.ndarray | str:
        channels, height, width = self.shape
        try:
            if content is None:
                return "holds no image"
            header = read_header(BytesIO(content))
            if not self.asked and (header.height, header.width) != (height, width):
                return f"is {header.height}x{header.width}, the first {height}x{width}; set data.size=[HEIGHT,WIDTH]"
            if self.gray and not header.gray:
                return "is in colour, and the first is gray; set data.channels to 1 or 3"
            return decode(BytesIO(content), channels, height, width, self.fit)
        except Exception as error:  # as in Decoder: whatever the bytes lead a decoder to
            return " ".join(f"{type(error).__name__}: {error}".split())


class Array(Origin):
    """An .npz file of images, which is read as a whole."""

    def __init__(self, path: Path) -> None:
        self.path = path
        images, self.classes = read_npz(path)
        self.images: ImageSet = images
        self.labels = None if images.labels is None else images.labels.numpy()
        self.told = "unlabelled" if images.labels is None else "labelled by the file"
        channels, height, width = images.images.shape[1:]
        self.shape = channels, height, width
        self.stamps = path.stat().st_size, path.stat().st_mtime_ns

    def __len__(self) -> int:
        return len(self.images)

    def read(self, first: int, last: int, progress: Progress) -> Iterator[tuple[str, np.ndarray | str]]:
        """See :meth:`Origin.read`."""
        for number in range(first, last):
            yield f"image {number:,}", self.images.images[number].numpy()


class ImageNet(Origin):
    """The downsampled ImageNet of image-net.org, .npz files of 16, 32 or 64 pixels a side; one is in memory."""

    def __init__(self, path: Path) -> None:
        self.path = path
        files = [path / name for name in (*imagenet32.TRAIN, imagenet32.TEST)]
        if missing := [file.name for file in files if not file.exists()]:
            raise UserError(
                f"data.path={path}: lacks {', '.join(missing)} of the downsampled ImageNet. Put them there."
            )
        labels = [imagenet32.read_labels(file) for file in files]
        counts = sum(map(len, labels[:-1])), len(labels[-1])
        if counts != imagenet32.COUNTS:
            found = f"hold {counts[0]:,} images and {files[-1].name} {counts[1]:,}, expected {imagenet32.COUNTS}"
            raise damaged(path, f"the training files {found}", "Get them again")
        self.test, self.val = counts[1], counts[0] // 25
        self.first = np.cumsum([0, *map(len, labels)])
        self.labels = np.concatenate(labels).astype(np.int64) - 1
        self.classes = tuple(str(k) for k in range(1, imagenet32.CLASSES + 1))
        self.told = "labelled by the files, of Chrabaszcz et al. 2017, box-downsampled"
        self.stamps = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]

        numbers = imagenet32.read_array(files[-1], "data").shape[-1]
        side = math.isqrt(numbers // 3)
        if 3 * side * side != numbers:
            raise damaged(files[-1], f"has {numbers:,} values an image, expected 3 * side * side", "Get it again")
        self.shape = 3, side, side

        @lru_cache(maxsize=1)
        def content(k: int) -> np.ndarray:
            return imagenet32.read_images(files[k], labels[k], side)

        self.content = content

    def __len__(self) -> int:
        return int(self.first[-1])

    def read(self, first: int, last: int, progress: Progress) -> Iterator[tuple[str, np.ndarray | str]]:
        """See :meth:`Origin.read`."""
        for number in range(first, last):
            file = int(np.searchsorted(self.first, number, "right")) - 1
            yield f"image {number:,}", self.content(file)[number - self.first[file]].reshape(self.shape)


def origin_of(path: Path, treatment: Treatment) -> Origin:
    """The images at a place, whichever form they have.

    Args:
        path: a folder or zip file of images, a .tar file or a folder of such, a .parquet file or a folder of such, an
            .npz file, or the folder with the .npz files of the downsampled ImageNet.
        treatment: theirs; images of .npz files are taken as they are.

    Raises:
        UserError: there are none, or they cannot be read.
    """
    suffix = path.suffix.lower() if path.is_file() else ""
    arrays = suffix == ".npz" or (path.is_dir() and any(path.glob("train_data_batch_*.npz")))
    if arrays:
        origin: Origin = Array(path) if suffix else ImageNet(path)
        for key, given, has in (
            ("size", treatment.size, origin.shape[1:]),
            ("channels", treatment.channels, origin.shape[0]),
        ):
            if given not in (None, has):
                raise UserError(f"data.{key}={given}: images of .npz files stay as they are, {has}; leave it null")
        return origin
    if suffix == ".parquet":
        return Parquet(path, [path], treatment)
    files = sorted(path.rglob("*.parquet"), key=lambda file: natural(str(file))) if path.is_dir() else []
    if files:
        splits = {kind for file in files for kind in ("train", "val", "test") if file.name.startswith(kind)}
        if len(splits) > 1:
            raise UserError(
                f"data.path={path}: its Parquet files are of several splits, {', '.join(sorted(splits))}. The splits "
                "are made here: put the files of one into a folder of their own."
            )
        return Parquet(path, files, treatment)
    return Pictures(path, treatment)


def _image_column(schema: Any) -> str:
    import pyarrow.types as types  # type: ignore[import-not-found,unused-ignore]

    def holds_images(kind: Any) -> bool:
        kinds = [kind.field(k).type for k in range(kind.num_fields) if kind.field(k).name == "bytes"]
        return any(types.is_binary(one) or types.is_large_binary(one) for one in [kind, *kinds])

    found = [field.name for field in schema if holds_images(field.type)]
    if len(found) != 1:
        raise ValueError(f"{len(found)} columns of encoded images among {', '.join(schema.names)}; one is wanted")
    return found[0]


def _names_of(schema: Any, label: str | None, labels: np.ndarray | None) -> tuple[str, ...]:
    """The names of the classes: those that Hugging Face's datasets keep in the schema, or numbers."""
    if labels is None:
        return ()
    count = int(labels.max(initial=0)) + 1
    try:
        names = json.loads(schema.metadata[b"huggingface"])["info"]["features"][label]["names"]
        if len(names) >= count and all(isinstance(name, str) for name in names):
            return displayable(names)
    except (TypeError, KeyError, ValueError):
        pass
    return tuple(map(str, range(count)))


def prepare(
    path: str,
    out: Path,
    size: Size | None = None,
    fit: Fit = "crop",
    channels: Literal[1, 3] | None = None,
    on_bad: Literal["refuse", "skip"] = "refuse",
) -> Index:
    """Write the images at a place as shards, or go on with that.

    Args:
        path: see :func:`origin_of`.
        out: the folder; a new one, an empty one, or one that an earlier preparation of these images has begun.
        size, fit, channels, on_bad: see :class:`imago.data.sources.Folder`.

    Returns:
        What was written.

    Raises:
        UserError: the images cannot be read, or ``out`` holds something else.
    """
    arrow()
    treatment = Treatment(sides_of(size), fit, channels, on_bad)
    check_folder_place(out)
    _check_out(out)
    origin = origin_of(images_place(path), treatment)
    told = [origin.shape, fit, DECODER, PIL.__version__, origin.classes, origin.stamps, _SHARD]
    digest = hashlib.sha256(json.dumps(told).encode())
    digest.update(b"" if origin.labels is None else origin.labels.tobytes())
    key = digest.hexdigest()[:12]
    with writing_to(out), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of decoders: either the pixels can be had, or the file is named
        out.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(out / INDEX, f"out={out}: another process is writing there; waiting for it"):
            _check_out(out, key)
            remove_litter(out)
            return _written(origin, out, key, treatment)


def _check_out(out: Path, key: str | None = None) -> None:
    """Refuse a folder that holds anything but the shards of this preparation."""
    there = [path.name for path in out.iterdir() if not path.name.startswith(".")] if out.is_dir() else []
    if not there:
        return
    for name in (INDEX, PLAN):
        try:
            found = json.loads((out / name).read_bytes())["key"]
        except (OSError, ValueError, TypeError, KeyError):
            continue
        if key is not None and found != key:
            raise UserError(
                f"out={out}: holds shards of other images, or of these before they or their settings were changed; "
                "choose another folder, or remove it"
            )
        return
    raise UserError(f"out={out}: a folder with files in it that are no shards, such as {min(there)}; choose another")


def _written(origin: Origin, out: Path, key: str, treatment: Treatment) -> Index:
    numbers, n = math.prod(origin.shape), len(origin)
    per_shard = max(1, _SHARD // numbers, -(-n // _MOST))
    parts = {
        out / f"{first // per_shard:05d}.arrow": range(first, min(first + per_shard, n))
        for first in range(0, n, per_shard)
    }
    whole = _whole(parts, origin.shape, key, treatment)
    missing = [file for file in parts if file not in whole]
    images = sum(len(parts[file]) for file in missing)
    if missing:
        _announce(origin, out, len(parts), len(missing), images)
    write_text(out / PLAN, json.dumps({"key": key}))
    done = 0
    with progress_bar("Writing shards") as progress:
        for file in missing:
            written = _write(origin, file, key, parts[file], treatment, partial(_beyond, progress, done, images))
            done += len(parts[file])
            if written:
                whole[file] = written
    if not whole:
        raise UserError(f"data.path={origin.path}: none of its {n:,} images can be read. Repair or convert them.")
    index = Index(
        key=key,
        source=str(origin.path.absolute()),
        shape=origin.shape,
        classes=list(origin.classes),
        labels=origin.told,
        test=origin.test,
        val=origin.val,
        lost=n - sum(whole.values()),
        shards=[
            Shard(file=file.name, images=whole[file], bytes=file.stat().st_size) for file in parts if file in whole
        ],
    )
    write_text(out / INDEX, index.model_dump_json(indent=1))
    return index


def _whole(parts: dict[Path, range], shape: Shape, key: str, treatment: Treatment) -> dict[Path, int]:
    """How many images each shard holds that is there and whole; what else is there is told of and written anew."""
    found = {}
    there = [file for file in parts if os.path.lexists(file)]
    with progress_bar("Checking shards") as progress:
        for k, file in enumerate(there):
            try:
                images = check_shard(file, shape, key)
            except ValueError as error:
                print(printable(f"{file}: {error}; it is written anew"), file=sys.stderr)
                continue
            if images == len(parts[file]) or treatment.on_bad == "skip":
                found[file] = images
            progress(k + 1, len(there))
    return found


def _announce(origin: Origin, out: Path, shards: int, missing: int, images: int) -> None:
    """Say what is to be written and how long it takes; refuse what the disk has no room for."""
    numbers = math.prod(origin.shape)
    needed, free = images * (numbers + 12), shutil.disk_usage(out).free
    if needed >= free:  # asked before hours of decoding
        raise OSError(f"{needed:,} bytes, and {free:,} are free")
    tried = min(_TRIED, len(origin))
    list(origin.read(0, 1, _silent))  # what is read once
    began = time.perf_counter()
    list(origin.read(0, tried, _silent))
    seconds = images * ((time.perf_counter() - began) / tried + numbers / _BYTES_PER_SECOND)
    about = (
        f"{seconds:,.0f} s"
        if seconds < 120
        else f"{seconds / 60:,.0f} min"
        if seconds < 7200
        else f"{seconds / 3600:,.1f} h"
    )
    shape = "x".join(map(str, origin.shape))
    there = f", of which {shards - missing} are there already" if missing < shards else ""
    size = f"{len(origin) * numbers / 1e9:,.3f} GB in {shards} shard{'s' * (shards > 1)}"
    print(f"{len(origin):,} images of {shape}, {size}{there}: about {about}", flush=True)


def _write(origin: Origin, file: Path, key: str, part: range, treatment: Treatment, progress: Progress) -> int:
    """Write one shard, unless none of its images can be read; returns how many are in it."""
    bad: dict[str, str] = {}
    per_batch = max(1, _BATCH // math.prod(origin.shape))

    def batches() -> Iterator[tuple[np.ndarray, np.ndarray | None]]:
        for first in part[::per_batch]:
            last = min(first + per_batch, part.stop)
            images, kept = np.empty((last - first, *origin.shape), np.uint8), list[int]()
            read = origin.read(first, last, partial(_beyond, progress, first - part.start, len(part)))
            for number, (name, pixels) in enumerate(read, first):
                if isinstance(pixels, str):
                    bad[name] = pixels
                else:
                    images[len(kept)] = pixels
                    kept.append(number)
            _check_bad(origin.path, bad, treatment)
            progress(last - part.start, len(part))
            if kept:
                yield images[: len(kept)], None if origin.labels is None else origin.labels[kept]

    ready = batches()
    head = next(ready, None)
    if head is not None:
        write_shard(file, origin.shape, key, chain([head], ready))
    if bad:
        print(printable(f"data.on_bad=skip: leaving out {bad_files(bad)}"), file=sys.stderr)
    return len(part) - len(bad)


def _check_bad(path: Path, bad: dict[str, str], treatment: Treatment) -> None:
    if bad and treatment.on_bad == "refuse":
        raise UserError(
            f"data.path={path}: {bad_files(bad)}\nRepair, convert or remove them, or set data.on_bad=skip; what is "
            "written already stays."
        )


def _beyond(progress: Progress, before: int, total: int, done: int, _: int) -> None:
    """Report progress of a part as that of the whole."""
    progress(before + done, total)


def _silent(done: int, total: int) -> None:
    """Report nothing."""
