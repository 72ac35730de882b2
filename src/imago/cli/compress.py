"""Code images as bytes with a trained model, and back: ``python src/compress.py checkpoint=logs/made-mnist/<time>``."""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig
from pydantic import Field, PositiveInt

from imago import cli
from imago.config import check_settings, plain
from imago.errors import RunError, UserError
from imago.paths import check_file_place, check_sample_place, checkpoint_file, results_file

if TYPE_CHECKING:  # torch is loaded once Hydra has composed
    from torch import Tensor

    from imago.compression.container import Header
    from imago.models.base import GenerativeModel


@dataclass(frozen=True)
class Settings:
    """What compress.yaml explains."""

    checkpoint: str
    decode: Annotated[str, Field(min_length=1)] | None
    out: Annotated[str, Field(min_length=1)] | None
    split: Literal["val", "test"]
    images: PositiveInt | None
    batch_size: Annotated[int, Field(gt=0, le=100_000)]
    averaged: bool
    overwrite: bool
    dir: str | None
    path: str | None
    device: str | None


def main(config: DictConfig) -> None:
    """Code, or decode."""
    settings = check_settings(plain(config), Settings)
    file = checkpoint_file(settings.checkpoint)
    with cli.stoppable():
        if settings.decode is None:
            compress(settings, file)
        else:
            decompress(settings, file, Path(settings.decode))


def compress(settings: Settings, file: Path) -> None:
    """Code images, decode what was written, compare, and print what they take and would take elsewhere."""
    from imago.compression import container

    if settings.overwrite:
        raise UserError("overwrite=true: is for decode=FILE; leave it out, a file of this command is written anew")
    out = results_file(file, f"{settings.split}.imago") if settings.out is None else Path(settings.out)
    check_file_place(out, ours=container.is_ours)
    # After Hydra has composed, and with paths that can be used: mistakes in either need not wait for torch.
    import torch

    from imago.checkpoints import fingerprint, model_of, read, uses_average
    from imago.compression.codes import code_of, encode, seconds_for
    from imago.compression.pictures import sizes
    from imago.data import data_of
    from imago.data.base import drawn, seen_by
    from imago.progress import progress_bar

    device = cli.device(settings.device)
    checkpoint = read(file)
    model = model_of(checkpoint, averaged=settings.averaged)
    weights = fingerprint(model)
    code_of(model)
    data = data_of(checkpoint, settings.dir, settings.path)
    part = seen_by(model, data.split(settings.split))
    part = drawn(part, settings.split, settings.images or len(part))
    if not len(part):
        raise UserError(f"split={settings.split}: {data.name} has no such images; choose another split")
    model.spec = data.spec  # the same, and checkpoints of version 0.1 do not know how frequent the classes are
    model = model.to(device)
    images, labels = part.images, part.condition if model.conditional else None
    told = f"{data.name} {settings.split}, {len(images):,} images"
    seconds = seconds_for(model, images, labels, settings.batch_size)
    print(f"{told}: coding and decoding them takes about {spoken(seconds)}", flush=True)
    with progress_bar(f"Coding {data.name} {settings.split}") as progress:
        encoded = encode(model, images, labels, settings.batch_size, progress)
    header = container.Header(
        model=type(model).__name__,
        weights=weights,
        averaged=uses_average(checkpoint, settings.averaged),
        data=f"{data.name} {settings.split}",
        shape=(*model.spec.shape, model.spec.levels),
        batches=container.runs_of(encoded.sizes),
        device=device.type,
        torch=torch.__version__,
        images=container.digest_of(images, labels),
        classes=tuple(model.spec.class_counts) if model.conditional else (),
    )
    try:  # before an older file is replaced, and as whoever has the checkpoint decodes
        other = model_of(checkpoint, averaged=settings.averaged).to(device)
        back, labels_back = decoded(other, header, encoded.words, out)
    except UserError as error:
        raise RunError(str(error)) from None
    if not torch.equal(back, images) or (
        labels is not None and labels_back is not None and not torch.equal(labels_back, labels)
    ):
        raise RunError(f"{out}: decoded images are not those that were coded; nothing is written")
    before = container.write(out, header, encoded.words)
    container.read(out, "out")
    size = out.stat().st_size
    print(f"{out}: {size:,} bytes, decoded again: every byte of the images is the same")
    with progress_bar("Measuring the likelihood") as progress:
        bits = model_bits(model, images, labels, progress)
    others: dict[str, int] = {}
    if model.spec.kind == "pixels" and model.spec.channels in (1, 3):
        with progress_bar("Writing pictures") as progress:
            others = sizes(images, model.spec.levels, progress)
    print("\n".join(table(header, size, before, encoded.start, bits, others)))


def table(header: "Header", size: int, before: int, start: int, bits: float, others: dict[str, int]) -> list[str]:
    """What images take as bytes and in bits of each of their values.

    Args:
        header: of the file.
        size: bytes of the file.
        before: bytes of them before the words of the stack.
        start: bits that the stack began with.
        bits: −log2 of the model's likelihood of all images, or of its bound.
        others: bytes in formats of pictures.
    """
    rows = [(f"{header.model}, this file", float(size), "")]
    parts = [f"{before:,} bytes say what it is"] + [f"{start // 8:,} are random bits to begin with"] * (start > 0)
    rows.append((f"  −log2 p of {header.model}", bits / 8, f"{size * 8 / bits - 1:+.2%}; {', '.join(parts)}"))
    rows += [(name, float(bytes_of), "") for name, bytes_of in others.items()]
    if others and not any(name.startswith("JPEG XL") for name in others):
        rows[-1] = (*rows[-1][:2], "JPEG XL is left out: it needs pillow-jxl-plugin")
    width = max(len(name) for name, *_ in rows)
    lines = [f"  {'':{width}}  {'bytes':>14}  bits/dim"]
    for name, number, note in rows:
        lines.append(f"  {name:{width}}  {number:>14,.0f}  {number * 8 / header.values:8.4f}  {note}".rstrip())
    return lines


def decompress(settings: Settings, file: Path, coded: Path) -> None:
    """Decode a file and write its images, if they are those that were coded."""
    from imago.compression import container

    header, words = container.read(coded)
    out = coded.with_suffix(".npz") if settings.out is None else Path(settings.out)
    check_sample_place(out, settings.overwrite)
    import torch

    from imago.checkpoints import fingerprint, model_of, read
    from imago.cli.outputs import OUTPUTS
    from imago.cli.sample import check_room
    from imago.images import to_bytes

    device = cli.device(settings.device)
    if device.type != header.device:
        raise UserError(
            f"decode={coded}: was coded with device={header.device}, whose rounding a decoder needs; give the same"
        )
    model = model_of(read(file), averaged=header.averaged)
    if fingerprint(model) != header.weights:
        raise UserError(
            f"checkpoint={settings.checkpoint}: has not coded {coded}; that was a {header.model} of weights "
            f"{header.weights}, this is a {type(model).__name__} of {fingerprint(model)}; give the checkpoint that has"
        )
    spec = model.spec
    if spec.kind != "pixels" and out.suffix != ".npz":
        raise UserError(f"out={out}: the images are {spec}, which are no pictures; give a name ending in .npz")
    if header.shape != (*spec.shape, spec.levels):
        raise UserError(f"decode={coded}: of images of another shape than the checkpoint's; give another file")
    check_room(header.count, out, 4 * spec.dimensions)
    images, labels = decoded(model.to(device), header, words, coded)
    output = OUTPUTS[out.suffix](out)
    missing = output.begin({"decoded": str(coded), "digest": header.digest, "labels": None}, spec, header.count, labels)
    written = to_bytes(images, spec.levels) if spec.kind == "pixels" else images
    output.add(missing, written[torch.tensor(missing, dtype=torch.long)])
    output.end()
    print(f"{out}: {header.count:,} images of {header.data}, every byte as it was coded")


def decoded(model: "GenerativeModel", header: "Header", words: Any, coded: Path) -> "tuple[Tensor, Tensor | None]":
    """The images of a file, and the labels of a conditional model.

    Raises:
        UserError: they are others than were coded.
    """
    from imago.compression.codes import decode
    from imago.compression.container import digest_of
    from imago.progress import progress_bar

    if model.conditional:  # checkpoints of version 0.1 do not know how frequent the classes are
        if len(header.classes) not in (0, model.spec.classes) or (header.classes and not sum(header.classes)):
            raise UserError(f"{coded}: of other classes than the checkpoint's; give another file")
        model.spec = replace(model.spec, class_counts=header.classes)
    with progress_bar(f"Decoding {header.data}") as progress:
        try:
            images, labels = decode(model, words, header.sizes, progress)
        except ValueError:
            raise UserError(f"{coded}: holds no stack; get another copy") from None
    if digest_of(images, labels) != header.images:
        raise UserError(
            f"{coded}: the images that come out are not those that were coded: this machine rounds "
            f"otherwise than the one that coded them with PyTorch {header.torch}; decode there"
        )
    return images, labels


def model_bits(model: Any, images: "Tensor", labels: "Tensor | None", progress: Any) -> float:
    """−log2 of the model's likelihood of all images, or of its bound, with labels as they are coded."""
    from imago.compression.codes import frequencies
    from imago.models.base import sum_of
    from imago.rng import PerImageGenerator

    nats, step = 0.0, 128
    for first in range(0, len(images), step):
        few = slice(first, first + step)
        given = None if labels is None else labels[few]
        noise = PerImageGenerator(0, first=first, device=model.device)
        nats += float(sum_of(model.measured_nll_terms(images[few], given, noise)).double().sum())
        progress(min(first + step, len(images)), len(images))
    if labels is not None:
        shares = frequencies(model.spec)
        nats -= float((shares / shares.sum()).log()[labels].sum())
    return nats / math.log(2)


def spoken(seconds: float) -> str:
    """A duration in words of one unit."""
    if seconds < 100:
        return f"{max(1, round(seconds))} s"
    return f"{seconds / 60:.0f} minutes" if seconds < 6000 else f"{seconds / 3600:.1f} hours"


def command() -> None:
    """Carry out ``compress`` as the command line says."""
    cli.run(main, "compress")
