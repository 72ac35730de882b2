"""What PixelCNN and gated PixelCNN promise beyond the laws of all autoregressive models."""

from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import configuration
from imago.config import check
from imago.errors import UserError
from imago.images import ImageSpec, normalize
from imago.models.autoregressive import Autoregressive
from imago.training.run import build_model
from models.plain_pixelcnn import plain_gated_pixelcnn, plain_pixelcnn

SPECS = {
    "binary-5x6": ImageSpec(1, 5, 6, levels=2, classes=3),
    "rgb-6x4": ImageSpec(3, 6, 4, levels=4, classes=3),
    "gray-1x5": ImageSpec(1, 1, 5, levels=4, classes=3),
}
PLAIN_BLOCK = ("model.block._target_=imago.models.pixelcnn.PlainBlock", "model.block.kernel=5")


def make(name: str, spec: ImageSpec, *overrides: str) -> Any:
    """A narrow model in float64 with weights of some size, so that what should not matter would show."""
    small = ("model.features=8", "model.head=[7]", "model.first_kernel=5", *overrides)
    torch.manual_seed(0)
    model = build_model(configuration(f"model={name}", "data=digits", *small), spec).double()
    assert isinstance(model, Autoregressive)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def signal_of(spec: ImageSpec) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(spec.levels, (3, *spec.shape), generator=generator, dtype=torch.uint8)
    return normalize(images, spec.levels).double()


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("blocks", ["residual", "plain"])
@pytest.mark.parametrize("spec", SPECS)
def test_a_pixelcnn_is_the_plain_network(spec: str, blocks: str, conditional: bool) -> None:
    kernel = 5 if blocks == "plain" else 3
    overrides = [f"conditional={conditional}", "model.blocks=2", *(PLAIN_BLOCK if blocks == "plain" else ())]
    model = make("pixelcnn", SPECS[spec], *overrides)
    labels = torch.tensor([2, 0, 1]) if conditional else None
    x = signal_of(SPECS[spec])
    expected = plain_pixelcnn(model.net, x, 5, kernel, labels)
    torch.testing.assert_close(model.net(x, labels), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize("kernel", [3, 5])
@pytest.mark.parametrize("spec", SPECS)
def test_a_gated_pixelcnn_is_the_plain_network(spec: str, kernel: int, conditional: bool) -> None:
    model = make(
        "gated_pixelcnn", SPECS[spec], f"conditional={conditional}", "model.layers=3", f"model.kernel={kernel}"
    )
    labels = torch.tensor([2, 0, 1]) if conditional else None
    x = signal_of(SPECS[spec])
    expected = plain_gated_pixelcnn(model.net, x, 5, kernel, labels)
    torch.testing.assert_close(model.net(x, labels), expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", ["pixelcnn", "gated_pixelcnn", "row_lstm", "diagonal_bilstm"])
def test_a_first_layer_that_sees_nothing_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=r"model\.first_kernel=1: .*must be at least 3"):
        check(configuration(f"model={name}", "data=digits", "model.first_kernel=1"))
    with pytest.raises(UserError, match=r"model\.first_kernel=4: .*must be odd"):
        check(configuration(f"model={name}", "data=digits", "model.first_kernel=4"))
    check(configuration(f"model={name}", "data=digits", "model.first_kernel=3"))
