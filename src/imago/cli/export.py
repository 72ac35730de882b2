"""Write a trained model as a folder: ``python src/export.py checkpoint=logs/vae-mnist/<time> out=my-vae``."""

import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from omegaconf import DictConfig
from pydantic import Field

from imago import cli
from imago.config import check_settings, plain
from imago.paths import check_folder_place, checkpoint_file
from imago.untrusted import read_json


@dataclass(frozen=True)
class Settings:
    """What export.yaml explains."""

    checkpoint: str
    out: Annotated[str, Field(min_length=1)]
    license: Annotated[str, Field(min_length=1)] | None


def main(config: DictConfig) -> None:
    """Export, and say what was written."""
    settings = check_settings(plain(config), Settings)
    out = Path(settings.out)
    checkpoint_file(settings.checkpoint)
    check_folder_place(out)
    # After Hydra has composed, and with paths that can be used: mistakes in either need not wait for torch.
    from imago.exports import FILES, export

    export(settings.checkpoint, out, license=settings.license)
    for file in sorted([*(out / name for name in FILES), *out.glob("samples/images-*.png")]):
        print(f"{file}  {file.stat().st_size:,} bytes")
    if not read_json(out / "evaluation.json"):
        print(
            "note: the card has no numbers but those of training; measure, and export again: "
            f"{cli.program('evaluate')} {shlex.quote(f'checkpoint={settings.checkpoint}')}"
        )


def command() -> None:
    """Carry out ``export`` as the command line says."""
    cli.run(main, "export")
