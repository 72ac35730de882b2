"""The length of a run."""

from typing import Any

import pytest
from lightning import Callback, Trainer

from imago.training.callbacks import limits
from imago.training.callbacks.common import Periodic
from imago.training.callbacks.limits import Limits
from imago.training.callbacks.log import clock_paused


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(limits, "time", clock)
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
    assert model.images_seen == seen
    assert limit.reached(model) in {"max_images=100", "max_images=48", "max_updates=3"}


def test_seconds_end_the_run(toy: Any, fit: Any, clock: Clock) -> None:
    limit, model = Limits(10**9, None, 5.0), toy()
    losses = model.losses

    class Slow(list):
        def append(self, loss: float) -> None:
            losses.append(loss)
            clock.now += 2

    model.losses = Slow()
    told = []

    class Told(Callback):
        def on_train_batch_start(self, trainer: Trainer, pl_module: Any, *_: Any) -> None:
            told.append(pl_module.done)

    fit(model, 50, limit, Told())
    assert len(losses) == 3  # 2, 4, 6 seconds
    assert told == pytest.approx([0, 0.4, 0.8]), "for schedules without an end"
    assert limit.reached(model) == "max_seconds=5.0"


def test_a_continued_run_counts_what_went_before(toy: Any, clock: Clock) -> None:
    first = Limits(None, None, 10.0)
    clock.now += 4
    state = first.state_dict()
    assert state == {"seconds": 4.0}
    clock.now += 1000
    second = Limits(None, None, 10.0)
    second.load_state_dict(state)
    clock.now += 5
    assert (second.seconds, second.reached(toy())) == (9.0, None)
    assert second.fraction(toy()) == pytest.approx(0.9)
    clock.now += 1
    assert second.reached(toy()) == "max_seconds=10.0"


def test_the_fraction_is_that_of_the_nearest_limit(toy: Any) -> None:
    model = toy()
    model.images_seen, model.updates = 50, 9
    assert Limits(100, None, None).fraction(model) == 0.5
    assert Limits(100, 10, None).fraction(model) == 0.9
    assert Limits(40, None, None).fraction(model) == 1
    assert Limits(None, None, None).fraction(model) == 0
    assert Limits(None, None, None).reached(model) is None


def test_time_spent_measuring_does_not_count(toy: Any, fit: Any, clock: Clock) -> None:
    limit, model = Limits(10**9, None, 5.0), toy()

    class Slow(Periodic):
        def act(self, trainer: Any, model: Any) -> None:
            with clock_paused(trainer):
                clock.now += 100
            clock.now += 1

    fit(model, 50, limit, Slow(16))
    assert model.images_seen == 6 * 16  # the fifth second is over when the sixth batch ends
