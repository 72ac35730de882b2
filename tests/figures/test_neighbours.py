"""The figure of samples beside training images: planted copies come first, distances are the definition's."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import imago.figures.neighbours
from helpers import configuration
from imago.config import build
from imago.data import ImageDataModule
from imago.errors import UserError
from imago.figures.base import Progress, Trained
from imago.figures.neighbours import Neighbours
from imago.images import Images, to_bytes
from imago.rng import PerImageGenerator
from imago.training.run import build_model

PLANTED = {3: 700, 11: 5}  # number of a sample: of a training image


@pytest.fixture
def trained(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Trained[Any]:
    """A model that draws noise, two training images and one that differs from a training image in a pixel."""
    monkeypatch.chdir(tmp_path)
    config = configuration("model=vae", "data=digits", *getattr(request, "param", []), f"data.dir={tmp_path}")
    data: ImageDataModule = build(config["data"], "data")
    data.prepare()
    model = build_model(config, data.spec)
    drawn = torch.randint(0, data.spec.levels, (20, *data.spec.shape), generator=torch.Generator().manual_seed(0))
    drawn = drawn.to(torch.uint8)
    for sample, image in PLANTED.items():
        drawn[sample] = data.training_images()[image]
    drawn[7] = data.training_images()[9]
    drawn[7, 0, 0, 0] ^= 1

    def generate(n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        return drawn[generator.first : generator.first + n]

    monkeypatch.setattr(model, "generate", generate)
    return Trained(model, lambda: data)


def shown(
    figure: Neighbours,
    trained: Trained[Any],
    monkeypatch: pytest.MonkeyPatch,
    progress: Progress = lambda done, total: None,
) -> tuple[Tensor, dict[str, Any]]:
    """The images of the rows, (rows, 1 + neighbours, C, H, W), and what is written around them."""
    found: list[tuple[Tensor, dict[str, Any]]] = []
    true = imago.figures.neighbours.labelled

    def catch(images: Tensor, columns: int, **words: Any) -> Any:
        found.append((images.unflatten(0, (-1, columns)), words))
        return true(images, columns, **words)

    monkeypatch.setattr(imago.figures.neighbours, "labelled", catch)
    figure.draw(trained, progress)
    return found[0]


@pytest.mark.parametrize("order", ["relative", "distance"])
@pytest.mark.parametrize("space", ["pixels", "features"])
def test_planted_copies_come_first(
    trained: Trained[Any], monkeypatch: pytest.MonkeyPatch, space: Any, order: Any
) -> None:
    figure = Neighbours(samples=20, rows=4, neighbours=3, space=space, order=order, seed=0)
    images, words = shown(figure, trained, monkeypatch)
    data = trained.data()
    assert images.shape == (4, 4, *data.spec.shape)
    originals = to_bytes(data.training_images(), data.spec.levels)
    for row, image in zip(images, [*PLANTED.values(), 9], strict=False):
        assert torch.equal(row[1], originals[image])
    assert torch.equal(images[:2, 0], images[:2, 1]), "copies"
    assert (images[2, 0] != images[2, 1]).sum() == 1, "and then the one of another pixel"
    assert [name.startswith("copy (") for name in words["row_names"]] == [True, True, False, False]
    assert words["title"].endswith("copies: 2")
    assert words["column_names"] == ["sample", "1", "2", "3"]
    assert f"{len(data.train):,} digits training images" in words["title"]


def test_rows_have_the_distances_of_all_pairs(trained: Trained[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    figure = Neighbours(samples=20, rows=20, neighbours=2, space="pixels", order="distance", seed=0)
    images, words = shown(figure, trained, monkeypatch)
    data = trained.data()
    training = data.training_images().flatten(1).double() / (data.spec.levels - 1)
    ordered = images[:, 0].flatten(1).double() / 255
    distances = np.array([[float((x - y).norm()) for y in training] for x in ordered])
    nearest = distances.argsort(1, kind="stable")
    assert (np.diff(distances.min(1)) >= 0).all(), "in rising order"
    authentic = 0
    for k, name in enumerate(words["row_names"]):
        number = nearest[k, 0]
        apart = min(float((training[number] - y).norm()) for j, y in enumerate(training) if j != number)
        told = re.fullmatch(r"(copy|[\d.e-]+) \(([\d.e-]+)\)", name)
        assert told, name
        assert float(told[2]) == pytest.approx(apart, rel=5e-3)
        assert (0 if told[1] == "copy" else float(told[1])) == pytest.approx(distances[k, number], rel=5e-3)
        authentic += told[1] != "copy" and distances[k, number] > apart
        assert torch.equal(images[k, 2], to_bytes(data.training_images(), data.spec.levels)[nearest[k, 1]]) or (
            distances[k, nearest[k, 1]] == pytest.approx(distances[k, nearest[k, 2]])
        )
    assert f"authentic: {authentic / 20:.1%}" in words["title"]


@pytest.mark.parametrize("space", ["pixels", "features"])
def test_samples_beyond_the_first_batch_are_those_of_their_own_streams(
    trained: Trained[Any], monkeypatch: pytest.MonkeyPatch, space: Any
) -> None:
    """Sample k is training image k here: all are copies, so that the rows are in the order in which they were drawn."""
    training = trained.data().training_images()
    monkeypatch.setattr(trained.model, "generate", lambda n, labels, given: training[given.first : given.first + n])
    seen: list[tuple[int, int]] = []
    images, words = shown(
        Neighbours(samples=205, rows=300, neighbours=1, space=space), trained, monkeypatch, lambda *s: seen.append(s)
    )
    expected = to_bytes(training[:205], trained.data().spec.levels)
    assert torch.equal(images[:, 0], expected)
    assert torch.equal(images[:, 1], expected)
    assert words["title"].endswith("authentic: 0.0% of the samples; copies: 205")
    assert seen == [(100, 205), (200, 205), (205, 205)]


def test_a_sample_as_far_as_the_training_images_own_neighbour_is_not_authentic(
    trained: Trained[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Black and black but for a pixel, among white ones; the samples are black but for one other pixel, and for two."""
    white = trained.data().spec.levels - 1
    training = trained.data().training_images()
    training[:] = white
    training[:2] = 0
    training[1, 0, 0, 0] = white
    drawn = torch.zeros_like(training[:2])
    drawn[:, 0, 7, 6] = white
    drawn[1, 0, 7, 7] = white
    monkeypatch.setattr(trained.model, "generate", lambda n, labels, given: drawn)
    _, words = shown(Neighbours(samples=2, neighbours=1, space="pixels"), trained, monkeypatch)
    assert words["row_names"] == ["1 (1)", "1.41 (1)"]
    assert "authentic: 50.0% of the samples" in words["title"]


@pytest.mark.parametrize("trained", [["data.binarize=dynamic"]], indirect=True)
def test_black_and_white_copies_are_those_of_the_fixed_draw(
    trained: Trained[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    images, words = shown(Neighbours(samples=20, rows=2, space="pixels", seed=0), trained, monkeypatch)
    assert [name.startswith("copy (") for name in words["row_names"]] == [True, True]
    assert torch.equal(images[:, 0], images[:, 1])
    assert set(images.unique().tolist()) == {0, 255}


def test_more_neighbours_than_training_images_are_refused(trained: Trained[Any]) -> None:
    data = trained.data()
    data.train = data.train.part(slice(4))
    with pytest.raises(UserError, match=r"figure\.neighbours=4: digits has 4 training images; give fewer"):
        Neighbours(samples=2, neighbours=4).draw(trained, lambda done, total: None)


def test_without_features_there_are_pixels(trained: Trained[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(self: Any, data: Any, device: Any, weights: Any, notify: Any) -> None:
        notify("no labels.")

    monkeypatch.setattr(imago.figures.neighbours.Auto, "build", nothing)
    with pytest.raises(UserError, match=r"figure\.space=features: no labels\. .*figure\.space=pixels"):
        Neighbours(samples=2, space="features").draw(trained, lambda done, total: None)
    _, words = shown(Neighbours(samples=2, space="auto"), trained, monkeypatch)
    assert "pixels" in words["title"]
