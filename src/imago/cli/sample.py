"""Draw images from a trained model: ``python src/sample.py checkpoint=logs/gan-digits/<time> n=64``."""

import os
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from omegaconf import DictConfig
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from imago import cli
from imago.capacity import available_memory
from imago.config import Compile, check_has, check_settings, plain
from imago.errors import Interrupted, UserError
from imago.paths import check_sample_place, checkpoint_file, results_file
from imago.processes import by_first, first_process, launched_rank, shared

if TYPE_CHECKING:  # torch is loaded once Hydra has composed
    import torch
    from torch import Tensor

    from imago.models.base import GenerativeModel


@dataclass(frozen=True)
class Settings:
    """What sample.yaml explains."""

    checkpoint: str
    out: Annotated[str, Field(min_length=1)] | None
    n: PositiveInt
    labels: NonNegativeInt | str | Annotated[list[NonNegativeInt | str], Field(min_length=1)] | None
    temperature: PositiveFloat | None
    averaged: bool
    model: dict[str, Any]
    seed: NonNegativeInt
    batch_size: PositiveInt
    overwrite: bool
    device: str | None
    devices: PositiveInt | Literal["auto"]
    compile: Compile


def main(config: DictConfig) -> None:
    """Draw, and where it is stopped say what is there."""
    settings = check_settings(plain(config), Settings)
    if settings.out is not None:
        check_sample_place(Path(settings.out), settings.overwrite)
    checkpoint = checkpoint_file(settings.checkpoint)
    out = results_file(checkpoint, "samples.png") if settings.out is None else Path(settings.out)
    if settings.out is None:
        check_sample_place(out, settings.overwrite)
    try:
        with cli.stoppable(), cli.devices(settings.device, settings.devices) as device:
            draw(settings, checkpoint, out, device)
    except (KeyboardInterrupt, Interrupted):
        if launched_rank():
            raise
        if out.suffix:
            left = "nothing was kept, because the file is written at the end; out=FOLDER keeps every image"
        else:
            there = sum(1 for _ in out.rglob("*.png"))
            left = f"{there:,} images are there; the same command draws what is missing of {settings.n:,}"
        print(f"{out}: stopped; {left}", file=sys.stderr)
        raise


def draw(settings: Settings, file: Path, out: Path, device: "torch.device") -> None:
    """Draw ``n`` images of a checkpoint file and write them to ``out``; those that are there already are left."""
    # After Hydra has composed, and with paths that can be used: mistakes in either need not wait for torch.
    import torch
    from torch import Tensor

    from imago.checkpoints import changed, fingerprint, model_of, read, uses_average
    from imago.cli.outputs import OUTPUTS
    from imago.images import ImageSpec, to_bytes
    from imago.models.completing import Completing
    from imago.progress import progress_bar
    from imago.rng import PerImageGenerator

    checkpoint = read(file)
    spec = ImageSpec(**checkpoint["spec"])
    if spec.kind != "pixels" and out.suffix != ".npz":
        if settings.out is not None:
            raise UserError(f"out={out}: the model draws {spec}, which are no pictures; give a name ending in .npz")
        out = out.with_suffix(".npz")
        check_sample_place(out, settings.overwrite)
    check_room(settings.n, out, spec.dimensions * spec.dtype.itemsize)
    output = OUTPUTS[out.suffix](out)
    model = model_of(checkpoint, averaged=settings.averaged, changes=settings.model)
    check_has(model, Completing, "temperature", settings.temperature, "temperature")
    if isinstance(model, Completing):
        model.temperature = settings.temperature or 1.0
    given = numbers_of(settings.labels, model)
    labels = None
    if given is not None:
        labels = given[torch.arange(settings.n) % len(given)]
        model.check_labels(labels, settings.n)
    elif model.conditional:
        labels = model.draw_labels(settings.n, PerImageGenerator(settings.seed))
    drawn_as = "as in training" if model.conditional and model.spec.class_counts else None
    depends_on = {
        "checkpoint": {
            "weights": fingerprint(model),
            "images_seen": model.state.images,
            "averaged": uses_average(checkpoint, settings.averaged),
        },
        "model": changed(checkpoint["config"]["model"], settings.model),
        "temperature": model.temperature if isinstance(model, Completing) else None,
        "seed": settings.seed,
        "labels": drawn_as if given is None else given.tolist(),
        **({"classes": list(model.spec.class_names)} if model.conditional and model.spec.class_names else {}),
    }
    del checkpoint  # the optimisers' states
    model = model.to(device)
    if settings.compile:
        model.compile_networks("inductor" if settings.compile is True else settings.compile)
    missing = by_first(lambda: output.begin(depends_on, model.spec, settings.n, labels))
    done, there = 0, settings.n - len(missing)
    began = time.perf_counter()
    with progress_bar("Sampling") as progress:

        def images_of(numbers: list[int]) -> Tensor:
            generator = PerImageGenerator(settings.seed, first=numbers[0], device=device)
            if given is None and model.conditional:
                model.draw_labels(len(numbers), generator)  # the labels above: the first number of each stream
            base, count = there + done, len(numbers)

            def report(step: int, steps: int) -> None:
                progress(base * steps + count * step, settings.n * steps)  # steps of images

            chosen = None if labels is None else labels[numbers]
            images = model.sample(count, labels=chosen, generator=generator, progress=report)
            return (to_bytes(images, spec.levels) if spec.kind == "pixels" else images).cpu()

        batches = list(in_batches(missing, settings.batch_size))
        for numbers, images in zip(batches, shared(images_of, batches), strict=True):
            if first_process():
                output.add(numbers, images)
            done += len(numbers)
            progress(there + done, settings.n)
    if not first_process():
        return
    output.end()
    seconds = time.perf_counter() - began
    rate = done / seconds
    pace = f"in {seconds:.2f} s, {rate:,.0f} images/s" if rate >= 10 else f"in {seconds:.1f} s, {rate:.2g} images/s"
    if there:
        pace = f"of which {there:,} were there and " + (f"{done:,} were drawn {pace}" if done else "none was drawn")
    print(f"{out}: {settings.n:,} images {pace}")
    if out.is_dir() and labels is not None and (drawn := labels.unique().tolist()) != list(range(len(drawn))):
        print(f"note: not every class is there; data=folder will number its {len(drawn)} from 0 on, in the same order")
    lying = sum(1 for _ in out.rglob("*.png")) if out.is_dir() else 0
    if lying > settings.n:
        print(f"note: {lying - settings.n:,} more lie there, of a larger n")


def numbers_of(labels: int | str | list[int | str] | None, model: "GenerativeModel") -> "Tensor | None":
    """Classes, given by number or by name, as numbers.

    Raises:
        UserError: the model has no class of that name.
    """
    import torch

    if labels is None:
        return None
    names = list(model.spec.class_names)
    numbers = []
    for label in labels if isinstance(labels, list) else [labels]:
        if isinstance(label, str) and label not in names and model.conditional:
            known = ", ".join(map(model.spec.class_name, range(len(names[:10])))) + ", ..." * (len(names) > 10)
            told = f"they are {known}; give one, or" if names else "the checkpoint knows no names; give"
            raise UserError(
                f"labels={label}: no class of the model has this name; {told} a number 0..{model.classes - 1}"
            )
        numbers.append(names.index(label) if label in names else 0 if isinstance(label, str) else label)
    return torch.tensor(numbers)


def check_room(n: int, out: Path, values: int) -> None:
    """Refuse more images than there is room for: in memory, where a file of all is written at the end, or on the disk.

    Args:
        n: number of images.
        out: where they go.
        values: bytes of each.

    Raises:
        UserError: with what they need and what there is.
    """
    needed, free, what = n * (2 * values if out.suffix else 40), available_memory(), "bytes of memory"
    if needed <= free and not out.suffix:
        disk = os.statvfs(next(place for place in (out.absolute(), *out.absolute().parents) if place.exists()))
        limits = [room for room, known in ((disk.f_bavail, disk.f_blocks), (disk.f_favail, disk.f_files)) if known]
        needed, free, what = n, min(limits, default=n), "files"
        if needed > free:
            needed -= sum(1 for _ in out.rglob("*.png"))
    if needed > free:
        raise UserError(f"n={n}: needs {needed:,} {what}, and there is room for {free:,}; draw fewer")


def in_batches(numbers: list[int], batch_size: int) -> Iterator[list[int]]:
    """Rising numbers in order, cut so that those of a batch follow upon each other without gaps."""
    batch: list[int] = []
    for number in numbers:
        if batch and (number != batch[-1] + 1 or len(batch) == batch_size):
            yield batch
            batch = []
        batch.append(number)
    if batch:
        yield batch


def command() -> None:
    """Carry out ``sample`` as the command line says."""
    cli.run(main, "sample")
