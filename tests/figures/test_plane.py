"""Figures of points in the plane: fields and paths are those of the model."""

import re
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from torch import Tensor

from figures.test_density import quiet, trained
from imago.data.shapes import EightGaussians
from imago.data.sources import Toy
from imago.diffusion.samplers import Context, Estimate, Euler, straight
from imago.errors import UserError
from imago.figures.plane import masses, middles, noisy_density
from imago.figures.trajectories import Trajectories
from imago.figures.vector_field import VectorField
from imago.rng import PerImageGenerator


def expected(noisy: Tensor, alpha: float, sigma: float) -> Tensor:
    """E[x_0 | x_t] of eight Gaussians, (n, 2)."""
    shape = EightGaussians()
    centres, y = torch.from_numpy(shape.centres()), noisy.flatten(1).double()
    variance = alpha**2 * shape.scale**2 + sigma**2
    off = y[:, None] - alpha * centres
    weight = (-off.square().sum(2) / (2 * variance)).softmax(1)
    return (weight[:, :, None] * (centres + alpha * shape.scale**2 / variance * off)).sum(1)


@pytest.mark.parametrize("model", ["ddpm", "flow_matching"])
def test_the_score_climbs_the_density_that_is_drawn_and_the_velocity_is_eulers_step(model: str) -> None:
    it = trained(f"model={model}", "data=toy2d", "model/network=mlp")
    schedule = it.model.noise_schedule

    def predict(noisy: Tensor, t: Tensor, *_: Any) -> Estimate:
        return Estimate(expected(noisy, *schedule.at(float(t))).view_as(noisy).float())

    it.model.predict = predict
    drawn = {}
    for field in ("score", "velocity"):
        axes = VectorField(field=field, panels=5, arrows=80).draw(it, quiet).axes  # type: ignore[arg-type]
        titles = ["t = 1", "t = 0.25", "t = 0.02"]
        if model == "ddpm":
            titles = ["t = 1000 of 1000", "t = 250 of 1000", "t = 1 of 1000"]
        assert [axes[k].get_title() for k in (0, 3, 4)] == titles
        density = np.asarray(axes[3].images[0].get_array()).T
        (arrows,) = [part for part in axes[3].collections if hasattr(part, "U")]
        drawn[field] = np.stack([arrows.U, arrows.V])
    assert density.sum() * (6 / 80) ** 2 == pytest.approx(1, abs=1e-3)

    def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
        long = np.linalg.norm(a, axis=0) > 0.1 * np.linalg.norm(a, axis=0).max()  # so that it has a direction
        return float(((a * b).sum(0) / np.linalg.norm(a, axis=0) / np.linalg.norm(b, axis=0))[long].min())

    cell = [np.round((axis + 3) / 6 * 80 - 0.5).astype(int) for axis in (arrows.X, arrows.Y)]
    assert least_cosine(np.stack(np.gradient(np.log(density), 6 / 80))[:, cell[0], cell[1]], drawn["score"]) > 0.95

    (scale, _), (later, _) = straight(schedule, 0.25), straight(schedule, 0.249)
    y = torch.tensor(np.stack([arrows.X, arrows.Y], 1)).view(-1, 2, 1, 1)
    estimate = Estimate(expected(scale * y, *schedule.at(0.25)).view_as(y))
    context = Context(schedule, predict, lambda: y, it.model.variance)  # type: ignore[arg-type]
    moved = Euler().step(scale * y, estimate, 0.25, 0.249, context) / later
    assert least_cosine((moved - y).flatten(1).T.numpy(), drawn["velocity"]) > 0.999


def test_noise_spreads_the_density_exactly() -> None:
    shape, places = EightGaussians(), middles(40)
    y = torch.cartesian_prod(places, places)
    centres, variance = 0.8 * torch.from_numpy(shape.centres()), (0.8 * shape.scale) ** 2 + 0.5**2
    distance = (y[:, None] - centres).square().sum(2)
    exact = (torch.exp(-distance / (2 * variance)) / (2 * torch.pi * variance)).mean(1)
    source = Toy("eight_gaussians")
    assert torch.allclose(noisy_density(masses(source, 40), 0.8, 0.5).flatten(), exact, atol=2e-3)
    one = noisy_density(masses(source, 40, label=0), 1.0, 1e-6)
    assert float(one.sum()) * 0.15**2 == pytest.approx(1, abs=1e-3)
    assert float((one.sum(1) * places).sum()) * 0.15**2 == pytest.approx(1.4, abs=1e-3)


def bend(overrides: list[str], field: Any) -> tuple[Any, Any]:
    """The picture of paths whose denoiser is ``field``, and the model."""
    it = trained("data=toy2d", "model/network=mlp", *overrides)
    it.model.predict = lambda noisy, t, *_: Estimate(field(noisy))
    return Trajectories(samples=30).draw(it, quiet), it.model


def test_paths_end_in_samples_with_the_colour_of_their_mode_and_are_as_long_as_they_look() -> None:
    def one(noisy: Tensor) -> Tensor:
        return torch.tensor([1.4, 0.1]).view(1, 2, 1, 1).expand_as(noisy)

    for overrides, told in ((["model=flow_matching"], "1.00"), (["model=ddpm", "model.sampler.steps=50"], "1.[0-9]+")):
        drawing, model = bend(overrides, one)
        (ax,) = drawing.axes
        lines, starts, ends = ax.collections
        paths = np.stack(lines.get_segments())
        samples = model.sample(30, generator=PerImageGenerator(0)).flatten(1).numpy()
        assert np.allclose(paths[:, -1], samples, atol=1e-6)
        assert np.array_equal(ends.get_offsets(), paths[:, -1])
        assert np.array_equal(starts.get_offsets(), paths[:, 0])
        assert np.linalg.norm(paths[:, 0], axis=1).mean() > 1, "they begin in noise"
        assert (lines.get_colors()[:, :3] == to_rgb("C0")).all(), "all of them end in the first mode"
        assert re.search(rf"paths {told} times as long as straight ones", ax.get_title())
    assert not re.search(r"paths 1\.00 times", ax.get_title()), (
        "the chain of ddpm shrinks at another pace than it moves"
    )


def test_paths_need_a_sampler_that_shows_them_and_points_in_the_plane() -> None:
    with pytest.raises(UserError, match=r"figure=trajectories: .*Dopri5.* ends .*; choose model/sampler=heun"):
        bend(["model=flow_matching", "model/sampler=dopri5"], None)
    with pytest.raises(UserError, match=r"figure=trajectories: shows points in the plane, and mixture has none; give "):
        Trajectories().draw(trained("model=gsn", "data=toy1d"), quiet)


def test_the_paths_of_a_chain_without_time() -> None:
    it = trained("model=gsn", "data=toy2d", "model.steps=4", "model.network.hidden=[8]")
    paths = np.stack(Trajectories(samples=3).draw(it, quiet).axes[0].collections[0].get_segments())  # type: ignore
    assert paths.shape == (3, 5, 2)
    assert np.allclose(paths[:, -1], it.model.sample(3, generator=PerImageGenerator(0)).flatten(1))


def test_a_field_needs_points_in_the_plane() -> None:
    it = trained("model=ddpm", "data=toy1d", "model/network=mlp")
    with pytest.raises(UserError, match=r"figure=vector_field: shows points in the plane, and mixture has none; "):
        VectorField().draw(it, quiet)
