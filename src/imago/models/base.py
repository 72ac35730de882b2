"""The contract of every model: what it is told, what it can do, and how it is trained.

A model is built from an :class:`~imago.images.ImageSpec` and sees ``uint8`` images only. It declares its *networks*,
the modules that have an optimiser each: one for most families, two for a GAN. Training is the same for all:

    for loss in model.losses(batch, rng):
        optimizers[loss.network].zero_grad()
        loss.value.backward()
        optimizers[loss.network].step()

:meth:`GenerativeModel.training_step` is this loop under Lightning's manual optimisation, with clipping, schedules,
mixed precision and several processes. (Lightning's own clipping and schedulers are silently skipped in manual
optimisation, and its step counter would count every network.)
"""

import inspect
import math
import time
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, TypedDict, TypeGuard, Unpack

import torch
from jaxtyping import Float
from lightning import LightningModule
from pydantic import PositiveFloat
from torch import Tensor, nn

import imago
from imago.errors import UserError
from imago.images import (
    Batch,
    Condition,
    Images,
    ImagesLike,
    ImageSpec,
    LabelsLike,
    Learned,
    as_images,
    as_labels,
    bits_per_dim,
)
from imago.measures import Likelihood
from imago.rng import BatchGenerator, PerImageGenerator
from imago.schedules import Schedule

OptimizerFactory = Callable[..., torch.optim.Optimizer]  # of a network's parameters, see Common
Normal = Callable[..., Tensor]  # (n, *shape) → standard normal numbers of that shape, float32
Terms = dict[str, Float[Tensor, " n"]]
Progress = Callable[[int, int], None]


class Loss(NamedTuple):
    """What a network is to minimise next.

    Attributes:
        network: its name among the model's networks.
        value: a scalar with a gradient.
        logs: named numbers worth seeing, scalars.
    """

    network: str
    value: Float[Tensor, ""]
    logs: Mapping[str, Tensor] = {}


@dataclass
class TrainState:
    """How far training has come; kept by :meth:`GenerativeModel.losses`, stored in checkpoints.

    Attributes:
        images: training images seen, over all devices.
        batches: batches they came in; the position in the data stream.
        updates: steps of the model: of the last of its networks, which for a GAN is the generator.
        seconds: of training, without what :meth:`paused` encloses.
        cpu_seconds: of all threads of this process in that time, which other work on the machine hardly changes.
        progress: share of the run, in [0, 1], for schedules that end with it.
    """

    images: int = 0
    batches: int = 0
    updates: int = 0
    seconds: float = 0.0
    cpu_seconds: float = 0.0
    progress: float = 0.0
    _since: tuple[float, float] | None = None  # when the clocks were looked at; None while they stand

    def start(self) -> None:
        """Let the clocks run."""
        if self._since is None:
            self._since = (time.perf_counter(), time.process_time())

    def tick(self) -> None:
        """Bring ``seconds`` and ``cpu_seconds`` up to date."""
        if self._since is not None:
            now = (time.perf_counter(), time.process_time())
            self.seconds += now[0] - self._since[0]
            self.cpu_seconds += now[1] - self._since[1]
            self._since = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clocks inside: measuring, drawing and writing are no training."""
        running = self._since is not None
        self.tick()
        self._since = None
        try:
            yield
        finally:
            if running:
                self.start()


class Common(TypedDict, total=False):
    """Settings of every model.

    Attributes:
        optimizer: for a network's name, a function from its parameters to a torch optimiser; a network that is not
            named gets the model's :attr:`~GenerativeModel.default_optimizer`. A function with an argument ``network``
            is given that too, as what a parameter is for decides how :class:`imago.optimizers.Muon` moves it.
        conditional: learn p(x | condition), of what the data give: a class or an embedding.
        schedule: factor on all learning rates as a function of the images seen; ``None`` keeps them constant.
        gradient_clip: largest Euclidean norm of one network's gradient; longer gradients are scaled down to it.
    """

    optimizer: Mapping[str, OptimizerFactory]
    conditional: bool
    schedule: Schedule | None
    gradient_clip: PositiveFloat | None


class GenerativeModel(LightningModule, ABC):
    """A distribution over images that can be trained and sampled.

    Args:
        spec: shape, levels and classes of the images.
        common: see :class:`Common`.

    Attributes:
        likelihood: ``exact``, ``lower_bound``, ``estimate`` or ``none``: what the model can say about p(x).
        leaf: its place in the taxonomy of generative models, a key of :data:`imago.taxonomy.LEAVES`; may be empty.
        ema: names of the submodules that :meth:`sample` needs, whose weights are worth averaging.
        inference_settings: settings that say how a trained model is used. They alone may be changed once it is trained.
        kinds: of data that it can learn: pixels, of any levels or of two, tokens of a codebook, points in R^d.
        conditions: what it can be conditioned on: a class, an embedding; empty for an unconditional model.
        stages: for a model that is trained in stages, one after the other, the networks that each of them trains.
        default_optimizer: of networks for which no other is given.
        state: how far training has come.
        stage_images: how many training images every stage but the last takes; set by models with :attr:`stages`.
        embeddings: of the training images, (images, features), from which samples draw theirs where none are given.
        batches_per_update: how many batches one update of the model takes.
        log_grad_norm: whether gradient norms are computed only to be logged.
        gradient_skip: a step along a longer gradient than this is left out; for deep models, which set it.
        config: the node of the configuration that the model was built from; checkpoints keep it.
        managed: whether a run of ``train.py`` keeps log and progress; without it, they go to Lightning's logger.
    """

    likelihood: Likelihood
    leaf: ClassVar[str] = ""
    ema: ClassVar[tuple[str, ...]]
    inference_settings: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[Learned, ...]] = ("pixels",)
    conditions: ClassVar[tuple[Literal["class", "embedding"], ...]] = ("class",)
    stages: ClassVar[Mapping[str, tuple[str, ...]]] = {}
    default_optimizer: ClassVar[OptimizerFactory] = partial(torch.optim.Adam, lr=1e-3, fused=True)

    def __init__(self, spec: ImageSpec, **common: Unpack[Common]) -> None:
        super().__init__()
        for declared in ("likelihood", "ema"):
            if not hasattr(type(self), declared):
                raise UserError(f"{type(self).__name__}.{declared}: missing; the class declares it (docs/extending.md)")
        spec.require(self.kinds, type(self).__name__)
        self.conditional = common.get("conditional", False)
        if self.conditional and not self.conditions:
            raise UserError(f"conditional=true: {type(self).__name__} is an unconditional model; leave it out")
        if self.conditional and spec.condition not in self.conditions:
            lacking = " or ".join({"class": "labels", "embedding": "embedding"}[kind] for kind in self.conditions)
            raise UserError(f"conditional=true: the data has no {lacking}; choose other data or conditional=false")
        self.automatic_optimization = False
        self.spec = spec
        self.classes = spec.classes if self.conditional else 0
        self.schedule = common.get("schedule")
        self.gradient_clip = common.get("gradient_clip")
        self.gradient_skip: float | None = None
        self.state = TrainState()
        self.stage_images: Sequence[int] = ()
        self.embeddings: Tensor | None = None
        self.batches_per_update = 1
        self.log_grad_norm = True
        self.managed = False
        self.config: Mapping[str, Any] | None = None
        self._optimizer_factories = dict(common.get("optimizer", {}))
        self._means = RunningMeans()
        self._progress: Progress | None = None

    # --- what a family writes -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The modules that are optimised, by name, in the order of an update."""

    @abstractmethod
    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """Yield what the networks minimise on a batch, one loss after the other: each is stepped along before the next.

        Args:
            batch: images (n, channels, height, width) and, for conditional models alone, their condition.
            rng: the noise of training.
        """

    @abstractmethod
    def generate(self, n: int, condition: Tensor | None, generator: PerImageGenerator, /) -> Images:
        """Draw images; called by :meth:`sample`, which has checked the condition and switched to evaluation mode."""

    @property
    def nfe(self) -> int:
        """Function evaluations: how often one sample asks the network, or a part of it, after another."""
        return 1

    @property
    def sampling(self) -> str:
        """How samples are drawn, where there is a choice; for the protocol of what is measured of them."""
        return ""

    # --- training -----------------------------------------------------------------------------------------------------

    @property
    def stage(self) -> str:
        """The one of :attr:`stages` that training is in: a function of the images seen, so continued runs are in it."""
        return list(self.stages)[bisect_right(list(accumulate(self.stage_images)), self.state.images)]

    def losses(self, batch: Batch, rng: BatchGenerator | None = None) -> Iterator[Loss]:
        """Yield the losses of one batch, to be stepped along one after the other, and count it when all are.

        Args:
            batch: images (n, channels, height, width) and their condition, of which unconditional models see nothing.
            rng: the noise of training; ``None`` draws from torch's global generator.
        """
        rng = rng or BatchGenerator(self.device)
        batch = batch if self.conditional else Batch(batch.images)
        state, network = self.state, None
        last = self.stages[self.stage][-1] if self.stages else list(self.networks)[-1]
        state.start()
        losses: Any = self.batch_losses(batch, rng)
        if isinstance(losses, Tensor | Loss | None):
            raise UserError(
                f"{type(self).__name__}.batch_losses: returned {type(losses).__name__}; yield Loss(NETWORK, VALUE)"
            )
        for loss in losses:
            self._check_loss(loss)
            network = loss.network
            yield loss
        state.batches += 1
        state.images += len(batch.images) * rng.world_size
        state.updates += network == last
        state.tick()

    def _check_loss(self, loss: Any) -> None:
        if not isinstance(loss, Loss):
            raise UserError(
                f"{type(self).__name__}.batch_losses: yielded {type(loss).__name__}, not Loss(NETWORK, VALUE)"
            )
        if loss.value.dim():
            shape = tuple(loss.value.shape)
            raise UserError(f"{type(self).__name__}.batch_losses: a loss of shape {shape} is no number; take its mean")

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Step along every loss of a batch (Lightning's hook)."""
        updates = self.state.updates
        for loss in self.losses(batch, self.training_rng):
            self._means.add(loss.logs, finite_only=self.gradient_skip is not None)
            self.optimize(loss)
        if self.state.updates > updates:  # Lightning's max_steps, checkpoints and loggers count updates of the model
            counter = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress
            counter.increment_ready()
            counter.increment_completed()
        if not self.managed:
            self.state.progress = _share_of(self.trainer, self.state)
            self.log_dict({f"train/{name}": value for name, value in self.mean_logs().items()}, prog_bar=True)

    @property
    def training_rng(self) -> BatchGenerator:
        """The noise of training on this device, of all that train together."""
        if self._trainer is None:
            return BatchGenerator(self.device)
        return BatchGenerator(self.device, self.trainer.global_rank, self.trainer.world_size)

    def optimize(self, loss: Loss) -> None:
        """Step along the gradient of a loss, clipped and scheduled as the settings say.

        The gradient's norm is logged as ``gradient_norm/<network>`` where it is computed anyway or about to be logged.

        Raises:
            UserError: the loss is of no network of the model.
        """
        if loss.network not in self._optimizers:
            own = ", ".join(self._optimizers)
            raise UserError(f"{type(self).__name__}: Loss({loss.network!r}, ...): no such network; its own are {own}")
        optimizer = self._optimizers[loss.network]
        parameters = self._parameters_of[loss.network]
        optimizer.zero_grad(set_to_none=True)
        if self._trainer is not None and self.trainer.world_size > 1:
            self.manual_backward(loss.value)  # tells DDP's reducer what is coming
        else:
            loss.value.backward()  # the same, without a third of a millisecond of hooks
        if self.gradient_clip is not None or self.gradient_skip is not None or self.log_grad_norm:
            norm = nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
            if self.gradient_clip is not None:
                nn.utils.clip_grads_with_norm_(parameters, self.gradient_clip, norm)
            logs = {f"gradient_norm/{loss.network}": norm}
            if self.gradient_skip is not None:
                skipped = ~(norm <= self.gradient_skip)  # also where the norm is not a number
                self._means.add({f"skipped/{loss.network}": skipped}, finite_only=True)
                if bool(skipped):
                    return
            self._means.add(logs, finite_only=self.gradient_skip is not None)
        if self.schedule is not None:
            factor = self.schedule(self.state.images, self.state.progress)
            for group in optimizer.param_groups:
                group["lr"] = factor * group["initial_lr"]
        optimizer.step()

    def compile_networks(self, backend: str = "inductor") -> None:
        """Let torch.compile translate the networks at their next call, in place.

        The names of the weights stay, so checkpoints fit with and without.

        Args:
            backend: of torch.compile.
        """

        def compile_parts(module: nn.Module) -> None:
            if isinstance(module, nn.ModuleDict | nn.ModuleList):  # which hold what is called
                for part in module.children():
                    compile_parts(part)
            else:
                module.compile(backend=backend)

        for network in self.networks.values():
            compile_parts(network)

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One optimiser for each network, in the order of :attr:`networks` (Lightning's hook)."""
        networks = self.networks
        unknown = sorted(set(self._optimizer_factories).difference(networks))
        if unknown:
            raise UserError(f"model.optimizer.{unknown[0]}: no such network; the model's are {', '.join(networks)}")
        self._parameters_of = {name: list(module.parameters()) for name, module in networks.items()}
        self._optimizers = {}
        for name, network in networks.items():
            factory = self._optimizer_factories.get(name, type(self).default_optimizer)
            more = {"network": network} if "network" in inspect.signature(factory).parameters else {}
            self._optimizers[name] = factory(self._parameters_of[name], **more)
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        return list(self._optimizers.values())

    def mean_logs(self) -> dict[str, float]:
        """The means of what was logged since the last call, over all devices."""
        return self._means.take(self.trainer.strategy if self.trainer.world_size > 1 else None)

    def on_fit_start(self) -> None:
        """Samples draw their embeddings from those of the training split (Lightning's hook)."""
        if self.conditional and self.spec.embedding:
            data: Any = self.trainer
            self.embeddings = getattr(getattr(data.datamodule, "train", None), "condition", None)

    def on_train_start(self) -> None:
        """Start the clock, and let Lightning's counter of steps go on from a continued run's (Lightning's hook).

        Raises:
            UserError: 16-bit floats, whose losses would have to be scaled.
        """
        if self.trainer.precision.startswith("16"):
            raise UserError(f"precision={self.trainer.precision}: losses are not scaled; choose bf16-mixed or 32-true")
        self.state.start()
        total = self.trainer.fit_loop.epoch_loop.manual_optimization.optim_step_progress.total
        total.ready = total.completed = self.state.updates

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counters and running means go along, so that a continued run logs the rows of one that never stopped."""
        state = self.state
        checkpoint["seconds"] = state.seconds
        checkpoint["cpu_seconds"] = state.cpu_seconds
        checkpoint["spec"] = self.spec.as_dict()
        checkpoint.setdefault("config", {} if self.config is None else {"model": self.config})
        checkpoint["progress"] = {
            "images_seen": state.images,
            "batches_seen": state.batches,
            "updates": state.updates,
            "terms": {name: [total, count] for name, (total, count) in self._means.sums.items()},
        }

    @classmethod
    def load_from_checkpoint(  # type: ignore[override]
        cls, checkpoint_path: str | Path, map_location: torch.device | str = "cpu", **settings: Any
    ) -> "GenerativeModel":
        """The model of a checkpoint, with its last weights; :func:`imago.load` gives the averaged ones.

        Args:
            checkpoint_path: a file that any trainer wrote of the model; only tensors and plain data are read.
            map_location: device of the model.
            settings: the constructor's, of a model that was not made from a configuration.

        Raises:
            UserError: no checkpoint of such a model.
        """
        load: Any = imago.load
        model: GenerativeModel = load(checkpoint_path, averaged=False, device=map_location, kind=cls, settings=settings)
        if not isinstance(model, cls):
            raise UserError(f"{checkpoint_path}: is of a {type(model).__name__}, not of a {cls.__name__}")
        return model.train()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what :meth:`on_save_checkpoint` kept."""
        progress = checkpoint["progress"]
        seconds = float(checkpoint["seconds"]) if "seconds" in checkpoint else _seconds_of_log(checkpoint)
        cpu_seconds = float(checkpoint.get("cpu_seconds", 0.0))  # 0 of one from before they were counted
        counts = (progress["images_seen"], progress["batches_seen"], progress["updates"])
        self.state = TrainState(*counts, seconds, cpu_seconds)
        self._means.sums = {name: (total, count) for name, (total, count) in progress["terms"].items()}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure nothing: models with a likelihood do (Lightning's hook)."""

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure nothing: models with a likelihood do (Lightning's hook)."""

    def predict_step(self, batch: Tensor, batch_idx: int) -> Images:
        """Draw the samples of the given numbers, consecutive ones (Lightning's hook; see the data module)."""
        return self.sample(len(batch), generator=PerImageGenerator(0, first=int(batch[0]), device=self.device))

    # --- samples ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: LabelsLike | None = None,
        condition: Tensor | None = None,
        seed: int = 0,
        generator: PerImageGenerator | None = None,
        progress: Progress | None = None,
    ) -> Images:
        """Draw ``n`` images.

        Args:
            n: number of images.
            labels: the class of each image, as numbers or names, or one for all; conditional models only, which
                without it draw classes as :meth:`draw_labels` does.
            condition: the embedding of each image, or one for all, for models that are conditioned on embeddings.
            seed: of the random streams of the images. Image k depends on its own stream alone, not on ``n``.
            generator: these streams, to draw on from where others ended.
            progress: called with (steps done, steps in all) by models that draw all images step by step.

        Returns:
            uint8 (n, channels, height, width) with values 0..levels-1, on the model's device; what else
            :attr:`imago.images.ImageSpec.dtype` says for tokens and points.

        Raises:
            UserError: a condition given to an unconditional model, or one that is not of the data; a model whose
                :meth:`generate` gives no images of the data's shape and type.
        """
        generator = generator or PerImageGenerator(seed, device=self.device)
        given = self.labels_for(n, labels if condition is None else condition, generator)
        if n == 0:
            return torch.zeros(0, *self.spec.shape, dtype=self.spec.dtype, device=self.device)
        self._progress = progress
        try:
            with evaluating(self):
                images = self.generate(n, given, generator)
        finally:
            self._progress = None
        shape = (n, *self.spec.shape)
        if tuple(images.shape) != shape or images.dtype != self.spec.dtype:
            told = f"{type(self).__name__}.generate gave {images.dtype} {tuple(images.shape)}"
            raise UserError(
                f"{told} instead of {self.spec.dtype} {shape}; imago.images.quantize makes pixels of [-1, 1]"
            )
        return images

    def report(self, done: int, total: int) -> None:
        """Tell whoever waits for :meth:`sample` or a bound how far it has come."""
        if self._progress is not None:
            self._progress(done, total)

    def labels_for(self, n: int, labels: LabelsLike | None, generator: PerImageGenerator) -> Tensor | None:
        """The condition of ``n`` samples on the model's device: the given one, or drawn; see :meth:`sample`."""
        if labels is None:
            return self.draw_labels(n, generator).to(self.device) if self.conditional else None
        labels = as_labels(labels, self.spec)
        if len(labels) == 1:
            labels = labels.expand(n, *labels.shape[1:])
        self.check_labels(labels, n)
        return labels.to(self.device)

    def draw_labels(self, n: int, generator: PerImageGenerator) -> Condition:
        """Classes (n,) of a conditional model, as frequent as in the training split: the first number of each stream.

        Uniform where the model does not know the frequencies. Embeddings are those of random training images.

        Raises:
            UserError: embeddings are wanted and none are known.
        """
        if self.spec.embedding:
            if self.embeddings is None:
                raise UserError("condition: the model is conditioned on embeddings; give sample(n, condition=...) some")
            return self.embeddings[generator.integers(n, len(self.embeddings)).cpu()]
        counts = self.spec.class_counts
        return generator.choices(n, counts) if counts else generator.integers(n, self.classes)

    def check_labels(self, labels: Tensor, n: int) -> None:
        """Refuse labels that the model was not made for.

        Raises:
            UserError: an unconditional model, another number than ``n``, classes that do not exist, or that had no
                training images; embeddings of another size.
        """
        if not self.conditional:
            raise UserError("labels given to an unconditional model: train it with conditional=true, or leave them out")
        if self.spec.embedding:
            if tuple(labels.shape) != (n, self.spec.embedding) or not labels.is_floating_point():
                told = f"{labels.dtype} of shape {tuple(labels.shape)}"
                raise UserError(f"condition is {told}: give embeddings ({n}, {self.spec.embedding}) in floating point")
            return
        if len(labels) != n:
            raise UserError(f"{len(labels)} labels for {n} images: give one label for each image")
        if n and not 0 <= int(labels.min()) <= int(labels.max()) < self.classes:
            raise UserError(
                f"labels from {int(labels.min())} to {int(labels.max())}: the model was trained on classes "
                f"0..{self.classes - 1}"
            )
        trained = self.spec.trained
        if len(trained) < self.classes:
            unknown = sorted(set(labels.tolist()).difference(trained))
            if unknown:
                raise UserError(
                    f"labels={unknown[0]}: class {self.spec.class_name(unknown[0])} has no training images, so the "
                    f"model never saw it; give other labels, such as {trained[0]} ({self.spec.class_name(trained[0])})"
                )

    def checked(self, images: ImagesLike, labels: LabelsLike | None) -> tuple[Images, Condition | None]:
        """Images and their condition as tensors on the model's device.

        Raises:
            UserError: images or labels that the model was not made for.
        """
        images = as_images(images, self.spec)
        self.check_images(images)
        if labels is not None:
            labels = as_labels(labels, self.spec)
            self.check_labels(labels, len(images))
            labels = labels.to(self.device)
        elif self.conditional:
            raise UserError("the model is conditional, it knows images of a given class only: give the labels")
        return images.to(self.device), labels

    def check_images(self, images: Tensor) -> None:
        """Refuse images that the model was not made for.

        Raises:
            UserError: another shape, type or range; the message has both.
        """
        self.spec.check(images)


class RunningMeans:
    """Means of named numbers since they were last taken; the order of names is that of their first appearance.

    A torchmetrics ``MeanMetric`` for each name would do it at 34 to 49 µs an update, where a sum takes 0.9 µs and a
    step of a small model 2 ms (one thread of a Xeon).

    Attributes:
        sums: of each name the sum and how many numbers it has.
    """

    def __init__(self) -> None:
        self.sums: dict[str, tuple[Tensor | float, Tensor | int]] = {}

    def add(self, logs: Mapping[str, Tensor], *, finite_only: bool) -> None:
        """Add numbers; where steps are skipped, those that are not finite are left out of a mean, unless all are."""
        for name, value in logs.items():
            total, count = self.sums.get(name, (0.0, 0))
            value = value.detach().float()
            if finite_only:
                finite = value.isfinite()
                self.sums[name] = (total + torch.where(finite, value, 0.0), count + finite)
            else:
                self.sums[name] = (total + value, count + 1)

    def take(self, strategy: Any = None) -> dict[str, float]:
        """The means, over all processes of Lightning's ``strategy``; begins anew."""
        if not self.sums:
            return {}
        means = torch.stack([torch.as_tensor(total / count) for total, count in self.sums.values()])
        if strategy is not None:
            means = strategy.reduce(means, reduce_op="mean")
        names = list(self.sums)
        self.sums.clear()
        return dict(zip(names, means.tolist(), strict=True))


def _share_of(trainer: Any, state: TrainState) -> float:
    """How much of a fit by Lightning's own limits is done."""
    if trainer.max_steps > 0:
        return min(1.0, state.updates / trainer.max_steps)
    batches = trainer.num_training_batches * (trainer.max_epochs or 0)
    return min(1.0, state.batches / batches) if 0 < batches < math.inf else 0.0


def _seconds_of_log(checkpoint: Mapping[str, Any]) -> float:
    """Where version 0.1 kept them."""
    kept = checkpoint.get("callbacks", {}).get("TrainingLog", {})
    return float(kept.get("training_seconds", 0.0))


class ExplicitModel(GenerativeModel, ABC):
    """A model that can say how likely an image is: exactly, by a lower bound, or by an estimate.

    Attribute :attr:`likelihood` says which of them. An instance may say ``none``, where that hangs on the data;
    :func:`knows_likelihood` tells.
    """

    _images_measured = 0

    @property
    def estimator(self) -> str:
        """How an ``estimate`` is made, for the protocol of what is measured."""
        return ""

    @property
    def common_error(self) -> float:
        """Standard error in nats of what the estimates of all images share, such as log Z: no mean lowers it.

        What differs from image to image is no part of it: the deviation over images has that.
        """
        return 0.0

    def log_prob(self, images: Images, labels: Tensor | None) -> Float[Tensor, " n"]:
        """log p(x) of each image in nats, differentiable, in any mode: what models write that know it.

        Those that know a bound write :meth:`nll_terms` instead, because its estimate needs noise.
        """
        raise NotImplementedError(f"{type(self).__name__} writes neither log_prob nor nll_terms")

    def nll_terms(self, images: Images, labels: Tensor | None, normal: Normal) -> Terms:
        """−log p(x), or its bound, as a sum of named parts in nats, (n,) each. Differentiable, in any mode.

        Args:
            images: uint8 (n, channels, height, width).
            labels: int64 (n,), conditional models only.
            normal: source of the noise with which a bound is estimated.
        """
        return {"nats": -self.log_prob(images, labels)}

    def log_likelihood(
        self,
        images: ImagesLike,
        labels: LabelsLike | None = None,
        generator: PerImageGenerator | None = None,
    ) -> Float[Tensor, " n"]:
        """log p(x) or log p(x | label) of the integer images, or the bound, in evaluation mode.

        Args:
            images: uint8 (n, channels, height, width) with values 0..levels-1, arrays or PIL images.
            labels: for conditional models numbers or names of the classes (n,), or embeddings (n, features).
            generator: the noise of a bound's estimate; ``None`` is a new generator of seed 0, the same every time.

        Returns:
            Nats, (n,); :func:`imago.images.bits_per_dim` turns them into bits per dimension.

        Raises:
            UserError: images or labels that the model was not made for.
        """
        return -sum_of(self.measured_nll_terms(images, labels, generator))

    @torch.no_grad()
    def measured_nll_terms(
        self,
        images: ImagesLike,
        labels: LabelsLike | None = None,
        generator: PerImageGenerator | None = None,
        progress: Progress | None = None,
    ) -> Terms:
        """The named parts of −log p(x) or of its bound; arguments and errors as in :meth:`log_likelihood`.

        ``progress`` is called with (steps done, steps in all) by models whose bound has many terms.

        Of no images, one empty part.
        """
        images, labels = self.checked(images, labels)
        if not len(images):
            return {"nats": torch.zeros(0, device=self.device)}
        generator = generator or PerImageGenerator(0, device=self.device)
        self._progress = progress
        try:
            with evaluating(self):
                return self.nll_terms(images, labels, lambda n, *shape: generator.normal(n, *shape).to(self.device))
        finally:
            self._progress = None

    def on_validation_epoch_start(self) -> None:
        """Begin with the first image (Lightning's hook)."""
        self._images_measured = 0

    def on_test_epoch_start(self) -> None:
        """Begin with the first image (Lightning's hook)."""
        self._images_measured = 0

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``val/nats`` and ``val/bpd``, means over the images (Lightning's hook)."""
        self._measure(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Log ``test/nats`` and ``test/bpd`` (Lightning's hook)."""
        self._measure(batch, "test")

    def _measure(self, batch: Batch, split: str) -> None:
        if not knows_likelihood(self):
            return
        images, labels = batch.images, batch.condition if self.conditional else None
        if labels is not None and self.classes:
            known = torch.isin(labels, torch.tensor(self.spec.trained, device=labels.device))
            images, labels = images[known], labels[known]
        if not len(images):
            return
        generator = PerImageGenerator(0, first=self._images_measured, device=self.device)
        self._images_measured += len(images)
        nats = -self.log_likelihood(images, labels, generator).mean()
        values = {f"{split}/nats": nats, f"{split}/bpd": bits_per_dim(nats, self.spec)}
        self.log_dict(values, prog_bar=True, batch_size=len(images), sync_dist=True)


def knows_likelihood(model: GenerativeModel) -> TypeGuard[ExplicitModel]:
    """Whether a model can say how likely an image of its data is."""
    return isinstance(model, ExplicitModel) and model.likelihood != "none"


def sum_of(terms: Terms) -> Float[Tensor, " n"]:
    """The sum of named terms, image by image."""
    return torch.stack(list(terms.values())).sum(0)


@contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode inside, and afterwards every submodule's own mode again."""
    training = [m for m in module.modules() if m.training]
    for m in training:
        m.training = False
    try:
        yield
    finally:
        for m in training:
            m.training = True


@contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """No gradients for the module's parameters inside: they flow through it, and none is computed for it."""
    parameters = [p for p in module.parameters() if p.requires_grad]
    for p in parameters:
        p.requires_grad_(False)
    try:
        yield
    finally:
        for p in parameters:
            p.requires_grad_(True)


def count_parameters(module: nn.Module) -> int:
    """How many numbers a network learns: what it stores, less the weights that a mask keeps at zero."""
    stored = sum(p.numel() for p in module.parameters())
    return stored - sum(getattr(layer, "always_zero", 0) for layer in module.modules())
