"""Classes as the training split has them: rare ones rarely, those without training images never."""

from collections.abc import Iterator
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from explicit import Pixels
from imago.data import ImageDataModule
from imago.data.base import ImageSet, Source, Splits, seen_by
from imago.errors import UserError
from imago.evaluation import ClassifierExtractor, SampleQuality, choices, measure_likelihood
from imago.evaluation.network import ClassifierNetwork
from imago.images import Batch, Images, ImageSpec
from imago.measures import Likelihood
from imago.models.base import GenerativeModel, Loss
from imago.rng import BatchGenerator, PerImageGenerator
from imago.training.callbacks.quality import measure

CPU = torch.device("cpu")


class Twenty(Source):
    """Dark squares and, twenty times rarer, bright ones; what is called "never" is in validation alone."""

    name = "twenty"

    def load(self, directory: Any) -> Splits:
        generator = torch.Generator().manual_seed(0)

        def part(n: int, labels: Tensor) -> ImageSet:
            brightness = torch.tensor([60.0, 150.0, 200.0])[labels][:, None, None, None]
            images = brightness + 20 * torch.randn(n, 1, 8, 8, generator=generator)
            return ImageSet(images.clamp(0, 255).byte(), labels)

        k = torch.arange(2100)
        return Splits(
            part(2100, 2 * (k % 21 == 0).long()),
            part(30, k[:30] % 3),
            part(9, k[:9] % 3),
            ("common", "never", "rare"),
            "",
        )


class Perfect(GenerativeModel):
    """Knows everything: a sample is a training image of its class."""

    likelihood: Likelihood = "none"
    ema: ClassVar[tuple[str, ...]] = ()

    def __init__(self, spec: ImageSpec, train: ImageSet) -> None:
        super().__init__(spec, optimizer={}, conditional=True)
        self.train_set = train
        self.drawn: list[Tensor] = []

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {}

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]: ...

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        assert labels is not None
        self.drawn.append(labels)
        which = generator.uniform(n)
        assert self.train_set.labels is not None
        members = [(self.train_set.labels == k).nonzero().flatten() for k in range(self.spec.classes)]
        chosen = [members[label][int(u * len(members[label]))] for label, u in zip(labels, which, strict=True)]
        return self.train_set.images[torch.stack(chosen)]


class Given(choices.ExtractorChoice):
    """A fixed random network."""

    def build(self, data: Any, device: Any, weights: Any, notify: Any) -> ClassifierExtractor:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return ClassifierExtractor(ClassifierNetwork.for_images(*data.spec.shape, classes=2), "random")


@pytest.fixture
def twenty(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> ImageDataModule:
    monkeypatch.chdir(tmp_path)
    data = ImageDataModule(Twenty(), batch_size=16)
    data.prepare()
    return data


def test_a_perfect_conditional_model_of_rare_classes_is_near(twenty: ImageDataModule) -> None:
    metrics = SampleQuality(Given(), samples=1000, subsets=5)
    metrics.prepare(twenty, CPU)
    assert twenty.spec.class_counts == (2000, 0, 100)
    model = Perfect(twenty.spec, twenty.train)
    near = measure(metrics, model, 1, False)
    assert near[0].protocol.classes == "as in training"
    drawn = torch.bincount(torch.cat(model.drawn), minlength=3).tolist()
    assert drawn[1] == 0
    assert drawn[2] == pytest.approx(1000 / 21, abs=20), "three standard deviations of a binomial"

    equal = Perfect(ImageSpec(1, 8, 8, 256, 3, (), (1, 0, 1)), twenty.train)
    assert near[0].value < 0.02 * measure(metrics, equal, 1, False)[0].value


def test_classes_are_uniform_where_their_frequencies_are_not_known(twenty: ImageDataModule) -> None:
    old = Perfect(ImageSpec(1, 8, 8, 256, 3), twenty.val)
    metrics = SampleQuality(Given(), samples=30, subsets=5)
    metrics.prepare(twenty, CPU)
    assert measure(metrics, old, 1, False)[0].protocol.classes == "uniform"
    assert torch.equal(old.drawn[0], PerImageGenerator(1).integers(30, 3))


def test_labels_do_not_depend_on_the_batch(twenty: ImageDataModule) -> None:
    model = Perfect(twenty.spec, twenty.train)
    whole = model.sample(60, generator=PerImageGenerator(3))
    parts = [model.sample(n, generator=PerImageGenerator(3, first)) for first, n in ((0, 7), (7, 53))]
    assert torch.equal(whole, torch.cat(parts))
    assert torch.equal(model.drawn[0], torch.cat(model.drawn[1:]))
    assert torch.equal(model.draw_labels(60, PerImageGenerator(3)), model.drawn[0])


def test_a_class_without_training_images_is_refused_by_name(twenty: ImageDataModule) -> None:
    model = Perfect(twenty.spec, twenty.train)
    with pytest.raises(UserError, match=r"labels=1: class never has no training images.*such as 0 \(common\)"):
        model.sample(2, labels=torch.tensor([0, 1]), generator=PerImageGenerator(0))
    old = Perfect(ImageSpec(1, 8, 8, 256, 3), ImageSet(twenty.val.images, twenty.val.labels))
    old.sample(2, labels=torch.tensor([0, 1]), generator=PerImageGenerator(0))


def test_images_of_a_class_without_training_images_are_not_counted(twenty: ImageDataModule) -> None:
    """A model that is certain of what it saw and knows nothing of the rest."""
    model = Pixels(twenty.spec, conditional=True)
    known = seen_by(model, twenty.val)
    assert known.labels is not None
    assert known.labels.tolist() == [0, 2] * 10
    bpd, _ = measure_likelihood(model, twenty, "val", averaged=False, batch_size=7)
    assert (bpd.value, bpd.protocol.images) == (pytest.approx(8), 20)
    assert bpd.protocol.caveat == "without 10 images of classes that have no training images"
    plain, _ = measure_likelihood(Pixels(twenty.spec), twenty, "val", averaged=False)
    assert (plain.protocol.images, plain.protocol.caveat) == (30, "none")
    twenty.val = ImageSet(twenty.val.images[1::3], twenty.val.labels[1::3])  # type: ignore[index]
    with pytest.raises(UserError, match="no image is of a class that has training images"):
        measure_likelihood(model, twenty, "val", averaged=False)
