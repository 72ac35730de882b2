"""What every model promises, checked for every file of conf/model on gray, RGB, binary and non-square images.

A new model is found here by its yaml; no line of this file knows a family. Models that live elsewhere keep the same
laws in a test file of their own: ``from models.test_laws import *``, then their own ``MODELS``, ``SPECS`` and ``GRAY``.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning import Callback, LightningDataModule, Trainer
from omegaconf import OmegaConf

from helpers import CONF, LEARNS, TINY, configuration
from imago.checkpoints import load, read
from imago.config import target
from imago.errors import UserError
from imago.images import Batch, ImageSpec, Learned
from imago.models.autoregressive import Autoregressive
from imago.models.base import GenerativeModel
from imago.rng import PerImageGenerator
from imago.training.run import build_model, train

MODELS = sorted(path.stem for path in (CONF / "model").glob("*.yaml"))
SPECS = {
    "binary-2x2": ImageSpec(1, 2, 2, levels=2, classes=2),
    "rgb-1x2": ImageSpec(3, 1, 2, levels=4, classes=2),
    "gray-12x8": ImageSpec(1, 12, 8, classes=3),
    "rgb-8x16": ImageSpec(3, 8, 16, classes=3),
    "points-2": ImageSpec(2, 1, 1, levels=0, classes=2),
}
GRAY = SPECS["gray-12x8"]


configured = cache(configuration)


def class_of(name: str) -> type[GenerativeModel]:
    module, _, model = configured(f"model={name}", "data=digits")["model"]["_target_"].rpartition(".")
    found: type[GenerativeModel] = getattr(import_module(module), model)
    return found


def kinds_of(name: str) -> tuple[Learned, ...]:
    """What data a model says that it can learn."""
    return class_of(name).kinds


def takes_classes(name: str) -> bool:
    return "class" in class_of(name).conditions


def learnable(name: str, spec: ImageSpec) -> ImageSpec:
    """A specification, or for models of binary pixels alone the same with two levels."""
    return spec if spec.learned_as(kinds_of(name)) else replace(spec, levels=2)


def data_for(name: str) -> list[str]:
    """The digits as a model can learn them."""
    return ["data=digits", *([] if "pixels" in kinds_of(name) else ["data.binarize=threshold"])]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Tests ask for a ``name`` and a ``spec`` that it can learn, and get those of the file that they stand in."""
    module: Any = metafunc.module
    marked = {mark.args[0] for mark in metafunc.definition.iter_markers("parametrize")}
    wanted = {name for name in ("name", "spec", "gray") if name in metafunc.fixturenames and name not in marked}
    models = module.MODELS if "name" in wanted else [None]
    if "spec" in wanted:
        specs = module.SPECS.items()
        cases = {(m, k): s for k, s in specs for m in models if m is None or s.learned_as(kinds_of(m))}
    elif "gray" in wanted:
        cases = {(m, "gray"): module.GRAY if m is None else learnable(m, module.GRAY) for m in models}
    else:
        cases = {(m, None): None for m in models}
    if wanted:
        values = [[value for value in (m, spec) if value is not None] for (m, _), spec in cases.items()]
        ids = ["-".join(part for part in case if part is not None) for case in cases]
        names = [name for name in ("name", "spec", "gray") if name in wanted]
        metafunc.parametrize(names, values, ids=ids)


class Tensors(LightningDataModule):
    """Endless batches of fixed images."""

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, batch_size: int) -> None:
        super().__init__()
        self.images, self.labels, self.batch_size = images, labels, batch_size

    def train_dataloader(self) -> Any:
        generator = torch.Generator().manual_seed(0)
        while True:
            picked = torch.randint(len(self.images), (self.batch_size,), generator=generator)
            yield Batch(self.images[picked], self.labels[picked])


def images_of(spec: ImageSpec, n: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if spec.kind == "points":
        return torch.randn(n, *spec.shape, generator=generator)
    return torch.randint(spec.levels, (n, *spec.shape), generator=generator, dtype=spec.dtype)


def make(model: str, spec: ImageSpec, *overrides: str) -> GenerativeModel:
    torch.manual_seed(0)
    if spec.kind != "points":
        return build_model(deepcopy(configured(f"model={model}", "data=digits", *overrides)), spec)
    node = OmegaConf.load(CONF / "model" / f"{model}.yaml")
    if "points" not in target(node._target_, "model").kinds:  # type: ignore[union-attr]
        pytest.skip("is no model of points")
    groups = {group for entry in node.defaults if not isinstance(entry, str) for group in entry}
    fitting = [f"model/{group}=mlp" for group in ("network", "energy") if group in groups]
    try:
        return build_model(deepcopy(configured(f"model={model}", "data=toy2d", *fitting, *overrides)), spec)
    except UserError as error:
        if "is convolutional, and these are points in R^2, 2 classes; choose model" not in str(error):
            raise
        pytest.skip("is convolutional")


def make_tiny(model: str, spec: ImageSpec, *overrides: str) -> GenerativeModel:
    """A model of some hundred weights; one of points, or without a size in helpers.TINY, as it is configured."""
    sizes = [] if spec.kind == "points" else [size for size in TINY.get(model, []) if size.startswith("model.")]
    return make(model, spec, *sizes, *overrides)


def fit(model: GenerativeModel, data: Tensors, batches: int, *callbacks: Callback) -> None:
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    limits = {"max_epochs": 1, "limit_train_batches": batches, "limit_val_batches": 0}
    trainer = Trainer(accelerator="cpu", callbacks=list(callbacks), **limits, **quiet)
    model.managed = True  # its numbers stay for whoever asks
    trainer.fit(model, datamodule=data)


def test_an_image_is_the_same_in_any_batch(name: str, spec: ImageSpec) -> None:
    """And has the shape, type and range of the data."""
    model = make_tiny(name, spec)
    together = model.sample(6, generator=PerImageGenerator(3))
    assert together.dtype == spec.dtype
    assert together.shape == (6, *spec.shape)
    chosen = [0, 4]
    alone = torch.cat([model.sample(1, generator=PerImageGenerator(3, first=k)) for k in chosen])
    if spec.dimensions > 6 or spec.kind == "points":  # tiny networks may have one answer for a few pixels
        assert not torch.equal(together, model.sample(6, generator=PerImageGenerator(4)))
    if spec.kind == "points":
        assert together.isfinite().all()
        torch.testing.assert_close(together[chosen], alone, rtol=1e-3, atol=1e-4)
        return
    assert int(together.max()) < spec.levels
    # Other batch sizes may round differently in the last bit of a float; a pixel may then fall to the next level.
    assert (together[chosen].int() - alone.int()).abs().max() <= (1 if spec.levels == 256 else 0)


def test_sampling_leaves_the_model_and_the_global_generator_alone(name: str, gray: ImageSpec) -> None:
    model = make_tiny(name, gray).train()
    before, state = torch.get_rng_state(), {k: v.clone() for k, v in model.state_dict().items()}
    model.sample(3, generator=PerImageGenerator(0))
    assert torch.equal(before, torch.get_rng_state())
    assert all(module.training for module in model.modules())
    assert all(torch.equal(v, state[k]) for k, v in model.state_dict().items())


def test_every_parameter_learns(name: str, spec: ImageSpec) -> None:
    """Every parameter gets a finite gradient: after two batches each one has moved, and is finite."""
    model = make_tiny(name, spec, f"conditional={str(takes_classes(name)).lower()}")
    before = {k: p.detach().clone() for k, p in model.named_parameters()}
    fit(model, Tensors(images_of(spec, 12), torch.arange(12) % spec.classes, 6), 2)
    for key, parameter in model.named_parameters():
        assert torch.isfinite(parameter).all(), key
        assert not torch.equal(parameter, before[key]), key


def test_a_checkpoint_rebuilds_the_model(name: str, tmp_path: Path) -> None:
    small = ["logger=csv", "metrics=none", "trainer=cpu", "max_images=128", f"logs={tmp_path}"]
    small += ["~callbacks.likelihood", "~callbacks.samples", "~callbacks.reconstructions"]
    sizes = [*data_for(name), *TINY.get(name, [])]
    run = train(configuration(f"model={name}", *sizes, *small), name, tmp_path / "run")
    model = load(run.path)
    again = load(run.last)
    assert torch.equal(model.sample(4, generator=PerImageGenerator(0)), again.sample(4, generator=PerImageGenerator(0)))
    raw = load(run.path, averaged=False)
    weights = read(run.last)["state_dict"]
    assert all(torch.equal(value, weights[key]) for key, value in raw.state_dict().items())
    assert (model.state.images, model.spec.shape, model.spec.classes) == (128, (1, 8, 8), 10)
    assert model.spec.levels == learnable(name, ImageSpec(1, 8, 8)).levels


def test_conditional_models_react_to_labels_and_others_refuse_them(name: str, gray: ImageSpec) -> None:
    if not takes_classes(name):
        pytest.skip("knows no classes")
    model = make(name, gray, *quick(name), "conditional=true")
    images = images_of(gray, 12)
    images[::3], images[1::3], images[2::3] = 0, 128, 255  # class = brightness
    fit(model, Tensors(images, torch.arange(12) % 3, 12), 10)
    one = model.sample(4, labels=torch.zeros(4, dtype=torch.long), generator=PerImageGenerator(0))
    other = model.sample(4, labels=torch.ones(4, dtype=torch.long), generator=PerImageGenerator(0))
    assert not torch.equal(one, other)
    with pytest.raises(UserError, match=r"labels from 7 to 7: .* classes 0\.\.2"):
        model.sample(1, labels=torch.tensor([7]), generator=PerImageGenerator(0))
    with pytest.raises(UserError, match="unconditional model"):
        make_tiny(name, gray).sample(1, labels=torch.tensor([0]), generator=PerImageGenerator(0))
    with pytest.raises(UserError, match="no labels"):
        make_tiny(name, ImageSpec(1, 8, 8), "conditional=true")


def two_images(name: str) -> tuple[ImageSpec, torch.Tensor]:
    """Two images, each a class, and what they are for a model."""
    spec = learnable(name, ImageSpec(1, 8, 8, classes=2))
    images = torch.zeros(2, 1, 8, 8, dtype=torch.uint8)
    images[0, :, :4] = spec.levels - 1
    images[1, :, :, :4] = spec.levels - 1
    return spec, images


class Until(Callback):
    """Stops training as soon as nothing lacks, which it looks for after every 25th batch."""

    def __init__(self, lacking: Callable[[], str]) -> None:
        self.lacking = lacking
        self.lacks = "too few batches"

    def on_train_batch_end(self, trainer: Trainer, *given: Any) -> None:
        if given[-1] % 25 == 24:
            self.lacks = self.lacking()
            trainer.should_stop = not self.lacks


def test_a_model_learns_two_images(name: str) -> None:
    """After some hundred steps the samples of a class are its image; of a model without classes, one of the two."""
    if not takes_classes(name):
        learns_both(name)
        return
    spec, images = two_images(name)
    labels = torch.arange(32) % 2
    model = make(name, spec, *quick(name), "conditional=true")

    def lacking() -> str:
        samples = model.sample(32, labels=labels, generator=PerImageGenerator(0)).float()
        right = (samples - images[labels].float()).abs().mean((1, 2, 3))
        wrong = (samples - images[1 - labels].float()).abs().mean((1, 2, 3))
        if right.median() >= 40 / 255 * (spec.levels - 1):  # noise would have half of it
            return f"samples are {float(right.median())} away from the image of their class"
        if (right < wrong).float().mean() <= 0.9:
            return "samples are those of the other class"
        if isinstance(model, Autoregressive):  # a class has one image
            nats = float(-model.log_likelihood(images, torch.arange(2)).mean())
            return f"{nats} nats" if nats >= 3 else ""
        return ""

    learns(model, images, lacking)


@pytest.mark.slow
def test_an_unconditional_model_learns_two_images(name: str) -> None:
    """It has to sample both, if it has a likelihood: that is what its objective measures.

    A GAN's does not, and with two images it answers one of them only (mode collapse).
    """
    learns_both(name)


def learns_both(name: str) -> None:
    spec, images = two_images(name)
    model = make(name, spec, *quick(name))

    def lacking() -> str:
        samples = model.sample(64, generator=PerImageGenerator(0)).float()
        nearest, which = torch.stack([(samples - image.float()).abs().mean((1, 2, 3)) for image in images]).min(0)
        if nearest.median() >= 40 / 255 * (spec.levels - 1):
            return f"samples are {float(nearest.median())} away from the nearest image"
        both = model.likelihood == "none" or 6 <= int(which.sum()) <= 58
        return "" if both else "one image is never drawn"

    learns(model, images, lacking)


def quick(name: str) -> list[str]:
    """A size and a rate with which two images are learned in seconds."""
    one = "net" in configured(f"model={name}", "data=digits")["model"].get("optimizer", {})
    sizes = [size for size in LEARNS.get(name, []) if size.startswith("model.")]
    return [*(["model.optimizer.net.lr=0.005"] if one else []), *sizes]


def learns(model: GenerativeModel, images: torch.Tensor, lacking: Callable[[], str]) -> None:
    until = Until(lacking)
    fit(model, Tensors(images, torch.arange(2), 16), 500, until)
    assert not until.lacks
