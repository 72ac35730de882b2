"""The progress bar."""

import re
from typing import Any

import pytest
from rich.console import Console

from imago.runs import Run
from imago.training.callbacks import progress
from imago.training.callbacks.limits import Limits
from imago.training.callbacks.log import TrainingLog
from imago.training.callbacks.progress import Progress


def test_plain_lines_without_a_terminal(toy: Any, fit: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(line_seconds=1e-9)
    fit(toy(), 10, TrainingLog(32, Run(tmp_path)), Limits(160, None, None), bar)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "%" in line]
    assert len(lines) == 11  # each batch, and the end
    assert lines[0].startswith(" 10% · 16 images · ")
    assert lines[-1].startswith("100% · 160 images · loss ")
    assert "images/s" in lines[-1]
    assert "s left" in lines[4]
    assert "\x1b" not in captured.err, "no control characters in a log file"
    assert "%" not in captured.out
    report = bar.subtask("measuring")
    for done in (0, 1, 4):
        report(done, 4)
    err = capsys.readouterr().err
    assert re.fullmatch(r" +measuring\n +measuring: 25% · \d+ s left\n", err), "nothing of the first and the last step"


def test_lines_come_at_intervals(toy: Any, fit: Any, capsys: pytest.CaptureFixture[str]) -> None:
    fit(toy(), 10, Limits(160, None, None), Progress(line_seconds=1000.0))
    lines = [line for line in capsys.readouterr().err.splitlines() if "%" in line]
    assert [line[:4] for line in lines] == [" 10%", "100%"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    def console(file: Any) -> Console:
        return Console(file=file, force_terminal=True, width=120)

    monkeypatch.setattr(progress, "Console", console)


@pytest.mark.usefixtures("terminal")
def test_a_bar_on_a_terminal(toy: Any, fit: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(seconds=1e-9)
    reported = []

    class Measuring(TrainingLog):
        def act(self, *arguments: Any) -> None:
            super().act(*arguments)
            report = bar.subtask("measuring samples")
            reported.append(report)
            report(1, 2)
            bar.end_subtask()

    fit(toy(), 10, Limits(160, None, None), Measuring(64, Run(tmp_path)), bar)
    err = capsys.readouterr().err
    assert len(reported) == 3
    assert "measuring samples" in err
    assert "100%" in err
    assert "160 images · loss" in err
    bar.subtask("later")
    assert capsys.readouterr().err == "       later\n", "the terminal was given back"


@pytest.mark.usefixtures("terminal")
def test_an_error_gives_the_terminal_back(toy: Any, fit: Any) -> None:
    bar, model = Progress(), toy()

    def broken(*given: Any) -> None:
        raise RuntimeError("broken")

    model.batch_losses = broken
    with pytest.raises(RuntimeError, match="broken"):
        fit(model, 3, Limits(160, None, None), bar)
    assert bar._bar is None
