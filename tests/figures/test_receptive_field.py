"""Receptive fields: computed from the networks' derivatives, and again here from what the papers say a layer reads."""

import io
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor

import imago.cli  # noqa: F401 - stores any_model in Hydra
from helpers import CONF, configuration
from imago.config import build, plain
from imago.figures.receptive_field import influence
from imago.images import ImageSpec
from imago.models.autoregressive import Autoregressive
from imago.training.run import build_model

SPECS = {
    "gray-9x9": ImageSpec(1, 9, 9, levels=2),
    "gray-6x13": ImageSpec(1, 6, 13, levels=256),
    "rgb-8x7": ImageSpec(3, 8, 7, levels=4),
    "classes-10x5": ImageSpec(1, 10, 5, levels=2, classes=3),
}
# Small enough that the borders of the networks' reach lie within the images.
SIZES = {
    "fvbn": [],
    "made": ["model.hidden=[600,600]"],
    "pixelcnn": ["model.features=12", "model.blocks=2", "model.first_kernel=3", "model.head=[6]"],
    "pixelcnn-wide": ["model.features=12", "model.blocks=1", "model.first_kernel=5", "model.block.kernel=5"],
    "gated_pixelcnn": ["model.features=6", "model.layers=3", "model.first_kernel=3", "model.head=[6]"],
    "gated_pixelcnn-wide": ["model.features=6", "model.layers=2", "model.first_kernel=5", "model.kernel=5"],
    "row_lstm": ["model.features=6", "model.layers=1", "model.first_kernel=3", "model.head=[6]"],
    "row_lstm-wide": ["model.features=6", "model.layers=2", "model.first_kernel=5", "model.layer.kernel=5"],
    "diagonal_bilstm": ["model.features=6", "model.layers=1", "model.first_kernel=3", "model.head=[6]"],
}


def make(name: str, spec: ImageSpec) -> Autoregressive:
    """A model with positive weights, so that no two paths cancel and hardly any unit is inactive."""
    torch.manual_seed(0)
    conditional = f"conditional={str(spec.classes > 0).lower()}"
    model = build_model(configuration(f"model={name.split('-')[0]}", "data=digits", conditional, *SIZES[name]), spec)
    assert isinstance(model, Autoregressive)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.abs_().mul_(0.3)
    return model


def seen_by(model: Autoregressive) -> Tensor:
    return influence(model, inputs=16, seed=0) > 0


# --- what a layer reads, as the papers say it -------------------------------------------------------------------------

# A value is (row, column, channel group). What is known at each: a set of values of the image.
Value = tuple[int, int, int]
Known = dict[Value, set[Value]]


def image_of(spec: ImageSpec) -> Known:
    places = [(r, c, g) for r in range(spec.height) for c in range(spec.width) for g in range(spec.channels)]
    return {place: {place} for place in places}


def layer(of: Known, reads: Callable[[int, int, int], Iterable[Value]]) -> Known:
    return {at: set().union(*(of.get(source, set()) for source in reads(*at))) for at in of}


def both(one: Known, other: Known) -> Known:
    return {at: one[at] | other[at] for at in one}


def masked(of: Known, spec: ImageSpec, mask: str, above: int, beside: int) -> Known:
    """A convolution with a mask: rows above in full, pixels at the left, and of its own pixel the allowed channels."""
    groups = range(spec.channels)

    def reads(r: int, c: int, g: int) -> Iterable[Value]:
        for column in range(c - beside, c + beside + 1):
            for row in range(r - above, r):
                yield from ((row, column, k) for k in groups)
            if column < c:
                yield from ((r, column, k) for k in groups)
        yield from ((r, c, k) for k in groups if (k < g if mask == "A" else k <= g))

    return layer(of, reads)


def full(of: Known, spec: ImageSpec, rows: range, beside: int) -> Known:
    """A convolution without a mask over rows at these offsets."""

    def reads(r: int, c: int, g: int) -> Iterable[Value]:
        for column in range(c - beside, c + beside + 1):
            yield from ((r + d, column, k) for d in rows for k in range(spec.channels))

    return layer(of, reads)


def pixelcnn(spec: ImageSpec, first: int, kernels: list[int]) -> Known:
    known = masked(image_of(spec), spec, "A", first // 2, first // 2)
    for kernel in kernels:
        known = masked(known, spec, "B", kernel // 2, kernel // 2)
    return known


def gated_pixelcnn(spec: ImageSpec, kernels: list[int]) -> Known:
    vertical = horizontal = image_of(spec)
    for k, kernel in enumerate(kernels):
        n = kernel // 2
        vertical = full(vertical, spec, range(-n, 1 if k else 0), n)
        beside = masked(horizontal, spec, "B" if k else "A", 0, n)
        horizontal = both(both(beside, vertical), horizontal if k else beside)
    return horizontal


def row_lstm(spec: ImageSpec, first: int, kernels: list[int]) -> Known:
    known = masked(image_of(spec), spec, "A", first // 2, first // 2)
    for kernel in kernels:
        states = masked(known, spec, "B", 0, kernel // 2)
        for _ in range(spec.height):  # a row further each time
            states = both(states, full(states, spec, range(-1, 0), kernel // 2))
        known = both(known, states)
    return known


def everything(spec: ImageSpec) -> Known:
    values = sorted(image_of(spec))
    return {at: set(values[:k]) for k, at in enumerate(values)}


EXPECTED: dict[str, Callable[[ImageSpec], Known]] = {
    "fvbn": everything,
    "made": everything,
    "pixelcnn": lambda spec: pixelcnn(spec, 3, [3, 3]),
    "pixelcnn-wide": lambda spec: pixelcnn(spec, 5, [5]),
    "gated_pixelcnn": lambda spec: gated_pixelcnn(spec, [3, 3, 3]),
    "gated_pixelcnn-wide": lambda spec: gated_pixelcnn(spec, [5, 5]),
    "row_lstm": lambda spec: row_lstm(spec, 3, [3]),
    "row_lstm-wide": lambda spec: row_lstm(spec, 5, [5, 5]),
    "diagonal_bilstm": everything,
}


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("name", SIZES)
def test_a_model_sees_what_its_layers_read(name: str, spec: str) -> None:
    chosen = SPECS[spec]
    known = EXPECTED[name](chosen)
    expected = torch.zeros(chosen.height, chosen.width, dtype=torch.bool)
    for channel in range(chosen.channels):
        for row, column, _ in known[chosen.height // 2, chosen.width // 2, channel]:
            expected[row, column] = True
    assert torch.equal(seen_by(make(name, chosen)), expected)


# --- the shapes of the papers' figures, for the models that the docs show ---------------------------------------------


@pytest.fixture(scope="module")
def drawn() -> Any:
    """The figure that `figure=receptive_field` draws."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = plain(compose("figure", ["figure=receptive_field"]))
    return build(config["figure"], "figure")


P, L = 1, 7  # half the first kernel, blocks of the PixelCNN and further layers of the gated one
SHAPES: dict[str, Callable[[int, int], bool]] = {
    # d rows up and e columns to the right; d = 0 is the row itself. All are cut at the border of the image.
    "fvbn": lambda d, e: True,
    "made": lambda d, e: True,
    "pixelcnn": lambda d, e: d <= P + L and -(P + L) <= e <= P + min(d - 1, L),
    "gated_pixelcnn": lambda d, e: d <= P + L and abs(e) <= P + L,
    "row_lstm": lambda d, e: -(P + 1 + d) <= e <= P + d - 1,
    "diagonal_bilstm": lambda d, e: True,
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_neighbourhood_a_triangle_or_all(drawn: Any, name: str) -> None:
    models = drawn.untrained()
    assert list(models) == list(SHAPES)
    seen = seen_by(models[name])
    height, width = seen.shape
    row, column = height // 2, width // 2
    earlier = [(row - r, c - column) for r in range(row + 1) for c in range(width if r < row else column)]
    expected = torch.zeros_like(seen)
    for d, e in earlier:
        expected[row - d, column + e] = SHAPES[name](d, e)
    assert torch.equal(seen, expected)


def test_the_blind_spot_is_what_the_gated_model_repairs(drawn: Any) -> None:
    """PixelCNN is blind to pixels above and to the right of a diagonal; both reach as far up."""
    models = drawn.untrained()
    plain_one, gated = seen_by(models["pixelcnn"]), seen_by(models["gated_pixelcnn"])
    assert bool((gated | ~plain_one).all())
    (rows, columns) = (gated & ~plain_one).nonzero(as_tuple=True)
    assert len(rows) == (P + L) * (P + L - 1) // 2
    assert bool((columns - 10 > 10 - rows).all())


def test_the_same_weights_are_drawn_every_time(drawn: Any) -> None:
    torch.manual_seed(3)
    state = torch.get_rng_state()
    one = influence(drawn.untrained()["pixelcnn"], 4, 1)
    assert torch.equal(torch.get_rng_state(), state)
    torch.manual_seed(4)
    assert torch.equal(influence(drawn.untrained()["pixelcnn"], 4, 1), one)


def test_the_model_is_left_as_it_was(drawn: Any) -> None:
    model = drawn.untrained()["pixelcnn"].train()
    influence(model, 2, 0)
    assert model.net.training
    assert all(p.dtype == torch.float32 and p.grad is None for p in model.parameters())


def test_the_picture_has_a_panel_for_each_model(drawn: Any) -> None:
    steps: list[tuple[int, int]] = []
    picture = drawn.draw(None, lambda done, total: steps.append((done, total)))
    titles = [axes.get_title() for axes in picture.axes if axes.get_title()]
    assert [title.split("\n")[0] for title in titles] == list(SHAPES)
    assert titles[0].endswith("sees 220 of 220 earlier pixels")
    assert steps == [(k + 1, 6) for k in range(6)]


def test_an_image_of_one_pixel_has_nothing_before_it() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = plain(compose("figure", ["figure=receptive_field", "figure.shape=[1,1,1]", "~figure.models.made"]))
    picture = build(config["figure"], "figure").draw(None, lambda done, total: None)
    picture.savefig(io.BytesIO())
    assert picture.axes[0].get_title().endswith("sees 0 of 0 earlier pixels")
