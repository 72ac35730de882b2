"""Models and data under Lightning's own trainer, with its callbacks, as its users know them."""

import importlib.util
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Trainer
from lightning.pytorch.callbacks import EarlyStopping, LearningRateMonitor, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

import imago
from helpers import configuration
from imago.data.module import ImageDataModule
from imago.data.sources.digits import Digits
from imago.errors import UserError
from imago.models.diffusion import Diffusion
from imago.models.gan import GAN
from imago.models.pixelcnn import PixelCNN
from imago.models.vae import VAE
from imago.nets.unet import UNet
from imago.schedules import LinearDecay
from imago.training.run import train

EXAMPLE = Path(__file__).parents[1] / "examples" / "bare_loop.py"


@pytest.fixture(scope="module")
def data() -> ImageDataModule:
    data = ImageDataModule(Digits(), batch_size=64)
    data.prepare()
    return data


def trainer(tmp_path: Path, **settings: Any) -> Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    return Trainer(default_root_dir=tmp_path, **quiet | {"logger": False, "enable_checkpointing": False} | settings)


@pytest.mark.parametrize("make", [GAN, lambda spec: GAN(spec, discriminator_steps=3), VAE])
def test_steps_are_updates_of_the_model(tmp_path: Path, data: ImageDataModule, make: Any) -> None:
    model = make(data.spec)
    fitted = trainer(tmp_path, max_steps=8, limit_val_batches=0)
    fitted.fit(model, datamodule=data)
    assert fitted.global_step == model.state.updates == 8
    assert model.state.batches == 8 * model.batches_per_update


def test_epochs_are_passes_over_other_orders_of_the_data(tmp_path: Path, data: ImageDataModule) -> None:
    model = VAE(data.spec)
    trainer(tmp_path, max_epochs=2, limit_val_batches=0).fit(model, datamodule=data)
    assert model.state.batches == 2 * (len(data.train) // 64)
    fresh = ImageDataModule(Digits())
    fresh.prepare()
    loader = fresh.train_dataloader()
    first, second = ([batch.images for batch in loader] for _ in range(2))
    assert len(first) == len(second) == len(loader)
    assert not torch.equal(first[0], second[0])


def test_its_callbacks_see_numbers_and_rates(tmp_path: Path, data: ImageDataModule) -> None:
    checkpoints = ModelCheckpoint(dirpath=tmp_path / "checkpoints", monitor="val/nats", filename="best")
    stopping = EarlyStopping("val/nats", patience=1, min_delta=1e9)
    logger = CSVLogger(tmp_path, name=None, version="log")
    callbacks = [checkpoints, stopping, LearningRateMonitor("step"), RichProgressBar()]
    model = VAE(data.spec, schedule=LinearDecay(end=None))
    fitted = trainer(
        tmp_path,
        max_epochs=9,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=True,
        log_every_n_steps=1,
        enable_progress_bar=True,
    )
    fitted.fit(model, datamodule=data)
    assert fitted.current_epoch == 2, "the second epoch is not better by so much"
    assert checkpoints.best_model_score is not None
    rows = logger.experiment.metrics_file_path
    header = Path(rows).read_text().splitlines()[0].split(",")
    assert {"val/nats", "val/bpd", "train/nats", "train/gradient_norm/net", "lr-Adam"} <= set(header)
    rate = fitted.optimizers[0].param_groups[0]["lr"]
    assert rate == pytest.approx(1e-3 * (1 - (model.state.batches - 2) / (9 * 22)), rel=0.02)


def test_without_validation_images_nothing_is_validated(tmp_path: Path) -> None:
    data = ImageDataModule(Digits(), batch_size=64, val=0)
    data.prepare()
    model, fitted = VAE(data.spec), trainer(tmp_path, max_steps=3, val_check_interval=1)
    with pytest.warns(UserWarning, match="length of .* is zero"):
        fitted.fit(model, datamodule=data)
    assert fitted.global_step == 3
    assert "val/nats" not in fitted.callback_metrics
    (test,) = fitted.test(model, datamodule=data, verbose=False)
    assert test["test/nats"] > 0


def test_validation_and_test_give_the_likelihood_of_the_split(tmp_path: Path, data: ImageDataModule) -> None:
    torch.manual_seed(0)
    model = PixelCNN(data.spec, features=8, blocks=1, head=(8,))
    (val,) = trainer(tmp_path).validate(model, datamodule=data, verbose=False)
    (test,) = trainer(tmp_path).test(model, datamodule=data, verbose=False)
    for found, name in ((val, "val"), (test, "test")):
        nats = -model.log_likelihood(data.split(name).images).mean()
        expected = {f"{name}/nats": float(nats), f"{name}/bpd": float(nats) / 64 / math.log(2)}
        assert found == pytest.approx(expected, rel=1e-5)


def test_validation_visits_ten_terms_of_a_diffusion_and_test_all(tmp_path: Path, data: ImageDataModule) -> None:
    model = Diffusion(data.spec, network=partial(UNet, width=8, multipliers=[1], head=8), steps=40)
    asked = []
    model.net.register_forward_hook(lambda *_: asked.append(1))
    quiet = trainer(tmp_path, limit_val_batches=1, limit_test_batches=1)
    validated = quiet.validate(model, datamodule=data, verbose=False)[0]["val/nats"]
    assert len(asked) == 10 + 1  # and the reconstruction
    asked.clear()
    tested = quiet.test(model, datamodule=data, verbose=False)[0]["test/nats"]
    assert len(asked) == 40
    assert validated == pytest.approx(tested, rel=0.2)  # an estimate of the same number, on other images


def test_checkpoints_of_a_trainer_load_by_class(tmp_path: Path, data: ImageDataModule) -> None:
    settings = {"features": 8, "blocks": 1, "head": (8,)}
    fitted = trainer(tmp_path, max_steps=2, limit_val_batches=0)
    fitted.fit(PixelCNN(data.spec, **settings), datamodule=data)
    fitted.save_checkpoint(tmp_path / "it.ckpt")
    again = PixelCNN.load_from_checkpoint(tmp_path / "it.ckpt", **settings)
    assert again.state.updates == 2
    expected = fitted.lightning_module.eval().log_likelihood(data.test.images)
    assert torch.equal(again.log_likelihood(data.test.images), expected)
    with pytest.raises(UserError, match="weights are not of the network"):
        PixelCNN.load_from_checkpoint(tmp_path / "it.ckpt")
    with pytest.raises(UserError, match=r"does not say what model it is of; .* load it by its class"):
        imago.load(tmp_path / "it.ckpt")
    fitted = trainer(tmp_path, max_steps=4, limit_val_batches=0)
    fitted.fit(again, datamodule=data, ckpt_path=tmp_path / "it.ckpt", weights_only=True)
    assert (again.state.updates, fitted.global_step) == (4, 4)


def test_predictions_are_samples(tmp_path: Path, data: ImageDataModule) -> None:
    model = GAN(data.spec)
    batches = trainer(tmp_path).predict(model, datamodule=data)
    assert torch.equal(torch.cat(batches), model.sample(len(data.test), seed=0))


@pytest.mark.parametrize(
    "debugging",
    [{"fast_dev_run": True}, {"profiler": "simple", "max_steps": 2}, {"overfit_batches": 1, "max_epochs": 1}],
)
def test_debugging(tmp_path: Path, data: ImageDataModule, debugging: dict[str, Any]) -> None:
    model = VAE(data.spec)
    trainer(tmp_path, limit_val_batches=1, **debugging).fit(model, datamodule=data)
    assert model.state.updates >= 1


def test_floats_that_need_scaling_are_refused(tmp_path: Path, data: ImageDataModule) -> None:
    with pytest.raises(UserError, match=r"precision=16-\w+: .* choose bf16-mixed or 32-true"):
        trainer(tmp_path, max_steps=1, limit_val_batches=0, precision="16-true").fit(VAE(data.spec), datamodule=data)


def test_names_arrays_and_pictures_are_taken(data: ImageDataModule) -> None:
    model = VAE(data.spec, conditional=True)
    by_name = model.sample(4, labels=["zero"] if "zero" in data.spec.class_names else [data.spec.class_names[0]])
    assert torch.equal(by_name, model.sample(4, labels=torch.zeros(4, dtype=torch.long), seed=0))
    images, labels = data.test.images[:3], data.test.labels[:3]
    expected = model.log_likelihood(images, labels)
    pictures = [Image.fromarray(image[0].numpy()) for image in images]
    for same in (images.numpy(), images[:, 0].numpy(), images.permute(0, 2, 3, 1).numpy(), pictures):
        assert torch.equal(model.log_likelihood(same, labels.tolist()), expected)


@pytest.mark.parametrize("name", ["gan", "vae", "pixelcnn", "ddpm"])
def test_the_bare_loop_trains(name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert len(EXAMPLE.read_text().splitlines()) <= 25
    monkeypatch.setattr("sys.argv", [str(EXAMPLE), name, "2"])
    spec = importlib.util.spec_from_file_location("bare_loop", EXAMPLE)
    spec.loader.exec_module(importlib.util.module_from_spec(spec))  # type: ignore[union-attr]
    assert "128 images" in capsys.readouterr().out


def test_its_callbacks_work_in_a_run_of_train(tmp_path: Path) -> None:
    """Measured numbers are published as after a validation: patience of one ends the run at the second measurement."""
    stop = ["_target_=lightning.pytorch.callbacks.EarlyStopping", "monitor=val/nats", "patience=1", "min_delta=1e9"]
    keep = ["_target_=lightning.pytorch.callbacks.ModelCheckpoint", "monitor=val/nats", f"dirpath={tmp_path}/kept"]
    keep += ["save_on_train_epoch_end=false", "filename=lowest"]
    options = [f"+callbacks.stop.{option}" for option in stop] + [f"+callbacks.keep.{option}" for option in keep]
    small = ["model=vae", "data=digits", "trainer=cpu", "logger=csv", "metrics=none", "callbacks=minimal"]
    small += ["+callbacks.likelihood._target_=imago.training.callbacks.likelihood.MeasureLikelihood"]
    small += ["+callbacks.likelihood.every=640", "+callbacks.likelihood.at_start=false", f"logs={tmp_path}"]
    run = train(configuration(*small, "max_images=100000", *options), "x", tmp_path / "run")
    assert run.summary["status"] == "completed"
    assert run.summary["images_seen"] == 1280
    (kept,) = (tmp_path / "kept").iterdir()
    assert imago.load(kept).state.images == 1280, "the lower one"
