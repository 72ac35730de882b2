"""What only MADE promises: masks by the paper's rules."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers import configuration
from imago.config import check
from imago.errors import UserError
from imago.images import ImageSpec, normalize
from imago.models.made import MADE, degrees_of
from models.test_laws import images_of, make

GRAY, RGB = ImageSpec(1, 5, 4, 2), ImageSpec(3, 2, 3, 5)


def made(spec: ImageSpec, hidden: list[int], direct: bool = False) -> MADE:
    model: Any = make("made", spec, f"model.hidden={hidden}", f"model.direct={direct}")
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    return model


def test_degrees_are_spread_evenly() -> None:
    """Sorted, 1 to D-1, no degree more than once oftener than another; fewer units than degrees are spread out."""
    for width in (1, 3, 19, 20, 50, 1000):
        degrees = torch.tensor(degrees_of(width, 20))
        assert torch.equal(degrees, degrees.sort().values)
        assert (int(degrees.min()), width < 19 or int(degrees.max()) == 19) == (1, True)
        counts = torch.bincount(degrees, minlength=20)[1:]
        assert counts.max() - counts.min() <= 1
        assert int(degrees.max()) <= 19
    assert degrees_of(4, 1) == degrees_of(4, 2) == [1, 1, 1, 1]


@pytest.mark.parametrize("hidden", [[30], [3], [30, 40], [7, 40, 7]])
def test_masks_follow_the_papers_rules(hidden: list[int]) -> None:
    """M = 1[m(target) ≥ m(source)] between layers, 1[d > m(source)] at the output, 1[d > d'] for direct connections."""
    net = made(GRAY, hidden, direct=True).net
    degrees = [torch.tensor(m) for m in net.degrees]
    assert [len(m) for m in degrees] == [20, *hidden]
    layers: list[Any] = list(net.hidden)
    for layer, source, target in zip(layers, degrees, degrees[1:], strict=False):
        assert torch.equal(layer.matrix() != 0, target[:, None] >= source[None, :])
    d = torch.arange(1, 21)
    assert torch.equal(net.output.matrix() != 0, d[:, None] > degrees[-1][None, :])
    assert torch.equal(net.direct.matrix() != 0, d[:, None] > d[None, :])


@pytest.mark.parametrize("direct", [False, True])
@pytest.mark.parametrize("spec", [GRAY, RGB])
def test_the_network_is_equation_4(spec: ImageSpec, direct: bool) -> None:
    model = made(spec, [30, 25], direct)
    net: Any = model.net
    images = images_of(spec, 4)
    x = (normalize(images, spec.levels).permute(0, 2, 3, 1).reshape(4, -1) + 1) / 2
    h = x
    for layer in net.hidden:
        h = F.relu(h @ layer.matrix().T + layer.bias)
    a = h @ net.output.matrix().T + net.output.bias
    if direct:
        a = a + x @ net.direct.matrix().T
    a = a.view(4, spec.height, spec.width, spec.channels, -1).permute(0, 3, 1, 2, 4)
    torch.testing.assert_close(net(normalize(images, spec.levels)), a)


@pytest.mark.parametrize("hidden", [[19], [40], [19, 19, 40]])
def test_every_value_sees_all_before_it(hidden: list[int]) -> None:
    """With a unit of every degree, nothing is lost: the Jacobian of the logits is a full strict triangle."""
    model = made(GRAY, hidden)
    x = torch.rand(1, 1, 5, 4)
    reached = torch.zeros(20, 20, dtype=torch.bool)
    for _ in range(30):  # a ReLU may be off at one set of weights
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.normal_()

        def logits(x: Tensor) -> Tensor:
            return model.net(x).flatten()

        reached |= torch.autograd.functional.jacobian(logits, x).view(20, 20) != 0
    assert torch.equal(reached, torch.ones(20, 20).tril(-1).bool())


def test_settings_are_checked() -> None:
    for hidden in ("[]", "[100,0]"):
        with pytest.raises(UserError, match=r"model\.hidden"):
            check(configuration("model=made", "data=digits", f"model.hidden={hidden}"))
