"""Draw images from a trained model: ``python src/sample.py checkpoint=logs/gan-digits/<time> n=64 out=samples.png``."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from omegaconf import DictConfig
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from imago import cli
from imago.config import check_settings, choices_of, plain
from imago.errors import UserError


@dataclass(frozen=True)
class Settings:
    """What sample.yaml explains."""

    checkpoint: str
    out: str
    n: PositiveInt
    labels: NonNegativeInt | Annotated[list[NonNegativeInt], Field(min_length=1)] | None
    temperature: PositiveFloat | None
    averaged: bool
    model: dict[str, Any]
    seed: NonNegativeInt
    batch_size: PositiveInt
    device: str | None


def main(config: DictConfig) -> None:
    """Draw ``n`` images and write them to ``out``."""
    settings = check_settings(plain(config), Settings)
    import torch  # after Hydra has composed: mistakes in names need not wait for it

    from imago.checkpoints import load
    from imago.images import to_bytes
    from imago.metrics.progress import progress_bar
    from imago.models.autoregressive import Autoregressive
    from imago.noise import PerImageGenerator
    from imago.pictures import writer_for

    out = Path(settings.out)
    write = writer_for(out)
    device = cli.device(settings.device)
    model = load(settings.checkpoint, averaged=settings.averaged, device=device, changes=settings.model)
    if isinstance(model, Autoregressive):
        model.temperature = settings.temperature or 1.0
    elif settings.temperature is not None:
        raise UserError(
            f"temperature={settings.temperature:g}: a {type(model).__name__} has none; it belongs to models that draw "
            f"value by value, which are {', '.join(choices_of('model', Autoregressive))}; leave temperature=null"
        )
    given = None if settings.labels is None else torch.tensor(settings.labels).reshape(-1)
    images, labels = [], []
    began = time.perf_counter()
    with progress_bar("Sampling") as progress:
        for indices in torch.arange(settings.n).split(settings.batch_size):
            generator = PerImageGenerator(settings.seed, first=int(indices[0]), device=device)
            if given is not None:
                labels.append(given[indices % len(given)])
            elif model.conditional:
                labels.append(generator.integers(len(indices), model.classes).cpu())
            first, count = int(indices[0]), len(indices)

            def report(done: int, total: int, first: int = first, count: int = count) -> None:
                progress(first * total + count * done, settings.n * total)  # steps of images

            chosen = labels[-1] if labels else None
            part = model.sample(count, labels=chosen, generator=generator, progress=report)
            images.append(to_bytes(part, model.spec.levels).cpu())
            progress(first + count, settings.n)
    seconds = time.perf_counter() - began
    write(out, torch.cat(images), torch.cat(labels) if labels else None)
    print(f"{out}: {settings.n:,} images in {seconds:.2f} s, {settings.n / seconds:,.0f} images/s")


if __name__ == "__main__":
    cli.run(main, "sample")
