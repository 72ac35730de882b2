"""Random streams that belong to images."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from scipy import stats

from imago.checkpoints import random_state
from imago.rng import PerImageGenerator

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mix(z: int) -> int:
    """The finaliser of Steele, Lea & Flood 2014, figure 12, in plain Python."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def splitmix64(state: int) -> Iterator[int]:
    """The generator of figure 12."""
    while True:
        state = (state + GOLDEN) & MASK
        yield mix(state)


def uniform(seed: int, image: int) -> Iterator[float]:
    """What PerImageGenerator gives to one image, by its description."""
    state = mix(mix((seed + GOLDEN) & MASK) ^ mix((image * GOLDEN + 1) & MASK))
    return (((word >> 12) + 0.5) * 2.0**-52 for word in splitmix64(state))


def test_the_reference_gives_the_published_numbers() -> None:
    stream = splitmix64(1234567)
    assert [next(stream) for _ in range(5)] == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63, 2**64 - 1, -5, 10**30])
def test_streams_are_splitmix64(seed: int) -> None:
    generator = PerImageGenerator(seed, first=998)
    drawn = torch.cat([generator.uniform(3, 2), generator.uniform(3, 1), generator.uniform(3, 2, 2).flatten(1)], 1)
    for k in range(3):
        stream = uniform(seed, 998 + k)
        assert drawn[k].tolist() == [next(stream) for _ in range(7)]


@pytest.mark.parametrize("draw", ["uniform", "normal", "integers"])
def test_an_image_has_its_numbers_in_any_batch(draw: str) -> None:
    def numbers(n: int, first: int) -> torch.Tensor:
        generator = PerImageGenerator(7, first)
        high = [10] if draw == "integers" else []
        return torch.stack([getattr(generator, draw)(n, *high, 5) for _ in range(3)], 1)

    together = numbers(8, 0)
    alone = torch.cat([numbers(1, k) for k in range(8)])
    halves = torch.cat([numbers(3, 0), numbers(5, 3)])
    assert torch.equal(together, alone)
    assert torch.equal(together, halves)
    assert torch.equal(together, numbers(8, 0)), "the same seed gives the same numbers"
    assert not torch.equal(together[:, 0], together[:, 1]), "drawing advances the streams"
    assert len(torch.unique(together[:, 0, 0])) > 4, "images have different streams"


def test_seeds_and_images_do_not_meet() -> None:
    """Image 1 of seed 0 is not image 0 of seed 1, and no two of a thousand streams share their first number."""
    first = torch.cat([PerImageGenerator(seed).uniform(100, 1).flatten() for seed in range(100)])
    assert len(torch.unique(first)) == 10_000


def test_uniform_numbers() -> None:
    u = PerImageGenerator(0).uniform(1000, 200)
    assert u.dtype == torch.float64
    assert u.min() > 0
    assert u.max() < 1
    assert stats.kstest(u.flatten().numpy(), "uniform").pvalue > 0.001
    assert stats.kstest(u[:, 0].numpy(), "uniform").pvalue > 0.001  # across images, as well as within one
    assert stats.kstest(PerImageGenerator(3).uniform(1, 1000)[0].numpy(), "uniform").pvalue > 0.001
    for a, b in ((u[:, :-1], u[:, 1:]), (u[:-1], u[1:])):  # neighbours in a stream, and neighbouring streams
        assert abs(np.corrcoef(a.flatten(), b.flatten())[0, 1]) < 0.01  # standard error 0.0022


def test_normal_numbers() -> None:
    z = PerImageGenerator(1).normal(1000, 200)
    assert z.dtype == torch.float32
    assert z.isfinite().all()
    assert abs(float(z.mean())) < 0.01
    assert float(z.std()) == pytest.approx(1, abs=0.01)
    assert stats.kstest(z.flatten().numpy(), "norm").pvalue > 0.001


@pytest.mark.parametrize("high", [1, 2, 10, 257])
def test_integers_are_uniform_on_their_range(high: int) -> None:
    drawn = PerImageGenerator(2).integers(1000, high, 100)
    assert (drawn.dtype, drawn.shape) == (torch.int64, (1000, 100))
    counts = torch.bincount(drawn.flatten(), minlength=high)
    assert len(counts) == high
    assert high == 1 or stats.chisquare(counts.numpy()).pvalue > 0.001


def test_choices_are_as_frequent_as_their_weights() -> None:
    drawn = PerImageGenerator(2).choices(100_000, [20, 0, 1, 0])
    counts = torch.bincount(drawn, minlength=4)
    assert drawn.dtype == torch.int64
    assert counts[[1, 3]].tolist() == [0, 0]
    assert stats.chisquare(counts[[0, 2]].numpy(), [100_000 * 20 / 21, 100_000 / 21]).pvalue > 0.001
    assert torch.equal(PerImageGenerator(2, first=90).choices(10, [20, 0, 1, 0]), drawn[90:100])
    u = PerImageGenerator(2).uniform(1000)
    assert torch.equal(PerImageGenerator(2).choices(1000, [1, 3]), (u >= 0.25).long()), "by inversion"
    assert torch.equal(PerImageGenerator(2).choices(1000, [7] * 10), PerImageGenerator(2).integers(1000, 10))


def test_the_global_generators_are_left_alone() -> None:
    before = random_state()
    generator = PerImageGenerator(0)
    for draw in (generator.uniform, generator.normal, lambda n, k: generator.integers(n, 5, k)):
        assert draw(2, 3).shape == (2, 3)
    after = random_state()
    assert torch.equal(before["torch"], after["torch"])
    assert torch.equal(before["numpy"][1], after["numpy"][1])
    assert before["numpy"][2:] == after["numpy"][2:]


def test_no_images_and_no_shape() -> None:
    assert PerImageGenerator(0).normal(0, 4).shape == (0, 4)
    assert PerImageGenerator(0).integers(3, 10).shape == (3,)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_devices_agree() -> None:
    cpu, gpu = PerImageGenerator(5), PerImageGenerator(5, device="cuda")
    assert torch.equal(cpu.uniform(64, 100), gpu.uniform(64, 100).cpu())
    assert torch.equal(cpu.integers(64, 1000, 100), gpu.integers(64, 1000, 100).cpu())
    assert torch.allclose(cpu.normal(64, 100), gpu.normal(64, 100).cpu(), atol=1e-6)
