"""Closed pipes and terminals, full disks behind them, encodings without ≤: printing never fails, nor what prints."""

import io
import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imago.cli import streams
from imago.cli.streams import Forgiving, make_forgiving

ROOT = Path(__file__).parents[2]
TRAIN = ["model=gan", "model.generator.hidden=[8]", "model.discriminator.hidden=[8]", "max_images=640", "every.log=64"]
TRAIN += ["metrics=none", "logger=none", "trainer=cpu"]


def closed_pipe() -> int:
    reading, writing = os.pipe()
    os.close(reading)
    return writing


def closed_terminal() -> int:
    controlling, terminal = pty.openpty()
    os.close(controlling)
    return terminal


@pytest.mark.parametrize("made", [closed_pipe, closed_terminal, lambda: os.open("/dev/full", os.O_WRONLY)])
def test_what_cannot_be_printed_is_lost_and_nothing_else(made: object) -> None:
    descriptor = made()  # type: ignore[operator]
    try:
        text = io.TextIOWrapper(io.BufferedWriter(Forgiving(descriptor, "<stdout>")), "utf-8", line_buffering=True)
        for _ in range(3):
            print("x" * 100_000, file=text, flush=True)
        assert text.fileno() == descriptor
        text.close()
    finally:
        os.close(descriptor)


def test_letters_that_an_encoding_has_not() -> None:
    before = sys.stdout
    make_forgiving()
    assert sys.stdout is before, "what tests put in the place of Python's own stays"
    file = io.BytesIO()
    text = io.TextIOWrapper(file, "ascii", "imago.plain", write_through=True)
    text.write("≤ 3.1 ± 0.2 † · Käse\n")
    assert file.getvalue() == b"<= 3.1 +- 0.2 * - K\\xe4se\n"
    assert all(letter.encode("ascii", "strict") for told in streams.PLAIN.values() for letter in told)


def shell(command: str, folder: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {**os.environ, "PY": sys.executable, "SRC": str(ROOT / "src"), **environment}
    return subprocess.run(
        ["bash", "-c", command], cwd=folder, env=variables, capture_output=True, text=True, timeout=300
    )


# compare.py needs no torch: the cheapest way through the whole of a script.
@pytest.mark.parametrize(
    "into", ["| true", "| head -1", ">&-", "2>&-", "<&- >&- 2>&-", ">/dev/full 2>&1", "| cat"], ids=lambda into: into
)
def test_a_script_does_its_work_into_any_stream(tmp_path: Path, into: str) -> None:
    run = tmp_path / "runs" / "a ≤ b"
    run.mkdir(parents=True)
    (run / "summary.json").write_text(
        '{"name": "x ≤ y", "model": "imago.models.gan.GAN", "status": "completed"}', "utf-8"
    )
    script = "set -o pipefail; $PY $SRC/compare.py runs=runs out=board " + into
    done = shell(script, tmp_path, PYTHONIOENCODING="ascii" if "cat" in into else "utf-8")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    assert sorted(path.name for path in (tmp_path / "board").iterdir()) == ["board.csv", "board.html", "board.md"]
    if "cat" in into:
        assert "<=" in done.stdout


INTO = ["| true", "| head -1", ">&-", ">/dev/full", "<&- >&- 2>&-"]


@pytest.mark.parametrize(("given", "code"), [("models", 0), ("--help", 0), ("modles", 2), ("distance a b c", 2)])
def test_a_command_answers_into_any_stream(tmp_path: Path, given: str, code: int) -> None:
    each = "; ".join(f"$PY -m imago {given} {into}; echo $?" for into in [*INTO, "2>&1 | true"])
    done = shell(f"set -o pipefail; {each}", tmp_path, PYTHONPATH=str(ROOT / "src"))
    codes = [line for line in done.stdout.splitlines() if line.isdecimal()]
    assert codes == [str(code)] * 6
    assert not re.search("Traceback|Exception ignored", done.stderr)
    assert done.stderr.count("error: ") == len(done.stderr.splitlines()) == (4 if code else 0)


@pytest.mark.slow
@pytest.mark.parametrize("into", ["2>err | head -1", ">&- 2>err", "<&- >&- 2>&-", ">/dev/full 2>&1", "2>&1 | true"])
def test_training_goes_on_into_any_stream(tmp_path: Path, into: str) -> None:
    done = shell(f"set -o pipefail; $PY $SRC/train.py {' '.join(TRAIN)} {into}", tmp_path, TERM="dumb", COLUMNS="1")
    assert done.returncode == 0, done.stderr
    assert '"status": "completed"' in next(tmp_path.glob("logs/*/*/summary.json")).read_text()
    said = (tmp_path / "err").read_text() if (tmp_path / "err").exists() else done.stderr
    assert not re.search("Traceback|Exception ignored", said)


@pytest.mark.slow
def test_training_goes_on_when_its_terminal_goes(tmp_path: Path) -> None:
    controlling, terminal = pty.openpty()
    command = [sys.executable, str(ROOT / "src" / "train.py"), *TRAIN, "max_images=20000", "every.checkpoints=1000"]
    process = subprocess.Popen(command, cwd=tmp_path, stdin=terminal, stdout=terminal, stderr=terminal)
    os.close(terminal)
    seen = b""
    while b"images" not in seen:
        seen += os.read(controlling, 4096)
    os.close(controlling)
    assert process.wait(300) == 0
    assert '"status": "completed"' in next(tmp_path.glob("logs/*/*/summary.json")).read_text()
