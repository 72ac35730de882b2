"""The moving average of the weights."""

from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, Trainer

from imago.checkpoints import read
from imago.runs import Run
from imago.training.callbacks.checkpoints import Checkpoints
from imago.training.callbacks.ema import EMA, ema_parameters, sampling_weights


class Weights(Callback):
    """Keeps the weights after every batch, with the images and updates seen."""

    def __init__(self) -> None:
        self.kept: list[tuple[int, int, torch.Tensor]] = []

    def on_train_start(self, trainer: Trainer, pl_module: Any) -> None:
        self.kept.append((0, 0, pl_module.net.weight.detach().clone()))

    def on_train_batch_end(self, trainer: Trainer, pl_module: Any, *rest: Any) -> None:
        self.kept.append((pl_module.state.images, pl_module.state.updates, pl_module.net.weight.detach().clone()))


@pytest.mark.parametrize("batches_per_update", [1, 3])
@pytest.mark.parametrize(("half_life", "ramp"), [(20, 0.05), (20, 1.0), (10**6, 0.3)])
def test_decay_by_hand(toy: Any, fit: Any, half_life: int, ramp: float, batches_per_update: int) -> None:
    averaging, weights = EMA(half_life, ramp), Weights()
    fit(toy(batches_per_update=batches_per_update, lr=0.05), 12, weights, averaging)
    (_, _, average), *later = weights.kept
    moved_at, updates = 0, 0
    for seen, updates_now, weight in later:
        if updates_now > updates:
            # After min(half_life, ramp · seen) more images, what the average held counts half.
            remembered = 2 ** (-(seen - moved_at) / min(half_life, ramp * seen))
            average = remembered * average + (1 - remembered) * weight
            moved_at, updates = seen, updates_now
    assert updates == 12 // batches_per_update
    assert torch.allclose(averaging.weights["net.weight"], average, atol=1e-6)
    assert not torch.allclose(average, later[-1][2], atol=1e-6), "an average, not the last weights"


def test_weights_of_a_half_life_count_half(toy: Any, fit: Any) -> None:
    averaging, model = EMA(half_life=64, ramp=1.0), toy()
    trainer = fit(model, 1)
    averaging.load_state_dict({"weights": {"net.weight": torch.zeros(1, 16)}, "updates": 1, "images_seen": 64})
    averaging.on_train_start(trainer, model)
    model.net.weight.data.fill_(1)
    model.state.images, model.state.updates = 128, 2
    averaging.on_train_batch_end(trainer, model, None, None, 0)
    assert torch.allclose(averaging.weights["net.weight"], torch.tensor(0.5))


def test_only_what_sampling_needs_is_averaged_and_no_buffer(toy: Any, fit: Any) -> None:
    averaging, model = EMA(10), toy()
    fit(model, 3, averaging)
    assert list(averaging.weights) == ["net.weight"] == [name for name, _ in ema_parameters(model)]
    assert model.net.steps == 3
    with averaging.applied(model):
        assert model.net.steps == 3


def test_applied_restores_the_weights_also_after_an_error(toy: Any, fit: Any) -> None:
    averaging, model = EMA(10**6, ramp=1.0), toy(lr=0.05)
    trainer = fit(model, 3, averaging)
    own, parameter = model.net.weight.detach().clone(), model.net.weight
    with averaging.applied(model):
        assert torch.equal(model.net.weight, averaging.weights["net.weight"])
        assert not torch.equal(model.net.weight, own)
    assert torch.equal(model.net.weight, own)
    with pytest.raises(RuntimeError, match="while sampling"), averaging.applied(model):
        raise RuntimeError("while sampling")
    assert torch.equal(model.net.weight, own)
    assert model.net.weight is parameter, "the optimiser's parameters stay the model's"
    with sampling_weights(trainer, model) as averaged:
        assert averaged
        assert torch.equal(model.net.weight, averaging.weights["net.weight"])


def test_without_averaging_the_last_weights_are_judged(toy: Any, fit: Any) -> None:
    model = toy()
    trainer = fit(model, 1)
    own = model.net.weight.detach().clone()
    with sampling_weights(trainer, model) as averaged:
        assert not averaged
        assert torch.equal(model.net.weight, own)


def test_a_continued_average_is_the_uninterrupted_one(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, whole, first, second = Run(tmp_path), *(EMA(30, ramp=0.5) for _ in range(3))
    fit(toy(lr=0.05), 8, whole)
    fit(toy(lr=0.05), 5, first, last=(Checkpoints(10**6, run, {"seed": 0}),))
    fit(toy(lr=0.05), 8, second, checkpoint=run.last)
    assert torch.equal(whole.weights["net.weight"], second.weights["net.weight"])
    kept = read(run.last)["callbacks"]["EMA"]
    assert (kept["updates"], kept["images_seen"]) == (5, 80)


def test_a_run_that_begins_to_average_later_begins_with_its_weights(toy: Any, fit: Any, tmp_path: Path) -> None:
    run, averaging = Run(tmp_path), EMA(10**6)
    fit(toy(lr=0.05), 5, last=(Checkpoints(10**6, run, {"seed": 0}),))
    model = toy(lr=0.05)
    fit(model, 6, averaging, checkpoint=run.last)
    assert torch.allclose(averaging.weights["net.weight"], model.net.weight, atol=1e-3)
