"""Figures of diffusion models: what they show is what the model does."""

from typing import Any

import numpy as np
import pytest
import torch

from helpers import configuration
from imago.config import build
from imago.data import ImageDataModule
from imago.figures import chains
from imago.figures.base import Trained
from imago.figures.chains import Chains
from imago.figures.denoising import Denoising
from imago.figures.latents import stacked
from imago.figures.noise_schedules import NoiseSchedules
from imago.images import ImageSpec, bits_per_dim
from imago.models.base import sum_of
from imago.models.diffusion import Diffusion
from imago.models.gsn import GSN
from imago.rng import PerImageGenerator
from imago.training.run import build_model


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained[Any]:
    config = configuration("model=ddpm", "data=digits", "model.steps=40", "model.sampler.steps=8")
    data: ImageDataModule = build(config["data"], "data", dir=str(tmp_path_factory.mktemp("data")))
    data.prepare_data()
    data.setup("fit")
    torch.manual_seed(0)
    return Trained(build_model(config, data.spec).eval(), lambda: data)


def heights(axes: Any, line: int = 0) -> Any:
    return np.asarray(axes.lines[line].get_ydata())


def holds(picture: Any, image: Any) -> bool:
    """Enlarged by a whole number, somewhere in the picture."""
    pixels = np.asarray(picture)
    for scale in (8, 9, 16):
        large = np.kron(image, np.ones((scale, scale), np.uint8))
        rows, columns = (a - b + 1 for a, b in zip(pixels.shape, large.shape, strict=True))
        corner = np.argwhere(pixels[:rows, :columns] == large[0, 0])
        for y, x in corner:
            if np.array_equal(pixels[y : y + large.shape[0], x : x + large.shape[1]], large):
                return True
    return False


def test_chains_begin_with_test_images_and_end_with_samples(trained: Trained[Any]) -> None:
    picture = Chains(images=2, snapshots=6).draw(trained, lambda *_: None)
    model = trained.model
    assert isinstance(model, Diffusion)
    first = trained.data().test.images[0, 0].numpy()
    samples = model.sample(2, generator=PerImageGenerator(0))[:, 0].numpy()
    assert holds(picture, first)
    assert all(holds(picture, sample) for sample in samples)
    assert not holds(picture, 255 - first)


def test_the_times_of_samples_stand_below_those_of_test_images(
    trained: Trained[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The blocks begin at the same place, whatever the names beside their rows."""
    blocks: list[Any] = []
    monkeypatch.setattr(chains, "stacked", lambda pictures: blocks.extend(pictures) or stacked(pictures))
    Chains(images=2, snapshots=11).draw(trained, lambda *_: None)
    above, below = blocks
    assert (above.width - below.width) % (8 * 9) == 0, "whole columns: the model has fewer steps than moments"


def test_the_chain_of_a_gsn_ends_with_samples_and_needs_no_data() -> None:
    torch.manual_seed(0)
    model = GSN(ImageSpec(1, 8, 8), steps=4)
    told: list[tuple[int, int]] = []

    def data() -> ImageDataModule:
        raise AssertionError

    picture = Chains(images=2, snapshots=3).draw(Trained(model.eval(), data), lambda *at: told.append(at))
    samples = model.sample(2, generator=PerImageGenerator(0))[:, 0].numpy()
    assert all(holds(picture, sample) for sample in samples)
    assert told == [(k, 4) for k in range(1, 5)]


def test_schedules_need_no_checkpoint_and_show_the_models_own(trained: Trained[Any]) -> None:
    drawing = NoiseSchedules().draw(None, lambda *_: None)
    assert [line.get_label() for line in drawing.axes[1].lines] == ["linear", "quadratic", "sigmoid", "cosine"]
    left = heights(drawing.axes[1])
    assert left[0] == pytest.approx(1 - 1e-4)
    assert left[-1] == pytest.approx(4.04e-5, rel=0.01)
    axes = NoiseSchedules().draw(trained, lambda *_: None).axes[1]
    assert (axes.lines[-1].get_label(), len(heights(axes, -1))) == ("the model's", 40)


def test_the_terms_add_up_to_the_bound(trained: Trained[Any]) -> None:
    drawing = Denoising(images=50, points=40).draw(trained, lambda *_: None)
    model = trained.model
    assert isinstance(model, Diffusion)
    images = trained.data().test.images[:50]
    bits = float(bits_per_dim(sum_of(model.measured_nll_terms(images)).mean(), model.spec))
    sums = heights(drawing.axes[1])
    assert sums[-1] == pytest.approx(bits, rel=0.03)  # other noise
    assert f"about {sums[-1]:.2f}"[:-1] in drawing.get_suptitle()
    few = heights(Denoising(images=50, points=12).draw(trained, lambda *_: None).axes[1])
    assert few[-1] == pytest.approx(sums[-1], rel=0.1)
