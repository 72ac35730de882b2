"""The length of a run."""

from typing import Any

import pytest
from lightning import Callback, Trainer

from imago.models import base
from imago.training.callbacks.common import Periodic
from imago.training.callbacks.limits import Limits


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(base, "time", clock)
    return clock


@pytest.mark.parametrize(
    ("arguments", "seen"),
    [
        ((100, None, None), 112),  # the first batch end at or after 100 images
        ((None, 3, None), 96),  # an update every second batch of 16
        ((100, 3, 1e9), 96),
        ((48, 3, 1e9), 48),
    ],
)
def test_the_first_limit_ends_the_run(toy: Any, fit: Any, arguments: tuple, seen: int) -> None:
    model, limit = toy(batches_per_update=2), Limits(*arguments)
    fit(model, 50, limit)
    assert model.state.images == seen
    assert limit.reached(model) in {"max_images=100", "max_images=48", "max_updates=3"}


def test_seconds_end_the_run(toy: Any, fit: Any, clock: Clock) -> None:
    limit, model = Limits(10**9, None, 5.0), toy()
    told = []

    class Told(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            told.append(pl_module.state.progress)
            clock.now += 2

    fit(model, 50, limit, Told())
    assert len(model.values) == 3  # 2, 4, 6 seconds
    assert told == pytest.approx([0, 0.4, 0.8]), "for schedules without an end"
    assert limit.reached(model) == "max_seconds=5.0"


def test_seconds_of_the_processor_end_the_run_whatever_a_clock_says(toy: Any, fit: Any, clock: Clock) -> None:
    """A batch takes five seconds of which the process has one; measuring takes both, and does not count."""
    limit, model = Limits(10**9, None, None, max_cpu_seconds=3.0), toy()
    clock.process_time = lambda: clock.now / 5

    class Told(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            clock.now += 5
            with pl_module.state.paused():
                clock.now += 100

    fit(model, 50, limit, Told())
    assert len(model.values) == 3
    assert (model.state.seconds, model.state.cpu_seconds) == (15, pytest.approx(3))
    assert limit.reached(model) == "max_cpu_seconds=3.0"
    assert limit.timed, "the first process decides for all"


def test_a_continued_run_counts_what_went_before(toy: Any) -> None:
    limit, model = Limits(None, None, 10.0), toy()
    model.state.seconds = 9.0
    assert (limit.reached(model), limit.fraction(model)) == (None, pytest.approx(0.9))
    model.state.seconds = 10.0
    assert limit.reached(model) == "max_seconds=10.0"


def test_the_fraction_is_that_of_the_nearest_limit(toy: Any) -> None:
    model = toy()
    model.state.images, model.state.updates = 50, 9
    assert Limits(100, None, None).fraction(model) == 0.5
    assert Limits(100, 10, None).fraction(model) == 0.9
    assert Limits(40, None, None).fraction(model) == 1
    assert Limits(None, None, None).fraction(model) == 0
    assert Limits(None, None, None).reached(model) is None


def test_time_spent_measuring_does_not_count(toy: Any, fit: Any, clock: Clock) -> None:
    limit, model = Limits(10**9, None, 5.0), toy()

    class Slow(Periodic):
        def act(self, trainer: Any, model: Any) -> None:
            with model.state.paused():
                clock.now += 100
            clock.now += 1

    fit(model, 50, limit, Slow(16))
    assert model.state.images == 6 * 16  # the fifth second is over when the sixth batch ends


def test_the_seconds_left_begin_with_the_budget(toy: Any, fit: Any, clock: Clock) -> None:
    """However slow the first step was; later by the clock, of which processor seconds are a share."""
    model, limit = toy(), Limits(10**9, None, None, max_cpu_seconds=20.0)
    fit(model, 1, limit)
    state = model.state
    state.seconds, state.cpu_seconds = 0.9, 0.01
    assert limit.seconds_left(model) == pytest.approx(19.99)
    state.seconds, state.cpu_seconds = 10.0, 5.0
    assert limit.seconds_left(model) == pytest.approx(30.0)
    assert limit.seconds_left(model, beside=0.1, closing=4.0) == pytest.approx(37.0)


def test_a_limit_in_images_tells_the_seconds_left_once_the_pace_is_known(toy: Any, fit: Any, clock: Clock) -> None:
    model, limit = toy(), Limits(160_000, None, None)
    fit(model, 1, limit)
    model.state.seconds = 1.9
    assert limit.seconds_left(model) is None
    model.state.images, model.state.seconds = 16_000, 4.0
    assert limit.seconds_left(model) == pytest.approx(36.0)
    limit.max_seconds = 10.0
    assert limit.seconds_left(model) == pytest.approx(6.0), "whichever comes first"
