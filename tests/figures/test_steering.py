"""How much the first pixels steer: models of which it is known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from helpers import configuration
from imago.config import build
from imago.data import ImageDataModule
from imago.data.base import drawn
from imago.errors import UserError
from imago.figures.base import Trained
from imago.figures.steering import Steered, Steering, first_pixels, held
from imago.images import to_bytes
from imago.models.autoregressive import Autoregressive
from imago.rng import PerImageGenerator
from imago.training.run import build_model

DEPTHS = [0, 0.25, 0.5]


@pytest.fixture(scope="module")
def make(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained[Any]]:
    """An untrained belief net of 8x8 black and white digits; its logits may be replaced by a function of the signal."""
    folder = str(tmp_path_factory.mktemp("data"))

    def making(logits: Callable[[Tensor], Tensor] | None = None, *overrides: str) -> Trained[Any]:
        config = configuration("model=fvbn", "data=digits", "data.binarize=threshold", *overrides)
        data: ImageDataModule = build(config["data"], "data", dir=folder)
        data.prepare()
        torch.manual_seed(0)
        model = build_model(config, data.spec).eval()
        assert isinstance(model, Autoregressive)
        if logits is not None:
            model.incremental = False
            model.net.forward = lambda x, labels=None: logits(x)[..., None]  # type: ignore[method-assign]
        return Trained(model, lambda: data)

    return making


def steered(figure: Steering, trained: Trained[Any]) -> list[Steered]:
    """What the figure computes, depth by depth."""
    found: list[Steered] = []
    original = figure._steered

    def keeping(*arguments: Any) -> Steered:
        found.append(original(*arguments))
        return found[-1]

    figure._steered = keeping  # type: ignore[method-assign, assignment]
    figure.draw(trained, lambda *_: None)
    return found


def follow_the_first(x: Tensor) -> Tensor:
    """The first pixel is a fair coin, all others are like it."""
    logits = 200 * x[:, :, :1, :1].expand_as(x).clone()
    logits[:, :, 0, 0] = 0
    return logits


def follow_the_above(x: Tensor) -> Tensor:
    """The first row is fair coins, every other pixel is like the one above it, or is not: with probability 0.1."""
    logits = torch.zeros_like(x)
    logits[:, :, 1:] = torch.log(torch.tensor(9.0)) * x[:, :, :-1]
    return logits


@pytest.mark.parametrize("source", ["test", "samples"])
def test_independent_pixels_steer_nothing(make: Callable[..., Trained[Any]], source: Any) -> None:
    found = steered(Steering(DEPTHS, images=40, completions=4, source=source), make(torch.zeros_like))
    for depth in found:
        for ratio in depth.explained:
            assert 0 < ratio.error < 0.06
            assert abs(ratio.value) < 4 * ratio.error


def test_a_first_pixel_that_decides_all_explains_all(make: Callable[..., Trained[Any]]) -> None:
    found = steered(Steering(DEPTHS, images=30, completions=3, source="samples"), make(follow_the_first))
    assert [depth.shown for depth in found] == [0, 16, 32]
    for ratio in found[0].explained:
        assert abs(ratio.value) < 4 * ratio.error, "nothing is shown: chance"
    for depth in found[1:]:
        assert [(ratio.value, ratio.error) for ratio in depth.explained] == [(1, 0)] * 3


def test_a_chain_forgets_at_its_own_pace(make: Callable[..., Trained[Any]]) -> None:
    """x_{r+d} = ±x_r with E[x_{r+d} | x_r] = 0.8^d x_r: shown row r, the d-th row behind it is explained to 0.64^d."""
    found = steered(Steering([0.25], images=300, completions=3, source="samples"), make(follow_the_above))[0]
    share = [0.64**d for d in range(1, 7)]  # rows 2..7 are left, of equal variance
    for ratio, rows in zip(found.explained, (slice(6), slice(2), slice(4, 6)), strict=True):
        expected = sum(share[rows]) / len(share[rows])
        assert abs(ratio.value - expected) < 4 * ratio.error
        assert ratio.error < 0.05
    assert found.explained[1].value > found.explained[0].value > found.explained[2].value


@pytest.mark.parametrize("overrides", [[], ["conditional=true"]])
@pytest.mark.parametrize("source", ["test", "val", "samples"])
def test_what_is_shown_stays_and_the_rest_is_the_models(
    make: Callable[..., Trained[Any]], source: Any, overrides: list[str]
) -> None:
    trained = make(None, *overrides)
    model, data = trained.model, trained.data()
    assert isinstance(model, Autoregressive)
    found = steered(Steering(DEPTHS, images=5, completions=3, source=source, seed=2), trained)
    labels = None
    if source == "samples":
        if model.conditional:
            labels = PerImageGenerator(2).integers(5, 10)
        originals = model.sample(5, generator=PerImageGenerator(2))
    else:
        part = drawn({"test": data.test, "val": data.val}[source], source, 5)
        originals, labels = part.images, part.labels if model.conditional else None
    for depth in found:
        mask = first_pixels(8, 8, depth.shown)
        assert int(mask.flatten().nonzero().numel()) == depth.shown
        expected = model.complete(
            originals.repeat_interleave(3, 0),
            mask,
            labels=None if labels is None else labels.repeat_interleave(3),
            generator=PerImageGenerator(2, first=5),
        )
        assert torch.equal(depth.completed, to_bytes(expected, 2).unflatten(0, (5, 3)))
        assert torch.equal(depth.completed[:, 1, mask[None]], to_bytes(originals, 2)[:, mask[None]])


def test_completions_of_a_sample_are_not_that_sample(make: Callable[..., Trained[Any]]) -> None:
    """As they would be, drawn from the sample's own random numbers."""
    found = steered(Steering([0.25], images=6, completions=2, source="samples"), make(torch.zeros_like))[0]
    originals = to_bytes(make(torch.zeros_like).model.sample(6, generator=PerImageGenerator(0)), 2)
    assert not (found.completed == originals[:, None]).flatten(2).all(2).any()


def test_the_picture_has_curves_and_completions(make: Callable[..., Trained[Any]]) -> None:
    steps: list[float] = []
    figure = Steering([0.5, 0, 0.99], images=4, completions=2, examples=3)
    drawing = figure.draw(make(), lambda done, total: steps.append(done / total))
    assert steps == sorted(steps)
    assert steps[-1] == 1
    curve: Any = drawing.axes[0]
    blocks = drawing.axes[1:]
    assert list(curve.containers[0].lines[0].get_xdata()) == [0, 0.5, 63 / 64], "rising, and one pixel is left"
    assert len(curve.containers) == 3
    assert [image.get_size() for block in blocks for image in block.images] == [
        (28, 28)
    ] * 3  # 3x3 images of 8, margins
    assert [tick.get_text() for tick in blocks[0].get_yticklabels()] == ["0", "0.5", "0.984"]


def test_what_is_not_shown_is_gray() -> None:
    images = torch.full((2, 3, 4, 5), 7, dtype=torch.uint8)
    assert (held(images, 6)[:, :, 1, :1] == 7).all()
    assert (held(images, 6)[:, :, 1, 1:] == 128).all()
    assert (held(images, 0) == 128).all()


def test_more_images_than_there_are_are_refused(make: Callable[..., Trained[Any]]) -> None:
    with pytest.raises(UserError, match=r"figure\.images=181: digits test has 180; give fewer"):
        Steering(DEPTHS, images=181).draw(make(), lambda *_: None)
