"""What a run's samples looked like while it was trained."""

from dataclasses import dataclass
from typing import Annotated

from PIL import Image, ImageDraw, ImageFont
from pydantic import Field

from imago.errors import UserError
from imago.figures.base import MOST_FRAMES, Animated, Trained, spread
from imago.figures.latents import FONT, LETTERS, stacked
from imago.models.base import GenerativeModel
from imago.progress import Progress


@dataclass
class Training(Animated[GenerativeModel]):
    """The grids of samples that a run kept, ``samples/images-*.png``, with the number of images seen.

    Args:
        snapshots: in a picture, spread over the run, from its first to its last one; an animation has all, at most 60.
    """

    snapshots: Annotated[int, Field(ge=2, le=20)] = 4

    def draw(self, trained: Trained[GenerativeModel], progress: Progress) -> Image.Image:
        """See :meth:`Figure.draw`."""
        return stacked(self._grids(trained, self.snapshots))

    def frames(self, trained: Trained[GenerativeModel], progress: Progress) -> list[Image.Image]:
        """See :meth:`Animated.frames`."""
        return self._grids(trained, MOST_FRAMES)

    def _grids(self, trained: Trained[GenerativeModel], most: int) -> list[Image.Image]:
        files = sorted((trained.folder / "samples").glob("images-*.png"))
        if not files:
            raise UserError(
                f"figure=training: there are no grids of samples in {trained.folder / 'samples'}; give the directory "
                "of a run that drew some as checkpoint=RUN"
            )
        pictures = []
        for file in (files[k] for k in spread(len(files), most)):
            try:
                with Image.open(file) as opened:
                    grid = opened.convert("RGB")
            except OSError as error:
                raise UserError(f"figure=training: {file} cannot be read ({error}); delete it") from None
            head = LETTERS + 9
            picture = Image.new("RGB", (grid.width, grid.height + head), "white")
            picture.paste(grid, (0, head))
            seen = int(file.stem.removeprefix("images-"))
            font = ImageFont.truetype(str(FONT), LETTERS)
            ImageDraw.Draw(picture).text((4, 3), f"{seen:,} images seen", fill="black", font=font)
            pictures.append(picture)
        return pictures
