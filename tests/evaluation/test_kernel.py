from itertools import permutations

import pytest
import torch
from torch_fidelity.metric_kid import kid_features_to_metric

from imago.evaluation import KernelDistance, squared_mmd


def features(n: int, seed: int, shift: float = 0.0) -> torch.Tensor:
    return torch.randn(n, 8, generator=torch.Generator().manual_seed(seed)) + shift


def kernel_distance(x: torch.Tensor, y: torch.Tensor, subsets: int, subset_size: int) -> float:
    metric = KernelDistance(subsets=subsets, subset_size=subset_size)
    for part in x.split(17):
        metric.update(part, real=False)
    for part in y.split(23):
        metric.update(part, real=True)
    return float(metric.compute())


def test_unbiased_estimator_is_its_definition():
    x, y = features(5, 1), features(5, 2, shift=0.5)

    def kernel(a, b):
        return (float(a.double() @ b.double()) / 8 + 1) ** 3

    pairs = list(permutations(range(5), 2))
    expected = sum(kernel(x[i], x[j]) + kernel(y[i], y[j]) for i, j in pairs) / len(pairs)
    expected -= 2 * sum(kernel(a, b) for a in x for b in y) / 25
    assert float(squared_mmd(x, y)) == pytest.approx(expected, rel=1e-12)


def test_mean_over_draws_of_one_distribution_is_zero():
    """Unbiased: a biased estimate of equal distributions would be positive every time."""
    values = torch.stack([squared_mmd(features(20, 2 * k), features(20, 2 * k + 1)) for k in range(400)])
    assert abs(float(values.mean())) < 3 * float(values.std()) / 20
    assert float(values.min()) < 0 < float(values.max())


def test_equals_torch_fidelity():
    x, y = features(120, 1), features(150, 2, shift=0.3)
    theirs = kid_features_to_metric(x.double(), y.double(), kid_subsets=10, kid_subset_size=50, verbose=False)
    found = kernel_distance(x, y, subsets=10, subset_size=50)
    assert found == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-9)


def test_leaves_the_random_state_alone_and_repeats_itself():
    x, y = features(60, 1), features(60, 2)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert kernel_distance(x, y, 5, 20) == kernel_distance(x, y, 5, 20)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("size", [1, 61])
def test_impossible_subsets_are_refused(size):
    with pytest.raises(ValueError, match=r"must lie in 2\.\.60"):
        kernel_distance(features(60, 1), features(70, 2), 5, size)
