"""The progress bar."""

import re
from typing import Any

import pytest
from rich.console import Console

from imago.runs import Run
from imago.training.callbacks import progress
from imago.training.callbacks.common import find
from imago.training.callbacks.limits import Limits
from imago.training.callbacks.log import TrainingLog
from imago.training.callbacks.pace import Paced
from imago.training.callbacks.progress import Progress


def test_plain_lines_without_a_terminal(toy: Any, fit: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress(line_seconds=1e-9)
    fit(toy(), 10, TrainingLog(32, Run(tmp_path)), Limits(160, None, None), bar)
    captured = capsys.readouterr()
    lines = [line for line in captured.err.splitlines() if "%" in line]
    assert len(lines) == 11  # each batch, and the end
    assert lines[0].startswith(" 10% · 16 images")
    assert lines[-1].startswith("100% · 160 images · loss ")
    assert "images/s" in lines[-1]
    assert "s left" in lines[4]
    assert "\x1b" not in captured.err, "no control characters in a log file"
    assert "%" not in captured.out
    assert "s left" not in lines[0], "one step tells nothing"
    assert "s left" not in lines[-1]
    report = bar.subtask("measuring", seconds=2)
    for done in (0, 1, 4):
        report(done, 4)
    bar.end_subtask({"nats": 93.125, "bpd": 0.171, "elbo/kl": 3.0})
    told = capsys.readouterr().err.splitlines()
    assert told[0] == "       measuring, about 2 s"
    assert re.fullmatch(r" +measuring: 25% · \d+ s left", told[1]), "nothing of the first and the last step"
    assert told[2:] == ["       measuring: nats 93.125, bpd 0.171"]


def test_work_has_one_line_that_says_what_came_out(capsys: pytest.CaptureFixture[str]) -> None:
    bar = Progress()
    bar.subtask("measuring likelihood", seconds=3)
    bar.end_subtask({"bpd": 0.5})
    bar.subtask("drawing samples")
    bar.end_subtask("80, samples/x.png")
    bar.subtask("abandoned")
    bar.end_subtask()
    told = "       measuring likelihood: bpd 0.5\n       drawing samples: 80, samples/x.png\n"
    assert capsys.readouterr().err == told
    bar.subtask("measuring samples", seconds=100)
    assert capsys.readouterr().err == "       measuring samples, about 100 s\n", "that takes long"


@pytest.mark.parametrize(
    ("latest", "shown"),
    [
        ({"nats": 93.0, "bpd": 0.2, "elbo/kl": 3.0}, "nats 93.000"),
        ({"loss/discriminator": 1.0, "loss/generator": 2.0, "accuracy": 0.5}, "discriminator 1.000 · generator 2.000"),
        ({"loss": 0.25, "nats": 93.0}, "loss 0.250 · nats 93.000"),
        ({"reconstruction_error": 0.5, "grad_norm": 2.0}, "reconstruction_error 0.500"),
    ],
)
def test_a_line_says_how_training_goes_whatever_the_model_logs(
    toy: Any, fit: Any, tmp_path: Any, capsys: pytest.CaptureFixture[str], latest: dict, shown: str
) -> None:
    class Log(TrainingLog):
        def act(self, *arguments: Any) -> None:
            super().act(*arguments)
            self.latest = latest

    fit(toy(), 3, Log(16, Run(tmp_path)), Limits(160, None, None), Progress(line_seconds=1e-9))
    line = next(line for line in capsys.readouterr().err.splitlines() if " 48 images" in line)
    assert re.match(rf" 30% · 48 images · {shown} · [\d,]+ images/s · ", line), line


def test_what_is_beside_training_is_within_the_seconds_left(toy: Any, fit: Any) -> None:
    """So many seconds for each of training as callbacks may take, however long the first took, and the last action."""

    class Drawing(Paced):
        portion = 0.5

        def act(self, *_: Any) -> None:
            pass

    model, drawing = toy(), Drawing(10**9, share=0.2)
    trainer = fit(model, 1, drawing, Limits(None, None, 100.0))
    limits = find(trainer, Limits)
    model.state.seconds, drawing.spent, drawing.cost = 50.0, 40.0, 7.0
    assert progress.seconds_left(trainer, model, limits) == pytest.approx(50 * 1.1 + 7)
    drawing.spent = 1.0
    assert progress.seconds_left(trainer, model, limits) == pytest.approx(50 * 1.02 + 7)


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
            bar.end_subtask({"bpd": 0.5})

    fit(toy(), 10, Limits(160, None, None), Measuring(64, Run(tmp_path)), bar)
    err = capsys.readouterr().err
    assert len(reported) == 3
    assert "measuring samples" in err
    assert "100%" in err
    assert "160 images · loss" in err
    assert "bpd 0.5" in err
    bar.subtask("later")
    bar.end_subtask("done")
    assert capsys.readouterr().err == "       later: done\n", "the terminal was given back"


@pytest.mark.usefixtures("terminal")
def test_an_error_gives_the_terminal_back(toy: Any, fit: Any) -> None:
    bar, model = Progress(), toy()

    def broken(*given: Any) -> None:
        raise RuntimeError("broken")

    model.batch_losses = broken
    with pytest.raises(RuntimeError, match="broken"):
        fit(model, 3, Limits(160, None, None), bar)
    assert bar._bar is None
