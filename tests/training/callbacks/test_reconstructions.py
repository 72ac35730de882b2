"""Grids of reconstructions."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import WandbLogger
from PIL import Image

from helpers import configuration
from imago.config import build
from imago.data import ImageDataModule
from imago.data.base import ImageSet
from imago.evaluation.reconstructions import pairs, reconstruct
from imago.images import quantize
from imago.models.latent import EncodingModel
from imago.pictures import picture_of
from imago.runs import Run
from imago.training.callbacks.ema import EMA
from imago.training.callbacks.reconstructions import ReconstructionGrid
from imago.training.run import build_model

SIZES = ["model=vae", "data=digits", "model.latent=3", "model.encoder.hidden=[8]", "model.decoder.hidden=[8]"]


def made(*overrides: str) -> tuple[EncodingModel, ImageDataModule]:
    config = configuration(*SIZES, "data.batch_size=16", *overrides)
    data = build(config["data"], "data")
    data.prepare()
    torch.manual_seed(0)
    model = build_model(config, data.spec)
    assert isinstance(model, EncodingModel)
    return model, data


def expected(model: EncodingModel, part: ImageSet, rows: int, columns: int) -> Image.Image:
    drawn = []
    for first in range(0, rows * columns, columns):
        few = part.part(slice(first, first + columns))
        drawn += [few.images, quantize(reconstruct(model, few), 256)]
    return picture_of(torch.cat(drawn), columns)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as file:
        return np.asarray(file)


def test_a_grid_has_the_same_images_every_time_as_the_averaged_weights_decode_them(fit: Any, tmp_path: Path) -> None:
    (model, data), run, averaging = made("conditional=true"), Run(tmp_path), EMA(10**6, ramp=1.0)
    fit(model, 4, averaging, ReconstructionGrid(32, run, rows=2, columns=3), data=data)
    first, second = sorted(run.samples.glob("*.png"))
    assert [first.name, second.name] == ["reconstructions-0000000032.png", "reconstructions-0000000064.png"]
    assert model.training, "the network's mode is as it was"
    plain = np.asarray(expected(model, data.val, 2, 3))
    with averaging.applied(model):
        assert np.array_equal(pixels(second), np.asarray(expected(model, data.val, 2, 3)))
    assert not np.array_equal(pixels(second), plain)
    assert not np.array_equal(pixels(second), pixels(first)), "the model learns"
    rows = [image.reshape(4, 9 * 8, -1) for image in (pixels(first)[8:], pixels(second)[8:])]
    assert np.array_equal(rows[0][[0, 2]], rows[1][[0, 2]]), "of the same images"


def test_models_that_cannot_encode_have_none(toy: Any, fit: Any, tmp_path: Path) -> None:
    fit(toy(), 4, ReconstructionGrid(16, Run(tmp_path)))
    assert not list(tmp_path.rglob("*.png"))


def test_a_small_split_makes_a_small_grid() -> None:
    model, data = made()
    for n, shape in ((5, (1, 5)), (7, (3, 2)), (1, (1, 1))):
        part = data.val.part(slice(n))
        images, columns = pairs(model, part, 3, shape[1] if n == 7 else 10)
        assert (columns, len(images)) == (shape[1], 2 * shape[0] * shape[1])


def test_a_dashboard_gets_the_grid(fit: Any, tmp_path: Path) -> None:
    class Dashboard(WandbLogger):
        def __init__(self) -> None:
            self.logged: list[tuple[str, int]] = []

        def log_image(self, key: str, images: list[Any], step: int | None = None, **kwargs: Any) -> None:
            self.logged.append((key, len(images)))

    (model, data), run, dashboard = made(), Run(tmp_path), Dashboard()

    class Ask(ReconstructionGrid):
        def act(self, trainer: Any, model: Any) -> None:
            trainer.loggers = [dashboard]
            super().act(trainer, model)
            trainer.loggers = []

    fit(model, 2, Ask(32, run), data=data)
    assert dashboard.logged == [("reconstructions", 1)]
