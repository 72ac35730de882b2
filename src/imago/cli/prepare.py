"""Write images as shards: ``python src/prepare.py data.path=FOLDER out=SHARDS``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from omegaconf import DictConfig
from pydantic import Field

from imago import cli
from imago.config import check_settings, plain
from imago.paths import images_place

Pixels = Annotated[int, Field(gt=0, le=8192)]


@dataclass(frozen=True)
class Images:
    """What prepare.yaml explains of ``data``."""

    path: Annotated[str, Field(min_length=1)]
    size: Pixels | Annotated[list[Pixels], Field(min_length=2, max_length=2)] | None
    fit: Literal["crop", "stretch"]
    channels: Literal[1, 3] | None
    on_bad: Literal["refuse", "skip"]


@dataclass(frozen=True)
class Settings:
    """What prepare.yaml explains."""

    data: Images
    out: Annotated[str, Field(min_length=1)]


def main(config: DictConfig) -> None:
    """Write the images at ``data.path`` into the folder ``out``."""
    settings = check_settings(plain(config), Settings)
    given, out = settings.data, Path(settings.out).expanduser()
    images_place(given.path)
    from imago.data.prepare import prepare  # after Hydra has composed: mistakes need not wait for torch

    with cli.stoppable():
        index = prepare(given.path, out, given.size, given.fit, given.channels, given.on_bad)
    images = sum(shard.images for shard in index.shards)
    lost = f", {index.lost:,} unreadable ones left out" if index.lost else ""
    print(
        f"{out}: {images:,} images of {'x'.join(map(str, index.shape))} in {len(index.shards)} "
        f"shard{'s' * (len(index.shards) > 1)}{lost}, "
        f"{index.labels}; train on them with data=stream data.path={out}"
    )


def command() -> None:
    """Carry out ``prepare`` as the command line says."""
    cli.run(main, "prepare")
