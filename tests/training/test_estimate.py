"""What a run costs before it runs: arithmetic against counts by hand, and what follows from it."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import imago
from helpers import TINY, configuration
from imago import config
from imago.config import check
from imago.data import ImageDataModule
from imago.errors import UserError
from imago.evaluation import SampleQuality
from imago.models.base import GenerativeModel
from imago.training import estimate as module
from imago.training.estimate import IN_PLACE, Steps, end_of, estimate_run, exchanged, flop_of, flop_per_sample, total

PIXELS, LEVELS = 64, 256  # of data=digits


def tiny(name: str, *overrides: str) -> tuple[GenerativeModel, ImageDataModule]:
    return imago.compose([f"model={name}", "data=digits", *TINY[name], *overrides])


def counted(model: GenerativeModel, data: ImageDataModule, size: int = 4) -> float:
    """FLOP of a training image."""
    model.configure_optimizers()
    steps = Steps(model.train(), data, lambda: torch.autocast("cpu", enabled=False))
    return flop_of(lambda: steps.update(size)) / steps.images


def linear(*widths: int) -> tuple[int, int]:
    """FLOP of layers one after the other: forward, and of those that have a layer before them."""
    each = [2 * a * b for a, b in pairwise(widths)]
    return sum(each), sum(each[1:])


@pytest.mark.parametrize("optimizer", ["adam", "muon"])
def test_of_a_vae_whatever_its_optimiser(optimizer: str) -> None:
    encoder, behind = linear(PIXELS, 16, 2 * 8)
    decoder, _ = linear(8, 16, 3 * PIXELS)  # weight, mean and scale of one logistic
    model, data = tiny("vae", f"model/optimizer/net={optimizer}")
    assert counted(model, data) == 3 * (encoder + decoder) - (encoder - behind)  # no gradient of the images
    assert flop_per_sample(model) == decoder


@pytest.mark.parametrize("k", [1, 3])
def test_of_a_gan_each_update_has_k_batches(k: int) -> None:
    g, g_behind = linear(8, 16, PIXELS)
    d, d_behind = linear(PIXELS, 16, 16, 1)
    of_d = g + 2 * (d + d + d_behind)  # real and generated: forward, weights, what lies between
    of_g = g + d + d + g + g_behind  # through D to all of its inputs
    model, data = tiny("gan", f"model.discriminator_steps={k}")
    assert counted(model, data) == pytest.approx(of_d + of_g / k)
    assert flop_per_sample(model) == g


def test_of_a_pixelcnn() -> None:
    first = 2 * PIXELS * 8 * (2 * 3)  # two rows of a kernel of 3x3
    block = 2 * PIXELS * (8 * 4 + 4 * 4 * 2 * 3 + 4 * 8)
    head = 2 * PIXELS * (8 * 8 + 8 * LEVELS)
    model, data = tiny("pixelcnn")
    assert counted(model, data) == 2 * first + 3 * (block + head)


def test_of_a_row_lstm_whose_kernel_adds_up_in_place() -> None:
    side, h = 8, 6
    first = 2 * PIXELS * 2 * h * (2 * 3)
    inputs = 2 * 2 * h * 4 * h * side * (2 * side - 1)  # the own cell, and one at the left
    states = 2 * h * 4 * h * (side - 1) * (3 * side - 2)  # three cells of the row above
    widen = 2 * PIXELS * h * 2 * h
    biases = 2 * PIXELS * 4 * h  # of the gates, on the way back: a product with ones
    head = 2 * PIXELS * (2 * h * 8 + 8 * LEVELS)
    model, data = tiny("row_lstm")
    assert counted(model, data) == 2 * first + 2 * (3 * (inputs + states + widen) + biases) + 3 * head


def test_of_a_denoiser_whose_sampler_asks_so_many_times() -> None:
    c, code, blocks = 8, 32, 5

    def conv(inputs: int, outputs: int, kernel: int = 3) -> int:
        return 2 * PIXELS * inputs * outputs * kernel**2

    time = 2 * (code * code + code * blocks * c)
    body = conv(c, c) * 2 * 3 + 2 * (conv(2 * c, c) + conv(c, c) + conv(2 * c, c, 1)) + conv(c, c, 1) * 4 + conv(c, 1)
    attention = 2 * 2 * PIXELS**2 * c
    early = conv(1, c) + 2 * c * code  # no gradient of what they see
    model, data = tiny("ddpm", "model.network.multipliers=[1]", "model.sampler.steps=7")
    assert counted(model, data) == 3 * (time + body) + 2 * early + attention * (1 + 2.5)  # it computes a product again
    assert flop_per_sample(model) == 7 * (time + body + early + attention)


class Passed(TorchDispatchMode):
    """Notes the products of matrices and convolutions that have no formula."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        packet = func._overloadpacket
        words = ("mm", "bmm", "matmul", "linear", "conv", "attention", "einsum", "lstm", "gru", "rnn")
        if packet not in flop_registry and packet not in IN_PLACE and any(word in str(packet) for word in words):
            with self:  # of simpler operations, as the counter takes it
                if (found := func.decompose(*args, **(kwargs or {}))) is not NotImplemented:
                    return found
            self.names.add(str(packet))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", TINY)
def test_no_product_of_any_model_is_passed_over(name: str) -> None:
    """And a sample costs what drawing one whole costs, but for what is done once for all that are drawn together."""
    model, data = tiny(name)
    model.configure_optimizers()
    with Passed() as passed:
        Steps(model.train(), data, lambda: torch.autocast("cpu", enabled=False)).update(4)
        model.sample(1)
    assert not passed.names
    assert flop_per_sample(model) == pytest.approx(flop_of(lambda: model.sample(1)), rel=0.01)


def test_the_plain_sampler_repeats_the_network() -> None:
    model, _ = tiny("pixelcnn")
    model.incremental = False
    whole = flop_of(lambda: model.net(torch.zeros(1, 1, 8, 8)))  # type: ignore[attr-defined]
    assert flop_per_sample(model) == PIXELS * whole


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE", 0.01)


@pytest.mark.usefixtures("short")
def test_a_model_stays_as_it_is() -> None:
    model, data = tiny("vae")
    before = {name: value.clone() for name, value in model.state_dict().items()}
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    cost = imago.estimate(model, data)
    assert torch.rand(1) == drawn
    assert all(torch.equal(before[name], value) for name, value in model.state_dict().items())
    assert (model.state.images, data.endless) == (0, False)
    assert cost.parameters == {"net": sum(p.numel() for p in model.parameters())}
    assert 0 < cost.seconds_per_image < 0.1
    assert 0 < cost.cpu_seconds_per_image < 0.1
    assert 50 < cost.memory_mib < 5000


def test_a_batch_that_would_take_long_is_measured_in_part(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PROBE", 1e-6)
    cost = imago.estimate(*tiny("vae"))
    assert cost.measured_batch == 2
    assert cost.memory_mib > 50


@pytest.mark.usefixtures("short")
def test_several_processes_share_a_batch() -> None:
    config = configuration("model=gan", "data=digits", "trainer=ddp_cpu", *TINY["gan"])
    config.pop("estimate")
    found = estimate_run(config, "gan")
    weights = sum(found.cost.parameters.values())
    assert found.devices == 2
    assert found.gradients == 2 * 4 * weights  # two losses for a batch, and 2 (2 - 1) / 2 of four bytes
    assert found.seconds == pytest.approx(found.images * found.cost.seconds_per_image / 2)
    assert "B of gradients" in found.table()


def test_norms_tell_each_other_their_statistics() -> None:
    model, _ = tiny("dcgan")
    channels = [len(buffer) for name, buffer in model.named_buffers() if name.endswith("running_mean")]
    plain = exchanged(model, 4)[1]
    assert plain == sum(2 * 4 * c + 8 for c in channels)  # two statistics, and how many batches they are of
    assert exchanged(model, 4, sync_batchnorm=True)[1] - plain == sum(
        4 * (3 * (2 * c + 1) + 1.5 * 2 * c) for c in channels
    )
    assert exchanged(model, 1) == (0, 0)


NO_LIMITS = [f"max_{what}=null" for what in ("images", "updates", "seconds", "cpu_seconds", "wall_seconds")]


@pytest.mark.parametrize(
    ("limits", "images", "name"),
    [
        (["max_images=1000"], 1000, "max_images=1,000"),
        (["max_images=1000", "max_updates=10"], 640, "max_updates=10"),
        (["max_images=1000", "max_seconds=5"], 500, "max_seconds=5"),
        (["max_images=1000", "max_cpu_seconds=8"], 400, "max_cpu_seconds=8"),
        (["max_updates=100", "max_wall_seconds=11"], 1000, "max_wall_seconds=11"),
    ],
)
def test_the_first_limit_ends_a_run(limits: list[str], images: int, name: str) -> None:
    settings = check(configuration(*NO_LIMITS, *limits, "measuring_share=0.1"))
    found = end_of(settings, images_per_update=64, seconds_per_image=0.01, cpu_seconds_per_image=0.02)
    assert found == (images, name)


@pytest.mark.usefixtures("short")
def test_what_measuring_adds_follows_from_its_share() -> None:
    """Four callbacks have a few seconds and their portions of the share; without one nothing limits them."""
    common = ["model=vae", "data=digits", "trainer=cpu", "max_images=null", "max_seconds=1000", *TINY["vae"]]
    found = estimate_run(configuration(*common, "measuring_share=0.2"), "vae")
    assert found.measuring == pytest.approx(4 * 5 + 0.2 * 1000, rel=1e-3)
    assert estimate_run(configuration(*common), "vae").measuring is None
    assert estimate_run(configuration(*common, "callbacks=minimal"), "vae").measuring == 0


@pytest.mark.usefixtures("short")
def test_features_of_the_training_images_are_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(SampleQuality, "first_use", lambda *given: ("efficientnet-lite0", 420.0))
    found = estimate_run(configuration("model=vae", "data=digits", "trainer=cpu", *TINY["vae"]), "vae")
    assert "at first    7 min, once: efficientnet-lite0's features of the training images" in found.table()
    assert "and once 7 min for features" in found.line()
    assert "measuring, and once 7 min for features; " in total([found, found])
    assert "measuring, and once 14 min for features; " in total([found, replace(found, data="others")])
    assert "at first" not in replace(found, features=0.0).table()


@pytest.mark.usefixtures("short")
@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["resume=auto"], "leave resume out"),
        (["data.batch_size=63", "trainer=ddp_cpu"], "divided between 2"),
        (["model=two_stage"], r"TwoStage is trained in stages, each of another cost; not estimated$"),
    ],
)
def test_mistakes(overrides: list[str], told: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(config, "PLUGINS", ("my_models.",))
    with pytest.raises(UserError, match=told):
        estimate_run(configuration("data=digits", "trainer=cpu", *overrides), "name")
