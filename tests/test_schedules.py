"""Learning-rate schedules as functions of the images seen."""

import pytest
import torch

from helpers import configuration
from imago.config import check
from imago.images import Batch, ImageSpec
from imago.schedules import Cosine, LinearDecay, Schedule, Warmup
from imago.training.run import build_model


@pytest.mark.parametrize(
    ("schedule", "points"),
    [
        (Warmup(100), {0: 0, 25: 0.25, 100: 1, 10**9: 1}),
        (LinearDecay(end=200, start=100), {0: 1, 100: 1, 150: 0.5, 200: 0, 10**9: 0}),
        (LinearDecay(end=200), {0: 1, 50: 0.75, 200: 0}),
        (Cosine(end=200), {0: 1, 50: 0.5 + 0.5**1.5, 100: 0.5, 200: 0, 10**9: 0}),
        (Cosine(end=300, warmup=100), {0: 0, 50: 0.5, 100: 1, 200: 0.5, 300: 0}),
    ],
)
def test_values_by_hand(schedule: Schedule, points: dict[int, float]) -> None:
    assert {seen: schedule(seen, 0.3) for seen in points} == pytest.approx(points)


def test_without_an_end_the_share_of_the_run_decides() -> None:
    shares = (0.0, 0.25, 0.5, 1.0)
    assert [LinearDecay(None)(10**9, share) for share in shares] == pytest.approx([1, 0.75, 0.5, 0])
    assert [Cosine(None)(10**9, share) for share in shares] == pytest.approx([1, 0.5 + 0.5**1.5, 0.5, 0])
    assert Cosine(None, warmup=100)(25, 0.5) == pytest.approx(0.25 * 0.5)
    with pytest.raises(ValueError, match=r"start=5: needs an end in images; give max_images, or .*start=0"):
        LinearDecay(None, start=5)


@pytest.mark.parametrize("limits", ["max_seconds=1000", "max_updates=100"])
def test_an_experiment_with_a_schedule_runs_by_other_limits(limits: str) -> None:
    config = configuration("experiment=vae_mnist", "max_images=null", limits)
    check(config)
    model = build_model(config, ImageSpec(1, 4, 4))
    assert model.schedule is not None
    assert model.schedule(10**9, 0.5) == pytest.approx(0.5)


@pytest.mark.parametrize("schedule", [Warmup(997), LinearDecay(2000, 500), Cosine(2000, 300)])
def test_factors_stay_in_range_and_do_not_jump(schedule: Schedule) -> None:
    factors = torch.tensor([schedule(seen, 0.3) for seen in range(2500)])
    assert factors.min() >= 0
    assert factors.max() <= 1
    assert factors.diff().abs().max() < 0.004


@pytest.mark.parametrize("build", [lambda: LinearDecay(end=10, start=10), lambda: Cosine(end=10, warmup=20)])
def test_an_end_before_the_start_is_refused(build) -> None:
    with pytest.raises(
        ValueError, match=r"end=10: must be larger than .*; raise max_images .* or lower model\.schedule\."
    ):
        build()


def test_a_schedule_scales_the_learning_rate_of_every_network() -> None:
    overrides = ["model=gan", "model/schedule=linear", "max_images=64", "model.optimizer.generator.lr=0.5"]
    model = build_model(configuration(*overrides), ImageSpec(1, 4, 4))
    rates = []
    for _ in range(4):
        for loss in model.losses(Batch(torch.zeros(16, 1, 4, 4, dtype=torch.uint8), None)):
            model.optimize(loss)
        rates.append([optimizer.param_groups[0]["lr"] for optimizer in model._optimizers.values()])
    assert rates == [[pytest.approx(0.0002 * f), pytest.approx(0.5 * f)] for f in (1, 0.75, 0.5, 0.25)]
