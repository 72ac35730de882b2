"""Pictures of energies: what they show is what the model says."""

import numpy as np
import pytest
import torch

from figures.test_density import quiet, trained
from imago.data.shapes import RANGE
from imago.figures.energy import DEPTH, EnergyFigure
from imago.rng import PerImageGenerator

PLANE = ("model=ebm", "data=toy2d", "model/energy=mlp", "model.energy.hidden=[8]", "model.sampling_steps=2")


def test_in_the_plane_the_log_densities_samples_and_chains_from_q_are_drawn() -> None:
    it = trained(*PLANE)
    figure = EnergyFigure(cells=20, samples=50, chains=3, steps=5)
    true, learned, chains, _ = figure.draw(it, quiet).axes
    grid, _ = it.model.grid(20, RANGE)
    data = it.data().log_prob(grid, None)
    for ax, log_p in ((true, data), (learned, it.model.log_prob(grid, None).detach()), (chains, None)):
        drawn = np.asarray(ax.images[0].get_array())
        if log_p is not None:
            expected = log_p.clamp(min=float(data.max()) - DEPTH).view(20, 20).T
            np.testing.assert_allclose(drawn, expected.numpy(), atol=1e-4)
    samples = it.model.sample(50, generator=PerImageGenerator(0)).flatten(1)
    np.testing.assert_allclose(np.asarray(learned.collections[0].get_offsets()), samples.numpy(), atol=1e-4)
    paths = [np.asarray(line.get_xydata()) for line in chains.lines if len(line.get_xydata()) > 1]
    begun = 2 * PerImageGenerator(0).normal(3, 2)  # q is normal with s = 2
    np.testing.assert_allclose([path[0] for path in paths], begun.numpy(), atol=1e-5)
    assert [len(path) for path in paths] == [6, 6, 6]


@pytest.mark.parametrize("overrides", [("data=digits",), ("data=toy1d", "model/energy=mlp")])
def test_of_other_data_the_energies_of_splits_samples_and_noise_are_counted(overrides: tuple[str, ...]) -> None:
    it = trained("model=ebm", "model.sampling_steps=2", *overrides)
    (ax,) = EnergyFigure(samples=40).draw(it, quiet).axes
    names = [text.get_text().split(":")[0] for text in ax.get_legend().get_texts()]
    assert names == ["noise", "train", "test", "samples"]
    counts = [np.diff(patch.get_xy()[:, 1]).clip(0).sum() for patch in ax.patches]
    assert all(count > 0 for count in counts)
    said = float(ax.get_legend().get_texts()[1].get_text().split(": ")[1].split(" ")[0])
    normal, uniform = it.model.noise_of(PerImageGenerator(0))
    it.model.begin(40, normal if it.model.points else uniform)
    seen = it.model.noisy(it.data().train.images[:40], normal)
    with torch.no_grad():
        assert said == pytest.approx(float(it.model.energy(seen).mean()), rel=0.01, abs=1e-3)
