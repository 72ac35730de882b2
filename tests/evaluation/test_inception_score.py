"""The Inception score against its definition, its extremes and torch-fidelity."""

import pytest
import torch
from torch_fidelity.metric_isc import isc_features_to_metric

from imago.evaluation import InceptionScore


def logits(n: int, classes: int = 7) -> torch.Tensor:
    return 3 * torch.randn(n, classes, generator=torch.Generator().manual_seed(1))


def inception_score(logits: torch.Tensor, splits: int) -> tuple[float, float]:
    metric = InceptionScore(splits=splits)
    for part in logits.split(13):
        metric.update(part)
        metric.update(-part, real=True)  # which plays no part
    found = metric.compute()
    return float(found["inception_score"]), float(found["inception_score_std"])


@pytest.mark.parametrize(("n", "splits"), [(100, 1), (100, 5), (100, 10), (97, 10), (8, 8)])
def test_equals_torch_fidelity(n: int, splits: int) -> None:
    theirs = isc_features_to_metric(logits(n), splits, shuffle=False)
    mean, deviation = inception_score(logits(n), splits)
    assert mean == pytest.approx(theirs["inception_score_mean"], rel=1e-12)
    assert deviation == pytest.approx(theirs["inception_score_std"], rel=1e-9, abs=1e-12)


def test_its_range_is_one_to_the_number_of_classes() -> None:
    certain = 1000 * torch.eye(7).repeat(20, 1)  # probabilities of 0 must not become 0 · −∞
    assert inception_score(certain, 10) == pytest.approx((7, 0))
    assert inception_score(certain[:1].expand(50, -1), 5) == pytest.approx((1, 0))  # mode collapse
    assert inception_score(torch.zeros(50, 7), 5) == pytest.approx((1, 0))  # no idea


@pytest.mark.parametrize("splits", [0, 9])
def test_impossible_splits_are_refused(splits: int) -> None:
    with pytest.raises(ValueError, match=r"must lie in 1\.\.8"):
        inception_score(logits(8), splits)
