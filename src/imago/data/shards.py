"""Shards: a folder of images as they are trained on, read one by one, so that it may be larger than the memory.

``index.json`` names the files of the folder. Each is an Arrow IPC file with the columns ``image`` (the canonical
extension type ``arrow.fixed_shape_tensor``: uint8 (channels, height, width)), ``label`` (int64, where there are
classes) and ``crc32`` (uint32, of the image's bytes). The images of a record batch lie one behind the other, without
compression, so each is one read at a known place. (https://arrow.apache.org/docs/format/CanonicalExtensions.html)

Read, not memory-mapped: what was read is in the page cache either way, but a file cut short while it is mapped kills
the process. A shard is whole or absent, and the index is written last.
"""

import importlib
import os
import weakref
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import numpy as np
import torch
from pydantic import BaseModel, Field, NonNegativeInt, PositiveInt, ValidationError
from torch import Tensor

from imago.data.base import Dataset
from imago.errors import UserError, reason_of
from imago.files import replacing
from imago.images import Batch

INDEX = "index.json"
PLAN = "plan.json"  # says of which preparation the files are, before there is an index
_KEY = b"imago.key"  # in the metadata of a file's schema: of which preparation it is


class Shard(BaseModel):
    """One file.

    Args:
        file: its name.
        images: how many it holds.
        bytes: its size.
    """

    file: Annotated[str, Field(pattern=r"^\d+\.arrow$")]
    images: PositiveInt
    bytes: PositiveInt


class Index(BaseModel):
    """What ``index.json`` holds.

    Args:
        version: of this format.
        key: changes with the images and their treatment; every file has it too.
        source: what the images were taken from.
        shape: channels, height, width.
        classes: their names, in the order of the labels; empty for unlabelled images.
        labels: in words, where the labels come from.
        test: how many of the images, the last ones, are the publisher's test split; 0: a tenth will be held out.
        val: how many of the others are held out for validation; ``None``: as many as for testing.
        lost: how many images could not be read.
        shards: the files, in order.
    """

    version: Literal[1] = 1
    key: str
    source: str
    shape: tuple[PositiveInt, PositiveInt, PositiveInt]
    classes: list[str]
    labels: str
    test: NonNegativeInt
    val: NonNegativeInt | None
    lost: NonNegativeInt
    shards: list[Shard]


@dataclass(frozen=True)
class Content:
    """Where the images of a file lie, and all else that it holds.

    Args:
        offsets: where the images of each record batch begin in the file.
        rows: how many images each record batch holds.
        labels: int64 (n,), or ``None``.
        crc32: uint32 (n,).
    """

    offsets: list[int]
    rows: list[int]
    labels: np.ndarray | None
    crc32: np.ndarray


def arrow() -> Any:
    """The module pyarrow, with its IPC format.

    Raises:
        UserError: it is not installed.
    """
    try:
        importlib.import_module("pyarrow.ipc")
        return importlib.import_module("pyarrow")
    except ImportError:
        raise UserError("shards and Parquet files need pyarrow: pip install pyarrow") from None


def write_shard(
    file: Path, shape: Sequence[int], key: str, batches: Iterable[tuple[np.ndarray, np.ndarray | None]]
) -> None:
    """Write a file of images; it appears when all are in it.

    Args:
        file: its place.
        shape: channels, height, width.
        key: of the preparation.
        batches: images uint8 (n, channels, height, width), n at least 1, and labels int64 (n,) or ``None``, which are
            in memory one batch at a time.
    """
    pa, numbers = arrow(), int(np.prod(shape))
    kind = pa.fixed_shape_tensor(pa.uint8(), tuple(shape))
    with replacing(file) as opened:
        writer = None
        for images, labels in batches:
            pixels = pa.FixedSizeListArray.from_arrays(pa.array(images.reshape(-1)), numbers)
            columns = {"image": pa.ExtensionArray.from_storage(kind, pixels)}
            columns |= {} if labels is None else {"label": pa.array(labels, pa.int64())}
            columns["crc32"] = pa.array(np.array([zlib.crc32(image.data) for image in images], np.uint32))
            batch = pa.record_batch(columns, metadata={_KEY: key.encode()})
            writer = writer or pa.ipc.new_file(opened, batch.schema)
            writer.write_batch(batch)
        assert writer is not None
        writer.close()


def content_of(file: Path, shape: Sequence[int], key: str) -> Content:
    """What a file holds; of the images only where they are.

    Raises:
        ValueError: it is missing, damaged, or of other images.
    """
    pa = arrow()
    try:
        with pa.memory_map(str(file)) as opened:
            whole = opened.read_buffer()
            reader = pa.ipc.open_file(whole)
            if (reader.schema.metadata or {}).get(_KEY) != key.encode():
                raise ValueError("is of other images, or of another preparation")
            batches = [reader.get_batch(k) for k in range(reader.num_record_batches)]
            offsets = []
            for batch in batches:
                images = batch.column("image")
                if images.type != pa.fixed_shape_tensor(pa.uint8(), tuple(shape)):
                    raise ValueError(f"holds {images.type}")
                offsets.append(images.storage.values.buffers()[1].address - whole.address)
            labels, crc32 = (
                [np.array(batch.column(name)) for batch in batches] if name in reader.schema.names else None
                for name in ("label", "crc32")
            )
            if not crc32:
                raise ValueError("holds no checksums")
            rows = [batch.num_rows for batch in batches]
            return Content(offsets, rows, np.concatenate(labels) if labels else None, np.concatenate(crc32))
    except FileNotFoundError:
        raise ValueError("is missing") from None
    except OSError as error:
        raise ValueError(f"cannot be read ({reason_of(error)})") from None
    except Exception as error:  # whatever damaged bytes lead pyarrow to
        said = str(error).partition("\n")[0]
        raise ValueError(said if type(error) is ValueError else f"is damaged ({said})") from None


def check_shard(file: Path, shape: Sequence[int], key: str) -> int:
    """Read a file and hold every image against its checksum; returns how many there are.

    Raises:
        ValueError: it is missing, damaged, or of other images.
    """
    content, numbers, number = content_of(file, shape, key), int(np.prod(shape)), 0
    with file.open("rb") as opened:
        for offset, rows in zip(content.offsets, content.rows, strict=True):
            opened.seek(offset)
            for _ in range(rows):
                if zlib.crc32(opened.read(numbers)) != content.crc32[number]:
                    raise ValueError(f"is damaged: image {number:,} does not fit its checksum")
                number += 1
    return number


def read_index(folder: Path) -> Index:
    """What a folder of shards says of itself; its files have the sizes that it names.

    Raises:
        UserError: it is none, unfinished or damaged.
    """
    where = f"data.path={folder}"
    try:
        index = Index.model_validate_json((folder / INDEX).read_bytes())
    except FileNotFoundError:
        if (folder / PLAN).exists():
            raise UserError(f"{where}: these shards are not finished. Run prepare again: it goes on.") from None
        raise UserError(
            f"{where}: holds no {INDEX}, so it is no folder of shards. Write one: prepare data.path=IMAGES out=FOLDER."
        ) from None
    except OSError as error:
        raise UserError(f"{where}: {INDEX} cannot be read ({reason_of(error)}). Change its rights.") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        said = f"{'.'.join(map(str, wrong['loc']))}: {wrong['msg']}".removeprefix(": ")
        raise UserError(f"{where}: {INDEX} is damaged ({said}). Run prepare again, which mends it.") from None
    for shard in index.shards:
        try:
            size = (folder / shard.file).stat().st_size
        except OSError as error:
            reason = "is missing" if isinstance(error, FileNotFoundError) else f"cannot be read ({reason_of(error)})"
            _refuse(folder, index, shard.file, reason)
        if size != shard.bytes:
            _refuse(folder, index, shard.file, f"has {size:,} bytes instead of {shard.bytes:,}")
    return index


def _refuse(folder: Path, index: Index, file: str, reason: str) -> NoReturn:
    raise UserError(
        f"data.path={folder}: shard {file} {reason}. Run prepare again, which mends it: data.path={index.source} "
        f"out={folder}."
    )


class ShardedImages(Dataset):
    """All images of a folder of shards, in the order in which they were prepared.

    What is read is held against its checksum, the first time in each process.

    Raises:
        UserError: files are missing, damaged, or not what the index says.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.index = read_index(folder)
        contents, self._descriptors = [], list[int]()
        weakref.finalize(self, _close, self._descriptors)
        for shard in self.index.shards:
            try:
                content = content_of(folder / shard.file, self.index.shape, self.index.key)
                if len(content.crc32) != shard.images or (content.labels is None) == bool(self.index.classes):
                    raise ValueError("does not hold the images and labels that the index says")
                if content.labels is not None and not self._within(content.labels):
                    raise ValueError("holds labels of no class")
            except ValueError as error:
                _refuse(folder, self.index, shard.file, str(error))
            self._descriptors.append(os.open(folder / shard.file, os.O_RDONLY | os.O_CLOEXEC))
            contents.append(content)
        rows = [content.rows for content in contents]
        self._shard_of = np.repeat(np.arange(len(contents)), [len(part) for part in rows])
        self._offset = np.concatenate([np.array(content.offsets) for content in contents])
        self._first = np.cumsum([0, *(n for part in rows for n in part)])
        self._crc32 = np.concatenate([content.crc32 for content in contents])
        self._checked = np.zeros(len(self._crc32), bool)
        labels = [content.labels for content in contents if content.labels is not None]
        self._labels = torch.from_numpy(np.concatenate(labels)) if labels else None

    def __reduce__(self) -> tuple[Callable[[Path], "ShardedImages"], tuple[Path]]:
        return ShardedImages, (self.folder,)  # another process opens the files itself

    def __len__(self) -> int:
        return len(self._crc32)

    @cached_property
    def condition(self) -> Tensor | None:
        """See :attr:`Dataset.condition`."""
        return self._labels

    def take(self, indices: np.ndarray) -> Batch:
        """See :meth:`Dataset.take`.

        Raises:
            UserError: an image cannot be read, or is not what was written.
        """
        images = torch.empty(len(indices), *self.index.shape, dtype=torch.uint8)
        rows = images.numpy().reshape(len(indices), -1)
        batches = np.searchsorted(self._first, indices, "right") - 1
        offsets = self._offset[batches] + (indices - self._first[batches]) * rows.shape[1]
        places = zip(rows, indices.tolist(), self._shard_of[batches].tolist(), offsets.tolist(), strict=True)
        for row, number, shard, offset in places:
            self._read(row, number, shard, offset)
        return Batch(images, None if self._labels is None else self._labels[torch.from_numpy(indices)])

    def _read(self, row: np.ndarray, number: int, shard: int, offset: int) -> None:
        try:
            complete = os.preadv(self._descriptors[shard], [row.data], offset) == len(row)
        except OSError as error:
            _refuse(self.folder, self.index, self.index.shards[shard].file, f"cannot be read ({reason_of(error)})")
        if not complete:
            _refuse(self.folder, self.index, self.index.shards[shard].file, "has become shorter")
        if not self._checked[number]:
            if zlib.crc32(row.data) != self._crc32[number]:
                reason = f"is damaged: image {number:,} does not fit its checksum"
                _refuse(self.folder, self.index, self.index.shards[shard].file, reason)
            self._checked[number] = True

    def _within(self, labels: np.ndarray) -> bool:
        return bool(labels.min() >= 0 and labels.max() < len(self.index.classes))


def _close(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)
