"""Which way is better, and what compares."""

import math
from dataclasses import replace

import pytest

from imago.measures import Protocol, better, is_better


@pytest.mark.parametrize(
    ("names", "way"),
    [
        (["nats", "val/bpd", "test/iw/bpd", "fid", "fd_classifier", "val/kid", "kd_dinov2"], "low"),
        (["fd_infinity", "fd_infinity_classifier", "mind", "mind_clip"], "low"),
        (["clipped_density", "clipped_coverage_classifier"], "high"),
        (["precision", "recall_clip", "val/density_classifier", "coverage", "inception_score"], "high"),
        (["authenticity_classifier", "val/copies", "elbo/gap", "val/elbo/kl", "elbo/kl_bpd", "something"], None),
    ],
)
def test_every_number_has_its_direction(names: list[str], way: str | None) -> None:
    assert {better(name) for name in names} == {way}


def test_better_is_better_than_the_best_and_never_no_number() -> None:
    assert [is_better("fid", value, 2.0) for value in (1.0, 2.0, 3.0)] == [True, False, False]
    assert [is_better("recall", value, 2.0) for value in (1.0, 2.0, 3.0)] == [False, False, True]
    assert is_better("fid", 7.0, None)
    for value in (math.nan, math.inf, -math.inf):
        assert not is_better("fid", value, None)
    assert not is_better("copies", 0.0, None)


def test_numbers_compare_by_one_protocol() -> None:
    protocol = Protocol(samples=100, extractor="x", seed=1, weights="last", caveat="none")
    assert protocol.comparison_key == "extractor x; samples 100", "which checkpoints keep"
    assert protocol.comparison_key == replace(protocol, seed=2, weights="averaged", caveat="some").comparison_key
    for change in ({"samples": 99}, {"extractor": "y"}, {"classes": "as in training"}):
        assert protocol.comparison_key != replace(protocol, **change).comparison_key
        assert protocol.question != replace(protocol, **change).question
    assert protocol.question == replace(protocol, caveat="some", seconds_per_sample=1.0, device="a").question
    assert protocol.question != replace(protocol, seed=2).question


def test_a_protocol_is_read_as_it_was_written() -> None:
    stored = {"data": "mnist val", "images": 5, "conditional": False, "standard_error": 1, "caveat": "none"}
    protocol = Protocol.from_dict(stored)
    assert (protocol.images, protocol.conditional, protocol.standard_error, protocol.doubtful) == (5, False, 1, False)
    assert protocol.as_dict() == stored
    assert Protocol.from_dict(protocol.as_dict()) == protocol


def test_entries_of_other_versions_and_of_other_types_are_kept_and_not_believed() -> None:
    stored = {"samples": True, "conditional": 1, "images": 2.5, "seed": None, "caveat": ["x"], "other": 1, "colour": 3}
    protocol = Protocol.from_dict(stored)
    assert protocol == Protocol(other=stored)
    assert protocol.as_dict() == stored


def test_a_protocol_tells_relation_and_error() -> None:
    kinds = ("exact", "lower_bound", "estimate", "part", None)
    assert [Protocol(likelihood=kind).relation for kind in kinds] == ["=", "≤", "≈", "", ""]
    assert Protocol(standard_error=0.5, deviation=2).error == 0.5
    assert Protocol(standard_error=math.nan, deviation=2).error == 2
    assert Protocol(repeats=4, splits=10, deviation=2).error == 1, "of the mean over seeds"
    assert Protocol(splits=16, deviation=2).error == 0.5
    assert Protocol(standard_error=math.inf).error is None
    assert Protocol().error is None
