"""The command line: what works, and that every mistake ends with one message, exit code 2 and no traceback."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "src"))
SMALL = ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]", "logger=csv", "metrics=none", "trainer=cpu"]


@pytest.fixture
def command(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """Runs train.py in this process; gives exit code, standard output and standard error."""
    from imago.cli import train

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HYDRA_FULL_ERROR", "0")

    def run(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", [str(ROOT / "src" / "train.py"), *arguments])
        with pytest.raises(SystemExit) as exit_info:
            train.command()
        captured = capsys.readouterr()
        return int(exit_info.value.code or 0), captured.out, captured.err

    return run


def test_help_and_cfg_are_readable(command) -> None:
    code, out, _ = command("--help")
    assert code == 0
    for word in ("model: autoencoder, ", "data: ", "metrics: ", "logger: ", "resume", "python src/train.py"):
        assert word in out
    code, out, _ = command("--cfg", "job", "model=dcgan")
    assert code == 0
    assert "imago.nets.dcgan.DCGANGenerator" in out


def test_a_pattern_of_choices_is_a_choice(command) -> None:
    code, out, err = command("-m", "model=gan", "model/objective=glob(h*)", *SMALL, "max_images=64")
    assert code == 0, err
    assert "model/objective=hinge" in out + err


def test_a_run_leaves_its_directory(command, tmp_path: Path, monkeypatch) -> None:
    """Its folder is made by the run itself, as its own: what another process finds before would be nobody's."""
    from imago.runs import claim
    from imago.training import run as run_module

    asked = []
    monkeypatch.setattr(run_module, "claim", lambda path: asked.append(path.parent.exists()) or claim(path))
    code, out, _ = command(*SMALL, "max_images=256", "every.log=64", "every.samples=128")
    assert code == 0
    assert asked == [False]
    (run,) = tmp_path.glob("logs/gan-digits/*")
    summary = json.loads((run / "summary.json").read_text())
    assert (summary["status"], summary["images_seen"], summary["updates"]) == ("completed", 256, 4)
    assert summary["split"].startswith("digits: train")
    for key in ("parameters", "seconds", "images_per_second", "peak_memory_mib", "versions", "git_commit", "command"):
        assert summary[key] is not None, key
    for name in ("config.yaml", "metrics.csv", "curves.png", "checkpoints/last.ckpt", "samples/images-0000000256.png"):
        assert (run / name).exists(), name
    with (run / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["images_seen"] for row in rows] == ["64", "128", "192", "256"]
    for name in (
        "d_x",
        "d_g_z",
        "loss/discriminator",
        "loss/generator",
        "gradient_norm/discriminator",
        "gradient_norm/generator",
    ):
        assert all(float(row[f"train/{name}"]) is not None for row in rows)
    assert str(run.relative_to(tmp_path)) in out


def test_an_estimate_starts_nothing_and_leaves_nothing(
    command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from imago.training import estimate

    monkeypatch.setattr(estimate, "PROBE", 0.01)
    code, out, err = command(*SMALL, "estimate=true", "max_images=1000")
    assert (code, err) == (0, "")
    assert "1,000 images, 15 updates, until max_images=1,000" in out
    for row in ("parameters", "arithmetic", "memory", "time", "training", "measuring"):
        assert re.search(rf"^  {row} .*\d", out, re.MULTILINE), row
    code, out, _ = command("-m", *SMALL, "estimate=true", "max_images=1000", "seed=1,2")
    assert code == 0
    lines = [line for line in out.splitlines() if "training" in line]
    assert [line.split(":")[0] for line in lines[:2]] == ["gan-digits seed=1", "gan-digits seed=2"]
    assert lines[2].startswith("2 jobs, one after the other: ")
    assert not list(tmp_path.iterdir())


def test_multirun_jobs_are_apart_also_when_one_fails(command, tmp_path: Path) -> None:
    code, _, err = command(
        "-m", "logger=wandb", *SMALL[3:], "max_images=64", "model=gan,dcgan", "data.batch_size=16,9999"
    )
    assert code == 2
    assert err.count("error: data.batch_size=9999") == 2 or err.count("9999") >= 2
    finished = sorted(tmp_path.glob("logs/sweeps/*/*/summary.json"))
    assert [json.loads(path.read_text())["status"] for path in finished] == ["completed", "completed"]
    offline = list(tmp_path.glob("logs/sweeps/*/*/wandb/offline-run-*"))
    assert len({path.name for path in offline}) == 2
    assert len({json.loads(path.read_text())["wandb_id"] for path in finished}) == 2


def test_a_sweep_without_measurements(command, tmp_path: Path) -> None:
    given = ["logger=csv", "metrics=none", "trainer=cpu", "model=gan,made", "seed=0", "max_images=64"]
    code, _, err = command("-m", "sweep=lecture", *given)
    assert code == 0, err
    finished = sorted(tmp_path.glob("logs/sweeps/*/*/summary.json"))
    assert [json.loads(path.read_text())["status"] for path in finished] == ["completed", "completed"]


def test_a_run_that_breaks_later_exits_1_and_leaves_its_summary(command, tmp_path: Path, monkeypatch) -> None:
    from imago.models.gan import GAN

    losses = GAN.losses

    def broken(self: GAN, *given: object) -> object:
        if self.state.updates == 3:
            raise RuntimeError("the disk is on fire")
        return losses(self, *given)

    monkeypatch.setattr(GAN, "losses", broken)
    code, _, err = command(*SMALL, "max_images=1000")
    assert code == 1
    assert "the disk is on fire" in err
    (summary,) = tmp_path.glob("logs/*/*/summary.json")
    content = json.loads(summary.read_text())
    assert content["status"] == "failed"
    assert "the disk is on fire" in content["error"]


def test_a_loss_that_is_no_number_stops_the_run_and_names_the_checkpoint(command, tmp_path: Path) -> None:
    code, _, err = command(
        *SMALL, "max_images=100000", "every.log=640", "every.checkpoints=64", "model.optimizer.discriminator.lr=1e30"
    )
    assert code == 1
    assert re.search(r"^error: .*= (nan|inf).* after \d+ images; last good checkpoint", err, re.MULTILINE)
    assert "Traceback" not in err
    (summary,) = tmp_path.glob("logs/*/*/summary.json")
    assert json.loads(summary.read_text())["status"] == "failed"


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_signals_write_a_checkpoint_and_exit_with_their_code(number: int, expected: int, tmp_path: Path) -> None:
    options = [*SMALL, "max_images=100000000", "every.log=640"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "src" / "train.py"), *options],
        cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment,
    )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and process.poll() is None:
            tables = list(tmp_path.glob("logs/*/*/metrics.csv"))
            if tables and len(tables[0].read_text().splitlines()) > 2:
                break
            time.sleep(0.2)
        process.send_signal(number)
        output, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == expected, output
    (run,) = tmp_path.glob("logs/gan-digits/*")
    assert json.loads((run / "summary.json").read_text())["status"] == "interrupted"
    assert (run / "checkpoints" / "last.ckpt").exists()
