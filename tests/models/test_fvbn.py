"""What only the FVBN promises, and the staircase of weights that it shares with MADE."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers import configuration
from imago.errors import UserError
from imago.images import ImageSpec, normalize
from imago.models.base import count_parameters
from imago.models.fvbn import FVBN
from imago.nets.causal import CausalConv2d
from imago.nets.masked import MaskedLinear, stripes_of
from imago.training.run import build_model
from models.test_laws import images_of, make

SOFTMAX = "model/distribution=softmax"


def staircase(inputs: int, outputs: int) -> list[int]:
    """Some reaches, with repetitions and jumps."""
    generator = torch.Generator().manual_seed(inputs)
    return sorted(torch.randint(inputs + 1, (outputs,), generator=generator).tolist())


def layer_of(inputs: int, outputs: int, classes: int = 0) -> tuple[MaskedLinear, Tensor]:
    torch.manual_seed(0)
    reach = staircase(inputs, outputs)
    layer = MaskedLinear(inputs, reach, classes=classes).double()
    with torch.no_grad():
        layer.weight.normal_()  # also where a mask hides it
        layer.bias.normal_()
    return layer, (torch.arange(inputs) < torch.tensor(reach)[:, None]).double()


@pytest.mark.parametrize(("inputs", "outputs"), [(1, 3), (7, 5), (300, 20), (300, 500), (784, 784)])
def test_a_staircase_is_a_masked_matrix(inputs: int, outputs: int) -> None:
    """Values and gradients are those of x (W ∘ M)^T + b, whatever the weights are set to."""
    layer, mask = layer_of(inputs, outputs)
    x = torch.randn(4, inputs, dtype=torch.float64, requires_grad=True)
    y = layer(x)
    weight = layer.matrix().requires_grad_()
    assert torch.equal(weight, weight * mask)
    assert (weight.detach()[mask > 0] != 0).all()
    expected = F.linear(x, weight * mask, layer.bias)
    torch.testing.assert_close(y, expected)
    direction = torch.randn_like(y)
    of_x, of_weight = torch.autograd.grad((y * direction).sum(), [x, layer.weight])
    x_expected, weight_expected = torch.autograd.grad((expected * direction).sum(), [x, weight])
    torch.testing.assert_close(of_x, x_expected)
    with torch.no_grad():
        layer.weight.copy_(of_weight)  # to see the gradient as a matrix
    torch.testing.assert_close(layer.matrix(), weight_expected)


def test_few_zeros_are_stored() -> None:
    """784 values: a triangle is half a square, and little more is stored."""
    reach = list(range(784))
    stored = sum(stripe.weights for stripe in stripes_of(reach, 784))
    assert sum(reach) <= stored < 0.57 * 784 * 784


def test_outputs_one_at_a_time() -> None:
    layer, _ = layer_of(300, 500, classes=2)
    x, labels = torch.randn(4, 300, dtype=torch.float64), torch.tensor([0, 1, 1, 0])
    y, some = layer(x, labels), layer.some(labels)
    for start in range(500):
        beyond = x.clone()
        beyond[:, layer.reach[start] :] = torch.nan
        torch.testing.assert_close(some(beyond, start, start + 1), y[:, start : start + 1])


def test_hidden_weights_stay_hidden_when_restored_or_averaged() -> None:
    """A checkpoint or an average with numbers where there should be none changes nothing."""
    spec = ImageSpec(1, 6, 5, 2)
    model = make("fvbn", spec)
    images = images_of(spec, 3)
    before = model.log_likelihood(images)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    zeros = state["net.regression.weight"] == 0
    assert zeros.any()
    state["net.regression.weight"][zeros] = 9.0
    model.load_state_dict(state)
    assert torch.equal(model.log_likelihood(images), before)


def test_weights_that_a_mask_hides_are_not_counted() -> None:
    """A regression on all values before each of 784: 784 * 783 / 2 weights and 784 biases."""
    assert count_parameters(make("fvbn", ImageSpec(1, 28, 28, 2)).net) == 307_720
    layer, mask = layer_of(300, 500)
    assert count_parameters(layer) == int(mask.sum()) + 500
    conv = CausalConv2d(4, 6, (3, 5), mask="B", channels=1)
    assert count_parameters(conv) == 6 * 4 * (5 + 3) + 6
    assert count_parameters(nn.Linear(3, 4)) == 16


def test_two_passes_before_one_backward() -> None:
    model = make("fvbn", ImageSpec(1, 6, 5, 2))
    first, second = (model.log_prob(images_of(model.spec, n), None).sum() for n in (2, 3))
    (first + second).backward()
    assert torch.isfinite(model.net.regression.weight.grad).all()


@pytest.mark.parametrize("spec", [ImageSpec(1, 5, 4, 2, 3), ImageSpec(3, 2, 3, 5, 3)])
def test_it_is_one_regression_for_every_value(spec: ImageSpec) -> None:
    """The same log p(x | label) from one nn.Linear a value on the values before it, one after the other."""
    model = make("fvbn", spec, SOFTMAX, "conditional=true")
    assert isinstance(model, FVBN)
    layer, k = model.net.regression, model.distribution.parameters
    with torch.no_grad():
        layer.bias.normal_()
    images, labels = images_of(spec, 4), torch.tensor([0, 1, 2, 0])
    x = (normalize(images, spec.levels).permute(0, 2, 3, 1).reshape(4, -1) + 1) / 2
    values = images.permute(0, 2, 3, 1).reshape(4, -1)
    matrix, bias = layer.matrix(), layer.biases(labels)
    total = torch.zeros(4)
    for i in range(spec.dimensions):
        regression = nn.Linear(i, k) if i else None
        a = bias[:, i * k : (i + 1) * k].detach()
        if regression is not None:
            with torch.no_grad():
                regression.weight.copy_(matrix[i * k : (i + 1) * k, :i])
                regression.bias.zero_()
            a = a + regression(x[:, :i])
        if spec.levels == 2:
            total -= F.binary_cross_entropy_with_logits(a[:, 0], values[:, i].float(), reduction="none")
        else:
            total -= F.cross_entropy(a, values[:, i].long(), reduction="none")
    torch.testing.assert_close(model.log_likelihood(images, labels), total)


def test_the_optimum_of_two_pixels() -> None:
    """Two pixels: two regressions can say any distribution, and the optimum is the frequencies in the data."""
    torch.manual_seed(0)
    spec = ImageSpec(1, 1, 2, 2)
    model = make("fvbn", spec)
    frequencies = torch.tensor([0.1, 0.2, 0.3, 0.4])
    images = torch.tensor([[0, 0], [0, 1], [1, 0], [1, 1]], dtype=torch.uint8).view(4, 1, 1, 2)
    optimizer = torch.optim.LBFGS(model.net.parameters(), max_iter=100, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        nats = -(frequencies * model.log_prob(images, None)).sum()
        nats.backward()
        return nats

    optimizer.step(loss)
    torch.testing.assert_close(model.log_likelihood(images).exp(), frequencies, atol=1e-3, rtol=0)


@pytest.mark.parametrize("name", ["fvbn", "made"])
def test_too_large_a_model_is_refused(name: str) -> None:
    """Before memory is taken: 3072 values of 256 levels would be a thousand million weights (4 GB)."""
    spec = ImageSpec(3, 32, 32, 256, 10)
    config = configuration(f"model={name}", "data=digits", SOFTMAX, *(["model.direct=true"] if name == "made" else []))
    with pytest.raises(UserError, match=r"1,\d\d\d million weights .*256 parameters.*logistic_mixture"):
        build_model(config, spec)
