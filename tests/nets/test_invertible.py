"""Every invertible layer: the way back, and its log-determinant against autograd's Jacobian, in float64."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from imago.images import ImageSpec
from imago.models.maf import MaskedAffine, Raster
from imago.nets.dequantization import Variational
from imago.nets.invertible import (
    ActNorm,
    AffineCoupling,
    AffineOfGiven,
    Chain,
    Given,
    Invertible,
    InvertibleConv,
    MixtureCoupling,
    MultiScale,
    NetSettings,
    Permute,
    Scale,
    Squeeze,
    initialising,
    scales_of,
)

SHAPE = (6, 3, 2)  # channels, height, width
SIDES = SHAPE[1:]
LABELS = torch.tensor([1])
MAPS = torch.randn(1, 5, *SIDES, generator=torch.Generator().manual_seed(7)).double()
NETS = NetSettings(8)


def multi_scale(shape: tuple[int, int, int], levels: int) -> MultiScale:
    def layers(scale: Scale) -> list[Invertible]:
        return [
            ActNorm(scale.channels), InvertibleConv(scale.channels), AffineCoupling(scale.channels, scale.sides, NETS)
        ]  # fmt: skip

    return MultiScale(scales_of(shape, levels), layers, lambda s: AffineCoupling(s.channels, s.sides, NETS))


# What it is made of, the shape of its input, and what is given.
LAYERS: dict[str, tuple[Callable[[], Invertible], tuple[int, ...], Given]] = {
    "ActNorm": (lambda: ActNorm(6), SHAPE, None),
    "ActNorm of vectors": (lambda: ActNorm(6), (6,), None),
    "InvertibleConv": (lambda: InvertibleConv(6), SHAPE, None),
    "Permute": (lambda: Permute([2, 0, 1, 5, 4, 3]), SHAPE, None),
    "Squeeze": (lambda: Squeeze(1, 2), SHAPE, None),
    "AffineCoupling": (lambda: AffineCoupling(6, SIDES, NETS), SHAPE, None),
    "AffineCoupling swapped": (lambda: AffineCoupling(6, SIDES, NETS, swapped=True), SHAPE, None),
    "AffineCoupling of 5": (lambda: AffineCoupling(5, SIDES, NETS, swapped=True), (5, 3, 2), None),
    "AffineCoupling of classes": (lambda: AffineCoupling(6, SIDES, NetSettings(8, classes=3)), SHAPE, LABELS),
    "AffineCoupling of maps": (lambda: AffineCoupling(6, SIDES, NetSettings(8, context=5)), SHAPE, MAPS),
    "MixtureCoupling": (lambda: MixtureCoupling(6, SIDES, NetSettings(8, components=3)), SHAPE, None),
    "MixtureCoupling of 5 and maps": (
        lambda: MixtureCoupling(5, SIDES, NetSettings(8, context=5, components=2), swapped=True),
        (5, 3, 2),
        MAPS,
    ),
    "AffineOfGiven": (lambda: AffineOfGiven(6, SIDES, 5), SHAPE, MAPS),
    "Chain": (lambda: Chain([InvertibleConv(6), ActNorm(6), AffineCoupling(6, SIDES, NETS)]), SHAPE, None),
    "MultiScale": (lambda: multi_scale((1, 4, 8), 3), (1, 4, 8), None),
    "MultiScale of odd sides": (lambda: multi_scale((1, 5, 7), 3), (1, 5, 7), None),
    "Raster": (lambda: Raster(ImageSpec(2, 3, 2)), (2, 3, 2), None),
    "MaskedAffine": (lambda: MaskedAffine(ImageSpec(1, 3, 2), [12, 9], 0), (6,), None),
    "MaskedAffine of classes": (lambda: MaskedAffine(ImageSpec(1, 3, 2), [12], 3), (6,), LABELS),
}


def stirred(layer: Invertible) -> Invertible:
    """In float64, away from the beginnings of its parameters."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape, generator=generator))
    return layer.double()


def made(name: str) -> tuple[Invertible, Tensor, Given]:
    torch.manual_seed(0)
    make, shape, given = LAYERS[name]
    return stirred(make()), torch.randn(1, *shape, generator=torch.Generator().manual_seed(2)).double(), given


@pytest.mark.parametrize("name", LAYERS)
def test_the_inverse_leads_back(name: str) -> None:
    layer, x, given = made(name)
    with torch.no_grad():
        y, _ = layer(x, given)
        torch.testing.assert_close(layer.inverse(y, given), x, rtol=0, atol=1e-9)
        assert not torch.equal(y.flatten(), x.flatten())


@pytest.mark.parametrize("name", LAYERS)
def test_the_log_determinant_is_that_of_the_jacobian(name: str) -> None:
    layer, x, given = made(name)
    _, log_det = layer(x, given)
    jacobian = torch.autograd.functional.jacobian(lambda x: layer(x, given)[0].flatten(), x)
    expected = torch.linalg.slogdet(jacobian.reshape(x.numel(), x.numel())).logabsdet
    torch.testing.assert_close(log_det.reshape(()), expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name", [name for name, (_, shape, given) in LAYERS.items() if given is None])
def test_images_of_a_batch_do_not_touch_each_other(name: str) -> None:
    layer, x, _ = made(name)
    both = torch.cat([x, x.flip(-1) + 0.1])
    with torch.no_grad():
        y, log_det = layer(both)
        for k in range(2):
            alone, log_det_alone = layer(both[k : k + 1])
            torch.testing.assert_close(y[k : k + 1], alone)
            torch.testing.assert_close(log_det.expand(2)[k], log_det_alone.reshape(()))


def test_actnorm_is_set_by_the_first_batch() -> None:
    layer = ActNorm(3)
    x = torch.randn(50, 3, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 5, 2]).view(3, 1, 1) + 7
    with initialising(Chain([layer]), lambda values: values):
        y, _ = layer(x)
    assert (y.mean((0, 2, 3)).abs() < 1e-4).all()
    assert (y.std((0, 2, 3)).sub(1).abs() < 0.06).all()  # but for what keeps a constant channel finite
    again, _ = layer(x + 1)  # afterwards it is a map like any other
    torch.testing.assert_close(again.mean((0, 2, 3)), layer.log_scale.exp(), atol=1e-4, rtol=0)
    with initialising(layer, lambda values: values):
        y, _ = layer(torch.cat([x[:, :2], torch.zeros(50, 1, 4, 4)], 1))
    assert math.isfinite(layer.log_scale.max().item())
    assert (layer.log_scale.max() - layer.log_scale.min()).item() < 5  # a constant channel is not blown up


@pytest.mark.parametrize(
    ("shape", "levels", "expected"),
    [
        ((1, 28, 28), 3, [((2, 2), 4, (14, 14)), ((2, 2), 8, (7, 7))]),
        ((3, 32, 48), 3, [((2, 2), 12, (16, 24)), ((2, 2), 24, (8, 12)), ((2, 2), 48, (4, 6))]),
        ((1, 7, 5), 3, [((7, 5), 35, (1, 1))]),
        ((3, 7, 6), 2, [((1, 2), 6, (7, 3))]),
        ((2, 1, 1), 2, [((1, 1), 2, (1, 1))]),
    ],
)
def test_scales_halve_what_is_even(
    shape: tuple[int, int, int], levels: int, expected: list[tuple[tuple[int, int], int, tuple[int, int]]]
) -> None:
    assert [(s.block, s.channels, s.sides) for s in scales_of(shape, levels)] == expected


def test_learned_noise_is_a_density_on_the_cube() -> None:
    """E[1/q(u|x)] = 1, the volume of the cube, over u ~ q(u|x)."""
    torch.manual_seed(0)
    spec = ImageSpec(1, 2, 2, levels=2)
    noise = Variational(spec)
    images = torch.zeros(20_000, *spec.shape, dtype=torch.uint8)
    with torch.no_grad():
        u, log_q = noise(images, lambda n, *shape: torch.randn(n, *shape))
    assert 0 <= float(u.min()) <= float(u.max()) <= 1
    weights = torch.exp(-log_q.double())
    assert float(weights.mean()) == pytest.approx(1, abs=4 * float(weights.std()) / math.sqrt(len(weights)))
    assert float(weights.std()) < 3, "or the mean tells nothing"
