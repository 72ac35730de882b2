"""What a run is told that will not become what its user hopes for: one line each, in the summary and on the board."""

from collections.abc import Iterator, Mapping

from imago.data import ImageDataModule
from imago.models.base import GenerativeModel
from imago.models.gan import GAN

FEW = 1000  # images that a discriminator soon knows by heart
ABSURD = 1e6  # nats, or any other mean of a batch, that no sound training reaches


def before_training(model: GenerativeModel, data: ImageDataModule) -> Iterator[str]:
    """Advice that model and data give already."""
    count = len(data.train)
    if isinstance(model, GAN) and count < FEW:
        yield (
            f"{count:,} training images: a discriminator soon knows them by heart, and then teaches the generator "
            "nothing; take more images, or a model with a likelihood"
        )
    if model.conditional and len(model.spec.trained) == 1:
        yield "conditional=true with images of a single class: the condition says nothing; leave it out"


def of_row(row: Mapping[str, float], images_seen: int) -> str | None:
    """Advice for a row of means of training that are finite and yet absurd."""
    for name, value in row.items():
        if abs(value) > ABSURD:
            return (
                f"{name} = {value:.2g} after {images_seen:,} images: training has come apart; a lower learning rate, "
                "model/schedule=warmup or a smaller model.gradient_clip may help"
            )
    return None
