"""The classification accuracy score: of samples that are real images, of mixed classes, and of a model without any."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from imago.data import ImageDataModule
from imago.errors import UserError
from imago.evaluation import cas, measure_cas
from imago.images import Batch
from imago.models.base import GenerativeModel, Loss
from imago.rng import BatchGenerator, PerImageGenerator

Build = Callable[..., ImageDataModule]


class Recalls(GenerativeModel):
    """Draws training images of the class that it is asked for, or of another."""

    likelihood = "none"
    nfe = 1
    leaf = "direct"
    ema = ()

    def __init__(self, data: ImageDataModule, asked: Callable[[Tensor], Tensor] = lambda y: y, **common: Any) -> None:
        super().__init__(data.spec, **common)
        self.net, self.asked = nn.Linear(1, 1), asked
        self.known = data.split("train")

    @property
    def networks(self) -> dict[str, nn.Module]:
        return {"net": self.net}

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        raise AssertionError

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Tensor:
        assert labels is not None
        wanted, chosen = self.asked(labels), generator.uniform(n)[:, None].flatten()
        places = [(self.known.labels == y).nonzero().flatten() for y in wanted]
        return torch.cat([self.known.images[p[int(u * len(p))]][None] for p, u in zip(places, chosen, strict=True)])


@pytest.fixture(autouse=True)
def _short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cas, "IMAGES_SEEN", 3000)


@pytest.mark.parametrize(
    ("asked", "least", "most"),
    [(lambda y: y, 0.95, 1.0), (lambda y: 1 - y, 0.0, 0.05), (torch.zeros_like, 0.25, 0.75)],
    ids=["right", "mixed up", "one class alone"],
)
def test_it_is_as_good_as_the_classes_are_right(squares: Build, asked: Any, least: float, most: float) -> None:
    data, told = squares(), []
    model = Recalls(data, asked, conditional=True)
    (score,) = measure_cas(
        model, data, samples=200, seed=1, averaged=False, batch_size=64, progress=lambda *x: told.append(x)
    )
    assert least <= score.value <= most
    protocol = score.protocol
    assert protocol.held_out_value > 0.95, "real images of as many, whatever the samples are"
    assert (protocol.samples, protocol.held_out_images, protocol.images) == (200, 200, 40)
    assert protocol.standard_error == pytest.approx((score.value * (1 - score.value) / 40) ** 0.5)
    assert told[-1] == (200 + 2 * 3000, 200 + 2 * 3000)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_the_size_of_batches_changes_nothing(squares: Build) -> None:
    data = squares()
    model = Recalls(data, conditional=True)
    few, many = (
        measure_cas(model, data, samples=100, seed=1, averaged=False, batch_size=size)[0].value for size in (7, 100)
    )
    assert few == many


def test_a_model_without_classes_is_told_so(squares: Build) -> None:
    data = squares()
    with pytest.raises(UserError, match=r"^cas: .*; train with conditional=true, on labelled data$"):
        measure_cas(Recalls(data), data, samples=100, seed=1, averaged=False)
