"""The gradients of a GAN's objectives: closed forms, and what they do to a generator."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from helpers import configuration
from imago.config import build
from imago.data import ImageDataModule
from imago.figures.base import Trained
from imago.figures.objective_gradients import ObjectiveGradients, generator_loss
from imago.models.gan import GAN, Hinge, LeastSquares, Minimax, NonSaturating
from imago.rng import BatchGenerator, PerImageGenerator
from imago.training.run import build_model

OBJECTIVES = {"minimax": Minimax(), "non_saturating": NonSaturating()}
SMALL = ["model.latent=5", "model.generator.hidden=[8]", "model.discriminator.hidden=[8]"]
DCGAN = ["model=dcgan", "model.latent=5", "model.generator.width=2", "model.discriminator.width=2"]


def gan(folder: Path, *overrides: str) -> GAN:
    config = configuration("data=digits", *overrides)
    data: ImageDataModule = build(config["data"], "data", dir=str(folder))
    data.prepare()
    torch.manual_seed(0)
    model = build_model(config, data.spec).eval()
    assert isinstance(model, GAN)
    return model


def forbidden() -> ImageDataModule:
    raise AssertionError("needs no data")


def curve(axes: Any, label: str) -> tuple[Any, Any]:
    (line,) = [line for line in axes.lines if line.get_label() == label]
    return np.asarray(line.get_xdata()), np.asarray(line.get_ydata())


def test_without_a_checkpoint_the_curves_are_the_closed_forms() -> None:
    drawing = ObjectiveGradients(OBJECTIVES).draw(None, lambda *_: None)
    losses, slopes = drawing.axes
    for label, loss, slope in (
        ("minimax", lambda d: np.log(1 - d), lambda d: d),
        ("non saturating", lambda d: -np.log(d), lambda d: 1 - d),
    ):
        d, values = curve(losses, label)
        assert (d.min() > 0, d.max() < 1, 0.5 in d) == (True, True, True)
        assert values == pytest.approx(loss(d), abs=1e-12)
        assert curve(slopes, label)[1] == pytest.approx(slope(curve(slopes, label)[0]), abs=1e-12)


def test_any_objective_can_be_drawn() -> None:
    logits = torch.tensor([-2.0, 0.0, 3.0])
    assert generator_loss(Hinge(), logits)[1].tolist() == [1, 1, 1]
    assert generator_loss(LeastSquares(), logits)[1].tolist() == [3, 1, 2]


@pytest.mark.parametrize("more", [[], ["conditional=true"]])
def test_one_sample_moves_the_generator_in_proportion_to_its_slope(tmp_path: Path, more: list[str]) -> None:
    """∂ loss / ∂ parameters = ∂ loss / ∂ logit · ∂ logit / ∂ parameters: the ratio of two objectives is known."""
    model = gan(tmp_path, *SMALL, *more)
    measured = ObjectiveGradients(OBJECTIVES, batches=12, batch_size=1).measure(model, lambda *_: None)
    d = measured.fooled
    assert (measured.norms["minimax"] / measured.norms["non_saturating"]).tolist() == pytest.approx(
        (d / (1 - d)).tolist(), rel=1e-4
    )
    assert (measured.norms["non_saturating"] > 0).all()


@pytest.mark.parametrize("overrides", [[*SMALL, "model.discriminator.dropout=0"], DCGAN])
def test_the_gradient_is_that_of_the_step_in_training(
    tmp_path: Path, overrides: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Batch norm takes the moments of the batch there, and not its running ones."""
    model = gan(tmp_path, *overrides)
    figure = ObjectiveGradients({"its own": model.objective}, batches=3, batch_size=7, seed=4)
    measured = figure.measure(model, lambda *_: None)
    z = PerImageGenerator(4).normal(21, 5)[7:14]
    logits = model.train().discriminator(model.generator(z))
    rng = BatchGenerator()
    monkeypatch.setattr(rng, "normal", lambda n, latent: z)
    model.generator_loss(7, None, rng).value.backward()
    total = torch.nn.utils.get_total_norm([p.grad for p in model.generator.parameters() if p.grad is not None])
    assert float(measured.norms["its own"][1]) == pytest.approx(float(total), rel=1e-5)
    assert measured.fooled[7:14].tolist() == pytest.approx(logits.sigmoid().tolist(), rel=1e-5)


def test_the_discriminator_drops_what_it_drops_in_training(tmp_path: Path) -> None:
    model = gan(tmp_path, *SMALL, "model.discriminator.dropout=0.9")
    measured = ObjectiveGradients({"its own": model.objective}, batches=2, batch_size=50).measure(
        model, lambda *_: None
    )
    with torch.no_grad():
        whole = model.discriminator(model.generator(PerImageGenerator(0).normal(100, 5))).sigmoid()
    assert float(measured.fooled.std()) > 1.5 * float(whole.std())
    assert measured.fooled.unique().numel() < 100, "of some, everything is dropped"


@pytest.mark.parametrize("overrides", [SMALL, DCGAN])
def test_nothing_of_the_model_or_the_random_numbers_changes(tmp_path: Path, overrides: list[str]) -> None:
    """Batch norm keeps running means, which a forward pass in training mode moves; dropout draws."""
    model = gan(tmp_path, *overrides)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    figure = ObjectiveGradients(OBJECTIVES, batches=2, batch_size=4)
    one = figure.measure(model, lambda *_: None)
    assert torch.equal(torch.get_rng_state(), state)
    assert not any(module.training for module in model.modules())
    assert all(p.grad is None for p in model.parameters())
    after = model.state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    torch.manual_seed(99)
    again = figure.measure(model, lambda *_: None)
    assert torch.equal(one.fooled, again.fooled)
    assert all(torch.equal(one.norms[name], again.norms[name]) for name in OBJECTIVES)


def test_the_picture_shows_what_was_measured(tmp_path: Path) -> None:
    model = gan(tmp_path, *SMALL)
    with torch.no_grad():
        list(model.discriminator.parameters())[-1].fill_(-6)  # the last bias: samples look bad
    figure = ObjectiveGradients(OBJECTIVES, batches=4, batch_size=25)
    seen: list[tuple[int, int]] = []
    drawing = figure.draw(Trained(model, forbidden), lambda *steps: seen.append(steps))
    assert seen == [(k, 4) for k in range(1, 5)]
    measured = figure.measure(model, lambda *_: None)
    bars: Any = drawing.axes[2]
    shares: Any = drawing.axes[3]
    assert sum(patch.get_height() for patch in shares.patches) == pytest.approx(1)
    assert shares.patches[0].get_height() == pytest.approx(float((measured.fooled < 0.04).float().mean()))
    assert float(shares.patches[0].get_height()) > 0.9
    assert [bar.get_height() for bar in bars.patches] == pytest.approx(
        [float(n.mean()) for n in measured.norms.values()]
    )
    assert bars.patches[1].get_height() > 50 * bars.patches[0].get_height(), "minimax has stalled"
    assert f"median {float(measured.fooled.median()):.1g}"[:-1] in drawing.get_suptitle()
