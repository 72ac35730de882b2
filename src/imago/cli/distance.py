"""How far two sets of images are from each other: ``python src/distance.py samples.npz cifar10``. Needs no model.

``a`` are judged like samples, ``b`` is the reference, as in ``fidelity --input1 --input2`` of torch-fidelity.
"""

import json
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig
from pydantic import Field

import imago
from imago import cli, plugins
from imago.cli.evaluate import table
from imago.cli.streams import make_forgiving
from imago.config import build, check_node, check_settings, plain, quoted
from imago.errors import UserError
from imago.files import write_text
from imago.paths import check_file_place, writing_to

if TYPE_CHECKING:  # torch is loaded once Hydra has composed
    import torch
    from torch import Tensor

    from imago.data.named import NamedImages
    from imago.evaluation import SampleQuality
    from imago.measures import Measurement

Pixels = Annotated[int, Field(gt=0, le=8192)]


@dataclass(frozen=True)
class Settings:
    """What distance.yaml explains."""

    a: Annotated[str, Field(min_length=1)]
    b: Annotated[str, Field(min_length=1)]
    out: Annotated[str, Field(min_length=1)] | None
    size: Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None
    fit: Literal["crop", "stretch"]
    channels: Literal[1, 3] | None
    on_bad: Literal["refuse", "skip"]
    dir: str | None
    device: str | None


def main(config: DictConfig) -> None:
    """Read both sets, print what they are and all metrics, and write these to ``out``."""
    values = plain(config)
    settings = check_settings(values, Settings, groups=["metrics"])
    metrics = values["metrics"]
    wanted = metrics.pop("samples", None)
    check_node({**metrics, "samples": 10_000 if wanted is None else wanted}, "metrics", imported=False)
    out = None if settings.out is None else Path(settings.out)
    if out is not None:
        check_file_place(out, ours=_is_result)
    from imago.data.named import named_images

    folders = plugins.folders_of(config.get("plugins", []))
    sides: dict[str, NamedImages] = {}
    for side in ("a", "b"):
        try:
            sides[side] = named_images(
                getattr(settings, side),
                settings.dir,
                size=settings.size,
                fit=settings.fit,
                channels=settings.channels,
                on_bad=settings.on_bad,
                configurations=folders,
            )
        except UserError as error:  # what the settings of a run are, are the command's here
            said = re.sub(r"\bdata\.(size|fit|channels|on_bad|dir)\b", r"\1", str(error))
            said = re.sub(r"\bdata\.path\b", side, said)
            given = f"{side}={getattr(settings, side)}: "
            raise UserError(given + said.removeprefix(given).removeprefix(given[2:])) from None
        count = len(sides[side].images)
        if count < 2:
            raise UserError(f"{side}={getattr(settings, side)}: {count} images; a distance needs 2 or more")
    a, b = sides["a"], sides["b"]
    if wanted is not None and wanted > len(a.images):
        raise UserError(
            f"metrics.samples={wanted}: {a.name} has {len(a.images):,} images; give no more, or null for all"
        )
    quality: SampleQuality = build({**metrics, "samples": wanted or len(a.images)}, "metrics")
    quality.full = metrics.get("full") is not False
    lines, measurements = measured(quality, a, b, cli.device(settings.device))
    print("\n".join([*lines, *table(measurements)]), flush=True)
    if out is not None:
        result = {
            "imago": imago.__version__,
            **{key: told(side) for key, side in sides.items()},
            "measurements": [
                {"name": m.name, "value": m.value, "protocol": m.protocol.as_dict()} for m in measurements
            ],
        }
        with writing_to(out):
            write_text(out, json.dumps(result, indent=2) + "\n")
        print(f"  {out}")


def measured(
    quality: "SampleQuality", a: "NamedImages", b: "NamedImages", device: "torch.device"
) -> "tuple[list[str], list[Measurement]]":
    """What has to be known of two sets of images, and all distances of ``a`` from ``b``.

    Raises:
        UserError: they cannot be compared in these features.
    """
    import numpy as np
    import torch

    from imago.evaluation.extractors import ClassifierExtractor
    from imago.evaluation.neighbours import digests
    from imago.progress import progress_bar

    for side in (a, b):
        if side.spec.kind != "pixels":
            raise UserError(f"{side.name}: features are of pictures, not of {side.spec}; choose other data")
    quality.prepare(b.module, device, called=b.name, chosen_for=b.origin)
    lines = [f"note: {notice}" for notice in quality.notices]
    extractor = quality.extractor
    if extractor is None:
        raise UserError(" ".join(quality.notices) or "metrics: nothing can be measured; choose metrics=inception")
    sizes = [f"{side.spec.height}x{side.spec.width}" for side in (a, b)]
    repeated = a.spec.channels == 1 and b.spec.channels == 3
    spec = replace(a.spec, channels=3) if repeated else a.spec
    if isinstance(extractor, ClassifierExtractor):
        if sizes[0] != sizes[1]:
            raise UserError(
                f"metrics: {a.name} are {sizes[0]} and {b.name} {sizes[1]} pixels, which {extractor.name} sees as they "
                "are; give size=[HEIGHT,WIDTH] for a folder or zip file, or metrics=inception, which resizes"
            )
        if spec.channels != extractor.channels:
            raise UserError(
                f"metrics: {a.name} are in colour, and {extractor.name} is of gray images; give channels=1 for a "
                "folder or zip file, or metrics=inception"
            )
    for key, side in (("a", a), ("b", b)):
        shape = "x".join(map(str, side.spec.shape))
        lines.append(f"{key}: {side.name}, {len(side.images):,} images of {shape}")
    if extractor.side is not None:
        lines.append(f"{extractor.name} sees {extractor.side}x{extractor.side}: resized {extractor.resized}")
    same = len(a.images) == len(b.images) and a.spec.shape == b.spec.shape
    if same and torch.equal(*(digests(side.images).sort().values for side in (a, b))):
        lines.append("warning: a and b are the same images")

    def sample(n: int, first: int) -> "Tensor":
        images = a.images.take(np.arange(first, first + n)).images
        return images.expand(-1, 3, -1, -1) if repeated else images

    with progress_bar(f"Features of {a.name} ({extractor.name})") as progress:
        return lines, quality.measure(sample, progress, spec=spec)


def told(side: "NamedImages") -> dict[str, Any]:
    """What is kept of a set of images."""
    shape = {name: getattr(side.spec, name) for name in ("channels", "height", "width")}
    return {"name": side.name, "images": len(side.images), **shape, "fingerprint": side.module.fingerprint}


def _is_result(path: Path) -> bool:
    return set(json.loads(path.read_text(encoding="utf-8"))) >= {"imago", "a", "b", "measurements"}


def with_keys(given: Sequence[str]) -> list[str]:
    """A command line whose first words, ``A B``, are written as ``a=A b=B``.

    Raises:
        UserError: there are more than two.
    """
    words, named = [], {word.partition("=")[0] for word in given if "=" in word}
    keys = [key for key in ("a", "b") if key not in named]
    for k, word in enumerate(given):
        there = False
        with suppress(OSError, ValueError):
            there = "=" in word and Path(word).exists()
        option = word.startswith("-") or (k and given[k - 1] in ("-c", "--cfg", "-p", "--package"))
        if not word or option or ("=" in word and not there):
            words.append(word)
        elif keys:
            words.append(f"{keys.pop(0)}={quoted(word)}")
        else:
            raise UserError(f"{word}: a third set of images; give two, a and b, and settings as KEY=VALUE")
    return words


def command() -> None:
    """Carry out ``distance`` as the command line says."""
    make_forgiving()
    code = cli.report(lambda: sys.argv.__setitem__(slice(1, None), with_keys(sys.argv[1:])), "distance")
    if code:
        sys.exit(code)
    cli.run(main, "distance")
