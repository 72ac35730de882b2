"""What a path must be before torch is loaded for it."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from imago.cli.outputs import OUTPUTS
from imago.errors import UserError, reason_of
from imago.paths import ENDINGS, check_folder_place, checkpoint_file, run_to_resume

SOURCE = Path(__file__).parents[1] / "src"


def test_a_run_means_its_last_checkpoint(tmp_path: Path) -> None:
    file = saved(tmp_path / "run")
    assert checkpoint_file(tmp_path / "run") == checkpoint_file(str(file)) == file


def saved(run: Path, name: str = "last.ckpt", age: int = 0) -> Path:
    """A checkpoint that was written so many seconds ago."""
    file = run / "checkpoints" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    torch.save({"progress": {"images_seen": 5}}, file)
    os.utime(file, (1e9 - age, 1e9 - age))
    return file


def test_a_folder_of_runs_means_the_newest_with_a_checkpoint(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    logs = tmp_path / "vae-mnist"
    for run, age in (("a", 20), ("b", 10), ("c", 30)):
        saved(logs / run, age=age)
        saved(logs / run, "previous.ckpt", age + 20)
    (logs / "d" / "checkpoints").mkdir(parents=True)  # begun just now
    file = logs / "b" / "checkpoints" / "last.ckpt"
    assert checkpoint_file(logs) == file
    assert run_to_resume(logs) == logs / "b"
    told = capsys.readouterr().err.splitlines()
    assert told == [
        f"note: {key}={logs}: of the 3 runs in it the newest is used, b" for key in ("checkpoint", "resume")
    ]
    (logs / "multirun.yaml").touch()
    with pytest.raises(UserError, match=r"^checkpoint=.*: a sweep of 3 runs; give one of them, .*/NAME: a, b, c$"):
        checkpoint_file(logs)
    with pytest.raises(UserError, match=r"^checkpoint=.*/d: a folder without checkpoints/last\.ckpt; a checkpoint is"):
        checkpoint_file(logs / "d")


def test_what_is_no_checkpoint_is_told_as_what_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"weights": torch.zeros(1000)}, "whole")
    Path("cut").write_bytes(Path("whole").read_bytes()[:2000])
    Path("empty").touch()
    Path("text").write_text("# A title")
    np.savez("arrays", images=np.zeros(3))
    Path("folder").mkdir()
    none = (
        "no checkpoint of this program; a checkpoint is a run directory (logs/NAME/TIME), a .ckpt file in its folder "
    )
    for name, message in {
        "cut": "cannot be read, it is cut short or damaged; use another one",
        "empty": none,
        "text": none,
        "arrays.npz": none,
        "folder": "a folder without checkpoints/last.ckpt; a checkpoint is a run directory",
        "nowhere": "no such file or folder; a checkpoint is a run directory",
        "whole/below": "no such file or folder; ",
        "x" * 300: "cannot be read (File name too long); use another one",
    }.items():
        with pytest.raises(UserError) as error:
            checkpoint_file(name)
        assert str(error.value).startswith(f"checkpoint={name}: {message}")


def test_a_path_of_very_many_folders_is_refused() -> None:
    with pytest.raises(UserError, match=r"^logs: a path of 2,000 folders is too long; choose another place$"):
        check_folder_place(Path("b/" * 2000), "logs")


def test_the_reason_of_the_system_names_no_file_where_there_is_none() -> None:
    assert reason_of(OSError(28, "No space left on device")) == "No space left on device"
    assert reason_of(OSError(28, "No space left on device", "a/b")) == "No space left on device: a/b"


def test_every_ending_has_a_writer() -> None:
    assert set(ENDINGS) == set(OUTPUTS)


@pytest.mark.parametrize(
    ("script", "given", "told"),
    [
        ("sample", ["checkpoint=nowhere"], "error: checkpoint=nowhere: no such file"),
        ("sample", ["checkpoint=nowhere", "out=x.jpgg"], "error: out=x.jpgg: cannot write .jpgg files"),
        ("evaluate", ["checkpoint=[nowhere,text]"], "checkpoint=text: no checkpoint of this program"),
        ("figure", ["checkpoint=nowhere"], "error: checkpoint=nowhere: no such file"),
        ("train", ["resume=nowhere"], "error: resume=nowhere: no such file"),
        ("train", ["experiment=sngan", "model=gan"], "error: experiment=sngan model=gan: "),
    ],
)
def test_a_slip_does_not_wait_for_torch(script: str, given: list[str], told: str, tmp_path: Path) -> None:
    (tmp_path / "text").write_text("# A title")
    program = (
        f"import sys\nfrom imago import cli\nfrom imago.cli import {script}\n"
        f"sys.argv = ['{script}.py', *sys.argv[1:]]\ntry:\n"
        f"    cli.run({script}.main, '{script}')\nfinally:\n    print('torch' in sys.modules)\n"
    )
    ended = subprocess.run(
        [sys.executable, "-c", program, *given],
        cwd=tmp_path, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )  # fmt: skip
    assert (ended.returncode, ended.stdout) == (2, "False\n"), ended.stderr
    assert told in ended.stderr
