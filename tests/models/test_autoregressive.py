"""What every model by the chain rule promises, checked for each one of conf/model that is one.

Probabilities sum to one, no value sees itself or a later one, drawing with kept activations is drawing from the model,
and completions keep what is known.
"""

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

from imago.errors import UserError
from imago.images import ImageSpec, normalize
from imago.models.autoregressive import Autoregressive
from imago.rng import PerImageGenerator
from models import test_laws
from models.test_laws import images_of, make

MODELS = [name for name in test_laws.MODELS if isinstance(make(name, ImageSpec(1, 8, 8, 2)), Autoregressive)]
TINY = {
    "binary-2x2": ImageSpec(1, 2, 2, levels=2, classes=2),
    "binary-1x5": ImageSpec(1, 1, 5, levels=2),
    "gray-3x2": ImageSpec(1, 3, 2, levels=3),
    "rgb-1x2": ImageSpec(3, 1, 2, levels=3, classes=2),
    "rgb-2x1": ImageSpec(3, 2, 1, levels=3),
}
SMALL = {"gray-7x5": ImageSpec(1, 7, 5, classes=3), "rgb-4x6": ImageSpec(3, 4, 6), "binary-6x9": ImageSpec(1, 6, 9, 2)}
DISTRIBUTIONS = ("softmax", "logistic_mixture")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests ask for a ``name``, and get the models of the file that they stand in."""
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", metafunc.module.MODELS)


def lively(name: str, spec: ImageSpec, *overrides: str) -> Autoregressive:
    """A model whose weights are all of some size, so that what should not matter would show."""
    model = make(name, spec, *overrides)
    assert isinstance(model, Autoregressive)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def every_image(spec: ImageSpec) -> Tensor:
    values = list(itertools.product(range(spec.levels), repeat=spec.dimensions))
    return torch.tensor(values, dtype=torch.uint8).view(-1, *spec.shape)


def rank(spec: ImageSpec) -> Tensor:
    """Place of every value in the order of equation 1, (channels, height, width)."""
    c, h, w = spec.shape
    return torch.arange(spec.dimensions).view(h, w, c).permute(2, 0, 1)


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
@pytest.mark.parametrize("spec", TINY)
def test_probabilities_sum_to_one(name: str, spec: str, distribution: str) -> None:
    model = lively(name, TINY[spec], f"model/distribution={distribution}")
    images = every_image(TINY[spec])
    total = model.log_likelihood(images).double().exp().sum()
    assert abs(float(total) - 1) < 1e-4
    assert model.log_likelihood(images).std() > 1e-3  # and are not all the same
    model.train()
    with torch.no_grad():
        assert abs(float(model.log_prob(images, None).double().exp().sum()) - 1) < 1e-4


def test_probabilities_of_every_class_sum_to_one(name: str) -> None:
    for spec in (TINY["binary-2x2"], TINY["rgb-1x2"]):
        model = lively(name, spec, "conditional=true")
        images = every_image(spec)
        of_class = [model.log_likelihood(images, torch.full((len(images),), k)) for k in range(2)]
        assert all(abs(float(nats.double().exp().sum()) - 1) < 1e-4 for nats in of_class)
        assert not torch.allclose(of_class[0], of_class[1], atol=1e-3)


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("spec", SMALL)
def test_no_value_sees_itself_or_a_later_one_by_gradient(name: str, spec: str, training: bool) -> None:
    """One copy of an image for every value; the gradient of that value's parameters to all inputs of all copies."""
    model = lively(name, SMALL[spec]).train(training)
    c, h, w = SMALL[spec].shape
    order = rank(SMALL[spec])
    x = normalize(images_of(SMALL[spec], 1), SMALL[spec].levels).repeat(c * h * w, 1, 1, 1).requires_grad_()
    parameters = model.net(x)
    where = order.flatten().argsort()  # the flat position of the value of each place
    picked = parameters.flatten(1, 3)[torch.arange(c * h * w), where]
    weights = torch.randn(picked.shape, generator=torch.Generator().manual_seed(0))
    (gradient,) = torch.autograd.grad((picked * weights).sum(), x)
    earlier = order[None] < torch.arange(c * h * w)[:, None, None, None]
    assert float(gradient[~earlier].abs().max()) == 0
    nearest = order[None] == torch.arange(c * h * w)[:, None, None, None] - 1
    assert (gradient[nearest] != 0).float().mean() > 0.7  # and the value before matters, if it is in the same row


@pytest.mark.parametrize("training", [True, False])
def test_changing_a_value_moves_no_logit_at_or_before_it(name: str, training: bool) -> None:
    for spec in SMALL.values():
        model = lively(name, spec).train(training)
        order = rank(spec).flatten()
        image = images_of(spec, 1)
        changed = image.repeat(spec.dimensions, 1, 1, 1)
        for k, where in enumerate(order.argsort().tolist()):
            flat = changed[k].view(-1)
            flat[where] = (flat[where].int() + spec.levels // 2) % spec.levels
        logits = model.logits(torch.cat([image, changed]))
        moved = (logits[1:] - logits[:1]).abs().amax(-1).flatten(1)
        forbidden = order[None, :] <= torch.arange(spec.dimensions)[:, None]
        assert float(moved[forbidden].max()) < 1e-5
        assert float(moved[~forbidden].max()) > 1e-3


def teacher_forced(model: Autoregressive, images: Tensor, labels: Tensor | None) -> Tensor:
    """Parameters predicted value by value with kept activations, while the given images are filled in."""
    spec = model.spec
    signal = normalize(images, spec.levels)
    state = model.net.incremental(torch.zeros_like(signal), labels)
    predicted = torch.zeros(len(images), *spec.shape, model.distribution.parameters)
    for row in range(spec.height):
        state.begin_row(row)
        for column in range(spec.width):
            for channel in range(spec.channels):
                predicted[:, channel, row, column] = state.predict(row, column, channel)
                state.set(row, column, channel, signal[:, channel, row, column])
    return predicted


@pytest.mark.parametrize("conditional", [True, False])
@pytest.mark.parametrize("spec", [*SMALL, "binary-2x2", "rgb-1x2"])
def test_kept_activations_predict_what_the_network_does(name: str, spec: str, conditional: bool) -> None:
    chosen = {**SMALL, **TINY}[spec]
    if conditional and not chosen.classes:
        pytest.skip("no classes in this specification")
    model = lively(name, chosen, f"conditional={str(conditional).lower()}").eval()
    images = images_of(chosen, 4)
    labels = torch.arange(4) % chosen.classes if conditional else None
    with torch.no_grad():
        whole = model.net(normalize(images, chosen.levels), labels)
        kept = teacher_forced(model, images, labels)
    assert torch.allclose(kept, whole, rtol=1e-4, atol=2e-5 * float(whole.abs().max()))


def explained(model: Autoregressive, one: Tensor, other: Tensor, seed: int, labels: Tensor | None) -> bool:
    """Whether two samples of the same streams are equal up to ties: each image's first difference is of one level,
    where the uniform number lies within rounding of the boundary between the two."""
    spec = model.spec
    uniform = PerImageGenerator(seed).uniform(len(one), *spec.shape)
    order = rank(spec).flatten().argsort()
    for k in range(len(one)):
        differs = (one[k] != other[k]).flatten()[order].nonzero()
        if len(differs):
            at = order[differs[0, 0]]
            a, b = sorted([int(one[k].flatten()[at]), int(other[k].flatten()[at])])
            logits = model.logits(one[k : k + 1], None if labels is None else labels[k : k + 1])
            cumulative = logits.double().flatten(1, 3)[0, at].softmax(-1).cumsum(-1)
            if b != a + 1 or abs(float(cumulative[a] - uniform[k].flatten()[at])) > 1e-5:
                return False
    return True


@pytest.mark.parametrize("spec", [*SMALL, "rgb-1x2"])
def test_fast_samples_are_the_plain_ones(name: str, spec: str) -> None:
    chosen = {**SMALL, **TINY}[spec]
    model = lively(name, chosen)
    fast = model.sample(5, generator=PerImageGenerator(7))
    model.incremental = False
    plain = model.sample(5, generator=PerImageGenerator(7))
    assert (fast == plain).flatten(1).all(1).float().mean() >= 0.6  # ties are rare
    assert explained(model, fast, plain, 7, None)


def test_samples_have_the_models_probabilities(name: str) -> None:
    """Pearson's χ² over all 16 images of 2x2 binary pixels; 15 degrees of freedom, 0.999 quantile 37.7."""
    spec = TINY["binary-2x2"]
    model = lively(name, spec)
    probability = model.log_likelihood(every_image(spec)).double().exp()
    n = 8000
    samples = model.sample(n, generator=PerImageGenerator(11)).flatten(1).long()
    counts = torch.bincount(samples @ torch.tensor([8, 4, 2, 1]), minlength=16).double()
    assert float(((counts - n * probability) ** 2 / (n * probability)).sum()) < 37.7


@pytest.mark.parametrize("distribution", DISTRIBUTIONS)
def test_cooled_samples_have_the_cooled_probabilities(name: str, distribution: str) -> None:
    """The same for 27 images of 3 levels at temperature 1/2; 26 degrees of freedom, 0.999 quantile 54.1."""
    spec = ImageSpec(1, 1, 3, levels=3)
    model = lively(name, spec, f"model/distribution={distribution}").eval()
    images = every_image(spec)
    conditional = (model.logits(images).double() / 0.5).log_softmax(-1)  # of each value given those before it
    probability = conditional.gather(-1, images.long()[..., None]).flatten(1).sum(1).exp()
    model.temperature = 0.5
    n = 4000
    samples = model.sample(n, generator=PerImageGenerator(12)).flatten(1).long()
    counts = torch.bincount(samples @ torch.tensor([9, 3, 1]), minlength=27).double()
    assert float(probability.sum()) == pytest.approx(1)
    assert float(((counts - n * probability) ** 2 / (n * probability)).sum()) < 54.1


def test_no_images_are_no_mistake(name: str) -> None:
    spec = TINY["rgb-1x2"]
    model = make(name, spec, "conditional=true")
    assert isinstance(model, Autoregressive)
    images, labels = images_of(spec, 0), torch.zeros(0, dtype=torch.long)
    assert model.sample(0, generator=PerImageGenerator(0)).shape == (0, *spec.shape)
    assert model.log_likelihood(images, labels).shape == (0,)
    assert model.logits(images, labels).shape == (0, *spec.shape, spec.levels)
    known = torch.ones(1, dtype=torch.bool)
    completed = model.complete(images, known, labels=labels, generator=PerImageGenerator(0))
    assert (completed.dtype, completed.shape) == (torch.uint8, (0, *spec.shape))


def test_a_completion_keeps_what_is_known_and_draws_the_rest(name: str) -> None:
    spec = SMALL["rgb-4x6"]
    model = lively(name, spec)
    images = images_of(spec, 3)
    top = torch.zeros(spec.height, spec.width, dtype=torch.bool)
    top[:2] = True
    done: list[tuple[int, int]] = []
    completed = model.complete(
        images, top, generator=PerImageGenerator(0), progress=lambda k, total: done.append((k, total))
    )
    assert torch.equal(completed[:, :, :2], images[:, :, :2])
    assert not torch.equal(completed[:, :, 2:], images[:, :, 2:])
    assert done[-1] == (spec.dimensions, spec.dimensions)
    everything = torch.ones(1, dtype=torch.bool)
    assert torch.equal(model.complete(images, everything, generator=PerImageGenerator(0)), images)
    nothing = model.complete(images, ~everything, generator=PerImageGenerator(0))
    assert torch.equal(nothing, model.sample(3, generator=PerImageGenerator(0)))
    # The drawn part has its probability given the known part: with the rest equal, the same numbers, the same values.
    model.incremental = False
    plain = model.complete(images, top, generator=PerImageGenerator(0))
    assert (plain == completed).flatten(1).all(1).float().mean() >= 0.6
    with pytest.raises(UserError, match=r"mask of shape \(5, 5\) for images of \(3, 3, 4, 6\)"):
        model.complete(images, torch.ones(5, 5, dtype=torch.bool), generator=PerImageGenerator(0))
    with pytest.raises(UserError, match=r"mask is torch\.float32: give torch\.bool"):
        model.complete(images, top.float(), generator=PerImageGenerator(0))


def test_temperature_zero_takes_the_likeliest(name: str) -> None:
    for spec in (SMALL["gray-7x5"], SMALL["binary-6x9"]):
        model = lively(name, spec)
        model.temperature = 1e-4
        cold = model.sample(2, generator=PerImageGenerator(1))
        assert torch.equal(cold, model.sample(2, generator=PerImageGenerator(2)))
        logits = model.eval().logits(cold)
        chosen = logits.gather(-1, cold.long()[..., None])[..., 0]
        assert torch.allclose(chosen, logits.amax(-1), atol=1e-3)
        model.temperature = 1.0
        assert not torch.equal(cold, model.sample(2, generator=PerImageGenerator(1)))


def test_images_that_the_model_was_not_made_for_are_refused_with_both_numbers(name: str) -> None:
    model = make(name, ImageSpec(1, 6, 4, 2, classes=3), "conditional=true")
    assert isinstance(model, Autoregressive)
    images = torch.zeros(2, 1, 6, 4, dtype=torch.uint8)
    labels = torch.tensor([0, 1])
    refused: list[tuple[Any, Any, str]] = [
        (torch.zeros(2, 1, 8, 4, dtype=torch.uint8), labels, "images of 1x8x4 for a model of 1x6x4"),
        (images + 200, labels, "values up to 200 for a model of 2 levels"),
        (images, torch.tensor([0, 7]), r"labels from 0 to 7: the model was trained on classes 0\.\.2"),
        (images, None, "give the(ir)? labels"),
    ]
    for wrong, given, message in refused:
        with pytest.raises(UserError, match=message):
            model.log_likelihood(wrong, given)
        with pytest.raises(UserError, match=message):
            model.logits(wrong, given)
        with pytest.raises(UserError, match=message):
            model.complete(wrong, torch.ones(1, dtype=torch.bool), labels=given, generator=PerImageGenerator(0))
    with pytest.raises(UserError, match=r"images are torch\.float32"):
        model.check_images(images.float())
    with pytest.raises(UserError, match="1 labels for 2 images"):
        model.check_labels(labels[:1], 2)
    with pytest.raises(UserError, match="unconditional"):
        make(name, ImageSpec(1, 6, 4, 2)).log_likelihood(images, labels)


@pytest.mark.gpu
def test_samples_on_a_gpu_are_those_of_the_cpu(name: str) -> None:
    """Also where rows are captured as one graph; up to ties."""
    spec = SMALL["gray-7x5"]
    model = lively(name, spec)
    here = model.sample(5, generator=PerImageGenerator(7))
    there = model.cuda().sample(5, generator=PerImageGenerator(7, device="cuda")).cpu()
    assert explained(model.cpu(), here, there, 7, None)
