"""figure.py on small runs: what the pictures show, and that every mistake is one message."""

import re
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from helpers import Command, configuration, small
from imago.checkpoints import load
from imago.config import build
from imago.data import ImageDataModule
from imago.data.base import drawn
from imago.figures.completion import known_part
from imago.images import quantize
from imago.models.autoregressive import Autoregressive
from imago.models.latent import LatentModel
from imago.pictures import picture_of
from imago.rng import PerImageGenerator
from imago.runs import Run
from imago.training.run import train

ROOT = Path(__file__).parents[1]
PIXELS = ["model=pixelcnn", "model.features=8", "model.blocks=1", "model.head=[8]"]
RUN = ["data=digits", "logger=csv", "metrics=none", "trainer=cpu", "max_images=160"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Run]:
    root = tmp_path_factory.mktemp("runs")
    chosen = {
        "pixels": configuration(*RUN, *PIXELS, "data.binarize=dynamic", f"logs={root}"),
        "classes": configuration(*RUN, *PIXELS, "conditional=true", f"logs={root}"),
        "vae": configuration("model=vae", *RUN, "model.encoder.hidden=[8]", "model.decoder.hidden=[8]", f"logs={root}"),
        "gan": small(root, "max_images=160", "model.generator.hidden=[8]", "model.discriminator.hidden=[8]"),
    }
    return {name: train(config, name, root / name) for name, config in chosen.items()}


@pytest.fixture
def command(script: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Command:
    """Runs figure.py; see ``script``."""
    monkeypatch.setenv("IMAGO_DATA_DIR", str(tmp_path))
    return partial(script, "figure")


def digits(binarize: str | None) -> ImageDataModule:
    data = build(configuration("data=digits", f"data.binarize={binarize or 'null'}")["data"], "data")
    data.prepare()
    return data


def cells(path: str, rows: int, columns: int) -> np.ndarray:
    """The 8x8 images of a picture whose pixels are 8 times enlarged, (rows, columns, 8, 8); words stand above them."""
    with Image.open(path) as file:
        assert file.height > 8 * (9 * rows + 1), "columns have names"
        picture = np.asarray(file)[-8 * (9 * rows + 1) :: 8, -8 * (9 * columns + 1) :: 8]
    return np.stack(
        [[picture[9 * r + 1 : 9 * r + 9, 9 * c + 1 : 9 * c + 9] for c in range(columns)] for r in range(rows)]
    )


def test_rows_are_the_image_what_is_shown_and_completions(command: Command, runs: dict[str, Run]) -> None:
    given = [f"checkpoint={runs['pixels'].path}", "figure.images=3", "figure.completions=4", "figure.seed=2"]
    code, out, err = command("figure=completion", *given, "out=c.png")
    assert (code, out) == (0, "c.png\n"), err
    shown = cells("c.png", 3, 6)
    originals = 255 * drawn(digits("dynamic").test, "test", 3).images[:, 0].numpy()
    assert np.array_equal(shown[:, 0], originals)
    assert np.array_equal(shown[:, 1:, :4], np.broadcast_to(originals[:, None, :4], (3, 5, 4, 8)))
    assert (shown[:, 1, 4:] == 128).all()
    assert len({completion.tobytes() for completion in shown[:, 2:].reshape(12, 64)}) > 8, "several, not one"
    assert [path.name for path in Path().iterdir()] == ["c.png"], "nothing else is left behind"

    model = load(runs["pixels"].path)
    assert isinstance(model, Autoregressive)
    images = drawn(digits("dynamic").test, "test", 3).images.repeat_interleave(4, 0)
    top = torch.arange(8)[:, None] < 4
    expected = 255 * model.complete(images, top, generator=PerImageGenerator(2))
    assert np.array_equal(shown[:, 2:].reshape(12, 8, 8), expected[:, 0].numpy())


def test_a_conditional_model_is_given_the_classes(command: Command, runs: dict[str, Run]) -> None:
    given = [f"checkpoint={runs['classes'].path}", "figure.images=2", "figure.completions=2", "figure.split=val"]
    code, _, err = command(*given, "figure.hide=right", "figure.fraction=0.25", "figure.temperature=0.5")
    assert code == 0, err
    with Image.open("figure.png") as titled:
        assert titled.height > 8 * (9 * 2 + 1) + 30, "not exact given all that is shown, which a title says"
    drawn = cells("figure.png", 2, 4)
    model, part = load(runs["classes"].path), digits(None).val.part(slice(2))
    assert isinstance(model, Autoregressive)
    assert part.labels is not None
    assert part.labels[0] != part.labels[1]
    model.temperature = 0.5
    expected = model.complete(
        part.images.repeat_interleave(2, 0),
        torch.arange(8) < 6,
        labels=part.labels.repeat_interleave(2),
        generator=PerImageGenerator(0),
    )
    assert np.array_equal(drawn[:, 2:].reshape(4, 8, 8), expected[:, 0].numpy())
    assert (drawn[:, 1, :, 6:] == 128).all()


HIDDEN: list[tuple[str, float, Callable[[Tensor, Tensor], Tensor]]] = [
    ("bottom", 0.5, lambda row, column: row >= 2),
    ("top", 0.25, lambda row, column: row < 1),
    ("right", 0.3, lambda row, column: column >= 4),
    ("left", 0.01, lambda row, column: column < 1),
    ("bottom", 1.0, lambda row, column: row >= 0),
]


@pytest.mark.parametrize(("hide", "fraction", "hidden"), HIDDEN)
def test_what_is_hidden(hide: str, fraction: float, hidden: Callable[[Tensor, Tensor], Tensor]) -> None:
    row, column = torch.arange(4)[:, None].expand(4, 6), torch.arange(6).expand(4, 6)
    assert torch.equal(known_part(4, 6, hide, fraction), ~hidden(row, column))  # type: ignore[arg-type]


def test_the_receptive_field_of_a_checkpoint(command: Command, runs: dict[str, Run]) -> None:
    code, out, err = command("figure=receptive_field", f"checkpoint={runs['pixels'].path}", "out=seen.png")
    assert (code, out) == (0, "seen.png\n"), err
    with Image.open("seen.png") as picture:
        colors = {color for _, color in picture.convert("RGB").getcolors(10**6)}
    assert {(255, 99, 71), (220, 220, 220), (253, 231, 36)} <= colors, "blind, later, and most strongly seen"


def test_the_receptive_fields_of_untrained_models(command: Command) -> None:
    given = ["~figure.models.fvbn", "~figure.models.made", "~figure.models.row_lstm", "~figure.models.diagonal_bilstm"]
    code, _, err = command("figure=receptive_field", *given, "figure.shape=[3,5,8]", "figure.models.pixelcnn.blocks=1")
    assert code == 0, err
    with Image.open("figure.png") as picture:
        assert picture.width > picture.height, "two panels"


LATENT = ["manifold", "traversal", "interpolation", "arithmetic", "latent_units", "reconstruction"]


@pytest.mark.parametrize(
    ("run", "name"), [*(("vae", name) for name in LATENT), *(("gan", name) for name in LATENT[:3])]
)
def test_the_figures_of_latent_spaces(command: Command, runs: dict[str, Run], run: str, name: str) -> None:
    code, out, err = command(f"figure={name}", f"checkpoint={runs[run].path}")
    assert (code, out) == (0, "figure.png\n"), err
    with Image.open("figure.png") as picture:
        assert min(picture.size) > 200


def test_a_manifold_shows_what_the_model_decodes(command: Command, runs: dict[str, Run]) -> None:
    code, _, err = command("figure=manifold", f"checkpoint={runs['vae'].path}", "figure.side=3", "figure.axes=[5,2]")
    assert code == 0, err
    model = load(runs["vae"].path)
    assert isinstance(model, LatentModel)
    z = torch.zeros(9, 20)
    quantiles = torch.special.ndtri(torch.tensor([1, 3, 5]) / 6)
    z[:, 5], z[:, 2] = quantiles.repeat(3), quantiles.flip(0).repeat_interleave(3)
    with torch.no_grad():
        grid = np.asarray(picture_of(quantize(model.decode(z), 256), 3)).astype(int)
    with Image.open("figure.png") as picture:
        drawn = np.asarray(picture).astype(int)[-grid.shape[0] :, -grid.shape[1] :]
    assert np.abs(drawn - grid).max() <= 1, "up to rounding"


MISTAKES: list[tuple[str | None, list[str], str]] = [
    (None, ["figure=completion"], r"checkpoint=null: .*give checkpoint=PATH"),
    (None, ["figure=complete"], r"figure=complete: no such choice; did you mean completion\?"),
    ("gan", ["figure=completion"], r"figure=completion: .* a GAN; .*fvbn.*made.*, pixelcnn"),
    ("gan", ["figure=receptive_field"], r"figure=receptive_field: .* a GAN; .*pixelcnn"),
    ("pixels", ["figure=manifold"], r"figure=manifold: .* a PixelCNN; .*autoencoder.*gan.*, vae"),
    ("gan", ["figure=latent_units"], r"figure=latent_units: .* a GAN; .*autoencoder.*conv_vae.*, vae"),
    ("gan", ["figure=reconstruction"], r"figure=reconstruction: .* a GAN; give a checkpoint of one of autoencoder, "),
    ("gan", ["figure=trajectories"], r"figure=trajectories: .* a GAN; .* one of ddpm, flow_matching, gsn, ncsn"),
    (
        "gan",
        ["figure=vector_field"],
        r"figure=vector_field: .* a GAN; .* one of ddpm, flow_matching, ncsn",
    ),
    ("vae", ["figure=objective_gradients"], r"figure=objective_gradients: .* a VAE; give a checkpoint of one of .*gan"),
    ("gan", ["figure=steering"], r"figure=steering: .* a GAN; .*fvbn.*made.*, pixelcnn"),
    ("pixels", ["figure=steering", "figure.depths=[1]"], r"figure\.depths=\[1\]: .*less than 1"),
    ("gan", ["figure=manifold", "figure.label=1"], r"figure\.label=1: the model is unconditional"),
    ("gan", ["figure=manifold", "figure.axes=[0]"], r"figure\.axes=\[0\]: .*at least 2 items"),
    ("gan", ["figure=manifold", "figure.axes=[0,8]"], r"figure\.axes=\[0, 8\]: z has 8 dimensions"),
    (
        "gan",
        ["figure=manifold", "figure.plane=principal"],
        r"figure\.plane=principal: a GAN cannot encode images; .*vae",
    ),
    ("vae", ["figure=manifold", "figure.plane=sphere"], r"figure\.plane=\"sphere\": .*'principal'"),
    ("vae", ["figure=traversal", "figure.image=180"], r"figure\.image=180: digits test has 180 images; give a smaller"),
    ("vae", ["figure=interpolation", "figure.steps=1"], r"figure\.steps=1: .*greater than or equal to 2"),
    ("vae", ["figure=arithmetic", "figure.classes=[1,2]"], r"figure\.classes=\[1, 2\]: .*at least 3 items"),
    (
        "vae",
        ["figure=arithmetic", "figure.classes=[1,2,10]"],
        r"figure\.classes=\[1, 2, 10\]: digits has classes 0\.\.9",
    ),
    (None, ["figure=latent_units"], r"checkpoint=null: .*give checkpoint=PATH"),
    ("pixels", ["figure.images=181"], r"figure\.images=181: digits test has 180; give fewer"),
    ("pixels", ["figure.images=0"], r"figure\.images=0: input should be greater than 0"),
    ("pixels", ["figure.hide=middle"], r"figure\.hide=\"middle\": .*'bottom'"),
    ("pixels", ["figure.fraction=1.5"], r"figure\.fraction=1\.5: input should be less than or equal to 1"),
    ("pixels", ["figure.temperature=0"], r"figure\.temperature=0: input should be greater than 0"),
    ("pixels", ["figure.image=3"], r"figure\.image=3: no such setting"),
    (None, ["style=typo"], r"style=\"typo\": .*'slides'"),
    ("pixels", ["style=paper"], r"style=paper: figure=completion is a grid of pixels"),
    ("pixels", ["out=x.pdf"], r"out=x\.pdf: figure=completion is a grid of pixels; .*\.png"),
    ("pixels", ["out=x.gif"], r"out=x\.gif: figure=completion does not move, chains, training, trajectories do; "),
    (None, ["figure=trajectories", "out=x.gif", "style=paper"], r"style=paper: an animation has one size"),
    ("pixels", ["out=x.bmp"], r"out=x\.bmp: cannot write \.bmp files; .*\.png.*\.svg or \.pdf.*\.gif or"),
    ("pixels", ["out=x.jpg"], r"out=x\.jpg: .*\.png"),
    ("pixels", ["out=no/x.png"], r"out=no/x\.png: there is no folder no"),
    ("pixels", ["device=abacus"], r"device=abacus: .*choose another one"),
    (None, ["checkpoint=nowhere"], r"^error: checkpoint=nowhere: no such file"),
    (None, [f"checkpoint={ROOT / 'README.md'}"], r"^error: checkpoint=.*README\.md: no checkpoint of this program; "),
    (None, ["out=/proc/x.png"], r"^error: out=/proc/x\.png: cannot be written \(.*\); choose another place"),
    (None, ["figure=receptive_field", "figure.shape=[1,2]"], r"figure\.shape=\[1, 2\]: .*at least 3 items"),
    (
        None,
        ["figure=receptive_field", "+model@figure.models.gan=gan", "+conditional=false"],
        r"conditional: no such setting",
    ),
    (
        None,
        ["figure=receptive_field", "+model@figure.models.gan=gan", "figure.models.gan.conditional=false"],
        r"figure\.models\.gan\.spec: missing",
    ),
    (
        None,
        [
            "figure=receptive_field",
            "+model@figure.models.gan=gan",
            "figure.models.gan.conditional=false",
            "+figure.models.gan._partial_=true",
        ],
        r"figure\.models\.gan: no autoregressive model; take it out with ~figure\.models\.gan",
    ),
]


@pytest.mark.parametrize(("run", "given", "message"), MISTAKES, ids=[" ".join(m[1]) for m in MISTAKES])
def test_a_mistake_ends_with_one_message(
    command: Command, runs: dict[str, Run], run: str | None, given: list[str], message: str
) -> None:
    code, _, err = command(*([f"checkpoint={runs[run].path}"] if run else []), *given)
    assert (code, "Traceback" in err) == (2, False), err
    (error,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert re.search(message, error), error
    assert not list(Path().glob("*.png"))


def test_help_is_readable(command: Command) -> None:
    code, out, _ = command("--help")
    assert code == 0
    assert "figure: arithmetic, chains, completion, denoising, density, energy, interpolation, latent_units, " in out
    assert "python src/figure.py figure=completion checkpoint=" in out
