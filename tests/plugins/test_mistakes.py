"""What is said of a model of one's own that does not keep its contract."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from imago.errors import UserError
from imago.images import Batch, Images, ImageSpec
from imago.models.base import ExplicitModel, GenerativeModel, Loss
from imago.rng import BatchGenerator, PerImageGenerator
from my_models.independent import Independent

SPEC = ImageSpec(1, 2, 3)


class Floats(Independent):
    """Its images are not quantised."""

    def generate(self, n: int, condition: Tensor | None, generator: PerImageGenerator) -> Images:
        return super().generate(n, condition, generator).float()


class Flat(Independent):
    """Its images have lost their shape."""

    def generate(self, n: int, condition: Tensor | None, generator: PerImageGenerator) -> Images:
        return super().generate(n, condition, generator).flatten(1)


class Undeclared(ExplicitModel):
    """Says neither what it knows of p(x) nor what sampling needs."""

    networks = {}  # noqa: RUF012

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]: ...

    def generate(self, n: int, condition: Tensor | None, generator: PerImageGenerator) -> Images: ...


class Unlikely(Undeclared):
    """Knows a likelihood and does not write it."""

    likelihood, ema = "exact", ()


@pytest.mark.parametrize(
    ("model", "given"), [(Floats, r"torch\.float32 \(4, 1, 2, 3\)"), (Flat, r"torch\.uint8 \(4, 6\)")]
)
def test_images_of_another_type_or_shape_are_refused(model: type[GenerativeModel], given: str) -> None:
    expected = rf"^{model.__name__}\.generate gave {given} instead of torch\.uint8 \(4, 1, 2, 3\); .*quantize"
    with pytest.raises(UserError, match=expected):
        model(SPEC).sample(4)


def test_what_a_class_does_not_declare_is_named() -> None:
    with pytest.raises(UserError, match=r"^Undeclared\.likelihood: missing; the class declares it"):
        Undeclared(SPEC)


def test_a_likelihood_that_is_not_written_is_named() -> None:
    with pytest.raises(NotImplementedError, match=r"^Unlikely writes neither log_prob nor nll_terms$"):
        Unlikely(SPEC).log_likelihood(torch.zeros(1, 1, 2, 3, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (lambda: Loss("net", torch.zeros(())), r"returned Loss; yield Loss\(NETWORK, VALUE\)$"),
        (lambda: None, r"returned NoneType; yield "),
        (lambda: iter([torch.zeros(())]), r"yielded Tensor, not Loss\(NETWORK, VALUE\)$"),
        (lambda: iter([Loss("net", torch.zeros(4))]), r"a loss of shape \(4,\) is no number; take its mean$"),
    ],
)
def test_what_is_no_loss_is_named(given: Any, told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = Independent(SPEC)
    monkeypatch.setattr(model, "batch_losses", lambda batch, rng: given())
    batch = Batch(torch.zeros(4, 1, 2, 3, dtype=torch.uint8))
    with pytest.raises(UserError, match=rf"^Independent\.batch_losses: {told}"):
        list(model.losses(batch, BatchGenerator(torch.device("cpu"))))


def test_a_loss_of_another_network_is_refused() -> None:
    model = Independent(SPEC)
    model.configure_optimizers()
    with pytest.raises(UserError, match=r"^Independent: Loss\('decoder', \.\.\.\): no such network; its own are net$"):
        model.optimize(Loss("decoder", torch.zeros((), requires_grad=True)))
