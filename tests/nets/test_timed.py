"""The fully connected network of denoisers: shapes, what it is told, and what it can learn."""

import pytest
import torch

from imago.errors import UserError
from imago.images import ImageSpec
from imago.nets.dcgan import DCGANDiscriminator, DCGANGenerator
from imago.nets.residual import ResidualDecoder, ResidualEncoder
from imago.nets.timed import TimedMLP
from imago.nets.unet import UNet

POINTS = ImageSpec(2, 1, 1, levels=0, classes=3)


@pytest.mark.parametrize("spec", [POINTS, ImageSpec(1, 1, 1, levels=0), ImageSpec(3, 4, 5)], ids=str)
@pytest.mark.parametrize("outputs", [1, 2])
def test_shapes(spec: ImageSpec, outputs: int) -> None:
    net = TimedMLP(spec, outputs, spec.classes, width=8, blocks=2)
    labels = torch.arange(5) % spec.classes if spec.classes else None
    x = torch.randn(5, *spec.shape)
    found = net(x, torch.rand(5), labels)
    assert found.shape == (5, outputs, *spec.shape)
    torch.testing.assert_close(net(x, torch.tensor([0.3]), labels), net(x, torch.full((5,), 0.3), labels))


def test_time_class_and_point_matter_to_the_point_alone() -> None:
    torch.manual_seed(0)
    net = TimedMLP(POINTS, 1, 3, width=16)
    x, t, labels = torch.randn(4, 2, 1, 1), torch.full((4,), 0.5), torch.zeros(4, dtype=torch.long)
    before = net(x, t, labels)
    others = {"x": (x.clone(), t, labels), "t": (x, t.clone(), labels), "labels": (x, t, labels.clone())}
    others["x"][0][1] += 1
    others["t"][1][1] = 0.1
    others["labels"][2][1] = 2
    for changed in others.values():
        moved = (net(*changed) - before).abs().flatten(1).amax(1) > 1e-4
        assert moved.tolist() == [False, True, False, False]


@pytest.mark.parametrize(
    ("build", "instead"),
    [
        (lambda: UNet(POINTS, 1, 0), r"UNet is convolutional, and these are points in R\^2, 3 classes; .*network=mlp"),
        (lambda: ResidualEncoder(POINTS, 4, 0), "choose model=vae"),
        (lambda: ResidualDecoder(POINTS, 4, 1, 0), "choose model=vae"),
        (lambda: DCGANGenerator(POINTS, 4, 0), "choose model=gan"),
        (lambda: DCGANDiscriminator(POINTS, 0), "choose model=gan"),
    ],
)
def test_convolutions_refuse_points(build, instead: str) -> None:
    with pytest.raises(UserError, match=instead):
        build()
