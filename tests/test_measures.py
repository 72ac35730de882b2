"""Which way is better, and what compares."""

import math

import pytest

from imago.board.board import QUALITIES
from imago.measures import BETTER, better, comparison_key, is_better


@pytest.mark.parametrize(
    ("names", "way"),
    [
        (["nats", "val/bpd", "test/iw/bpd", "fid", "fd_classifier", "val/kid", "kd_dinov2"], "low"),
        (["precision", "recall_clip", "val/density_classifier", "coverage", "inception_score"], "high"),
        (["authenticity_classifier", "val/copies", "elbo/gap", "val/elbo/kl", "elbo/kl_bpd", "something"], None),
    ],
)
def test_every_number_has_its_direction(names: list[str], way: str | None) -> None:
    assert {better(name) for name in names} == {way}


def test_the_board_knows_no_other_names() -> None:
    assert set(QUALITIES) == set(BETTER) - {"nats", "bpd"}


def test_better_is_better_than_the_best_and_never_no_number() -> None:
    assert [is_better("fid", value, 2.0) for value in (1.0, 2.0, 3.0)] == [True, False, False]
    assert [is_better("recall", value, 2.0) for value in (1.0, 2.0, 3.0)] == [False, False, True]
    assert is_better("fid", 7.0, None)
    for value in (math.nan, math.inf, -math.inf):
        assert not is_better("fid", value, None)
    assert not is_better("copies", 0.0, None)


def test_numbers_compare_by_one_protocol() -> None:
    protocol = {"samples": 100, "extractor": "x", "seed": 1, "weights": "last", "caveat": "none"}
    assert comparison_key(protocol) == comparison_key(protocol | {"seed": 2, "weights": "averaged", "caveat": "some"})
    for change in ({"samples": 99}, {"extractor": "y"}, {"classes": "as in training"}):
        assert comparison_key(protocol) != comparison_key(protocol | change)
