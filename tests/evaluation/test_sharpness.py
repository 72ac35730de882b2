"""The width of edges: where it is known, and on real digits."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from imago.data import ImageDataModule
from imago.data.sources import MNIST
from imago.evaluation.sharpness import EdgeWidth, edge_widths


def ramp(width: int) -> Tensor:
    """Rises from 0 to 240 in so many equal steps, from left to right."""
    return 240 * ((torch.arange(32) - 8).clamp(0, width) / width).expand(1, 1, 16, 32)


@pytest.mark.parametrize("width", [1, 2, 5, 12])
def test_a_ramp_is_as_wide_as_it_is(width: int) -> None:
    for image in (
        ramp(width),
        ramp(width).mT,
        255 - ramp(width),
        ramp(width) / 3 + 7,
        ramp(width).expand(2, 3, 16, 32),
    ):
        assert edge_widths(image).tolist() == pytest.approx([width] * len(image))


def test_an_image_that_is_one_soft_edge_is_not_left_out() -> None:
    """Steps of 1/20 of the range are no noise where there is nothing else."""
    assert edge_widths(ramp(20)).item() == pytest.approx(20)
    metric = EdgeWidth()
    metric.update(torch.cat([ramp(20), ramp(2)]))
    assert metric.compute()["edge_width"].item() == pytest.approx(11)


def test_faint_noise_is_no_edge_and_one_colour_has_none() -> None:
    noisy = ramp(4) + torch.randint(-3, 4, (1, 1, 16, 32), generator=torch.Generator().manual_seed(0))
    assert edge_widths(noisy).item() == pytest.approx(4, rel=0.1)
    assert math.isnan(edge_widths(torch.full((1, 3, 8, 8), 9)).item())
    metric = EdgeWidth()
    metric.update(torch.cat([ramp(4), ramp(2), torch.zeros(1, 1, 16, 32)]))
    found = metric.compute()
    assert found["edge_width"].item() == pytest.approx(3)
    assert found["edge_width_error"].item() == pytest.approx(1)


def _blurred(sigma: float) -> Callable[[Tensor], Tensor]:
    weights = torch.exp(-(torch.arange(-4, 5.0) ** 2) / (2 * sigma**2))
    weights /= weights.sum()
    return lambda x: F.conv2d(
        F.conv2d(x, weights.view(1, 1, 1, -1), padding=(0, 4)), weights.view(1, 1, -1, 1), padding=(4, 0)
    )


def test_thicker_strokes_are_no_blur_on_real_digits(data_dir: Path) -> None:
    """Changes of strokes by a pixel move it by 5%, a blur of half a pixel by a third."""
    data = ImageDataModule(MNIST(), dir=str(data_dir))
    data.prepare()
    images = data.val.part(slice(500)).images.float()
    real = edge_widths(images).mean()

    def ratio(changed: Tensor) -> float:
        return float(edge_widths(changed.clamp(0, 255).round()).mean() / real)

    assert ratio(F.max_pool2d(F.pad(images, (1, 0, 1, 0)), 2, 1)) == pytest.approx(1, abs=0.05)
    assert ratio(-F.max_pool2d(F.pad(-images, (1, 0, 1, 0)), 2, 1)) == pytest.approx(1, abs=0.05)
    assert ratio(images / 2) == pytest.approx(1, abs=0.02)
    assert ratio(images[data.val.part(slice(500)).labels == 1]) == pytest.approx(1, abs=0.05)
    assert ratio(_blurred(0.5)(images)) > 1.3
    assert ratio(_blurred(1.0)(images)) > 2
