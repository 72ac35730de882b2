"""Strided encoder and decoder: pythae's networks, by size and by value, on any shape, by either way to convolve."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from helpers import configuration
from imago.errors import UserError
from imago.images import ImageSpec
from imago.models.vae import VAE
from imago.nets import strided
from imago.nets.strided import StridedDecoder, StridedEncoder, convolve, spread
from imago.training.run import build_model

SHAPES = [(1, 28, 28), (3, 32, 32), (3, 5, 9), (1, 1, 2), (2, 2, 2), (1, 3, 17)]
DOWN, UP = [128, 256, 512, 1024], [1024, 512, 256]
MNIST, CIFAR = ImageSpec(1, 28, 28, levels=2), ImageSpec(3, 32, 32, levels=2)


def parameters(net: nn.Module) -> int:
    return sum(p.numel() for p in net.parameters())


def flops(run: Callable[[], Any]) -> int:
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def torch_encoder(channels: int, widths: list[int], sides: int, outputs: int) -> nn.Sequential:
    """What a user of torch would write, with the biases that batch norm cancels."""
    layers: list[nn.Module] = []
    for c, d in zip([channels, *widths], widths, strict=False):
        layers += [nn.Conv2d(c, d, 4, 2, padding=1), nn.BatchNorm2d(d), nn.ReLU()]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(widths[-1] * sides**2, outputs))


def torch_decoder(latent: int, first: int, convolutions: list[nn.Module]) -> nn.Sequential:
    layers: list[nn.Module] = [nn.Linear(latent, 1024 * first**2), nn.Unflatten(1, (1024, first, first))]
    for conv in convolutions[:-1]:
        layers += [conv, nn.BatchNorm2d(conv.out_channels), nn.ReLU()]  # type: ignore[arg-type]
    return nn.Sequential(*layers, convolutions[-1])


@pytest.mark.parametrize(("spec", "side"), [(MNIST, 1), (CIFAR, 2)])
def test_the_encoder_is_pythaes(spec: ImageSpec, side: int) -> None:
    ours, theirs = StridedEncoder(spec, 32, 0, DOWN), torch_encoder(spec.channels, DOWN, side, 32)
    assert parameters(ours) == parameters(theirs) - sum(DOWN)
    x = torch.rand(2, *spec.shape)
    assert flops(lambda: ours(x)) == flops(lambda: theirs(x))


@pytest.mark.parametrize("spec", [MNIST, CIFAR])
def test_the_decoder_is_pythaes(spec: ImageSpec) -> None:
    up: list[nn.Module]
    if spec is MNIST:
        ours, first = StridedDecoder(spec, 16, 1, 0, UP, kernel=3), 4
        up = [
            nn.ConvTranspose2d(1024, 512, 3, 2, 1),
            nn.ConvTranspose2d(512, 256, 3, 2, 1, output_padding=1),
            nn.ConvTranspose2d(256, 1, 3, 2, 1, output_padding=1),
        ]
    else:
        ours, first = StridedDecoder(spec, 16, 1, 0, UP, kernel=4, last_stride=1), 8
        up = [
            nn.ConvTranspose2d(1024, 512, 4, 2, 1),
            nn.ConvTranspose2d(512, 256, 4, 2, 1, output_padding=1),
            nn.ConvTranspose2d(256, 3, 4, 1, 2),
        ]
    theirs = torch_decoder(16, first, up)
    assert parameters(ours) == parameters(theirs) - sum(UP[1:])
    z = torch.randn(2, 16)
    assert theirs(z).shape == (2, *spec.shape)
    assert flops(lambda: ours(z)) == flops(lambda: theirs(z))


@pytest.mark.parametrize("shape", SHAPES)
def test_matrix_products_are_convolutions(shape: tuple[int, int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    channels, *sides = shape
    x = torch.randn(3, channels, *sides, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(5, channels, 4, 4, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    monkeypatch.setattr(strided, "_SMALL", 0)
    plain = convolve(x, weight, bias)
    monkeypatch.setattr(strided, "_SMALL", 10**6)
    product = convolve(x, weight, bias)
    assert product.shape[2:] == tuple(max(1, side // 2) for side in sides)
    assert_equal_with_gradients(product, plain, (x, weight, bias))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize(("kernel", "stride"), [(3, 2), (4, 2), (3, 1), (4, 1)])
def test_overlapping_sums_are_transposed_convolutions(
    shape: tuple[int, int, int], kernel: int, stride: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    channels, *sides = shape
    x = torch.randn(3, channels, *sides, dtype=torch.float64, requires_grad=True)
    weight = torch.randn(channels, 5, kernel, kernel, dtype=torch.float64, requires_grad=True)
    bias = torch.randn(5, dtype=torch.float64, requires_grad=True)
    before = 1 if stride == 2 else kernel // 2
    for extra in (-1, 0, 1) if stride == 2 else (0,):
        height, width = (2 * side + extra if stride == 2 else side + kernel % 2 - 1 for side in sides)
        if min(height, width) < 1 or (kernel, extra) == (3, 1):
            continue
        # All of it, with one row more than the last window reaches, then cut to the size that was asked for.
        whole = F.pad(F.conv_transpose2d(x, weight, None, stride=stride), (0, 1, 0, 1)) + bias[:, None, None]
        plain = whole[:, :, before : before + height, before : before + width]
        product = spread(x, weight, bias, stride, (height, width))
        with monkeypatch.context() as patch:
            patch.setattr(strided, "_by_products", lambda _: False)
            torch.testing.assert_close(spread(x, weight, bias, stride, (height, width)), plain)
        assert_equal_with_gradients(product, plain, (x, weight, bias))


def assert_equal_with_gradients(ours: Tensor, theirs: Tensor, inputs: tuple[Tensor, ...]) -> None:
    torch.testing.assert_close(ours, theirs)
    towards = torch.randn_like(theirs)
    for a, b in zip(
        torch.autograd.grad(ours, inputs, towards), torch.autograd.grad(theirs, inputs, towards), strict=True
    ):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("classes", [0, 3])
def test_any_shape_and_folded_batch_norm(
    shape: tuple[int, int, int], classes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    spec = ImageSpec(*shape, classes=classes)
    depth = max(1, min(3, (min(spec.height, spec.width) - 1).bit_length()))
    labels = torch.arange(4) % 3 if classes else None
    nets: list[tuple[nn.Module, Tensor, tuple[int, ...]]] = [
        (StridedEncoder(spec, 7, classes, [4, 6, 8][:depth]), torch.randn(4, *shape), (4, 7))
    ]
    for kernel, last_stride in ((3, 1), (3, 2), (4, 1), (4, 2)):
        widths = [8, 6, 4][: max(1, depth)]
        decoder = StridedDecoder(spec, 5, 2, classes, widths, kernel, last_stride)  # type: ignore[arg-type]
        nets.append((decoder, torch.randn(4, 5), (4, *shape, 2)))
    for net, x, expected in nets:
        for _ in range(3):
            out = net(x, labels)
        assert out.shape == expected
        out.square().sum().backward()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in net.parameters())
        net.eval()
        monkeypatch.setattr(strided, "_FOLD", 0)
        plain = net(x, labels)
        monkeypatch.setattr(strided, "_FOLD", 10**9)
        torch.testing.assert_close(net(x, labels), plain, atol=1e-5, rtol=1e-4)
        if classes:
            assert not torch.equal(net(x, labels), net(x, labels.flip(0)))  # type: ignore[union-attr]


@pytest.mark.parametrize("build", [StridedEncoder, lambda s, o, c, h: StridedDecoder(s, o, 1, c, h)])
def test_too_many_halvings_are_named(build: Callable[..., nn.Module]) -> None:
    with pytest.raises(UserError, match="hidden: 4 halvings do not fit into images of 8x9 pixels; give at most 3"):
        build(ImageSpec(1, 8, 9), 2, 0, [2, 2, 2, 2])


def test_one_image_cannot_be_normalised() -> None:
    net = StridedEncoder(ImageSpec(1, 4, 4), 2, 0, [2, 2])
    with pytest.raises(UserError, match=r"^data\.batch_size=1: batch norm has one value"):
        net(torch.zeros(1, 1, 4, 4))
    assert net.eval()(torch.zeros(1, 1, 4, 4)).shape == (1, 2)


def test_the_experiment_builds_pythaes_network() -> None:
    model = build_model(configuration("experiment=vae_pythae"), MNIST)
    assert isinstance(model, VAE)
    assert model.latent == 16
    # pythae's 17,232,033 parameters of encoder and decoder, less the biases in front of batch norms.
    assert parameters(model.net) == PYTHAE_MNIST - sum(DOWN) - sum(UP[1:])


PYTHAE_MNIST = 17_232_033
