"""What PixelRNN promises beyond the laws of all autoregressive models."""

import pytest
import torch
from torch import Tensor

from helpers import configuration
from imago.errors import UserError
from imago.images import ImageSpec, normalize
from imago.models.pixelrnn import PixelRNN
from imago.training.run import build_model
from models.plain_pixelrnn import plain

MODELS = ("row_lstm", "diagonal_bilstm")
SPECS = {
    "binary-4x5": ImageSpec(1, 4, 5, levels=2, classes=3),
    "rgb-5x3": ImageSpec(3, 5, 3, levels=4, classes=3),
    "gray-1x4": ImageSpec(1, 1, 4, levels=4, classes=3),
    "gray-4x1": ImageSpec(1, 4, 1, levels=4, classes=3),
}
VARIANTS = {
    "residual": ("model.residual=true", "model.skip=false"),
    "skip": ("model.residual=true", "model.skip=true"),
    "skip alone": ("model.residual=false", "model.skip=true"),
    "plain": ("model.residual=false", "model.skip=false"),
    "conditional": ("conditional=true",),
}


def make(name: str, spec: ImageSpec, *overrides: str) -> PixelRNN:
    """Two narrow layers in float64 with weights of some size, so that what should not matter would show."""
    small = ("model.features=6", "model.layers=2", "model.head=[7]", "model.first_kernel=3")
    torch.manual_seed(0)
    model = build_model(configuration(f"model={name}", "data=digits", *small, *overrides), spec).double()
    assert isinstance(model, PixelRNN)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def signal_of(spec: ImageSpec, n: int) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(spec.levels, (n, *spec.shape), generator=generator, dtype=torch.uint8)
    return normalize(images, spec.levels).double()


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", MODELS)
def test_values_and_gradients_are_those_of_the_plain_network(name: str, spec: str, variant: str) -> None:
    model = make(name, SPECS[spec], *VARIANTS[variant])
    labels = torch.tensor([2, 0, 1]) if model.conditional else None
    x = signal_of(SPECS[spec], 3).requires_grad_()
    y, expected = model.net(x, labels), plain(model.net, x, labels)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected, rtol=1e-10, atol=1e-12)
    direction = torch.randn_like(y)
    wanted = [x, *model.net.parameters()]
    ours = torch.autograd.grad((y * direction).sum(), wanted, allow_unused=True, materialize_grads=True)
    theirs = torch.autograd.grad((expected * direction).sum(), wanted, allow_unused=True, materialize_grads=True)
    for our, their in zip(ours, theirs, strict=True):
        torch.testing.assert_close(our, their, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", MODELS)
def test_without_gradients_the_values_are_the_same(name: str) -> None:
    model = make(name, SPECS["rgb-5x3"])
    x = signal_of(SPECS["rgb-5x3"], 2)
    with_graph = model.net(x)
    with torch.no_grad():
        assert torch.equal(model.net(x), with_graph)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("name", MODELS)
def test_incremental_predictions_are_the_networks(name: str, variant: str) -> None:
    spec = SPECS["rgb-5x3"]
    model = make(name, spec, *VARIANTS[variant])
    labels = torch.tensor([2, 0]) if model.conditional else None
    x = signal_of(spec, 2)
    with torch.inference_mode():
        expected = model.net(x, labels)
        state = model.net.incremental(torch.zeros_like(x), labels)
        for row in range(spec.height):
            state.begin_row(row)
            for column in range(spec.width):
                for channel in range(spec.channels):
                    predicted = state.predict(row, column, channel)
                    torch.testing.assert_close(predicted, expected[:, channel, row, column], rtol=1e-10, atol=1e-12)
                    state.set(row, column, channel, x[:, channel, row, column])


def seen(model: PixelRNN, channel: int, row: int, column: int) -> Tensor:
    """Which values the prediction of one depends on, (channels, height, width)."""
    total = torch.zeros(model.spec.shape)
    for seed in range(4):  # a ReLU may hide something from one image
        torch.manual_seed(seed)
        x = torch.randn(8, *model.spec.shape, dtype=torch.float64, requires_grad=True)
        y = model.net(x)[:, channel, row, column].sum()
        total += torch.autograd.grad(y, x)[0].abs().sum(0)
    return total > 0


@pytest.mark.parametrize("spec", [ImageSpec(3, 7, 6, 4), ImageSpec(1, 6, 7, 2)], ids=str)
def test_the_diagonal_bilstm_sees_every_earlier_value_and_no_other(spec: ImageSpec) -> None:
    model = make("diagonal_bilstm", spec, "model.features=12", "model.layers=1").train()
    place = torch.arange(spec.dimensions).view(spec.height, spec.width, spec.channels).permute(2, 0, 1)
    for channel in range(spec.channels):
        for row, column in ((0, 0), (2, 0), (4, 3), (spec.height - 1, spec.width - 1)):
            expected = place < place[channel, row, column]
            assert torch.equal(seen(model, channel, row, column), expected), (channel, row, column)


def test_the_row_lstm_sees_a_triangle() -> None:
    """With a first kernel of 3, three pixels of the row above; from there one more on either side a row.

    One layer reads, above the pixel, the features of the pixels in reach and of one at the left of each; those see one
    pixel further at the left, and one further at the right in the row above theirs.
    """
    spec = ImageSpec(1, 6, 13, 2)
    model = make("row_lstm", spec, "model.features=12", "model.layers=1").train()
    row, column = 5, 6
    reached = seen(model, 0, row, column)[0]
    expected = torch.zeros_like(reached)
    expected[row, column - 2 : column] = True
    for distance in range(1, row + 1):
        expected[row - distance, max(0, column - distance - 2) : column + distance + 1] = True
    assert torch.equal(reached, expected), f"\n{reached.int()}"


@pytest.mark.parametrize("name", MODELS)
def test_the_memory_is_kept_at_first(name: str) -> None:
    torch.manual_seed(0)
    model = build_model(configuration(f"model={name}", "data=digits"), ImageSpec(1, 8, 8))
    for layer, _ in model.net.pairs():
        bias = layer.input.bias.detach().view(-1, 4, layer.features)
        assert (bias[:, 1] == 1).all()
        assert (bias[:, [0, 2, 3]] == 0).all()


@pytest.mark.parametrize("name", MODELS)
def test_fewer_features_than_channels_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.features=2: 3 image channels"):
        build_model(configuration(f"model={name}", "data=digits", "model.features=2"), ImageSpec(3, 4, 4))
