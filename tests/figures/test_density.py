"""Pictures of densities: what they show is what data and model say."""

from typing import Any

import numpy as np
import pytest
import torch

from helpers import configuration
from imago.config import build
from imago.data import ImageDataModule
from imago.errors import UserError
from imago.figures.base import Trained
from imago.figures.density import Density
from imago.figures.mode_coverage import ModeShares
from imago.training.run import build_model


def quiet(done: int, total: int) -> None:
    pass


def trained(*overrides: str) -> Trained[Any]:
    config = configuration(*overrides)
    data: ImageDataModule = build(config["data"], "data")
    data.prepare()
    torch.manual_seed(0)
    return Trained(build_model(config, data.spec).eval(), lambda: data)


def panels(drawing: Any) -> dict[str, np.ndarray]:
    return {ax.get_title(): np.asarray(ax.images[0].get_array()) for ax in drawing.axes}


def test_all_shapes_are_drawn_without_a_model() -> None:
    titles = [ax.get_title() for ax in Density().draw(None, quiet).axes]
    assert titles[:3] == ["eight_gaussians, 8 modes", "two_moons, 2 modes", "checkerboard, 8 modes"]
    assert titles[-1] == "skewed, 1 mode"
    assert len(titles) == 9


@pytest.mark.parametrize(
    "overrides",
    [
        ("model=vae", "data=toy2d"),
        ("model=vae", "data=toy2d", "conditional=true"),
        ("model=made", "data=toy2d", "data.levels=20", "data.shape=two_moons"),
    ],
    ids=lambda overrides: "-".join(overrides[:1] + overrides[2:3]),
)
def test_a_density_in_the_plane_is_the_datas_the_models_and_that_of_samples(overrides: tuple[str, ...]) -> None:
    it = trained(*overrides)
    found = panels(Density(cells=20, samples=500).draw(it, quiet))
    (true, says, drawn), area = found.values(), (6 / 20) ** 2
    assert [title.split(": ")[1] for title in found] == [
        "its density",
        "density" if it.model.likelihood == "exact" else "bound of the density",
        "500 samples",
    ]
    assert true.shape == says.shape == drawn.shape == (20, 20)
    assert true.sum() * area == pytest.approx(1, abs=0.1)
    assert (says >= 0).all()
    assert says.sum() * area < 1.01
    if it.model.likelihood == "exact":
        assert says.sum() * area == pytest.approx(1, abs=1e-3)
    assert 0.7 < drawn.sum() * area < 1 + 1e-6
    # x to the right, y upwards: the upper moon's left end is left of the lower one's right end, and higher.
    if "two_moons" in overrides[-1]:
        assert true[12, 3] > 10 * true[3, 3]


def test_a_density_on_the_line_is_drawn_as_curves() -> None:
    ax = Density(cells=50, samples=200).draw(trained("model=vae", "data=toy1d"), quiet).axes[0]
    assert [line.get_label() for line in ax.lines] == ["mixture: its density", "VAE: bound of the density"]
    assert np.asarray(ax.lines[0].get_ydata()).max() > 1


def test_modes_are_counted() -> None:
    it = trained("model=gan", "data=toy2d", "model.generator.hidden=[8]", "model.discriminator.hidden=[8]")
    centre = torch.tensor([1.4, 0.0]).view(1, 2, 1, 1)
    it.model.decode = lambda z, labels: centre + 0.1 * z[:, :2, None, None]
    drawing = ModeShares(samples=300).draw(it, quiet)
    heights = [bar.get_height() for bar in drawing.axes[1].patches]
    assert heights[0] == pytest.approx(1, abs=0.03)
    assert sum(heights) == pytest.approx(1)
    assert "GAN, eight_gaussians: 1 of 8 modes hit" in drawing.get_suptitle()


def test_other_data_have_no_known_density() -> None:
    it = trained("model=vae", "data=digits")
    for figure in (Density(), ModeShares()):
        with pytest.raises(UserError, match=r"nobody knows the density of digits; give .*data=toy2d or data=toy1d"):
            figure.draw(it, quiet)
    with pytest.raises(UserError, match="skewed has one mode"):
        ModeShares().draw(trained("model=vae", "data=toy1d", "data.shape=skewed"), quiet)
