"""The training log."""

import re
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback, Trainer

from imago.checkpoints import read
from imago.models import base
from imago.runs import CSVLogger, Run
from imago.training.callbacks.checkpoints import Checkpoints
from imago.training.callbacks.log import DivergedError, TrainingLog


class Clock:
    """Time passes when a test says so."""

    now = 0.0

    def perf_counter(self) -> float:
        return self.now

    process_time = perf_counter


def test_rows_are_means_over_their_interval(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, model = Run(tmp_path), toy(lr=0.05)
    logger = CSVLogger(run.metrics)
    fit(model, 10, TrainingLog(40, run), loggers=(logger,))
    assert [row["images_seen"] for row in logger.rows] == [48, 80, 128, 160]
    parts = [model.values[:3], model.values[3:5], model.values[5:8], model.values[8:]]
    assert [row["train/loss"] for row in logger.rows] == pytest.approx([sum(p) / len(p) for p in parts])
    assert all(row["time/peak_memory_mib"] > 10 for row in logger.rows)


def test_gradient_norms_are_asked_for_only_before_a_row(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, model = Run(tmp_path), toy()
    logger = CSVLogger(run.metrics)
    fit(model, 9, TrainingLog(40, run), loggers=(logger,))
    assert model.watched == [k in (3, 5, 8) for k in range(1, 10)]  # the batches that end in a row
    assert ["train/gradient_norm/net" in row for row in logger.rows] == [True, True, True, False]


def test_throughput_is_of_training_alone(toy: Any, fit: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock()
    monkeypatch.setattr(base, "time", clock)

    class Step(Callback):
        """Each batch takes half a second to train."""

        def on_train_batch_start(self, *arguments: Any) -> None:
            clock.now += 0.5

    class Measurement(Callback):
        """And a hundred to be judged, of which the log must not know."""

        def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
            with pl_module.state.paused():
                clock.now += 100

        def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *rest: Any) -> None:
            clock.now += 0.25  # what is not paused counts, in the coming interval
            with pl_module.state.paused():
                clock.now += 100
            clock.now += 0.25

    run, training_log = Run(tmp_path), TrainingLog(32, Run(tmp_path))
    logger = CSVLogger(run.metrics)
    fit(toy(), 4, training_log, Step(), Measurement(), loggers=(logger,))
    assert [row["time/training_seconds"] for row in logger.rows] == pytest.approx([1.5, 3.5])
    assert [row["time/images_per_second"] for row in logger.rows] == pytest.approx([32 / 1.5, 32 / 2])
    assert training_log.images_per_second == logger.rows[-1]["time/images_per_second"]


def test_seconds_of_training_add_up_over_a_continuation(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, first, second = Run(tmp_path), *(TrainingLog(10**6, Run(tmp_path)) for _ in range(2))
    fit(toy(), 5, first, last=(Checkpoints(10**6, run, {"seed": 0}),))
    kept, model = read(run.last)["seconds"], toy()
    fit(model, 10, second, checkpoint=run.last)
    assert 0 < kept < model.state.seconds


def test_a_number_that_is_none_names_the_last_checkpoint(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, model = Run(tmp_path), toy()
    logger = CSVLogger(run.metrics)
    model.poison = 2
    with pytest.raises(DivergedError, match=r"loss = nan.* after 64 images; last good checkpoint: none was written"):
        fit(model, 10, TrainingLog(32, run), loggers=(logger,))
    assert [row["images_seen"] for row in logger.rows] == [32, 64], "the row that raised the alarm is kept"


def test_the_best_checkpoint_is_named_where_there_is_no_last_one(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, model = Run(tmp_path), toy()
    run.best.parent.mkdir(parents=True)
    run.best.touch()
    model.poison = 2
    with pytest.raises(DivergedError, match=r"last good checkpoint: .*best\.ckpt"):
        fit(model, 10, TrainingLog(32, run))


def test_a_checkpoint_of_broken_weights_never_replaces_a_good_one(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, model = Run(tmp_path), toy()
    model.poison = 3
    with pytest.raises(DivergedError, match=r"net\.weight .*nan.* after 64 images; last good checkpoint: .*last\.ckpt"):
        fit(model, 10, TrainingLog(10**6, run), last=(Checkpoints(16, run, {"seed": 0}),))
    good = read(run.last)
    assert good["progress"]["images_seen"] == 48
    assert all(value.isfinite().all() for value in good["state_dict"].values())


def test_a_number_that_is_finite_and_absurd_is_told_once(
    toy: Any, fit: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Run(tmp_path)
    run.update(notices=["before"])
    fit(toy(lr=50.0), 12, TrainingLog(16, run))  # each step multiplies the error by 99
    before, advice = run.summary["notices"]
    assert before == "before"
    assert re.match(r"loss = \d.*e\+.* after \d+ images: .* a lower learning rate", advice)
    assert capsys.readouterr().err.count("training has come apart") == 1
