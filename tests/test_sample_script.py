"""sample.py on autoregressive models: temperature, and a progress bar that moves within a batch."""

import os
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from helpers import PLUGINS, Command, configuration, small
from imago import config
from imago.checkpoints import load
from imago.cli.outputs import File
from imago.images import ImageSpec
from imago.rng import PerImageGenerator
from imago.runs import Run
from imago.training.callbacks.progress import Progress
from imago.training.run import train

PIXELS = ["model=pixelcnn", "model.features=8", "model.blocks=1", "model.head=[8]", "data.binarize=threshold"]
GAN = ["model.generator.hidden=[8]", "model.discriminator.hidden=[8]"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    pixels = configuration(
        "data=digits", "logger=csv", "metrics=none", "trainer=cpu", "max_images=160", f"logs={root}", *PIXELS
    )
    gan = small(root, "max_images=160", *GAN)
    return {"pixels": train(pixels, "pixels", root / "pixels"), "gan": train(gan, "gan", root / "gan")}


@pytest.fixture
def command(script: Command) -> Command:
    """Runs sample.py; see ``script``."""
    return partial(script, "sample")


@pytest.mark.parametrize("temperature", [None, 1.0, 0.3])
def test_temperature_is_the_models(command: Command, runs: dict[str, Run], temperature: float | None) -> None:
    given = [] if temperature is None else [f"temperature={temperature}"]
    code, _, err = command(f"checkpoint={runs['pixels'].path}", "n=6", "out=x.npz", "batch_size=4", *given)
    assert code == 0, err
    model = load(runs["pixels"].path)
    one = model.sample(6, generator=PerImageGenerator(0))
    model.temperature = temperature or 1.0
    expected = model.sample(6, generator=PerImageGenerator(0))
    assert bool((one == expected).all()) == (temperature != 0.3)
    with np.load("x.npz") as arrays:
        assert np.array_equal(arrays["images"], 255 * expected.permute(0, 2, 3, 1).numpy())


MISTAKES = [
    (
        "gan",
        "temperature=0.5",
        r"temperature=0\.5: a GAN has no temperature; .*made.*pixelcnn.*; leave temperature=null",
    ),
    ("gan", "temperature=1", r"temperature=1: a GAN has no temperature"),
    ("pixels", "temperature=0", r"temperature=0: input should be greater than 0"),
    ("pixels", "temperature=cold", r'temperature="cold": input should be a valid number'),
]


@pytest.mark.parametrize(("run", "given", "message"), MISTAKES, ids=[f"{m[0]} {m[1]}" for m in MISTAKES])
def test_a_mistake_ends_with_one_message(
    command: Command, runs: dict[str, Run], run: str, given: str, message: str
) -> None:
    code, _, err = command(f"checkpoint={runs[run].path}", given)
    assert (code, "Traceback" in err) == (2, False)
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(message, error), error
    assert "gan," not in error
    assert not list(Path().glob("*.png"))


def test_the_bar_moves_within_a_batch(command: Command, runs: dict[str, Run], monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []

    @contextmanager
    def bar(description: str) -> Iterator[Callable[[int, int], None]]:
        yield lambda done, total: shares.append(done / total)

    monkeypatch.setattr("imago.progress.progress_bar", bar)
    assert command(f"checkpoint={runs['pixels'].path}", "n=5", "batch_size=3")[0] == 0
    assert shares == sorted(shares)
    within = [k / 8 for k in range(1, 9)]  # digits have 8 rows
    assert shares == pytest.approx([*(0.6 * k for k in within), 0.6, *(0.6 + 0.4 * k for k in within), 1.0])
    shares.clear()
    assert command(f"checkpoint={runs['gan'].path}", "n=5", "batch_size=3", "overwrite=true")[0] == 0
    assert shares == [0.6, 1.0]


def test_each_label_that_was_asked_for_has_columns_of_its_own(tmp_path: Path) -> None:
    """Of nine images that take two labels in turn; their values are their numbers."""
    images = torch.arange(9, dtype=torch.uint8)[:, None, None, None].expand(-1, 1, 64, 64)
    rows = [[0, 2, 1, 3], [4, 6, 5, 7], [8, 255, 255, 255]]
    for labels, expected in (([7, 2], rows), (None, [[0, 1, 2], [3, 4, 5], [6, 7, 8]])):
        file = File(tmp_path / "x.png")
        drawn = torch.tensor([7, 2])[torch.arange(9) % 2]
        file.begin({"labels": labels}, ImageSpec(1, 64, 64, classes=10), 9, drawn)
        file.add(list(range(9)), images)
        file.end()
        with Image.open(tmp_path / "x.png") as picture:
            assert np.asarray(picture)[30::65, 30::65].tolist() == expected


def test_points_and_tokens_are_arrays_as_they_are(tmp_path: Path) -> None:
    for name, images, spec in (
        ("points", torch.randn(5, 3, 1, 1), ImageSpec(3, 1, 1, levels=0)),
        ("tokens", torch.randint(0, 300, (5, 1, 2, 3)).int(), ImageSpec(1, 2, 3, levels=300, tokens=True)),
    ):
        file = File(tmp_path / "x.npz")
        file.begin({}, spec, 5, None)
        file.add(list(range(5)), images)
        file.end()
        with np.load(tmp_path / "x.npz") as arrays:
            expected = images[:, :, 0, 0] if name == "points" else images.permute(0, 2, 3, 1)
            assert arrays.files == [name]
            assert arrays[name].dtype == expected.numpy().dtype
            assert np.array_equal(arrays[name], expected.numpy())


def test_a_picture_of_tokens_is_refused(script: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(PLUGINS)
    monkeypatch.setattr(config, "PLUGINS", ())
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    given = ["plugins=[my_models]", "model=independent", "data=halves", "data.source.tokens=true", "max_updates=1"]
    code, _, err = script("train", *given, f"logs={tmp_path}", "logger=csv", "metrics=none", "callbacks=minimal")
    assert code == 0, err
    (run,) = tmp_path.glob("independent-halves/*")
    for out in ("x.png", "folder"):
        code, _, err = script("sample", given[0], f"checkpoint={run}", f"out={tmp_path / out}")
        assert (code, "draws 1x4x4, 300 tokens, " in err, "ending in .npz" in err) == (2, True, True), err
        assert not (tmp_path / out).exists()
    code, out, err = script("sample", given[0], f"checkpoint={run.parent}", "n=3")
    assert (code, f"{run / 'samples.npz'}: 3 images" in out) == (0, True), err
    with np.load(run / "samples.npz") as arrays:
        assert (arrays["tokens"].dtype, arrays["tokens"].shape) == (np.int32, (3, 4, 4, 1))


def test_a_grid_in_training_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, int] | str] = []
    monkeypatch.setattr(
        Progress, "subtask", lambda self, text: done.append(text) or (lambda *steps: done.append(steps))
    )
    monkeypatch.setattr(Progress, "end_subtask", lambda self, results: done.append(results))
    config = configuration(
        "data=digits", "logger=csv", "metrics=none", "trainer=cpu", "max_images=64", f"logs={tmp_path}", *PIXELS,
        "callbacks.likelihood=null", "callbacks.quality=null",
    )  # fmt: skip
    train(config, "pixels", tmp_path / "run")
    steps = [(8 * row, 64) for row in range(1, 9)]
    assert done == ["drawing samples", *steps, "80, samples/images-0000000064.png"]
