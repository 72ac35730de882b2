"""Acting every so many images."""

from pathlib import Path
from typing import Any

import pytest
from lightning import Trainer

from imago.models.base import GenerativeModel
from imago.runs import CSVLogger, Run
from imago.training.callbacks.checkpoints import Checkpoints
from imago.training.callbacks.common import Periodic, find, log_row
from imago.training.callbacks.interruption import Abandoned
from imago.training.callbacks.limits import Limits


class Diary(Periodic):
    """Writes down when it acted."""

    def __init__(self, every: int, abandon: int = 0) -> None:
        super().__init__(every)
        self.entries: list[int] = []
        self.abandon = abandon

    def act(self, trainer: Trainer, model: GenerativeModel) -> None:
        if self.abandon:
            self.abandon -= 1
            raise Abandoned
        self.entries.append(model.state.images)


@pytest.mark.parametrize(
    ("every", "expected"),
    [
        (40, [48, 80, 128, 160]),  # the first batch end at or after 40, 80, 120, 160
        (16, list(range(16, 161, 16))),
        (5, list(range(16, 161, 16))),  # several multiples within a batch are one occasion
        (100, [112, 160]),  # and once more at the end
        (1000, [160]),
    ],
)
def test_acts_once_for_each_multiple_and_at_the_end(toy: Any, fit: Any, every: int, expected: list[int]) -> None:
    diary = Diary(every)
    fit(toy(), 10, diary)
    assert diary.entries == expected


def test_at_first_it_acts_more_often(toy: Any, fit: Any) -> None:
    diary = Diary(128)
    diary.halvings = 2
    fit(toy(), 20, diary)
    assert diary.entries == [32, 64, 128, 256, 320]


@pytest.mark.parametrize("stop", range(1, 10))
def test_a_continued_run_acts_when_an_uninterrupted_one_does(toy: Any, fit: Any, stop: int, tmp_path: Path) -> None:
    run = Run(tmp_path)
    first, second = Diary(40), Diary(40)
    fit(toy(), stop, first, last=(Checkpoints(10**6, run, {"seed": 0}),))
    fit(toy(), 10, second, checkpoint=run.last)
    before = [seen for seen in (48, 80, 128, 160) if seen <= stop * 16]
    assert first.entries == before + [stop * 16] * (stop * 16 not in before)
    assert before + second.entries == [48, 80, 128, 160]


def test_what_was_abandoned_stops_the_run_and_is_made_up_for_first(toy: Any, fit: Any, tmp_path: Path) -> None:
    run = Run(tmp_path)
    diary = Diary(40, abandon=2)  # when due, and again at the end
    trainer = fit(toy(), 10, diary, last=(Checkpoints(10**6, run, {"seed": 0}),))
    assert trainer.should_stop
    assert (diary.entries, diary.acted_at) == ([], 0)
    again = Diary(40)
    fit(toy(), 10, again, checkpoint=run.last)
    assert again.entries == [48, 80, 128, 160]


def test_callbacks_find_each_other(toy: Any, fit: Any) -> None:
    diary = Diary(10)
    trainer = fit(toy(), 1, diary)
    assert find(trainer, Diary) is diary
    assert find(trainer, Limits) is None


def test_rows_carry_the_counters(toy: Any, fit: Any, tmp_path: Path) -> None:
    logger, model = CSVLogger(tmp_path / "metrics.csv"), toy(batches_per_update=2)
    trainer = fit(model, 4, loggers=(logger,))
    log_row(trainer, model, {"x": 0.5})
    assert logger.rows == [{"images_seen": 64, "updates": 2, "x": 0.5}]
