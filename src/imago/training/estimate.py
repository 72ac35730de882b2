"""What a run will cost, before it begins: arithmetic, memory, time, and what several devices tell each other.

Arithmetic is counted: two floating point operations (FLOP) for a multiplication and its addition in matrix products,
convolutions and attention, forward and backward. Elementwise work (the gates of an LSTM), normalisation, softmax,
matrix times vector (spectral norms) and the optimisers' steps are not counted: a small part of the FLOP, and a larger
one of the time. What a kernel computes outside of torch's operations is not seen. Time and memory are measured, on the
device at hand.
"""

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from lightning import seed_everything
from torch.nn.modules.batchnorm import _BatchNorm

from imago.config import Settings, build, check, target
from imago.data import ImageDataModule
from imago.data.loaders import Epoch
from imago.data.stream import check_batch_size
from imago.errors import UserError
from imago.evaluation import SampleQuality
from imago.images import Batch
from imago.models.autoregressive import Autoregressive
from imago.models.base import GenerativeModel, count_parameters, evaluating
from imago.models.denoiser import Denoiser
from imago.nets.incremental import Recomputed
from imago.rng import PerImageGenerator
from imago.runs import device_name, forget_peak_memory, peak_memory_mib
from imago.training.callbacks.pace import CREDIT, Paced
from imago.training.run import build_model, build_trainer, not_possible, prepare_process

PROBE = 3.0  # seconds of training that are timed
HOUR = 3600.0


@dataclass(frozen=True)
class Cost:
    """What training and sampling take on one device.

    Attributes:
        parameters: of each network that is optimised, without weights that a mask keeps at zero.
        flop_per_image: of a training image, forward and backward in all networks.
        flop_per_sample: of a drawn image.
        losses_per_batch: how many losses are stepped along for a batch, on average.
        memory_mib: the peak of a training step, MiB: on a GPU what tensors take, on a CPU the whole process.
        seconds_per_image: of a training image, by the clock.
        cpu_seconds_per_image: of a training image, of all processor cores together.
        measured_batch: images of the steps that were measured, fewer than asked for where these would take long.
    """

    parameters: Mapping[str, int]
    flop_per_image: float
    flop_per_sample: float
    losses_per_batch: float
    memory_mib: float
    seconds_per_image: float
    cpu_seconds_per_image: float
    measured_batch: int


@dataclass(frozen=True)
class Estimate:
    """What a run will cost.

    Attributes:
        name: of the run.
        device: what it was measured on.
        devices: how many train together.
        batch_size: images of a step, of all devices.
        cost: of one device and its part of a batch.
        images: when the run ends.
        updates: of the model until then.
        seconds: of training until then.
        ended_by: the limit that ends it.
        measuring: seconds that measuring and drawing may add, at most; ``None`` where nothing limits them.
        share: ``measuring_share``, which limits them.
        gradients: bytes of gradients that each device sends, and receives, for a batch.
        buffers: bytes of batch norm's statistics and other buffers that each device receives for a batch.
        extractor: whose features of the training images are needed first.
        features: seconds that these take, once for these data; 0 where they are kept already, or not known.
        data: fingerprint of those images.
    """

    name: str
    device: str
    devices: int
    batch_size: int
    cost: Cost
    images: int
    updates: int
    seconds: float
    ended_by: str
    measuring: float | None
    share: float | None
    gradients: float
    buffers: float
    extractor: str = ""
    features: float = 0.0
    data: str = ""

    def table(self) -> str:
        """Some lines for people."""
        cost = self.cost
        own = self.batch_size // self.devices
        measured = "" if cost.measured_batch == own else f", from steps of {cost.measured_batch}"
        networks = ", ".join(f"{name} {count:,}" for name, count in cost.parameters.items())
        share = "" if self.share is None else f" (measuring_share={self.share:g}, and a few seconds at first)"
        extra = "as long as it takes, measuring_share=null" if self.measuring is None else _hours(self.measuring)
        rows = {
            "parameters": f"{networks}; {sum(cost.parameters.values()):,} in all" if "," in networks else networks,
            "arithmetic": f"{_short(cost.flop_per_image)}FLOP for a training image, {_short(cost.flop_per_sample)}FLOP "
            "for a sample: matrix products, convolutions and attention",
            "memory": f"{cost.memory_mib:,.0f} MiB at most in a step of {own} images{measured}",
            "time": f"{_milliseconds(cost.seconds_per_image)} for a training image{measured}, "
            f"{_milliseconds(cost.cpu_seconds_per_image)} of all processor cores",
            "training": f"{_hours(self.seconds)}: {self.images:,} images, {self.updates:,} updates, until "
            f"{self.ended_by}",
            "measuring": f"{extra}{share}" if self.measuring != 0 else "nothing is measured",
        }
        if self.features > 1:
            rows["at first"] = f"{_hours(self.features)}, once: {self.extractor}'s features of the training images"
        if self.devices > 1:
            rows["exchanged"] = (
                f"{_short(self.gradients)}B of gradients and {_short(self.buffers)}B of buffers for each device and "
                "step; their time, and that processes may share cores, is not in the above"
            )
        width = max(map(len, rows))
        on = self.device if self.devices == 1 else f"{self.devices} processes, measured in one: {self.device}"
        head = f"{self.name} on {on}, batches of {self.batch_size}"
        return "\n".join([head, *(f"  {title:{width}}  {told}" for title, told in rows.items())])

    def line(self) -> str:
        """The most important on one line, for a sweep."""
        measuring = "" if self.measuring is None else f" and at most {_hours(self.measuring)} measuring"
        measuring += f" and once {_hours(self.features)} for features" if self.features > 1 else ""
        return (
            f"{self.name}: {_hours(self.seconds)} training{measuring}, {self.images:,} images, "
            f"{sum(self.cost.parameters.values()):,} parameters, {_short(self.cost.flop_per_image)}FLOP for an image"
        )


def total(estimates: Iterable[Estimate]) -> str:
    """The sum of a sweep's jobs on one line."""
    found = list(estimates)
    training = sum(estimate.seconds for estimate in found)
    measuring = sum(estimate.measuring or 0.0 for estimate in found)
    flop = sum(estimate.images * estimate.cost.flop_per_image for estimate in found)
    limits = "at most " if all(estimate.measuring is not None for estimate in found) else "at least "
    features = sum({(estimate.extractor, estimate.data): estimate.features for estimate in found}.values())
    first = f", and once {_hours(features)} for features" if features > 1 else ""
    return (
        f"{len(found)} jobs, one after the other: {_hours(training)} training and {limits}{_hours(measuring)} "
        f"measuring{first}; {_short(flop)}FLOP"
    )


def estimate(model: GenerativeModel, data: ImageDataModule) -> Cost:
    """Measure what training and sampling a model take on its device; the model itself stays as it is.

    Takes some seconds, more where a single step does.

    Args:
        model: on any device.
        data: that it was built for, with the batch size of training.

    Raises:
        UserError: what was given cannot be trained, for lack of memory for instance.
    """
    with torch.random.fork_rng():
        return measure(copy.deepcopy(model), data, data.batch_size)


def estimate_run(config: Mapping[str, Any], name: str) -> Estimate:
    """What ``train.py`` would take with a configuration; starts no run and writes nothing.

    Args:
        config: the resolved configuration of train.yaml, as plain types.
        name: the run's name.

    Raises:
        UserError: something in the configuration cannot be done.
    """
    settings = check(config)
    prepare_process()
    if settings.resume is not None:
        raise UserError("estimate=true: is of a whole run; leave resume out")
    seed_everything(settings.seed, verbose=False)
    data: ImageDataModule = build(config["data"], "data")
    data.prepare()
    model, trainer = build_model(config, data.spec), build_trainer(config)
    devices, device = trainer.world_size, trainer.strategy.root_device
    check_batch_size(data.batch_size, len(data.train), devices)
    cost = measure(model.to(device), data, data.batch_size // devices, trainer.precision_plugin.train_step_context)
    seconds_per_image = cost.seconds_per_image / devices
    images, ended_by = end_of(
        settings, data.batch_size * model.batches_per_update, seconds_per_image, cost.cpu_seconds_per_image / devices
    )
    paced = list(_paced(config["callbacks"]))
    metrics: SampleQuality = build(config["metrics"], "metrics")
    extractor, features = metrics.first_use(data, device)
    seconds = images * seconds_per_image
    measuring = None
    if settings.measuring_share is not None or not paced:
        share = settings.measuring_share or 0.0
        measuring = sum(CREDIT + kind.portion * share * seconds for kind in paced)
    gradients, buffers = exchanged(model, devices, bool(config["trainer"].get("sync_batchnorm")))
    return Estimate(
        name,
        device_name(device),
        devices,
        data.batch_size,
        cost,
        images,
        images // (data.batch_size * model.batches_per_update),
        seconds,
        ended_by,
        measuring,
        settings.measuring_share,
        gradients * cost.losses_per_batch,
        buffers,
        extractor,
        features,
        data.fingerprint if features else "",
    )


def end_of(
    settings: Settings, images_per_update: int, seconds_per_image: float, cpu_seconds_per_image: float
) -> tuple[int, str]:
    """How many images a run will have seen when it ends, and the limit that ends it."""
    within = {
        "max_images": settings.max_images,
        "max_updates": None if settings.max_updates is None else settings.max_updates * images_per_update,
        "max_seconds": None if settings.max_seconds is None else round(settings.max_seconds / seconds_per_image),
    }
    if settings.max_cpu_seconds is not None:
        within["max_cpu_seconds"] = round(settings.max_cpu_seconds / cpu_seconds_per_image)
    if settings.max_wall_seconds is not None:
        factor = 1 + (settings.measuring_share or 0.0)
        within["max_wall_seconds"] = round(settings.max_wall_seconds / factor / seconds_per_image)
    images, name = min((images, name) for name, images in within.items() if images is not None)
    return images, f"{name}={getattr(settings, name):,}"


def _paced(callbacks: Mapping[str, Any]) -> Iterator[type[Paced]]:
    """The callbacks of a configuration whose work counts as measuring."""
    for key, node in callbacks.items():
        if node is not None:
            kind = target(node["_target_"], f"callbacks.{key}")
            if isinstance(kind, type) and issubclass(kind, Paced):
                yield kind


# --- arithmetic -------------------------------------------------------------------------------------------------------


def _product(_: Any, a: torch.Size, b: torch.Size, *rest: Any, **named: Any) -> int:
    """FLOP of a sum with a product of matrices (or of stacks of them) of these shapes."""
    return 2 * math.prod(a) * b[-1]


# What torch's counter passes over: our recurrences and masked layers add products up in place.
IN_PLACE = {torch.ops.aten.addmm_: _product, torch.ops.aten.baddbmm_: _product}


class _Whole:
    """Where torch's counter asks which module an operation is of: of the whole.

    Its own hooks into modules fail where a model takes a gradient by its input, as those of energies do.
    """

    parents = ("Global",)

    def __enter__(self) -> None: ...

    def __exit__(self, *error: object) -> None: ...


def flop_of(work: Callable[[], object]) -> int:
    """The floating point operations of the matrix products, convolutions and attention in some work.

    Without those of optimisers, which an update costs and not an image.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
    from torch.utils.flop_counter import FlopCounterMode

    counter = FlopCounterMode(display=False, custom_mapping=IN_PLACE)
    counter.mod_tracker = _Whole()  # type: ignore[assignment]
    of_optimizers = 0

    def before(*step: object) -> None:
        nonlocal of_optimizers
        of_optimizers -= counter.get_total_flops()

    def after(*step: object) -> None:
        nonlocal of_optimizers
        of_optimizers += counter.get_total_flops()

    hooks = [register_optimizer_step_pre_hook(before), register_optimizer_step_post_hook(after)]
    try:
        with counter:
            work()
    finally:
        for hook in hooks:
            hook.remove()
    return counter.get_total_flops() - of_optimizers


@torch.no_grad()
def flop_per_sample(model: GenerativeModel) -> float:
    """The floating point operations of one drawn image, of which what repeats itself is done only once."""
    generator = PerImageGenerator(0, device=model.device)
    condition = model.labels_for(1, None, generator)
    with evaluating(model):
        if isinstance(model, Denoiser):
            noisy = torch.zeros(1, *model.spec.shape, device=model.device)
            t = torch.ones(1, device=model.device)
            call = flop_of(lambda: model.predict(noisy, t, condition, model.guidance))
            return call * model.sampler.nfe(model.noise_schedule.steps)
        if isinstance(model, Autoregressive):
            return _flop_of_rows(model, condition)
        return flop_of(lambda: model.generate(1, condition, generator))


def _flop_of_rows(model: Autoregressive, condition: torch.Tensor | None) -> float:
    height, state = model.spec.height, model.begin(1, condition)
    if isinstance(state, Recomputed):
        return flop_of(lambda: state.predict(0, 0, 0)) * model.spec.dimensions
    rows = 1 if state.same_rows else height
    black = torch.zeros(1, model.spec.channels, model.spec.width, dtype=torch.long, device=model.device)

    def draw() -> None:
        for row in range(rows):
            for _ in model.visit(state, row, black):
                pass

    return flop_of(draw) * height / rows


def exchanged(model: GenerativeModel, devices: int, sync_batchnorm: bool = False) -> tuple[float, float]:
    """Bytes that each of several devices sends, and receives, by torch's DistributedDataParallel.

    For each loss the gradients of all networks are reduced in a ring, 2 (n - 1) / n of their bytes. For each batch the
    first device's buffers are handed on, and with ``sync_batchnorm`` each norm gathers its means, variances and counts
    of the other devices, and reduces two sums on the way back.

    Returns:
        of the gradients for each loss, of buffers for each batch.
    """
    if devices == 1:
        return 0.0, 0.0
    ring = 2 * (devices - 1) / devices
    gradients = ring * sum(p.nbytes for network in model.networks.values() for p in network.parameters())
    buffers = float(sum(buffer.nbytes for buffer in model.buffers()))
    if sync_batchnorm:
        channels = [module.num_features for module in model.modules() if isinstance(module, _BatchNorm)]
        buffers += sum(4 * ((devices - 1) * (2 * c + 1) + ring * 2 * c) for c in channels)
    return gradients, buffers


# --- time and memory --------------------------------------------------------------------------------------------------


def measure(
    model: GenerativeModel,
    data: ImageDataModule,
    batch_size: int,
    context: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Cost:
    """Train a model for some seconds, in smaller batches where one would take longer.

    Args:
        model: on its device; trained on.
        data: that it was built for.
        batch_size: images of a step of this device.
        context: what steps are taken in, such as mixed precision.

    Raises:
        UserError: what was given cannot be trained.
    """
    if model.stages:
        raise UserError(f"estimate: {type(model).__name__} is trained in stages, each of another cost; not estimated")
    device = model.device
    model.train()
    model.configure_optimizers()
    model.log_grad_norm = False
    if model.conditional and model.spec.embedding:
        model.embeddings = data.train.condition
    least = min(2, batch_size)
    steps = Steps(model, data, context)
    try:
        flop = flop_of(lambda: steps.update(least)) / steps.images
        losses = steps.losses / steps.batches
        size = least
        while True:  # ever larger, because much of a step may not depend on how many images it has
            forget_peak_memory(device)
            before = peak_memory_mib(device)
            timing = steps.timed(size, 0.0)
            memory = before + (peak_memory_mib(device) - before) * batch_size / size
            step = timing.seconds * size * model.batches_per_update
            if size == batch_size or step > PROBE:
                break
            size = min(4 * size, batch_size)
        if step < PROBE:
            timing = steps.timed(size, PROBE)
        sample = flop_per_sample(model)
    except (UserError, ValueError, RuntimeError, MemoryError) as error:
        reason = not_possible(error)
        if reason is None:
            raise
        raise UserError(reason) from error
    parameters = {name: count_parameters(module) for name, module in model.networks.items()}
    return Cost(parameters, flop, sample, losses, memory, timing.seconds, timing.cpu_seconds, size)


@dataclass(frozen=True)
class Timing:
    """Seconds for a training image, by the clock and of all processor cores."""

    seconds: float
    cpu_seconds: float


class Steps:
    """Training steps on batches of any size, which it counts.

    Args:
        model: on its device, with its optimisers.
        data: where the batches come from.
        context: what steps are taken in.
    """

    def __init__(
        self, model: GenerativeModel, data: ImageDataModule, context: Callable[[], AbstractContextManager[Any]]
    ) -> None:
        loader = data.train_dataloader()
        self.stream = loader.stream if isinstance(loader, Epoch) else loader
        self.model, self.context = model, context
        self.images = self.batches = self.losses = 0

    def batches_of(self, size: int) -> Iterator[Batch]:
        """Training batches on the model's device, for ever."""
        device = self.model.device
        for images, condition in replace(self.stream, batch_size=size, rank=0, world_size=1):
            yield Batch(images.to(device), None if condition is None else condition.to(device))

    def update(self, size: int) -> None:
        """Take the batches of one update of the model."""
        self._update(self.batches_of(size))

    def timed(self, size: int, least: float) -> Timing:
        """Take updates for at least so many seconds, one or more."""
        batches = self.batches_of(size)
        images = self.images
        began, cpu_began = self._clock(), time.process_time()
        while True:
            self._update(batches)
            seconds = self._clock() - began
            if seconds >= least:
                count = self.images - images
                return Timing(seconds / count, (time.process_time() - cpu_began) / count)

    def _update(self, batches: Iterator[Batch]) -> None:
        for _ in range(self.model.batches_per_update):
            batch = next(batches)
            with self.context():
                for loss in self.model.losses(batch):
                    self.model.optimize(loss)
                    self.losses += 1
            self.batches += 1
            self.images += len(batch.images)

    def _clock(self) -> float:
        if self.model.device.type == "cuda":
            torch.cuda.synchronize(self.model.device)
        return time.perf_counter()


def _short(value: float) -> str:
    """Three digits and the prefix of a unit: ``1.23 M``."""
    power = min(6, int(math.log10(value) // 3)) if value >= 1 else 0
    return f"{value / 1000**power:.3g} {' kMGTPE'[power].strip()}"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:.3g} ms" if seconds < 1 else f"{seconds:.3g} s"


def _hours(seconds: float) -> str:
    """A time in the unit that suits it."""
    if seconds < HOUR:
        return f"{seconds:.3g} s" if seconds < 60 else f"{seconds / 60:.3g} min"
    return f"{seconds / HOUR:,.3g} h" if seconds < 1000 * HOUR else f"{seconds / HOUR:,.0f} h"
