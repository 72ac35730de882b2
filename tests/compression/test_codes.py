"""Images on a stack: every model that codes them gives them back, in as few bits as its likelihood says."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from helpers import TINY
from imago.compression.ans import Stack
from imago.compression.codes import (
    Code,
    code_of,
    coding,
    decode,
    encode,
    masses,
    medians,
    nobody,
    pop_latents,
    push_latents,
    seconds_for,
)
from imago.errors import UserError
from imago.images import ImageSpec
from imago.models.base import ExplicitModel
from imago.rng import PerImageGenerator
from test_laws import images_of, make

EXACT = ["fvbn", "made", "pixelcnn", "gated_pixelcnn", "row_lstm", "diagonal_bilstm"]
BOUNDS = ["vae", "conv_vae", "hvae"]
GRAY = ImageSpec(1, 4, 4, classes=3, class_counts=(5, 3, 1))
COLOUR = ImageSpec(3, 2, 3, levels=16, classes=2)
N = 40


def silent(done: int, total: int) -> None:
    assert 0 <= done <= total


def bits_of(model: Any, images: torch.Tensor, labels: torch.Tensor | None, seed: int = 0) -> torch.Tensor:
    """−log2 p of each image, or its bound, and of its label."""
    assert isinstance(model, ExplicitModel)
    bits = -model.log_likelihood(images, labels, PerImageGenerator(seed)).double() / math.log(2)
    if labels is not None:
        counts = torch.tensor(model.spec.class_counts or [1] * model.spec.classes).double()
        bits -= (counts / counts.sum()).log2()[labels]
    return bits


@pytest.mark.parametrize(("spec", "conditional"), [(GRAY, True), (COLOUR, False)], ids=["gray", "colour"])
@pytest.mark.parametrize("name", EXACT + BOUNDS)
def test_images_come_back_from_as_many_bits_as_the_likelihood_says(
    name: str, spec: ImageSpec, conditional: bool
) -> None:
    model = make(name, spec, *TINY[name], f"conditional={conditional}")
    images, labels = images_of(spec, N), torch.arange(N) % spec.classes if conditional else None
    encoded = encode(model, images, labels, 25, silent)
    assert sum(encoded.sizes) == N
    back, labels_back = decode(model, encoded.words, encoded.sizes, silent)
    assert back.dtype == spec.dtype
    assert torch.equal(back, images)
    assert labels_back is None if labels is None else torch.equal(labels_back, labels)
    bits, size = bits_of(model, images, labels), 32 * len(encoded.words) - encoded.start
    total = float(bits.sum())
    if name in EXACT:
        assert encoded.sizes == [25, 15] or encoded.sizes == [15, 25]
        assert 0.999 * total < size < 1.001 * total + 64, "the number is kept in words, the last of which is half full"
    else:
        assert encoded.sizes[-1] == 1, "as there are random bits for one image"
        chance = float((bits - bits_of(model, images, labels, seed=1)).square().sum().sqrt())  # of what z is drawn
        assert abs(size - total) < 4 * chance + 0.005 * total + 64


@pytest.mark.parametrize("name", ["made", *BOUNDS])
def test_a_stack_is_what_it_was_when_images_have_come_and_gone(name: str) -> None:
    """Popping undoes pushing bit by bit, so nothing is lost that lies below."""
    code: Code = code_of(make(name, GRAY, *TINY[name]))
    with coding(code.model):
        stack = Stack(np.random.default_rng(1).integers(1, 2**32, 5000, dtype=np.uint32))
        before, images = stack.words, images_of(GRAY, 5)
        code.push(stack, images, None, nobody)
        assert torch.equal(code.pop(stack, 5, None, nobody), images)
        assert np.array_equal(stack.words, before)


def test_latents_are_draws_from_the_posterior_that_random_bits_pay_for() -> None:
    stack = Stack(np.random.default_rng(0).integers(1, 2**32, 20_000, dtype=np.uint32))
    before, bits = stack.words, stack.bits
    mean, log_scale = torch.full((1, 20_000), 0.7), torch.full((1, 20_000), math.log(0.05))
    numbers = pop_latents(stack, mean, log_scale)
    z = medians(numbers).double()
    assert abs(float(z.mean()) - 0.7) < 4 * 0.05 / math.sqrt(20_000)
    assert float(z.std()) == pytest.approx(0.05, rel=0.03)
    # log2 q/p of the density: an interval has 2^-12 of the prior's mass.
    posterior, prior = torch.distributions.Normal(0.7, 0.05), torch.distributions.Normal(0.0, 1.0)
    spent = 12 - (posterior.log_prob(z) - prior.log_prob(z)).mean() / math.log(2)
    assert (bits - stack.bits) / 20_000 == pytest.approx(float(spent), rel=0.01)
    push_latents(stack, numbers, mean, log_scale)
    assert np.array_equal(stack.words, before)


def test_the_masses_of_a_posterior_are_those_of_its_intervals() -> None:
    mean, log_scale = torch.tensor([0.0, 3.0, -40.0]), torch.tensor([0.0, -1.0, -5.0])
    first = masses(mean, log_scale, None)
    torch.testing.assert_close(first[0], torch.full_like(first[0], 1 / 64))
    torch.testing.assert_close(first.sum(1), torch.ones(3, dtype=torch.float64))
    chosen = torch.tensor([5, 63, 40])  # the last has nothing of its posterior
    second = masses(mean, log_scale, chosen)
    torch.testing.assert_close(second[:2].sum(1), first[[0, 1], chosen[:2]])
    assert bool((second > 0).all())


@pytest.mark.parametrize("name", ["made", "vae"])
def test_how_long_it_takes_is_said_for_all_images(name: str) -> None:
    model = make(name, GRAY, *TINY[name])
    images = images_of(GRAY, N)
    few, many = (seconds_for(model, part, None, 8) for part in (images, images.repeat(50, 1, 1, 1)))
    assert 0 < few < many


@pytest.mark.parametrize(
    ("name", "spec", "message"),
    [
        ("gan", GRAY, "a GAN cannot code images: .* models that do are .*made, .*vae"),
        ("ddpm", GRAY, "a Diffusion cannot code images"),
        ("vae", ImageSpec(2, 1, 1, levels=0), "a model of points in R.2: real numbers have no lossless code"),
    ],
)
def test_models_without_a_code_are_refused(name: str, spec: ImageSpec, message: str) -> None:
    with pytest.raises(UserError, match=message):
        code_of(make(name, spec))


def test_probabilities_that_are_no_numbers_are_the_models_fault() -> None:
    model = make("made", GRAY, *TINY["made"])
    with torch.no_grad():
        next(model.parameters()).fill_(math.nan)
    with pytest.raises(UserError, match="probabilities that are no numbers"):
        encode(model, images_of(GRAY, 4), None, 4, silent)
