"""Signals."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from lightning import Callback

from imago.checkpoints import read
from imago.errors import Interrupted
from imago.runs import Run
from imago.training.callbacks.checkpoints import Checkpoints
from imago.training.callbacks.interruption import SIGNALS, Abandoned, Interruption

CODES = [(number, 128 + number) for number in SIGNALS]


class Sends(Callback):
    """Sends this process a signal in the middle of a batch."""

    def __init__(self, number: int, at_batch: int) -> None:
        self.number, self.at_batch = number, at_batch

    def on_train_batch_start(self, trainer: Any, pl_module: Any, *rest: Any) -> None:
        if pl_module.state.batches == self.at_batch:
            os.kill(os.getpid(), self.number)


@pytest.mark.parametrize(("number", "code"), CODES)
def test_outside_training_a_signal_stops_at_once(number: int, code: int) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as error, Interruption():
        os.kill(os.getpid(), number)
    assert error.value.exit_code == code
    assert signal.getsignal(number) is before


def test_nohup_is_respected(toy: Any, fit: Any) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Interruption() as interruption:
            os.kill(os.getpid(), signal.SIGHUP)
            fit(toy(), 6, interruption, Sends(signal.SIGHUP, 4))
        assert interruption.requested is None
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


class Gone:
    """Standard error of a terminal that was closed, or that was being written to when the signal came."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), RuntimeError("reentrant call")])
def test_that_nobody_hears_the_answer_harms_no_run(
    toy: Any, fit: Any, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with Interruption() as interruption, monkeypatch.context() as patch:
        patch.setattr(sys, "stderr", Gone(error))
        model = toy()
        fit(model, 6, interruption, Sends(signal.SIGHUP, 2))
    assert (model.state.batches, interruption.requested) == (3, signal.SIGHUP)


@pytest.mark.parametrize(("number", "code"), CODES)
def test_in_training_the_step_is_finished_and_kept(
    toy: Any, fit: Any, tmp_path: Path, number: int, code: int, capsys: pytest.CaptureFixture[str]
) -> None:
    run, model = Run(tmp_path), toy()
    with Interruption() as interruption:
        fit(model, 10, interruption, Sends(number, 4), last=(Checkpoints(10**6, run, {"seed": 0}),))
        assert interruption.requested == number
        with pytest.raises(Abandoned):
            interruption.stop_if_requested()
        with pytest.raises(Interrupted):
            os.kill(os.getpid(), number)  # the second one does not wait
    assert read(run.last)["progress"]["images_seen"] == model.state.images == 80
    assert "stopping after this step" in capsys.readouterr().err


def test_without_a_signal_work_goes_on(toy: Any, fit: Any) -> None:
    with Interruption() as interruption:
        model = toy()
        fit(model, 3, interruption)
        interruption.stop_if_requested()
        assert (model.state.batches, interruption.requested) == (3, None)
