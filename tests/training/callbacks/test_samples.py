"""Grids of samples."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from imago.images import ImageSpec
from imago.models.vae import VAE
from imago.pictures import grid, picture_of
from imago.rng import PerImageGenerator
from imago.runs import CSVLogger, Run
from imago.training.callbacks.ema import EMA
from imago.training.callbacks.samples import SampleGrid


class Pictures(CSVLogger):
    """A dashboard that keeps what is said of its pictures."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.captions: list[str] = []

    def log_image(self, key: str, images: list[Any], step: int | None, caption: list[str]) -> None:
        self.captions += caption


def cells(path: Path, rows: int, columns: int) -> np.ndarray:
    """The 4x4 images of a picture whose pixels are 16 times enlarged, (rows, columns, 4, 4)."""
    with Image.open(path) as file:
        picture = np.asarray(file)[::16, ::16]
    assert picture.shape == (5 * rows + 1, 5 * columns + 1)
    return np.stack(
        [[picture[5 * r + 1 : 5 * r + 5, 5 * c + 1 : 5 * c + 5] for c in range(columns)] for r in range(rows)]
    )


def test_a_grid_shows_the_model_with_the_same_seeds(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, model = Run(tmp_path), toy(lr=0.0)
    fit(model, 4, SampleGrid(32, run, rows=2, columns=3, seed=5))
    first, second = sorted(run.samples.glob("*.png"))
    assert [first.name, second.name] == ["images-0000000032.png", "images-0000000064.png"]
    assert first.read_bytes() == second.read_bytes(), "same weights, same seeds, same picture"
    images = model.sample(6, generator=PerImageGenerator(5))
    assert np.array_equal(cells(first, 2, 3).reshape(6, 4, 4), images[:, 0].numpy())


def test_a_grid_shows_what_was_learned_by_the_averaged_weights(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, model, averaging = Run(tmp_path), toy(lr=0.5), EMA(10**6, ramp=1.0)
    fit(model, 4, averaging, SampleGrid(32, run, rows=1, columns=1))
    first, second = (cells(path, 1, 1).mean() for path in sorted(run.samples.glob("*.png")))
    assert second > first + 3, "the toy becomes brighter"
    with averaging.applied(model):
        assert second == model.sample(1, generator=PerImageGenerator(0)).float().mean().item()


def test_means_stand_below_the_draws_of_a_vae(fit: Any, tmp_path: Path) -> None:
    run, model, dashboard = Run(tmp_path), VAE(ImageSpec(1, 4, 4), latent=2), Pictures(tmp_path / "metrics.csv")
    fit(model, 1, SampleGrid(16, run, rows=2, columns=3, seed=5), loggers=(dashboard,))
    shown = cells(run.samples / "images-0000000016.png", 4, 3)
    draws = model.sample(6, seed=5).numpy().reshape(2, 3, 4, 4)
    with model.without_observation_noise():
        means = model.sample(6, seed=5).numpy().reshape(2, 3, 4, 4)
    assert np.array_equal(shown, np.stack([draws, means], 1).reshape(4, 3, 4, 4))
    assert not np.array_equal(draws, means)
    assert dashboard.captions == ["16 images seen; every second row: the means of p(x|z) at the same z"]


def test_a_column_shows_a_class(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, model = Run(tmp_path), toy(conditional=True, lr=0.0)
    model.net.weight.data[:] = torch.tensor([0.0, 1.0, 2.0])[:, None]  # class k has brightness 100 k
    fit(model, 1, SampleGrid(10**6, run, rows=2, columns=4))
    (path,) = run.samples.glob("*.png")
    assert (cells(path, 2, 4) // 100)[..., 0, 0].tolist() == [[0, 1, 2, 0]] * 2
    path.unlink()
    model.spec = ImageSpec(1, 4, 4, 256, 3, ("cat", "newt", "dog"), (5, 0, 1))  # no class 1 in training, so no column
    pictures = Pictures(tmp_path / "metrics.csv")
    fit(model, 2, SampleGrid(10**6, run, rows=2, columns=4), loggers=(pictures,))
    assert pictures.captions == ["32 images seen; columns: cat, dog, cat, dog"]
    (path,) = run.samples.glob("*.png")
    assert (cells(path, 2, 4) // 100)[..., 0, 0].tolist() == [[0, 2, 0, 2]] * 2


def test_pictures_of_many_shapes() -> None:
    images = torch.arange(5 * 3 * 2 * 3, dtype=torch.uint8).reshape(5, 3, 2, 3)
    picture = grid(images, columns=2)
    assert picture.shape == (3, 3 * 3 + 1, 2 * 4 + 1)
    assert torch.equal(picture[:, 1:3, 1:4], images[0])
    assert torch.equal(picture[:, 4:6, 5:8], images[3])
    assert (picture[:, 7:9, 5:8] == 255).all(), "nothing where there is no sixth image"
    assert (picture_of(images, 2).mode, picture_of(images[:, :1], 2).mode) == ("RGB", "L")
    assert picture_of(images, 2).size == (9 * 21, 10 * 21)  # 64 / 3 pixels
    assert picture_of(torch.zeros(1, 1, 100, 70, dtype=torch.uint8), 1).size == (72, 102), "large ones as they are"
