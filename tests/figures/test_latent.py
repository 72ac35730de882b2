"""Figures of latent spaces, of models whose z is the image itself: what each cell must show is known."""

import io
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure as Drawing
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from torch import Tensor, nn

import imago.figures.arithmetic
from helpers import configuration
from imago.data import ImageDataModule
from imago.data.base import ImageSet, Source, Splits
from imago.errors import UserError
from imago.figures.arithmetic import Arithmetic
from imago.figures.base import Trained
from imago.figures.interpolation import Interpolation, lerp, slerp
from imago.figures.latent_units import LatentUnits, kl_of_units
from imago.figures.latents import labelled
from imago.figures.manifold import Manifold, normal_quantiles, principal_plane
from imago.figures.reconstruction import Reconstruction
from imago.figures.traversal import Traversal
from imago.images import Batch, Images, ImageSpec, Labels, Normalized, normalize, quantize
from imago.models.base import Loss
from imago.models.latent import EncodingModel, LatentModel, Latents
from imago.models.variational import Variational
from imago.pictures import picture_of
from imago.rng import BatchGenerator, PerImageGenerator
from imago.training.run import build_model

SHAPE = (1, 2, 3)
CLASSES = 3


class Plain(LatentModel):
    """z is the signal, shifted by a tenth of the label."""

    likelihood = "none"
    ema = ()
    latent = math.prod(SHAPE)

    def __init__(self, conditional: bool = False) -> None:
        super().__init__(ImageSpec(*SHAPE, classes=CLASSES), optimizer={}, conditional=conditional)

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {}

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        raise NotImplementedError

    def shift(self, labels: Labels | None) -> Tensor | float:
        assert (labels is not None) == self.conditional
        return 0.0 if labels is None else labels[:, None] / 10

    def decode(self, z: Latents, labels: Labels | None = None) -> Normalized:
        return (z + self.shift(labels)).view(-1, *SHAPE)

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        return quantize(self.decode(self.draw_latents(n, generator), labels), 256)


class Encoding(Plain, EncodingModel):
    """... and the way back."""

    def encode(self, images: Images, labels: Labels | None = None) -> Latents:
        return normalize(images, 256).flatten(1) - self.shift(labels)


class Corners(Source):
    """Random images; class k's pixel k is as bright as can be, and the pixels vary the more the later they come."""

    name = "corners"

    def __init__(self, labelled: bool = True, missing: int = -1) -> None:
        self.labelled, self.missing = labelled, missing

    def load(self, directory: Path) -> Splits:
        generator = torch.Generator().manual_seed(0)
        labels = torch.arange(60) % CLASSES
        noise = torch.randint(256, (60, *SHAPE), generator=generator) - 128
        images = 128 + noise * torch.arange(1, 7).view(SHAPE) // 8
        images.flatten(1)[torch.arange(60), labels] = 255
        train = labels != self.missing
        whole, part = (
            ImageSet(images[index].to(torch.uint8), labels[index] if self.labelled else None)
            for index in (labels < CLASSES, train)
        )
        return Splits(part, whole, whole, tuple("abc") if self.labelled else (), "corners")


def corners(**arguments: Any) -> ImageDataModule:
    data = ImageDataModule(Corners(**arguments), batch_size=4)
    data.prepare()
    return data


def trained(model: LatentModel, data: ImageDataModule | None = None) -> Trained[Any]:
    def give() -> ImageDataModule:
        assert data is not None, "a figure that needs no data asks for none"
        return data

    return Trained(model.eval(), give)


def quiet(done: int, total: int) -> None:
    assert 0 < done <= total


def holds(picture: Image.Image, images: Tensor, columns: int, smallest_side: int = 64) -> bool:
    """Whether a picture has a grid of these images in it, at the bottom right or on the left above."""
    part, whole = np.asarray(picture_of(images, columns, smallest_side)), np.asarray(picture)
    if part.shape[0] > whole.shape[0] or part.shape[1] > whole.shape[1]:
        return False
    height, width = part.shape[:2]
    # The top left corner of a grid is rare: compare whole grids only where it fits.
    corner = part[:70, :70]
    windows = sliding_window_view(whole, corner.shape)[: whole.shape[0] - height + 1, : whole.shape[1] - width + 1]
    for top, left in np.argwhere((windows == corner).all(tuple(range(whole.ndim, 2 * whole.ndim)))):
        if np.array_equal(whole[top : top + height, left : left + width], part):
            return True
    return False


def pictured(z: Tensor) -> Images:
    return quantize(z.float().view(-1, *SHAPE), 256)


# --- manifold ---------------------------------------------------------------------------------------------------------


def test_quantiles_are_those_of_the_normal_distribution() -> None:
    q = normal_quantiles(5)
    assert torch.allclose(torch.special.ndtr(q.double()), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]).double(), atol=1e-7)
    assert torch.allclose(q, -q.flip(0), atol=1e-6)


def test_a_manifold_grows_to_the_right_and_upwards() -> None:
    q = normal_quantiles(3)
    z = torch.zeros(3, 3, 6)
    for row in range(3):
        for column in range(3):
            z[row, column, 4], z[row, column, 1] = q[column], q[2 - row]
    for model in (Plain(), Encoding()):
        picture = Manifold(side=3, axes=[4, 1]).draw(trained(model), quiet)
        assert holds(picture, pictured(z), 3)
        assert not holds(picture, pictured(z.flip(0)), 3)


def test_a_manifold_around_a_draw_and_of_a_class() -> None:
    model = Plain(conditional=True)
    base = model.draw_latents(1, PerImageGenerator(7))
    z = base.repeat(4, 1)
    q = normal_quantiles(2)
    z[:, 0], z[:, 1] = q.repeat(2), q.flip(0).repeat_interleave(2)
    drawn = {label: Manifold(side=2, base=7, label=label).draw(trained(model), quiet) for label in (None, 0, 2)}
    assert holds(drawn[None], pictured(z), 2)
    assert drawn[None].tobytes() == drawn[0].tobytes(), "class 0 by default"
    assert holds(drawn[2], pictured(z + 0.2), 2)


def test_a_manifold_covers_what_the_model_draws() -> None:
    """A normal distribution with other means and scales, for each class."""

    class Fitted(Plain):
        def latent_marginals(self, label: int | None = None) -> tuple[Tensor, Tensor]:
            assert label is not None
            return torch.arange(6) / 8 - 0.3 + label / 20, torch.arange(6) / 10

        def draw_latents(self, n: int, generator: PerImageGenerator, labels: Labels | None = None) -> Latents:
            assert labels is not None
            return super().draw_latents(n, generator) + labels[:, None]

    model, q = Fitted(conditional=True), normal_quantiles(2)
    for base in (None, 7):
        mean, scale = model.latent_marginals(2)
        around = mean if base is None else model.draw_latents(1, PerImageGenerator(7), torch.tensor([2]))
        z = around.repeat(4, 1)
        z[:, 4], z[:, 1] = mean[4] + scale[4] * q.repeat(2), mean[1] + scale[1] * q.flip(0).repeat_interleave(2)
        picture = Manifold(side=2, axes=[4, 1], base=base, label=2).draw(trained(model), quiet)
        assert holds(picture, pictured(z + 0.2), 2)


def test_principal_components_of_an_ellipse() -> None:
    generator = torch.Generator().manual_seed(0)
    directions, _ = torch.linalg.qr(torch.randn(5, 5, generator=generator))
    spread = torch.tensor([0.1, 3.0, 0.2, 1.0, 0.1])
    codes = 4 + torch.randn(20000, 5, generator=generator) * spread @ directions
    mean, plane = principal_plane(codes)
    assert torch.allclose(mean, torch.full((5,), 4.0), atol=0.1)
    for found, k in zip(plane, (1, 3), strict=True):
        expected = spread[k] * directions[k]
        expected = expected * torch.sign(expected[expected.abs().argmax()])
        assert torch.allclose(found, expected, atol=0.08)


def test_a_manifold_of_principal_components_is_centred_on_the_codes() -> None:
    model, data = Encoding(conditional=True), corners()
    picture = Manifold(side=3, plane="principal", label=1).draw(trained(model, data), quiet)
    assert data.test.labels is not None
    codes = normalize(data.test.images[data.test.labels == 1], 256).flatten(1) - 0.1
    mean, (first, second) = principal_plane(codes)
    q = normal_quantiles(3)
    z = torch.stack([mean + q[c] * first + q[2 - r] * second for r in range(3) for c in range(3)])
    assert holds(picture, pictured(z + 0.1), 3)


def test_a_manifold_of_many_dimensions_shows_those_that_vary_most_where_it_can() -> None:
    def drawn(model: object, **settings: object) -> bytes:
        return Manifold(side=3, **settings).draw(trained(model, corners()), quiet).tobytes()  # type: ignore[arg-type]

    assert drawn(Encoding()) == drawn(Encoding(), plane="principal") != drawn(Encoding(), plane="axes")
    assert drawn(Encoding(), axes=[0, 1]) == drawn(Encoding(), plane="axes"), "who names axes wants them"
    assert drawn(Encoding(), base=7) == drawn(Encoding(), plane="axes", base=7)
    assert drawn(Plain()) == drawn(Plain(), plane="axes"), "it cannot encode"


# --- traversal --------------------------------------------------------------------------------------------------------


def test_a_traversal_changes_the_most_active_dimensions_of_a_code() -> None:
    model, data = Encoding(conditional=True), corners()
    assert data.test.labels is not None
    part = data.test.images[data.test.labels == 2]
    codes = normalize(part, 256).flatten(1) - 0.2
    mean, spread = codes.mean(0), codes.double().var(0, correction=0).sqrt().float()
    order = spread.argsort(descending=True)[:2].tolist()
    z = codes[4].repeat(2, 4, 1)
    for row, d in zip(z, order, strict=True):
        row[1:, d] = mean[d] + spread[d] * torch.tensor([-2.0, 0.0, 2.0])  # no prior: in standard deviations
    expected = torch.cat([part[4].expand(2, 1, *SHAPE), pictured(z + 0.2).view(2, 4, *SHAPE)], 1).flatten(0, 1)
    figure = Traversal(dimensions=2, steps=3, reach=2.0, image=4, label=2)
    assert holds(figure.draw(trained(model, data), quiet), expected, 5)


def test_a_traversal_around_a_draw_where_nothing_encodes() -> None:
    model = Plain()
    z = model.draw_latents(1, PerImageGenerator(3)).repeat(6, 3, 1)
    for d in range(6):
        z[d, 1:, d] = torch.tensor([-3.0, 3.0])
    picture = Traversal(dimensions=10, steps=2, seed=3).draw(trained(model), quiet)
    assert holds(picture, pictured(z), 3)


# --- interpolation ----------------------------------------------------------------------------------------------------

VECTORS: dict[str, tuple[list[float], list[float]]] = {
    "some": ([1.0, 2.0, -1.0], [0.5, -1.0, 3.0]),
    "orthogonal": ([2.0, 0.0, 0.0], [0.0, 0.0, 2.0]),
    "almost parallel": ([1.0, 1.0, 1.0], [1.0, 1.0, 1.0 + 1e-6]),
    "parallel": ([1.0, 2.0, 3.0], [2.0, 4.0, 6.0]),
    "opposite": ([1.0, 2.0, 3.0], [-1.0, -2.0, -3.0]),
    "opposite on an axis": ([0.0, 0.0, 1.0], [0.0, 0.0, -1.0]),
    "equal": ([1.0, -1.0, 0.5], [1.0, -1.0, 0.5]),
    "from zero": ([0.0, 0.0, 0.0], [1.0, 2.0, 2.0]),
    "to zero": ([1.0, 2.0, 2.0], [0.0, 0.0, 0.0]),
    "both zero": ([0.0, 0.0, 0.0], [0.0, 0.0, 0.0]),
}


@pytest.mark.parametrize("case", VECTORS)
def test_an_arc_has_exact_ends_even_lengths_and_even_angles(case: str) -> None:
    a, b = (torch.tensor(v) for v in VECTORS[case])
    t = torch.linspace(0, 1, 9)
    arc = slerp(a, b, t)
    assert torch.equal(arc[0], a)
    assert torch.equal(arc[-1], b)
    assert torch.allclose(arc.norm(dim=1), torch.lerp(a.norm(), b.norm(), t), atol=1e-5)
    directions = nn.functional.normalize(arc[1:-1].double(), dim=1)
    turns = torch.atan2((directions[1:] - directions[:-1]).norm(dim=1), (directions[1:] + directions[:-1]).norm(dim=1))
    assert torch.allclose(turns, turns[0].expand_as(turns), atol=1e-6)
    if "opposite" in case:
        assert torch.allclose(16 * turns, torch.full_like(turns, math.pi), atol=1e-4), "half a turn in eight steps"


def test_an_arc_of_equal_lengths_is_shoemakes() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = nn.functional.normalize(torch.randn(2, 20, generator=generator, dtype=torch.float64), dim=1)
    t = torch.linspace(0, 1, 7).double()
    angle = torch.arccos(a @ b)
    expected = (torch.sin((1 - t) * angle)[:, None] * a + torch.sin(t * angle)[:, None] * b) / torch.sin(angle)
    assert torch.allclose(slerp(a, b, t), expected, atol=1e-12)
    assert torch.equal(
        slerp(torch.tensor([2.0]), torch.tensor([-2.0]), torch.tensor([0.0, 1.0])).flatten(), torch.tensor([2.0, -2.0])
    )  # a line has no arcs; its ends stay exact
    assert torch.allclose(lerp(a, b, t)[3], (a + b) / 2)


def test_interpolations_go_from_image_to_image() -> None:
    model, data = Encoding(), corners()
    ends = data.test.images[:4]
    z = normalize(ends, 256).flatten(1)
    t = torch.linspace(0, 1, 5)
    rows = []
    for k in (0, 2):
        for way in (lerp, slerp):
            rows.append(torch.cat([ends[k : k + 1], pictured(way(z[k], z[k + 1], t)), ends[k + 1 : k + 2]]))
        assert torch.equal(rows[-1][0], rows[-1][1])
        assert torch.equal(rows[-1][-1], rows[-1][-2])
    assert holds(Interpolation(pairs=2, steps=5).draw(trained(model, data), quiet), torch.cat(rows), 7)


def test_interpolations_of_draws_and_of_a_class() -> None:
    z, t = Plain().draw_latents(2, PerImageGenerator(5)), torch.linspace(0, 1, 3)
    expected = torch.cat([lerp(z[0], z[1], t), slerp(z[0], z[1], t)])
    assert holds(Interpolation(pairs=1, steps=3, seed=5).draw(trained(Plain()), quiet), pictured(expected), 3)
    given = trained(Plain(conditional=True))
    assert holds(Interpolation(pairs=1, steps=3, seed=5, label=1).draw(given, quiet), pictured(expected + 0.1), 3)
    data = corners()
    assert data.test.labels is not None
    ends = data.test.images[data.test.labels == 1][:2]
    picture = Interpolation(pairs=1, steps=2, label=1).draw(trained(Encoding(conditional=True), data), quiet)
    assert holds(picture, ends[[0, 0, 1, 1]].repeat(2, 1, 1, 1), 4)


# --- arithmetic -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("conditional", [False, True])
def test_arithmetic_with_the_codes_of_training_images(conditional: bool) -> None:
    model, data = Encoding(conditional), corners()
    picture = Arithmetic([2, 0, 1], images=7, examples=4, label=1 if conditional else None).draw(
        trained(model, data), quiet
    )
    labels = data.train.labels
    assert labels is not None
    codes = [normalize(data.train.images[labels == k][:7], 256).flatten(1) for k in range(CLASSES)]
    if conditional:  # what is not the class, and then all as class 1
        codes = [z - k / 10 + 0.1 for k, z in enumerate(codes)]
    means = [z.mean(0) for z in codes]
    step = means[2] - means[0]
    assert holds(picture, pictured(torch.stack([means[2], means[0], means[1], means[1] + step])), 4, 112)
    singles = [data.train.images[labels == 1][:4], pictured(codes[1][:4]), pictured(codes[1][:4] + step)]
    assert holds(picture, torch.cat(singles), 4)


class ByBrightestPixel:
    """In the place of the data's classifier: the class is the place of the brightest of the first pixels."""

    def __init__(self, classes: int = CLASSES) -> None:
        self.classes = classes

    def __call__(self) -> "ByBrightestPixel":
        return self

    def build(self, *_: object) -> "ByBrightestPixel":
        return self

    @property
    def network(self) -> nn.Module:
        class Network(nn.Module):
            def forward(self, images: Tensor) -> Tensor:
                return images.flatten(1)[:, : self.classes].float()

        made = Network()
        made.classes = self.classes  # type: ignore[assignment]
        return made


def test_arithmetic_with_draws_that_a_classifier_assigns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imago.figures.arithmetic, "Classifier", ByBrightestPixel())
    model, data = Plain(), corners()
    picture = Arithmetic([0, 1, 2], images=50, examples=3, seed=4).draw(trained(model, data), quiet)
    z = model.draw_latents(250, PerImageGenerator(4))
    assigned = pictured(z).flatten(1)[:, :3].float().argmax(1)
    codes = [z[assigned == k][:50] for k in range(3)]
    assert [len(c) for c in codes] == [50] * 3
    means = [c.mean(0) for c in codes]
    assert all(int(m[:3].argmax()) == k for k, m in enumerate(means))
    step = means[0] - means[1]
    assert holds(picture, pictured(torch.stack([*means, means[2] + step])), 4, 112)
    assert holds(picture, torch.cat([pictured(codes[2][:3]), pictured(codes[2][:3] + step)]), 3)


# --- what a model uses of z, and what it keeps ------------------------------------------------------------------------


def vae(*overrides: str) -> Variational:
    torch.manual_seed(0)
    sizes = ["model.encoder.hidden=[16]", "model.decoder.hidden=[16]", "model.latent=5"]
    model = build_model(
        configuration("model=vae", "data=digits", *sizes, *overrides), ImageSpec(*SHAPE, classes=CLASSES)
    )
    assert isinstance(model, Variational)
    return model.eval()


@pytest.mark.parametrize("conditional", ["false", "true"])
def test_the_units_kl_is_that_of_the_bound(conditional: str) -> None:
    model, data = vae(f"conditional={conditional}"), corners()
    with torch.no_grad():
        kl = kl_of_units(model, data.test, 0, quiet)
    labels = data.test.labels if model.conditional else None
    assert kl.shape == (5,)
    assert torch.allclose(kl.sum().float(), model.measured_nll_terms(data.test.images, labels)["elbo/kl"].mean())


def test_active_units_are_counted() -> None:
    model, data = vae(), corners()
    last = model.get_submodule("net.encoder")
    final = [m for m in last.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        final.weight[:5] *= 10
        final.weight[[0, 3]] = 0.0  # their means are the same for every image
    drawing = LatentUnits(images=40).draw(trained(model, data), quiet)
    assert isinstance(drawing, Drawing)
    assert drawing.get_suptitle() == "VAE, 40 test images of corners: 3 active units of 5"
    assert len(drawing.axes) == 2
    without_prior = LatentUnits().draw(trained(Encoding(), data), quiet)
    assert isinstance(without_prior, Drawing)
    assert (len(without_prior.axes), "active" in without_prior.get_suptitle()) == (1, False)
    for made in (drawing, without_prior):
        made.savefig(io.BytesIO(), dpi=50)


def test_reconstructions_stand_below_the_images() -> None:
    data = corners()
    few = data.test.images[:6].view(2, 3, *SHAPE)
    expected = torch.stack([few, few], 1).flatten(0, 2)
    for conditional in (False, True):
        picture = Reconstruction(rows=2, columns=3).draw(trained(Encoding(conditional), data), quiet)
        assert holds(picture, expected, 3), "z holds all of the image"
    assert holds(
        Reconstruction(rows=9, columns=50).draw(trained(Encoding(), data), quiet),
        torch.cat([data.test.images[:50]] * 2),
        50,
    ), "no more than there are"


# --- words around a grid ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 4, 48), (3, 48, 4), (1, 1, 1), (3, 100, 70)])
def test_words_leave_a_grid_of_any_shape_as_it_is(shape: tuple[int, int, int]) -> None:
    images = torch.randint(256, (6, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    words = labelled(images, 3, title="a title\nin two lines", column_names=["a"] * 3, row_names=["one", "−two"])
    grid = picture_of(images, 3)
    box = (words.width - grid.width, words.height - grid.height, words.width, words.height)
    assert np.array_equal(np.asarray(words.crop(box)), np.asarray(grid))
    assert box[0] > 0
    assert box[1] > 30
    assert (np.asarray(words)[: box[1]] < 100).any(), "something is written"
    assert np.array_equal(np.asarray(labelled(images, 3)), np.asarray(grid)), "no words, no room for them"


# --- mistakes ---------------------------------------------------------------------------------------------------------

MISTAKES: list[tuple[str, Callable[[], Any], str]] = [
    ("label", lambda: Manifold(label=1).draw(trained(Plain()), quiet), r"figure\.label=1: .*unconditional"),
    ("class", lambda: Manifold(label=3).draw(trained(Plain(True)), quiet), r"figure\.label=3: .*classes 0\.\.2"),
    ("axis", lambda: Manifold(axes=[0, 6]).draw(trained(Plain()), quiet), r"figure\.axes=\[0, 6\]: .*0\.\.5"),
    ("axes", lambda: Manifold(axes=[2, 2]).draw(trained(Plain()), quiet), r"figure\.axes=\[2, 2\]: .*two different"),
    (
        "plane",
        lambda: Manifold(plane="principal").draw(trained(Plain()), quiet),
        r"figure\.plane=principal: a Plain cannot encode images; .*autoencoder.*vae",
    ),
    (
        "one image",
        lambda: Manifold(plane="principal", images=1).draw(trained(Encoding(), corners()), quiet),
        r"figure\.plane=principal: 1 images .*raise figure\.images",
    ),
    (
        "image",
        lambda: Traversal(image=20, label=0).draw(trained(Encoding(True), corners()), quiet),
        r"figure\.image=20: corners test has 20 images of class 0",
    ),
    (
        "pairs",
        lambda: Interpolation(pairs=31).draw(trained(Encoding(), corners()), quiet),
        r"figure\.pairs=31: corners test has 60 images; give fewer",
    ),
    (
        "no labels",
        lambda: Arithmetic([0, 1, 2]).draw(trained(Encoding(), corners(labelled=False)), quiet),
        r"figure=arithmetic: corners has no labels",
    ),
    (
        "no class",
        lambda: Arithmetic([0, 1, 3]).draw(trained(Encoding(), corners()), quiet),
        r"figure\.classes=\[0, 1, 3\]: corners has classes 0\.\.2",
    ),
    (
        "missing class",
        lambda: Arithmetic([0, 1, 2]).draw(trained(Encoding(), corners(missing=1)), quiet),
        r"figure\.classes=\[0, 1, 2\]: corners train has no image of class 1",
    ),
    (
        "conditional",
        lambda: Arithmetic([0, 1, 2]).draw(trained(Plain(True), corners()), quiet),
        r"figure=arithmetic: a conditional Plain .*unconditional model",
    ),
]


@pytest.mark.parametrize(("draw", "message"), [m[1:] for m in MISTAKES], ids=[m[0] for m in MISTAKES])
def test_a_mistake_is_named(draw: Callable[[], Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        draw()


def test_a_class_that_is_never_drawn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(imago.figures.arithmetic, "Classifier", ByBrightestPixel(classes=2))
    with pytest.raises(UserError, match=r"assigns none of 200 samples to class 2; choose other classes"):
        Arithmetic([0, 1, 2], images=5).draw(trained(Plain(), corners()), quiet)
