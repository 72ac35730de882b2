"""The file of coded images: a line that says what they are, and the words of the stack.

A line ``imago images``, a line of JSON (:class:`Header`), then 32-bit words, the least significant byte first.
"""

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from itertools import groupby
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from jaxtyping import UInt32
from pydantic import Field, NonNegativeInt, PositiveInt, TypeAdapter
from torch import Tensor

from imago.errors import UserError
from imago.files import replacing
from imago.images import Images
from imago.paths import writing_to
from imago.untrusted import read_bytes

MAGIC = b"imago images\n"
LONGEST_LINE = 1_000_000  # bytes; those of batches of one size take ten
LARGEST = 2**34  # bytes of a file
Pairs = Annotated[list[tuple[PositiveInt, PositiveInt]], Field(min_length=1)]


@dataclass(frozen=True)
class Header:
    """What the words mean.

    Attributes:
        model: the class of the model that coded them, for people.
        weights: what tells its weights from all others (:func:`imago.checkpoints.fingerprint`).
        averaged: whether these are a checkpoint's averaged weights.
        data: the images' name and split, for people.
        shape: of an image: channels, height, width, levels.
        batches: sizes of batches and how many of each size follow one another.
        device: where the distributions were computed, cpu or cuda, which round differently.
        torch: the version that computed them.
        images: digest of the images and their labels (:func:`digest_of`).
        classes: of a conditional model how frequent each label was taken to be, which are coded by that.
        digest: of all else here and of what follows.
        version: of this format.
    """

    model: str
    weights: str
    averaged: bool
    data: str
    shape: tuple[PositiveInt, PositiveInt, PositiveInt, PositiveInt]
    batches: Pairs
    device: str
    torch: str
    images: str
    classes: tuple[NonNegativeInt, ...] = ()
    digest: str = ""
    version: Literal[1] = 1

    @property
    def sizes(self) -> list[int]:
        """Of the batches, from the first image on."""
        return [size for size, often in self.batches for _ in range(often)]

    @property
    def count(self) -> int:
        """Of the images."""
        return sum(size * often for size, often in self.batches)

    @property
    def values(self) -> NonNegativeInt:
        """Of all images."""
        return self.count * math.prod(self.shape[:3])


def runs_of(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """Numbers, and how many of each follow one another."""
    return [(size, len(list(same))) for size, same in groupby(sizes)]


def digest_of(images: Images, labels: Tensor | None) -> str:
    """Of every byte of images and labels: 128 bits of SHA-256 in 32 letters."""
    digest = hashlib.sha256(images.cpu().contiguous().numpy().tobytes())
    digest.update(b"" if labels is None else labels.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:32]


def content_of(words: UInt32[np.ndarray, " words"]) -> bytes:
    """As bytes, the least significant first."""
    return words.astype("<u4").tobytes()


def sealed(header: Header, content: bytes) -> Header:
    """A header with its digest: 128 bits of SHA-256 in 32 letters."""
    said = json.dumps(asdict(replace(header, digest=""))).encode()
    return replace(header, digest=hashlib.sha256(said + content).hexdigest()[:32])


def write(path: Path, header: Header, words: UInt32[np.ndarray, " words"]) -> int:
    """Write a file; an older one stays until the new one is complete.

    Returns:
        bytes before the words.

    Raises:
        UserError: it cannot be written.
    """
    content = content_of(words)
    line = json.dumps(asdict(sealed(header, content)), separators=(",", ":")).encode() + b"\n"
    with writing_to(path), replacing(path) as file:
        file.write(MAGIC + line + content)
    return len(MAGIC + line)


def is_ours(path: Path) -> bool:
    """Whether a file was written here, by its first line."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


def read(path: Path, key: str = "decode") -> tuple[Header, UInt32[np.ndarray, " words"]]:
    """The inverse of :func:`write`; every byte is held against the digest.

    Args:
        path: of the file.
        key: the setting that it was given as, for messages.

    Raises:
        UserError: there is no such file, or it is damaged.
    """
    try:
        content = read_bytes(path, LARGEST)
    except OSError as error:
        raise UserError(f"{key}={path}: cannot be read ({error.strerror}); give a file that compress wrote") from None
    except ValueError as error:
        raise UserError(f"{key}={path}: {error}; give a file that compress wrote") from None
    if not content.startswith(MAGIC):
        raise UserError(f"{key}={path}: holds no coded images; give a file that compress wrote")
    end = content.find(b"\n", len(MAGIC), len(MAGIC) + LONGEST_LINE)
    try:
        header = TypeAdapter(Header).validate_json(content[len(MAGIC) : max(0, end)], strict=True)
        body = content[end + 1 :]
        if header != sealed(header, body):
            raise ValueError
    except ValueError:  # pydantic's too
        raise UserError(f"{key}={path}: cut short or damaged, its checksum does not fit; get another copy") from None
    return header, np.frombuffer(body, "<u4").astype(np.uint32)
