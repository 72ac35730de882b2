"""Nearest neighbours, authenticity and copies: their definitions, and what they say of memorised samples."""

import pytest
import torch

from imago.evaluation.neighbours import among, authentic, nearest


def cloud(n: int, seed: int, d: int = 6, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) + shift


def all_distances(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """One pair at a time, float64."""
    return torch.tensor([[float((x.double() - y.double()).norm()) for y in b] for x in a], dtype=torch.float64)


@pytest.mark.parametrize("block", [1, 7, 1000])
@pytest.mark.parametrize("k", [1, 3, 30])
def test_neighbours_are_those_of_all_pairs(k: int, block: int) -> None:
    queries, points = cloud(20, 1), cloud(30, 2)
    expected = all_distances(queries, points).sort(1)
    distances, which = nearest(queries, points, k, block=block)
    assert torch.equal(which, expected.indices[:, :k])
    torch.testing.assert_close(distances, expected.values[:, :k], rtol=1e-14, atol=0)


@pytest.mark.parametrize("block", [7, 1000])
def test_a_vector_is_not_its_own_neighbour_but_its_double_is(block: int) -> None:
    points = cloud(30, 2)
    points[17] = points[4]
    among_all = all_distances(points, points).fill_diagonal_(torch.inf).sort(1)
    chosen = torch.tensor([4, 29, 0, 17])
    distances, which = nearest(points[chosen], points, 2, itself=chosen, block=block)
    torch.testing.assert_close(distances, among_all.values[chosen, :2])
    assert which[:, 0].tolist() == [17, *among_all.indices[[29, 0], 0].tolist(), 4]
    assert distances[[0, 3], 0].tolist() == [0, 0]


def test_equal_vectors_have_distance_zero_however_large_they_are() -> None:
    points = cloud(50, 1, shift=1e4)
    distances, which = nearest(points[:9], points)
    assert (distances == 0).all()
    assert which.flatten().tolist() == list(range(9))


def test_points_nearer_to_each_other_than_the_rounding_of_large_values_are_told_apart() -> None:
    """|x|² + |y|² − 2xy errs by 0.01 here, the three smallest squared distances differ by less than 0.001."""
    far = 1e7 * torch.tensor([-1.0, 1.0], dtype=torch.float64).repeat_interleave(30)[:, None]
    steps = torch.tensor([0.03, 0.01, 0.02], dtype=torch.float64)
    queries = far + 10 * torch.arange(60, dtype=torch.float64)[:, None]
    points = (queries + steps).flatten()[:, None]
    distances, which = nearest(queries, points, block=50)
    assert which[:, 0].tolist() == list(range(1, 180, 3))
    torch.testing.assert_close(distances, torch.full_like(distances, 0.01), rtol=0, atol=1e-8)


def test_too_few_points_are_refused() -> None:
    with pytest.raises(ValueError, match="k=3: 2 points"):
        nearest(cloud(1, 1), cloud(2, 2), 3)
    with pytest.raises(ValueError, match="k=1: 0 points"):
        nearest(cloud(1, 1), cloud(1, 1), itself=torch.tensor([0]))


@pytest.mark.parametrize("spread", [0.01, 0.6, 1.0, 3.0])
def test_authenticity_is_its_definition(spread: float) -> None:
    training, samples = cloud(40, 1), cloud(40, 1) + spread * cloud(40, 2)
    own = all_distances(training, training).fill_diagonal_(torch.inf).amin(1)
    to_training = all_distances(samples, training)
    expected = to_training.amin(1) > own[to_training.argmin(1)]
    assert torch.equal(authentic(samples, training, torch.zeros(40, dtype=torch.bool), block=7), expected)


def test_a_sample_as_far_as_the_training_images_own_neighbour_is_not_authentic() -> None:
    """The definition asks for farther: at equal distances the sample is as near as a training image."""
    training = torch.tensor([[0.0], [2.0], [10.0]])
    samples = torch.tensor([[-1.5], [-2.0], [-2.5], [18.0], [18.5]])
    assert authentic(samples, training, torch.zeros(5, dtype=torch.bool)).tolist() == [False, False, True, False, True]


def test_memorised_samples_are_not_authentic_and_new_ones_are_as_often_as_training_images_among_each_other() -> None:
    """Of a new sample and its nearest image's nearest image, either is nearer about as often."""
    training, none = cloud(1000, 1, d=20), torch.zeros(400, dtype=torch.bool)
    new = authentic(cloud(400, 2, d=20), training, none).double().mean()
    noisy = training[:400] + 0.01 * cloud(400, 3, d=20)
    assert authentic(noisy, training, none).sum() == 0
    half = torch.cat([noisy[:200], cloud(200, 2, d=20)])
    assert new > 0.4
    assert authentic(half, training, none).double().mean() == pytest.approx(float(new) / 2, abs=0.06)


def test_copies_of_images_that_exist_twice_are_not_authentic() -> None:
    training = cloud(10, 1).repeat(2, 1)
    jitter = training[:10] + 1e-6  # another batch size's rounding
    assert authentic(jitter, training, torch.zeros(10, dtype=torch.bool)).any(), "by distances alone they would be"
    assert not authentic(jitter, training, torch.ones(10, dtype=torch.bool)).any()


def test_copies_are_equal_in_every_value() -> None:
    known = torch.randint(0, 256, (20, 3, 4, 5), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    images = known[[3, 19, 7]].clone()
    images[1, 2, 3, 4] ^= 1
    assert among(images, known).tolist() == [True, False, True]
    assert among(images[:, :, 1::2], known[:, :, 1::2]).tolist() == [True, False, True], "whatever the memory layout"
    assert among(images[:0], known).shape == (0,)
