"""Runs that are killed or stopped at random moments lose nothing: kills.py does it, in processes of its own."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import kills
from imago.errors import Interrupted
from imago.training.callbacks.likelihood import MeasureLikelihood
from imago.training.callbacks.measuring import Measuring
from imago.training.callbacks.quality import MeasureQuality
from imago.training.run import train

ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "MASTER_ADDR": "127.0.0.1"}


def test_a_few_signals_lose_nothing() -> None:
    """Forked after importing, so that a run takes a second."""
    command = [sys.executable, kills.__file__, "--kills=6", "--models=gan,vae", "--signals=KILL,KILL,TERM,USR1,HUP"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, timeout=600, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.startswith("6 signals")


@pytest.mark.slow
@pytest.mark.parametrize(("signals", "count"), [("KILL", 200), ("TERM,INT,HUP,USR1,USR2", 100)])
def test_hundreds_of_signals_lose_nothing(signals: str, count: int) -> None:
    command = [sys.executable, kills.__file__, f"--kills={count}", f"--signals={signals}"]
    done = subprocess.run(command, capture_output=True, text=True, env=ENVIRONMENT, check=False)
    print(done.stdout)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("measuring", [MeasureLikelihood, MeasureQuality])
@pytest.mark.parametrize("early", [True, False])
def test_a_stop_in_the_last_measurements_leaves_what_no_stop_leaves(
    measuring: type[Measuring], early: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last checkpoint too: whoever goes on from it keeps the rows that were made up for."""
    end = 16 * kills.UPDATES
    whole = kills.options("made", tmp_path / "whole")
    train(whole, kills.RUN, tmp_path / "whole" / "run")
    measure, told = measuring.measure, []

    def interrupted(self: Any, trainer: Any, model: Any, *others: Any) -> Any:
        stop = model.state.images == end and not told
        if stop:
            told.append(None)
        if stop and early:
            os.kill(os.getpid(), signal.SIGUSR1)
        found = measure(self, trainer, model, *others)
        if stop and not early:
            os.kill(os.getpid(), signal.SIGUSR1)
        return found

    monkeypatch.setattr(measuring, "measure", interrupted)
    stopped = kills.options("made", tmp_path / "stopped")
    with pytest.raises(Interrupted):
        train(stopped, kills.RUN, tmp_path / "stopped" / "run")
    train(stopped, kills.RUN, tmp_path / "stopped" / "run")
    expected, found = (kills.state(tmp_path / name / "run") for name in ("whole", "stopped"))
    assert found["last"]["rows"] == expected["last"]["rows"] == len(found["rows"])
    assert found["rows"] == expected["rows"]


@pytest.mark.slow
def test_two_processes_stop_together_whichever_is_told(tmp_path: Path) -> None:
    """Told both, then the second one alone, then the first one in the closing measurement; then they complete it."""
    script = Path(__file__).parents[2] / "src" / "train.py"
    options = [
        "model=gan", "data=digits", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "logger=csv",
        "model.generator.hidden=[16]", "model.discriminator.hidden=[16]", "data.batch_size=16", "every.log=160",
        "every.samples=100000000", "every.quality=100000000", "every.checkpoints=1600", "metrics=classifier",
        "metrics.samples=20000", "callbacks.quality.at_start=false", "resume=auto",
        "+callbacks.progress.line_seconds=1",
    ]  # fmt: skip

    def run(limit: int, number: int, target: str, waits: str) -> tuple[int, str]:
        log = tmp_path / "log.txt"
        with log.open("w") as file:
            command = [sys.executable, str(script), *options, f"max_images={limit}"]
            process = subprocess.Popen(
                command, cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT, env=ENVIRONMENT, start_new_session=True
            )
            try:
                deadline = time.monotonic() + 240
                while (
                    number and process.poll() is None and time.monotonic() < deadline and waits not in log.read_text()
                ):
                    time.sleep(0.1)
                children = (
                    Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split() if number else []
                )
                if target == "both":
                    os.killpg(process.pid, number)
                elif number:
                    os.kill(int(children[0]) if target == "second" else process.pid, number)
                code = process.wait(240)
            finally:
                if process.poll() is None:
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
        return code, log.read_text()

    def summary() -> dict[str, object]:
        (file,) = tmp_path.glob("logs/*/*/summary.json")
        return json.loads(file.read_text())  # type: ignore[no-any-return]

    code, log = run(10**8, signal.SIGTERM, "both", " · ")
    assert (code, summary()["status"]) == (143, "interrupted"), log
    code, log = run(10**8, signal.SIGUSR1, "second", " · ")
    assert (code, summary()["status"]) == (128 + signal.SIGUSR1, "interrupted"), log
    limit = int(str(summary()["images_seen"])) + 1600
    code, log = run(limit, signal.SIGTERM, "first", "measuring samples")
    assert (code, summary()["status"], summary()["images_seen"]) == (143, "interrupted", limit), log
    code, log = run(limit, 0, "", "")
    assert (code, summary()["status"]) == (0, "completed"), log
    assert summary()["metrics"]
    (table,) = tmp_path.glob("logs/*/*/metrics.csv")
    with table.open() as file:
        seen = [row["images_seen"] for row in csv.DictReader(file) if row["train/loss/generator"]]
    late = seen[seen.index("160") :]  # before that, rows are at halves, quarters, ... of the interval
    assert late == [*(str(k) for k in range(160, limit, 160)), str(limit)]
