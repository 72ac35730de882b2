"""Draw a figure of a model: ``python src/figure.py figure=completion checkpoint=logs/pixelcnn-mnist/<time>``."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig
from pydantic import Field

from imago import cli
from imago.config import build, check_node, check_settings, choices_of, plain
from imago.errors import UserError
from imago.paths import check_file_place, checkpoint_file, folder_of

if TYPE_CHECKING:  # torch is loaded once Hydra has composed
    from imago.figures.base import Figure

DRAWINGS, ANIMATIONS = (".svg", ".pdf"), (".gif", ".webp")


@dataclass(frozen=True)
class Settings:
    """What figure.yaml explains."""

    checkpoint: str | None
    out: Annotated[str, Field(min_length=1)]
    style: Literal["slides", "paper"] | None
    averaged: bool
    model: dict[str, Any]
    dir: str | None
    path: str | None
    device: str | None


def main(config: DictConfig) -> None:
    """Draw, and write to ``out``."""
    values = plain(config)
    settings = check_settings(values, Settings, groups=["figure"])
    check_node(values["figure"], "figure", imported=False)
    out = Path(settings.out)
    if out.suffix not in (".png", *DRAWINGS, *ANIMATIONS):
        raise UserError(
            f"out={out}: cannot write {out.suffix or 'nameless'} files; give a name ending in .png, or for "
            "drawings .svg or .pdf, for animations .gif or .webp"
        )
    check_file_place(out)
    if settings.checkpoint is not None:
        file = checkpoint_file(settings.checkpoint)
    # After Hydra has composed, and with paths that can be used: mistakes in either need not wait for torch.
    check_node(values["figure"], "figure")
    from imago.checkpoints import model_of, read
    from imago.data import data_of
    from imago.figures.base import Animated, Trained, write, write_animation
    from imago.progress import progress_bar

    choice = HydraConfig.get().runtime.choices["figure"]
    figure: Figure[Any] = build(values["figure"], "figure")
    moving = out.suffix in ANIMATIONS
    if moving and not isinstance(figure, Animated):
        able = ", ".join(choices_of("figure", Animated))
        raise UserError(f"out={out}: figure={choice} does not move, {able} do; give a name ending in .png")
    if moving and settings.style is not None:
        raise UserError(f"style={settings.style}: an animation has one size; leave style=null")
    if figure.pixels and out.suffix in DRAWINGS:
        raise UserError(f"out={out}: figure={choice} is a grid of pixels; give a name ending in .png")
    if figure.pixels and settings.style is not None:
        raise UserError(f"style={settings.style}: figure={choice} is a grid of pixels, of one size; leave style=null")
    trained: Any = None
    if settings.checkpoint is None:
        if figure.needs_checkpoint:
            raise UserError("checkpoint=null: this is a figure of a trained model; give checkpoint=PATH")
    else:
        device = cli.device(settings.device)
        checkpoint = read(settings.checkpoint)
        model = model_of(checkpoint, averaged=settings.averaged, changes=settings.model).to(device)
        if not isinstance(model, figure.family):
            able = ", ".join(choices_of("model", figure.family))
            raise UserError(
                f"figure={choice}: cannot be drawn of {settings.checkpoint}, a {type(model).__name__}; give a "
                f"checkpoint of one of {able}"
            )
        trained = Trained(model, partial(data_of, checkpoint, settings.dir, settings.path), folder_of(file))
    with progress_bar(f"Drawing {choice}") as progress:
        if isinstance(figure, Animated) and moving:
            frames = figure.frames(trained, progress)
        else:
            picture = figure.draw(trained, progress)
    if moving:
        write_animation(frames, out)
    else:
        write(picture, out, settings.style)
    print(out)


def command() -> None:
    """Carry out ``figure`` as the command line says."""
    cli.run(main, "figure")
