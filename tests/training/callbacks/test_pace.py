"""What measuring and drawing may cost."""

from itertools import pairwise
from typing import Any

import pytest
from lightning import Callback, Trainer

from imago.models import base
from imago.models.base import GenerativeModel
from imago.training.callbacks import limits, pace
from imago.training.callbacks.limits import Limits
from imago.training.callbacks.pace import Paced, amounts_up_to, seconds_of


class Clock:
    now = 1000.0

    def perf_counter(self) -> float:
        return self.now

    monotonic = process_time = perf_counter


class Second(Callback):
    """A batch takes a second."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock

    def on_train_batch_start(self, *rest: Any) -> None:
        self.clock.now += 1


class Costly(Paced):
    """Takes a second for each image that it is of."""

    portion = 0.5

    def __init__(self, clock: Clock, every: int = 16, share: float | None = 0.2, whole: int = 10) -> None:
        super().__init__(every, 0, share)
        self.clock = clock
        self.whole = whole
        self.acted: list[tuple[int, int]] = []

    def work(self, images: int) -> None:
        self.clock.now += images

    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        with model.state.paused():
            amount = self.choose(trainer, model, amounts_up_to(self.whole, 1), lambda: seconds_of(self.work, 1))
            self.work(amount)
        self.acted.append((model.state.images // 16, amount))


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    for module in (base, pace, limits):
        monkeypatch.setattr(module, "time", clock)
    return clock


def test_an_action_waits_until_there_is_room_and_the_last_does_not(toy: Any, fit: Any, clock: Clock) -> None:
    costly = Costly(clock, whole=1)
    fit(toy(), 100, Second(clock), costly)
    assert costly.acted[-1] == (100, 1)
    assert 5 + 5 <= costly.spent <= 5 + 0.1 * 100 + 3  # the credit, a tenth of the training, the last and a look
    times = [batch for batch, _ in costly.acted]
    assert times[:3] == [1, 2, 3]  # from the credit
    assert all(later - earlier >= 9 for earlier, later in pairwise(times[4:-1]))


def test_without_a_share_all_is_done_as_configured(toy: Any, fit: Any, clock: Clock) -> None:
    costly = Costly(clock, share=None)
    fit(toy(), 20, Second(clock), costly)
    assert costly.acted == [(batch, 10) for batch in range(1, 21)]


@pytest.mark.parametrize(
    ("seconds", "amount"),
    [
        (50, 2),  # (5 + 0.1 · 50) / 5 actions
        (250, 5),  # (5 + 25) / 5 = 6, the round number below
        (450, 10),
        (1, 1),
    ],
)
def test_the_amount_leaves_room_for_several_and_stays(
    toy: Any, fit: Any, clock: Clock, seconds: int, amount: int
) -> None:
    costly = Costly(clock, every=160)
    fit(toy(), 30, Second(clock), Limits(None, None, seconds), costly)
    assert {given for _, given in costly.acted} == {amount}


def test_what_never_fits_is_no_amount(toy: Any, fit: Any, clock: Clock) -> None:
    costly = Costly(clock, every=160)
    costly.work = lambda images: setattr(clock, "now", clock.now + 100 * images)  # type: ignore[method-assign]
    fit(toy(), 30, Second(clock), Limits(None, None, 30), costly)
    assert costly.acted == [(10, 0), (30, 0)]


def test_amounts_are_round() -> None:
    assert amounts_up_to(1437, 50) == [1437, 1000, 500, 200, 100, 50]
    assert amounts_up_to(10000, 500) == [10000, 5000, 2000, 1000, 500]
    assert amounts_up_to(30, 50) == [30]


def test_a_wall_clock_ends_the_run_in_time_for_its_closing_work(toy: Any, fit: Any, clock: Clock) -> None:
    began, costly = clock.now, Costly(clock, every=80, share=None, whole=7)
    limit, model = Limits(None, None, None, max_wall_seconds=60.0, began=began), toy()
    fit(model, 100, Second(clock), costly, limit)
    assert limit.reached(model) == "max_wall_seconds=60.0"
    assert 53 <= clock.now - began <= 61
    again = Limits(None, None, None, max_wall_seconds=60.0)
    again.load_state_dict(limit.state_dict())
    assert again.wall_seconds == pytest.approx(clock.now - began)
