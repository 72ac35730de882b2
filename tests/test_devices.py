"""Every model on a device that is not the processor, without such a device.

Tensors of torch's ``meta`` device have shapes and types, and no numbers. What costs a GPU its speed, or fails on one,
is noticed there: a tensor that was made on the processor, one that is sent to the device or brought back on the way, a
number that the processor waits for. A mode that sees every operation of torch counts them, by the function of imago
that asked; where such a thing cannot be otherwise, it stands in :data:`KNOWN` with its reason.
"""

import contextlib
import importlib
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.fx.experimental._config as fx_config
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import imago
from helpers import TINY, configuration
from imago.data.base import ImageSet, sent
from imago.data.stream import BatchStream
from imago.errors import UserError
from imago.evaluation.ais import estimated_log_prob
from imago.images import Batch, ImageSpec
from imago.models.base import GenerativeModel, evaluating, knows_likelihood
from imago.models.completing import Completing
from imago.models.gan import GAN
from imago.models.importance import ImportanceWeighted
from imago.models.probability_flow import ProbabilityFlow
from imago.models.variational import Variational
from imago.rng import PerImageGenerator
from imago.training.run import build_model, train
from models.test_autoregressive import lively
from models.test_laws import learnable, make
from numerics import CASES

SOURCE = Path(imago.__file__).parent
SPEC = ImageSpec(3, 2, 2, classes=3, class_counts=(2, 1, 1))
BITS = replace(SPEC, channels=1, levels=2)

# Where a device is waited for, or something crosses between it and the processor, and why.
ONCE = "once for all that is drawn or measured"
KNOWN = {
    # in a step of training
    "models.base.GenerativeModel.optimize": "a step that is left out: the processor decides (gradient_skip, of hvae)",
    "models.flow_matching.nearest_pairs": "optimal pairs of a batch are found by scipy, on the processor",
    # in a step of sampling
    "diffusion.ode.dopri5": "the length of a step, and the end, hang on the error of the one before",
    "models.masked_diffusion.MaskedDiffusion.draw_values": "draws those values alone whose turn it is",
    # for a batch
    "data.base.sent": "numbers of images, and which are mirrored: on a GPU from pinned memory, without waiting",
    # beside the steps
    "diffusion.samplers.Dopri5.trajectory": f"counts the calls, {ONCE}",
    "diffusion.samplers.Sampler.times": f"times in float64, on the processor alone, {ONCE}",
    "diffusion.samplers.length_of_steps": f"numbers on the processor alone, {ONCE}",
    "diffusion.schedules.DiscreteSchedule.at": "a number out of a table in float64, on the processor alone",
    "diffusion.samplers.Ancestral.step": "numbers on the processor alone",
    "models.autoencoder.Autoencoder.code_moments": f"eigenvectors in float64, which not every device has, {ONCE}",
    "models.autoencoder.Autoencoder.draw_latents": f"eigenvectors in float64, which not every device has, {ONCE}",
    "rng.PerImageGenerator.choices": f"the frequencies of classes are sent, {ONCE}",
    "images.ImageSpec.check": f"the range of what a user gives is looked at, {ONCE}",
    "models.base.GenerativeModel.check_labels": f"the range of what a user gives is looked at, {ONCE}",
    # measuring
    "models.importance.ImportanceWeighted.importance_weighted": "sums in float64, which not every device has",
    "evaluation.ais.log_weights": "sums in float64, which not every device has",
    "evaluation.ais.inverse_temperatures": f"numbers on the processor alone, {ONCE}",
    "evaluation.ais.estimated_log_prob": "means in float64, which not every device has",
    "models.rbm.RBM.partition": "whether the weights are those that log Z is known of",
    "models.rbm.annealed": f"log w is brought back, {ONCE}",
    "models.rbm.partition_from": f"the mean of w, {ONCE}",
    "models.ebm.EBM.log_z": "whether the weights are those that log Z is known of",
    "models.diffusion.Diffusion.regularisation": "a number out of a table in float64, on the processor alone",
}


INDEXED = ("index", "index_put", "index_put_", "_index_put_impl_")


def asked_by() -> str:
    """The function of imago that is being run, the innermost one: ``models.gan.GAN.generate``."""
    frame = sys._getframe(1)
    while frame := frame.f_back:  # type: ignore[assignment]
        path = Path(frame.f_code.co_filename)
        if path.is_relative_to(SOURCE):
            module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
            return f"{module}.{frame.f_code.co_qualname.split('.<locals>')[0]}"
    return "none of imago"


class Watch(TorchDispatchMode):
    """Notes what waits for the meta device, or is not on it.

    Attributes:
        found: who asked, and for what.
    """

    def __init__(self) -> None:
        super().__init__()
        self.found: set[tuple[str, str]] = set()
        self.read: dict[str, int] = {}

    def note(self, what: str) -> str:
        asked = asked_by()
        self.found.add((asked, what))
        return asked

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs, name = kwargs or {}, func.overloadpacket.__name__
        abroad = bool(args) and isinstance(args[0], Tensor) and args[0].is_meta
        if abroad and name == "_local_scalar_dense":
            asked = self.note("reads a number")
            if args[0].dtype != torch.bool:
                return 1
            # Loops ask whether to go on: yes, once, and no.
            self.read[asked] = self.read.get(asked, 0) + 1
            return self.read[asked] == 1
        if abroad and name == "equal":
            self.note("reads a number")
            return False
        if abroad and name == "_to_copy" and kwargs.get("device", args[0].device).type == "cpu":
            self.note("brings a tensor back")
            return torch.ones(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        indices = [index for index in args[1] if index is not None] if name in INDEXED else []
        if name in ("nonzero", "masked_select") or any(index.dtype == torch.bool for index in indices):
            self.note("reads how many are chosen")
        out = func(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor)]
        here = [tensor for tensor in tensors if not tensor.is_meta]
        if name == "lift_fresh" and not here:
            self.note("sends a number")
        elif any(tensor.dim() for tensor in here):  # a number that the processor has is part of a kernel's call
            self.note("works on the processor" if len(here) == len(tensors) else "sends a tensor")
        return out


@pytest.fixture
def _meta(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What torch does on a GPU and refuses on the meta device."""
    kept = "_get_fused_kernels_supported_devices"
    for name, module in list(sys.modules.items()):
        if name.startswith(("torch.optim", "torch.utils._foreach")) and hasattr(module, kept):
            monkeypatch.setattr(module, kept, lambda: ["cpu", "meta"])

    class Autocast(torch.autocast):
        def __init__(self, device_type: str, **settings: Any) -> None:
            super().__init__("cpu" if device_type == "meta" else device_type, **settings)

    class Noise:
        def __init__(self, device: torch.device) -> None:
            assert device.type == "meta"

        def manual_seed(self, seed: int) -> None:
            """Of torch's own generator: there is none of the meta device."""

    monkeypatch.setattr(torch, "autocast", Autocast)
    monkeypatch.setattr("imago.models.rbm.torch.Generator", Noise)
    monkeypatch.setattr("imago.evaluation.ais.LEAPFROG", 1)
    with fx_config.patch(meta_nonzero_assume_all_nonzero=True):
        yield


# Few steps, which are all alike.
SHORT = {
    "ddpm": ["model.steps=3", "model.sampler.steps=null"],
    "ncsn": ["model.steps=3"],
    "masked_diffusion": ["model.steps=2"],
    "flow_matching": ["model.sampler.steps=2"],
    "gsn": ["model.steps=2"],
    "rbm": ["model.steps=2", "model.ais_temperatures=2"],
    "ebm": ["model.steps=2", "model.sampling_steps=2"],
}
VARIANTS: dict[str, list[str]] = {  # but for torch's fused SGD, which it has not written for the meta device
    **{
        case: [*changes]
        for case, changes in CASES.items()
        if changes and not any(change.startswith("data.") for change in changes) and "sgd" not in case
    },
    "rbm exact": ["model.hidden=3"],
    **{f"flow_matching {name}": [f"model/sampler={name}"] for name in ("euler", "dopri5", "dpm_solver")},
    "flow_matching pairs": ["model.coupling=optimal_transport", "model.times=logit_normal"],
    "masked_diffusion one by one": ["model.steps=null"],
    "gated_pixelcnn logistic_mixture": ["model/distribution=logistic_mixture"],
}


def abroad(name: str, *changes: str) -> GenerativeModel:
    """A model on the meta device, of classes where it knows them."""
    spec = learnable(name, SPEC) if name != "rbm" else BITS
    settings = [*TINY[name], *SHORT.get(name, []), *changes]
    settings = [change for change in settings if not change.startswith("data.")]
    if any(change.startswith("model/sampler=") for change in changes):
        settings = [change for change in settings if not change.startswith("model.sampler.steps=")]
        settings += ["model.sampler.steps=2"] if "model/sampler=dopri5" not in changes else []

    def built(*more: str) -> GenerativeModel:
        return build_model(configuration(f"model={name}", "data=digits", *settings, *more), spec)

    try:
        model = built("conditional=true")
    except UserError:
        model = built()
    model = model.to("meta")
    model.configure_optimizers()
    return model


def batch_for(model: GenerativeModel) -> Batch:
    images = torch.zeros(2, *model.spec.shape, dtype=model.spec.dtype, device="meta")
    return Batch(images, torch.zeros(2, dtype=torch.long, device="meta") if model.conditional else None)


def steps(model: GenerativeModel) -> None:
    """An update."""
    for _ in range(model.batches_per_update):
        for loss in model.losses(batch_for(model)):
            model.optimize(loss)


def samples(model: GenerativeModel) -> None:
    assert model.sample(2).is_meta
    if isinstance(model, Completing):
        images, labels = batch_for(model)
        known = torch.ones(1, dtype=torch.bool, device="meta")
        assert model.complete(images, known, labels=labels, generator=noise()).is_meta


def likelihoods(model: GenerativeModel) -> None:
    """Of all the kinds that a model has."""
    images, labels = batch_for(model)
    if knows_likelihood(model):
        assert model.log_likelihood(images, labels).is_meta
    with evaluating(model), torch.no_grad():
        if isinstance(model, ImportanceWeighted):
            with contextlib.suppress(UserError):  # of a flow of points, whose likelihood is known
                assert model.importance_weighted(images, labels, k=2, generator=noise()).is_meta
        if isinstance(model, ProbabilityFlow) and model.estimator != model.flow_estimator(1e-4):
            assert model.flow_nats(images, labels, noise().normal, 1e-2).is_meta


def noise() -> PerImageGenerator:
    return PerImageGenerator(0, device="meta")


def watched(work: Callable[[GenerativeModel], None], model: GenerativeModel) -> list[tuple[str, str]]:
    """What is not known of some work."""
    with Watch() as watch:
        work(model)
    return sorted(found for found in watch.found if found[0] not in KNOWN)


@pytest.mark.usefixtures("_meta")
@pytest.mark.parametrize("name", TINY)
def test_a_model_stays_on_its_device_and_waits_for_nothing(name: str) -> None:
    model = abroad(name)
    for work in (steps, samples, likelihoods):
        assert not watched(work, model), work.__name__


@pytest.mark.slow
@pytest.mark.usefixtures("_meta")
@pytest.mark.parametrize("case", VARIANTS)
def test_with_other_parts_too(case: str) -> None:
    model = abroad(case.split()[0], *VARIANTS[case])
    for work in (steps, samples, likelihoods):
        assert not watched(work, model), work.__name__


@pytest.mark.usefixtures("_meta")
def test_an_energy_of_points_stays_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("imago.models.ebm.CELLS", 4)
    model = make("ebm", ImageSpec(2, 1, 1, levels=0), *SHORT["ebm"], "model.metropolis=true", "model.noise=null")
    model = model.to("meta")
    model.configure_optimizers()
    for work in (steps, samples, likelihoods):
        assert not watched(work, model), work.__name__


@pytest.mark.usefixtures("_meta")
@pytest.mark.parametrize("name", ["gan", "vae"])
def test_annealed_importance_sampling_stays_there(name: str) -> None:
    def estimated(model: GenerativeModel) -> None:
        assert isinstance(model, Variational | GAN)
        (images, labels), z = batch_for(model), model.draw_latents(2, noise())
        settings: dict[str, Any] = {"chains": 2, "temperatures": 2, "sigma": 0.1}
        with torch.no_grad(), evaluating(model):
            estimated_log_prob(model, images, labels, noise(), **settings, posterior=z)

    assert not watched(estimated, abroad(name))


def test_what_is_known_is_there() -> None:
    for known in KNOWN:
        parts = known.split(".")
        length = next(k for k in range(len(parts), 0, -1) if (SOURCE / "/".join(parts[:k])).with_suffix(".py").exists())
        found: Any = importlib.import_module(".".join(["imago", *parts[:length]]))
        for part in parts[length:]:
            found = getattr(found, part)


def test_batches_are_cut_where_the_images_lie() -> None:
    images = ImageSet(torch.zeros(8, 1, 2, 4, dtype=torch.uint8), torch.arange(8)).to(torch.device("meta"))
    with Watch() as watch:
        for binarize in (False, True):
            batch = next(iter(BatchStream(images, batch_size=4, seed=0, flip=True, binarize=binarize)))
            assert batch.images.is_meta
    assert {asked for asked, what in watch.found if what != "works on the processor"} == {"data.base.sent"}


def test_what_is_sent_to_a_gpu_is_pinned(monkeypatch: pytest.MonkeyPatch) -> None:
    pinned = torch.zeros(3)
    given: list[Any] = []
    monkeypatch.setattr(Tensor, "pin_memory", lambda self: pinned)
    monkeypatch.setattr(Tensor, "to", lambda self, *to, **how: given.append((self is pinned, to, how)) or self)
    sent(np.arange(3), torch.device("cuda", 0))
    sent(np.arange(3), torch.device("cpu"))
    how = {"non_blocking": True}
    assert given == [(True, (torch.device("cuda", 0),), how), (False, (torch.device("cpu"),), how)]


class Reads(TorchDispatchMode):
    """Counts the numbers that are read out of tensors, by who asks."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is torch.ops.aten._local_scalar_dense.default:
            self.counts[asked_by()] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("name", ["gan", "vae"])
def test_a_run_reads_no_number_in_every_step(name: str, tmp_path: Path) -> None:
    """Nor do its callbacks, beside those steps of which a row is written."""
    steps = 80
    settings = ["data=digits", "metrics=none", "trainer=cpu", "logger=csv", "max_images=null", f"max_updates={steps}"]
    rare = ["every.log=100000", "callbacks.samples=null", "callbacks.reconstructions=null", "callbacks.likelihood=null"]
    config = configuration(f"model={name}", *TINY[name], *settings, *rare, f"logs={tmp_path}")
    with Reads() as reads:
        train(config, name, tmp_path / "run")
    assert not {asked: count for asked, count in reads.counts.items() if count >= steps}


class Graph(TorchDispatchMode):
    """A CUDA graph on the processor: the operations of a capture, repeated on the same memory whatever Python says."""

    replays = 0

    def __init__(self) -> None:
        super().__init__()
        self.operations: list[tuple[Any, tuple[Any, ...], dict[str, Any], Any]] = []
        self.before: list[tuple[Tensor, Tensor]] = []

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        given = dict(zip((argument.name for argument in func._schema.arguments), args, strict=False)) | kwargs
        for argument in func._schema.arguments:
            if argument.is_write and argument.name in given:
                self.before.append((given[argument.name], given[argument.name].clone()))
        out = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, out))
        return out

    def __exit__(self, *error: Any) -> None:
        """A capture computes nothing: what was written is as before."""
        super().__exit__(*error)
        for tensor, value in reversed(self.before):
            tensor.copy_(value)

    def replay(self) -> None:
        Graph.replays += 1
        for func, args, kwargs, out in self.operations:
            again = func(*args, **kwargs)
            for kept, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                kept.copy_(new)


@pytest.mark.parametrize("name", ["row_lstm", "diagonal_bilstm", "pixelcnn", "gated_pixelcnn"])
def test_a_row_that_was_captured_once_draws_all_others(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = lively(name, ImageSpec(3, 5, 3, levels=8, classes=2), *TINY[name], "conditional=true")
    labels = torch.tensor([1, 0, 1])
    plain = model.sample(3, labels=labels)
    completed = model.complete(plain, plain > 3, labels=labels, generator=PerImageGenerator(7))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph: graph)
    monkeypatch.setattr(torch.nn.Parameter, "is_cuda", True, raising=False)
    before = Graph.replays
    assert torch.equal(model.sample(3, labels=labels), plain)
    assert torch.equal(model.complete(plain, plain > 3, labels=labels, generator=PerImageGenerator(7)), completed)
    assert Graph.replays == before + 8  # all rows but the first
