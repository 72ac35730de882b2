"""compare.py as a user starts it: what it writes, its one-line refusals, and its speed."""

import re
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from helpers import Command

from .conftest import MakeRun, likelihood

ROOT = Path(__file__).parents[2]


@pytest.fixture
def command(script: Command) -> Command:
    """Runs compare.py; see ``script``."""
    return partial(script, "compare")


def test_it_writes_three_files_and_says_where(command: Command, make_run: MakeRun) -> None:
    make_run("logs/made-mnist/1")
    make_run("logs/sweeps/x/0-vae-mnist", model="vae", metrics="damaged", checkpoint=None)
    code, out, err = command()
    assert (code, err) == (0, "")
    assert out.splitlines()[-3:] == ["logs/board/board.html", "logs/board/board.csv", "logs/board/board.md"]
    assert all(Path(line).stat().st_size > 200 for line in out.splitlines()[-3:])
    assert re.search(r"0-vae-mnist: no checkpoint$", out, re.MULTILINE)
    again, out, _ = command("runs=logs", "out=elsewhere")
    assert again == 0
    assert Path("elsewhere/board.html").exists()
    assert out.count("made-mnist") > 0


def test_the_claims_stand_beside_the_board(command: Command, make_run: MakeRun) -> None:
    make_run("logs/made-mnist/1")
    code, out, err = command("report=claims")
    assert (code, err) == (0, "")
    told = "all numbers: logs/board/board.html, board.csv and board.md"
    assert out.splitlines()[-3:] == [told, "logs/board/claims.html", "logs/board/claims.md"]
    assert "status" not in out, "the board is not printed again"
    assert "would answer it: python src/train.py -m sweep=lecture data=mnist data.binarize=dynamic " in out
    assert command("report=claim")[0] == 2
    code, out, err = command("report=tree")
    assert (code, err, out.splitlines()) == (0, "", [told, "logs/board/tree.html", "logs/board/tree.svg"])
    assert Path("logs/board/board.md").exists()


def test_places_can_be_a_list_a_glob_and_partly_empty(command: Command, make_run: MakeRun) -> None:
    make_run("logs/made-mnist/1")
    make_run("logs/vae-mnist/2", model="vae")
    code, out, _ = command("runs=[logs/made-mnist,logs/nothing]")
    assert code == 0
    assert "runs: logs/nothing: no such folder" in out
    assert "vae" not in out
    assert "vae" in command("runs=logs/v*")[1]


MISTAKES = [
    (["runs=nowhere"], r"^error: runs=nowhere: no such folder; a run .*Train one with python src/train\.py"),
    (["runs=[nowhere,empty]"], r"^error: runs=nowhere: no such folder; runs=empty: no run below it; a run "),
    (["runs=empty"], r"^error: runs=empty: no run below it; a run "),
    (["runs=[]"], r"runs=\[\]"),
    (["runs=3"], r"runs=3: input should be a valid"),
    (["runs=logs", "out=file"], r"out=file: file is no folder; choose another place"),
    (["run=logs"], r"run=logs: no such setting; did you mean runs\?"),
]


@pytest.mark.parametrize(("given", "message"), MISTAKES, ids=[" ".join(m[0]) for m in MISTAKES])
def test_a_mistake_ends_with_one_message(command: Command, make_run: MakeRun, given: list[str], message: str) -> None:
    make_run("logs/made-mnist/1")
    Path("empty").mkdir()
    Path("file").touch()
    code, out, err = command(*given)
    assert (code, out) == (2, "")
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(message, error), error
    assert "Traceback" not in err


def test_a_hundred_runs_cost_little_more_than_their_reading_and_no_torch(make_run: MakeRun, tmp_path: Path) -> None:
    """With colour grids and half a million rows in all. Seconds of its own, against the same files read plainly:
    machines differ by a factor of three, and a busy one is slower still."""
    results = [{"name": "test/nats", "value": 90.0, "protocol": likelihood("test")}]
    first = make_run("logs/made-mnist/0", evaluation=results)
    header = "images_seen,updates,val/nats,val/bpd,train/nats,train/bpd,time/training_seconds\n"
    lines = [f"{100 * k},{k},,,{500 / k + 80},{1 / k},{k / 7}\n" for k in range(1, 5001)]
    lines[::500] = [f"{50_000 * k},{500 * k},{500 / (k + 1) + 80},0.2,,,\n" for k in range(10)]
    (first / "metrics.csv").write_text(header + "".join(lines))
    noise = np.random.default_rng(0).integers(0, 256, (265, 331, 3), dtype=np.uint8)
    Image.fromarray(noise.repeat(2, 0).repeat(2, 1)).save(first / "samples" / "images-0000000200.png")
    for k in range(1, 100):
        shutil.copytree(first, tmp_path / "logs" / "made-mnist" / str(k))
    script = (
        "import csv, glob, sys, time, runpy; sys.argv = ['compare.py', 'runs=logs']\n"
        "for name in glob.glob('logs/*/*/metrics.csv'):\n"
        "    with open(name) as file: [float(v) for row in csv.DictReader(file) for v in row.values() if v]\n"
        "plain = time.process_time()\n"
        f"sys.path.insert(0, {str(ROOT / 'src')!r})\n"
        f"try: runpy.run_path({str(ROOT / 'src' / 'compare.py')!r}, run_name='__main__')\n"
        "except SystemExit as end: assert not end.code\n"
        "assert 'torch' not in sys.modules and 'lightning' not in sys.modules\n"
        "print('ratio', time.process_time() / plain - 1)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) < 4
    assert (tmp_path / "logs" / "board" / "board.html").stat().st_size < 20e6
