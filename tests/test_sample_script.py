"""sample.py on autoregressive models: temperature, and a progress bar that moves within a batch."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from helpers import Command, configuration, small
from imago.checkpoints import load
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


def test_a_grid_in_training_shows_how_far_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[tuple[int, int] | str] = []
    monkeypatch.setattr(
        Progress, "subtask", lambda self, text: done.append(text) or (lambda *steps: done.append(steps))
    )
    monkeypatch.setattr(Progress, "end_subtask", lambda self: done.append("end"))
    config = configuration(
        "data=digits", "logger=csv", "metrics=none", "trainer=cpu", "max_images=64", f"logs={tmp_path}", *PIXELS,
        "callbacks.likelihood=null", "callbacks.quality=null",
    )  # fmt: skip
    train(config, "pixels", tmp_path / "run")
    assert done == ["drawing samples", *((8 * row, 64) for row in range(1, 9)), "end"]
