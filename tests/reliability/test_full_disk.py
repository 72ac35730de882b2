"""No room on the disk, at every writer: what could not be written is said once, and nothing else is lost."""

import errno
import io
import json
import re
import resource
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import matplotlib.figure
import pytest
import torch
from PIL import Image

from helpers import Command, small
from imago import checkpoints
from imago.checkpoints import AtomicCheckpointIO, read
from imago.cli.outputs import OUTPUTS
from imago.errors import RunError
from imago.figures import curves
from imago.files import UNFINISHED, write_text
from imago.images import ImageSpec
from imago.pictures import write_png
from imago.runs import CSVLogger, Run
from imago.training.callbacks import samples
from imago.training.callbacks.likelihood import MeasureLikelihood
from imago.training.run import train

VAE = ["model=vae", "model.encoder.hidden=[8]", "model.decoder.hidden=[8]", "every.log=64", "every.samples=64"]
VAE += ["every.likelihood=64", "every.checkpoints=64"]
FULL = OSError(errno.ENOSPC, "No space left on device")
NOISE = torch.randint(0, 256, (64, 3, 64, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@contextmanager
def at_most(size: int) -> Iterator[None]:
    """Inside no file becomes larger: as with a quota, the write that would is cut short, and the next one fails."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def litter(folder: Path) -> list[str]:
    """What writers have left behind."""
    return [str(p) for p in folder.rglob("*") if UNFINISHED in p.name or p.suffix == ".tmp"]


def output(path: Path) -> None:
    """All images into a file or folder, as sample.py does."""
    out = OUTPUTS[path.suffix](path)
    out.begin({}, ImageSpec(3, 64, 64), len(NOISE), None)
    out.add(list(range(len(NOISE))), NOISE)
    out.end()


WRITERS: dict[str, tuple[str, Callable[[Path], None]]] = {
    "text": ("x.json", lambda path: write_text(path, "x" * 100_000)),
    "checkpoint": ("x.ckpt", lambda path: AtomicCheckpointIO().save_checkpoint({"a": torch.rand(100_000)}, path)),
    "many tensors": (
        "x.ckpt",
        lambda path: AtomicCheckpointIO().save_checkpoint({str(k): torch.rand(50) for k in range(500)}, path),
    ),
    "picture": ("x.png", lambda path: write_png(Image.frombytes("RGB", (64, 4096), NOISE.numpy().tobytes()), path)),
    "figure": ("x.png", lambda path: write_png(matplotlib.figure.Figure((20, 20), facecolor="red"), path, dpi=200)),
    "grid": ("x.png", output),
    "arrays": ("x.npz", output),
    "folder": ("x", output),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_an_older_file_stays_whole_and_no_half_one_is_left(tmp_path: Path, writer: str) -> None:
    name, write = WRITERS[writer]
    path = tmp_path / name
    if path.suffix:
        path.write_bytes(b"old")
    with at_most(4096), pytest.raises(Exception, match=r"File too large|cannot be written \(File too large\)") as error:
        write(path)
    assert isinstance(error.value, OSError) or type(error.value).__name__ == "UserError"
    assert litter(tmp_path) == []
    if path.suffix:
        assert (path.read_bytes(), len(list(tmp_path.iterdir()))) == (b"old", 1)
    write(path)
    assert litter(tmp_path) == []


def test_rows_without_room_are_never_torn_and_come_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = CSVLogger(tmp_path / "metrics.csv")
    for k in range(10):
        table.log_metrics({"images_seen": k, "x": 0.123456789})
    size = table.path.stat().st_size
    with at_most(size + 7):
        for k in range(10, 20):
            table.log_metrics({"images_seen": k, "x": 0.123456789})
            assert table.path.stat().st_size == size
        table.log_metrics({"images_seen": 20, "new": 1.0})
        table.save()
    err = capsys.readouterr().err
    assert re.fullmatch(r"note: .*metrics\.csv: File too large; the run goes on\n", err), err
    table.save()  # as every checkpoint does that counts the rows
    lines = table.path.read_text().splitlines()
    assert lines == ["images_seen,x,new", *(f"{k},0.123456789," for k in range(20)), "20,,1.0"]
    assert litter(tmp_path) == []


def test_nothing_beside_the_training_ends_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Grids, curves, measurements: each is said once, and the weights are those of a run with room."""
    whole = train(small(tmp_path, *VAE, "max_images=256"), "whole", tmp_path / "whole")

    def full(*arguments: Any, **options: Any) -> Any:
        raise FULL

    monkeypatch.setattr(samples, "write_png", full)
    monkeypatch.setattr(curves, "write_png", full)
    monkeypatch.setattr(MeasureLikelihood, "measure", full)
    capsys.readouterr()
    run = train(small(tmp_path, *VAE, "max_images=256"), "bare", tmp_path / "bare")
    told = re.findall(r"^note: (.*?): No space left on device; the run goes on$", capsys.readouterr().err, re.MULTILINE)
    assert sorted(told) == ["curves.png", "measuring likelihood", "sample grid"]
    assert run.summary["status"] == "completed"
    assert set(run.summary["problems"]) == {"curves.png", "measuring likelihood", "sample grid"}
    ours, theirs = (read(r.last)["state_dict"] for r in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_a_summary_without_room_is_written_later(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Run(tmp_path)
    run.update(status="running")
    with at_most(10):
        run.update(images_seen=1)
        with run.beside("sample grid"):
            raise FULL
        with run.beside("sample grid"):
            raise FULL
    err = capsys.readouterr().err
    assert [line.split(":")[1] for line in err.splitlines()] == [" summary.json", " sample grid"]
    assert json.loads(run.summary_path.read_text()) == {"status": "running"}
    run.update(images_seen=2)
    problems = {"sample grid": "No space left on device"}
    assert json.loads(run.summary_path.read_text()) == {"status": "running", "images_seen": 2, "problems": problems}


def test_without_room_for_a_checkpoint_the_run_stops_and_goes_on_when_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, calls = torch.save, [0]

    def third(content: Any, file: Any) -> None:
        calls[0] += 1
        with at_most(4096) if calls[0] == 3 else io.BytesIO():
            original(content, file)

    options = small(tmp_path / "b", *VAE, "max_images=320", "callbacks=minimal")
    whole = train(small(tmp_path / "a", *VAE, "max_images=320", "callbacks=minimal"), "x", tmp_path / "a" / "x")
    with monkeypatch.context() as patch:
        patch.setattr(checkpoints.torch, "save", third)
        with pytest.raises(RunError, match=r"last\.ckpt: cannot be written \(File too large\), so the run stops; last"):
            train(options, "x", tmp_path / "b" / "x")
    run = Run(tmp_path / "b" / "x")
    assert (litter(tmp_path), run.summary["status"]) == ([], "failed")
    assert read(run.last)["progress"]["images_seen"] == 128, "the one before is whole"
    train(options | {"resume": "auto"}, "x", tmp_path / "b" / "y")
    assert run.metrics.read_text().count("\n") == whole.metrics.read_text().count("\n")
    ours, theirs = (read(r.last)["state_dict"] for r in (run, whole))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """A file system of its own; called with its size in KiB, again to make it larger."""
    path = tmp_path / "disk"
    path.mkdir()

    def mount(kib: int) -> Path:
        how = ["-o", f"remount,size={kib}k"] if path.is_mount() else ["-t", "tmpfs", "-o", f"size={kib}k", "tmpfs"]
        done = subprocess.run(["mount", *how, path], capture_output=True, text=True)
        if done.returncode:
            pytest.skip(f"no file system can be mounted here: {done.stderr.strip()}")
        return path

    yield mount
    if path.is_mount():
        subprocess.run(["umount", "--lazy", path], check=True)


TRAIN = ["model=gan", "model.generator.hidden=[8]", "model.discriminator.hidden=[8]", "metrics=classifier"]
TRAIN += ["metrics.samples=32", "max_images=320", "every.log=32", "every.samples=64", "every.checkpoints=64"]
TRAIN += ["every.quality=128", "trainer=cpu", "data.batch_size=16"]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # TensorBoard's
@pytest.mark.parametrize("logger", ["csv", "wandb", "tensorboard"])
def test_a_disk_of_any_size_ends_no_run_for_good(
    tmp_path: Path, script: Command, disk: Callable[[int], Path], logger: str
) -> None:
    """At every size the run is complete or stops with one message; with room it goes on to the same weights."""
    given = [*TRAIN, f"logger={logger}"]
    assert script("train", *given, "logs=whole")[0] == 0
    (whole,) = Path("whole").glob("*/*/checkpoints/last.ckpt")
    expected, ends = read(whole)["state_dict"], []
    for kib in [*range(4, 100, 8), *range(100, 500, 24), *range(500, 1500, 100)]:
        folder = disk(kib) / f"logs-{kib}"
        code, out, err = script("train", *given, f"logs={folder}")
        assert code in (0, 1, 2), err
        assert "Traceback" not in out + err
        assert len(re.findall(r"^error: ", err, re.MULTILINE)) == (code > 0), err
        assert litter(folder) == []
        found = list(folder.glob("*/*/checkpoints/last.ckpt"))
        ends.append((kib, code, len(found)))
        disk(100_000)
        code, out, err = script("train", *given, f"logs={folder}", "resume=auto") if ends[-1][1] else (0, "", "")
        assert code == 0, (kib, err)
        last = sorted(folder.glob("*/*/checkpoints/last.ckpt"))[-1]
        assert all(torch.equal(read(last)["state_dict"][name], expected[name]) for name in expected), kib
        shutil.rmtree(folder)
    print(*ends, sep="\n")
    assert {code for _, code, _ in ends} >= {0, 1}
    assert {count for _, code, count in ends if code == 1} >= {0, 1}, "with and without a checkpoint to go on from"


@pytest.mark.slow
def test_every_script_on_a_full_disk(tmp_path: Path, script: Command, disk: Callable[[int], Path]) -> None:
    """One message, no half file and no litter; with room the same command does it."""
    assert script("train", *TRAIN, "logger=none", "logs=logs")[0] == 0
    (run,) = Path("logs").glob("gan*/*")
    place = disk(100_000)
    shutil.copytree(run, place / "run")
    commands = {
        "sample": [["n=400", f"out={place}/x.png"], ["n=400", f"out={place}/x.npz"], ["n=400", f"out={place}/x"]],
        "figure": [["figure=interpolation", f"out={place}/y.png"]],
        "evaluate": [["metrics=classifier", "metrics.samples=32"]],
        "compare": [[f"runs={place}", f"out={place}/board"]],
        "train_classifier": [["max_images=500", f"out={place}/c.pt"]],
    }
    for name, variants in commands.items():
        for arguments in variants:
            if name in ("sample", "figure", "evaluate"):
                arguments = [f"checkpoint={place}/run", *arguments]
            with (place / "ballast").open("wb") as ballast:
                room = shutil.disk_usage(place).free
                ballast.write(bytes(room - room % 4096))
            before = set(place.rglob("*"))
            code, out, err = script(name, *arguments)
            assert code in (1, 2), (name, out, err)
            assert "Traceback" not in out + err
            assert len(re.findall(r"^error: ", err, re.MULTILINE)) == 1, err
            assert litter(place) == []
            new = {path for path in place.rglob("*") if path.is_file()} - before
            assert {path.name for path in new} <= {".evaluation.lock"}, new
            (place / "ballast").unlink()
            code, out, err = script(name, *arguments)
            assert code == 0, (name, out, err)
