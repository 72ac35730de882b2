"""sample.py into folders: images that are there are kept, missing ones are drawn, other settings are refused."""

import json
import os
import re
import shutil
import signal
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from helpers import Command, configuration, small
from imago.cli.outputs import Folder
from imago.data import folder_data
from imago.errors import UserError
from imago.files import UNFINISHED, replacing
from imago.images import ImageSpec
from imago.models.gan import GAN
from imago.runs import Run
from imago.training.run import train

GAN_SIZES = ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]", "max_images=160"]
PIXELS = ["model=pixelcnn", "model.features=8", "model.blocks=1", "model.head=[8]", "data.binarize=threshold"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    few = ["data=digits", "logger=csv", "metrics=none", "trainer=cpu", "max_images=64", f"logs={root}"]
    chosen = {
        "plain": small(root, *GAN_SIZES),
        "longer": small(root, *GAN_SIZES, "max_images=192"),
        "classes": small(root, *GAN_SIZES, "conditional=true"),
        "pixels": configuration(*few, *PIXELS),
        "vae": configuration(*few, "model=vae", "model.encoder.hidden=[8]", "model.decoder.hidden=[8]"),
    }
    return {name: train(config, name, root / name) for name, config in chosen.items()}


@pytest.fixture
def command(script: Command) -> Command:
    """Runs sample.py; see ``script``."""
    return partial(script, "sample")


def content(folder: str) -> dict[str, bytes]:
    """Every file below a folder, hidden ones too."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in Path(folder).rglob("*") if file.is_file()}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many images the GANs were asked for, call by call."""
    counts: list[int] = []
    original = GAN.generate

    def counting(self: GAN, n: int, *rest: Any) -> Any:
        counts.append(n)
        return original(self, n, *rest)

    monkeypatch.setattr(GAN, "generate", counting)
    return counts


def interrupt(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Ctrl-C while the image behind ``after`` others is being written: half of its file is there."""
    original, calls = Image.Image.save, [0]

    def save(self: Image.Image, file: Any, *rest: Any) -> None:
        original(self, file, *rest)
        calls[0] += 1
        if calls[0] > after:
            file.truncate(40)
            raise KeyboardInterrupt

    monkeypatch.setattr(Image.Image, "save", save)


@pytest.fixture(scope="module")
def wholes() -> dict[str, dict[str, bytes]]:
    """Of each run what was drawn in one go."""
    return {}


@pytest.mark.parametrize("run", ["plain", "classes", "pixels"])
@pytest.mark.parametrize("after", [0, 4, 6, 10])
def test_interrupted_and_continued_is_drawn_in_one_go(
    command: Command, runs: dict[str, Run], wholes: dict[str, dict[str, bytes]], run: str, after: int
) -> None:
    given = [f"checkpoint={runs[run].path}", "n=11", "batch_size=4", "seed=3"]
    if run not in wholes:
        code, out, err = command(*given, "out=whole")
        assert code == 0, err
        assert re.search(r"^whole: 11 images in [\d.]+ s, [\d,.]+ images/s$", out, re.M)
        wholes[run] = content("whole")
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, after)
        assert command(*given, "out=parts")[0] == 130
    assert len(list(Path("parts").rglob("[0-9]*.png"))) == after, (
        "what was written stays, and what was not is not there"
    )
    code, out, err = command(*given, "out=parts")
    assert code == 0, err
    were = f"of which {after} were there and {11 - after} were drawn in" if after else "in"
    assert re.search(rf"^parts: 11 images {were} [\d.]+ s, [\d,.]+ images/s$", out, re.M), out
    assert content("parts") == wholes[run]


def test_every_batch_is_written_before_the_next_is_drawn(
    command: Command, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[int] = []
    original = GAN.generate

    def looking(self: GAN, n: int, *rest: Any) -> Any:
        written.append(len(list(Path("x").glob("*.png"))))
        return original(self, n, *rest)

    monkeypatch.setattr(GAN, "generate", looking)
    assert command(f"checkpoint={runs['plain'].path}", "n=10", "batch_size=4", "out=x")[0] == 0
    assert written == [0, 4, 8]


def test_only_what_is_missing_is_drawn(command: Command, runs: dict[str, Run], drawn: list[int]) -> None:
    given = [f"checkpoint={runs['plain'].path}", "batch_size=4", "out=x"]
    assert command(*given, "n=6")[0] == 0
    assert (drawn, len(content("x"))) == ([4, 2], 7)
    drawn.clear()
    assert "6 were there and 5 were drawn" in command(*given, "n=11")[1]
    assert (drawn, len(content("x"))) == ([4, 1], 12)
    whole = content("x")
    assert command(*given[:2], "out=y", "n=11")[0] == 0
    assert content("y") == whole, "a larger n continues"

    drawn.clear()
    code, out, _ = command(*given, "n=3")
    assert (code, drawn) == (0, [])
    assert out.startswith("x: 3 images of which 3 were there and none was drawn")
    assert content("x") == whole, "a smaller one takes nothing away"

    for damage in (lambda b: b[: len(b) // 2], lambda b: b[:-4], lambda b: b"", lambda b: b[:50] + b"\0" + b[51:]):
        for name in ("000002.png", "000009.png"):
            Path("x", name).write_bytes(damage(whole[name]))
        Path("x/000003.png").unlink()
        drawn.clear()
        assert "8 were there and 3 were drawn" in command(*given, "n=11")[1]
        assert drawn == [2, 1]
        assert content("x") == whole


def test_classes_are_folders_and_labels_belong_to_the_settings(command: Command, runs: dict[str, Run]) -> None:
    given = [f"checkpoint={runs['classes'].path}", "batch_size=2"]
    for out, labels, n, expected in (("a", "labels=[7,1]", 5, "71717"), ("b", "labels=4", 3, "444")):
        assert command(*given, labels, "n=2", f"out={out}")[0] == 0
        assert command(*given, labels, f"n={n}", f"out={out}")[0] == 0
        found = {file.stem: file.parent.name for file in Path(out).glob("*/*.png")}
        assert "".join(found[key] for key in sorted(found)) == expected
    assert json.loads(Path("a/settings.json").read_text())["classes"] == list("0123456789")
    told = command(*given, "labels=[7,1]", "n=5", "out=a")[1]
    assert "note: not every class is there; data=folder will number its 2 from 0 on" in told
    code, _, err = command(*given, "labels=[7,2]", "n=5", "out=a")
    assert code == 2
    assert re.search(r"error: out=a: .*labels: \[7, 1\] there, \[7, 2\] now", err)
    assert "labels: [7, 1] there, as in training now" in command(*given, "n=5", "out=a")[2]


def test_folders_of_classes_are_read_with_the_same_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names that would leave the folder, hide in it, or be in another order."""
    monkeypatch.chdir(tmp_path)
    names = ("zebra", "../../up", "Ape/man", "..", "a\0b", "10", ".x", "con", "y" * 300, "1", "last")
    spec, labels = ImageSpec(1, 4, 4, 256, len(names), names), torch.arange(33) % 11
    out = Folder(tmp_path / "there")
    numbers = out.begin({"classes": list(names)}, spec, 33, labels)
    images = torch.randint(0, 256, (33, 1, 4, 4), dtype=torch.uint8)
    out.add(numbers, images)
    assert {path.name for path in tmp_path.iterdir()} == {"there"}
    assert len(list((tmp_path / "there").glob("*/*.png"))) == 33
    data = folder_data("there", dir=".", batch_size=1)
    data.prepare()
    known = {image.numpy().tobytes(): int(label) for image, label in zip(images, labels, strict=True)}
    for part in (data.train, data.val, data.test):
        assert part.labels is not None
        assert part.labels.tolist() == [known[image.numpy().tobytes()] for image in part.images]
    assert data.spec.class_names[:3] == ("0-zebra", "1-_up", "2-Ape_man")


OTHERS = [
    ("plain", ["seed=1"], r"\(seed: 0 there, 1 now\)"),
    ("longer", [], r"checkpoint\.images_seen: 160 there, 192 now; checkpoint\.weights: \w+ there, \w+ now"),
    ("plain", ["averaged=false"], r"checkpoint\.averaged: True there, False now"),
    ("vae", ["model.observation_noise=false"], r"\(model\.observation_noise: True there, False now\)"),
    ("pixels", ["temperature=0.5"], r"temperature: 1\.0 there, 0\.5 now"),
]


@pytest.mark.parametrize(("run", "given", "message"), OTHERS, ids=[" ".join([o[0], *o[1]]) for o in OTHERS])
def test_images_of_other_settings_are_not_mixed(
    command: Command, runs: dict[str, Run], drawn: list[int], run: str, given: list[str], message: str
) -> None:
    first = "plain" if run == "longer" else run
    assert command(f"checkpoint={runs[first].path}", "n=2", "out=x")[0] == 0
    before = content("x")
    drawn.clear()
    code, _, err = command(f"checkpoint={runs[run].path}", "n=4", "out=x", *given)
    assert (code, drawn, content("x")) == (2, [], before)
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(r"out=x: its images were drawn with other settings", error)
    assert re.search(message, error), error
    assert re.search("give those to continue there, or choose another folder", error)


def test_the_same_weights_in_another_place_continue(command: Command, runs: dict[str, Run]) -> None:
    assert command(f"checkpoint={runs['plain'].path}", "n=2", "out=x")[0] == 0
    shutil.copy(runs["plain"].last, "moved.ckpt")
    code, out, err = command("checkpoint=moved.ckpt", "n=3", "out=x", "batch_size=2")
    assert code == 0, err
    assert "2 were there and 1 were drawn" in out
    checkpoint = torch.load("moved.ckpt", weights_only=True)
    next(iter(checkpoint["callbacks"]["EMA"]["weights"].values())).add_(1e-6)
    torch.save(checkpoint, "moved.ckpt")
    code, _, err = command("checkpoint=moved.ckpt", "n=4", "out=x")
    assert code == 2
    assert "checkpoint.weights: " in err


def test_a_bad_place_is_refused_before_anything_is_drawn(
    command: Command, runs: dict[str, Run], drawn: list[int]
) -> None:
    Path("full").mkdir()
    Path("full/notes.txt").touch()
    Path("picture.png").mkdir()
    Path("file").touch()
    Path("broken").mkdir()
    Path("broken/settings.json").write_text("{")
    for out, message in {
        "full": r"a folder with files in it and no settings\.json.*; choose another folder, or empty it",
        "picture.png": r"is a folder; give another name",
        "file": r"is a file, and a name without a suffix means a folder; give another name",
        "broken": r"its settings\.json cannot be read; choose another folder",
        "nowhere/x.npz": r"there is no folder nowhere; create it",
        "/proc/x.npz": r"cannot be written \(.*\); choose another place",
        "/proc/x": r"cannot be written \(.*\); choose another place",
        f"{'x' * 300}.png": r"cannot be written \(File name too long\); choose another place",
        "x" * 300: r"cannot be written \(File name too long\); choose another place",
    }.items():
        code, _, err = command(f"checkpoint={runs['plain'].path}", "n=2", f"out={out}")
        assert (code, drawn) == (2, []), err
        (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
        shown = out if len(out) < 300 else "x{96}…x*(.png)?"  # both ends
        assert re.search(rf"out={shown}: {message}", error), error


@pytest.mark.parametrize("out", ["x.png", "x.npz"])
def test_an_older_file_stays_until_the_new_one_is_complete(
    command: Command, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    Path(out).write_text("older")
    given = [f"checkpoint={runs['plain'].path}", "n=2", f"out={out}"]
    if out.endswith(".npz"):  # which may have taken hours; a picture is replaced like any figure
        code, _, err = command(*given)
        assert (code, content(".")) == (2, {out: b"older"})
        assert f"error: out={out}: is there already; give another name, or replace it with overwrite=true\n" in err
        given.append("overwrite=true")
    with monkeypatch.context() as patch:
        patch.setattr(GAN, "generate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert command(*given)[0] == 130
    assert content(".") == {out: b"older"}
    assert command(*given)[0] == 0
    assert set(content(".")) == {out}, "nothing else is left behind"
    assert Path(out).read_bytes() != b"older"


@pytest.mark.parametrize(("number", "expected"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
@pytest.mark.parametrize(
    ("out", "left"),
    [
        ("x", "stopped; 4 images are there; the same command draws what is missing of 10"),
        ("x.npz", "stopped; nothing was kept, because the file is written at the end; out=FOLDER keeps every image"),
    ],
)
def test_a_signal_is_told_what_is_there(
    command: Command,
    runs: dict[str, Run],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    expected: int,
    out: str,
    left: str,
) -> None:
    given = [f"checkpoint={runs['plain'].path}", "n=10", "batch_size=4", f"out={out}"]
    original, calls, before = GAN.generate, [0], signal.getsignal(signal.SIGTERM)

    def stopped(self: GAN, *arguments: Any) -> Any:
        calls[0] += 1
        if calls[0] == 2:
            os.kill(os.getpid(), number)
        return original(self, *arguments)

    ignored = signal.signal(signal.SIGINT, signal.default_int_handler)  # as in a job in the background
    with monkeypatch.context() as patch:
        patch.setattr(GAN, "generate", stopped)
        code, _, err = command(*given)
    signal.signal(signal.SIGINT, ignored)
    assert (code, err.splitlines()[-1]) == (expected, f"{out}: {left}")
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(content(".")) == (5 if out == "x" else 0)
    assert command(*given)[0] == 0


@pytest.mark.parametrize(("mode", "size", "told"), [("L", (9, 8), "9x8 pixels, L"), ("RGB", (8, 8), "8x8 pixels, RGB")])
def test_another_picture_is_neither_counted_nor_replaced(
    command: Command, runs: dict[str, Run], drawn: list[int], mode: str, size: tuple[int, int], told: str
) -> None:
    given = [f"checkpoint={runs['plain'].path}", "out=x"]
    assert command(*given, "n=2")[0] == 0
    Image.new(mode, size).save("x/000003.png")
    before = content("x")
    drawn.clear()
    code, _, err = command(*given, "n=5")
    assert (code, drawn, content("x")) == (2, [], before)
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert f"out=x: 000003.png is another picture ({told}) than the model's images (8x8 pixels, L); move it" in error
    assert command(*given, "n=3")[0] == 0, "it is in nobody's way"


@pytest.mark.parametrize(
    ("what", "put"),
    [
        ("a folder", Path.mkdir),
        ("a pipe or a device", os.mkfifo),
        ("a pipe or a device", lambda path: path.symlink_to("/dev/zero")),
    ],
)
def test_what_is_no_file_is_named_and_not_read(what: str, put: Callable[[Path], None], tmp_path: Path) -> None:
    put(tmp_path / "000001.png")
    said = rf"out=.*: 000001\.png is {what}; move it away, or choose another folder"
    with pytest.raises(UserError, match=said):
        Folder(tmp_path).begin({}, ImageSpec(1, 8, 8), 2, None)


def test_settings_say_what_the_images_depend_on(command: Command, runs: dict[str, Run]) -> None:
    assert command(f"checkpoint={runs['pixels'].path}", "n=1", "out=x", "temperature=0.8", "seed=5")[0] == 0
    kept = json.loads(Path("x/settings.json").read_text())
    assert {key: kept[key] for key in ("temperature", "seed", "labels")} == {
        "temperature": 0.8, "seed": 5, "labels": None,
    }  # fmt: skip
    assert kept["model"]["_target_"] == "imago.models.pixelcnn.PixelCNN"
    assert kept["checkpoint"]["images_seen"] == 64


def test_processes_have_unfinished_files_of_their_own(tmp_path: Path) -> None:
    """Those of the dead are removed, those of the living left alone."""
    (tmp_path / "x").mkdir()
    left = tmp_path / "x" / f".000000.png.dead{UNFINISHED}"
    left.touch()
    with replacing(tmp_path / "x" / "000001.png"):
        (living,) = set((tmp_path / "x").glob(".*")) - {left}
        folder = Folder(tmp_path / "x")
        assert folder.begin({"seed": 0}, ImageSpec(1, 4, 4), 1, None) == [0]
        assert (left.exists(), living.exists()) == (False, True)
        folder.add([0], torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
        names = sorted(path.name for path in (tmp_path / "x").iterdir())
        assert names == [living.name, "000000.png", "settings.json"]


def test_what_cannot_be_written_on_the_way_ends_with_one_message(tmp_path: Path) -> None:
    folder = Folder(tmp_path / "x")
    (tmp_path / "x").mkdir()
    folder.begin({"seed": 0}, ImageSpec(1, 4, 4), 1, None)
    (tmp_path / "x" / "000000.png").mkdir()
    with pytest.raises(UserError, match=r"x: cannot be written \(.*\); choose another place"):
        folder.add([0], torch.zeros(1, 1, 4, 4, dtype=torch.uint8))
