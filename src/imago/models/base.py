"""The contract of every model: what it is told, what it can do, and how it takes a step.

A model is built from an :class:`~imago.images.ImageSpec` and sees ``uint8`` images only. It declares its *networks*,
the modules that have an optimiser each: one for most families, two for a GAN. All models step through
:meth:`GenerativeModel.descend`, with Lightning's manual optimisation, so that gradient clipping, learning-rate
schedules and counters mean the same for one player and for many. (Lightning's own clipping and schedulers are silently
skipped in manual optimisation, and its step counter counts every player.)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar, Literal

import torch
from jaxtyping import Float
from lightning import LightningModule
from torch import Tensor, nn

from imago.errors import UserError
from imago.images import Batch, Images, ImageSpec, Kind, Labels
from imago.rng import PerImageGenerator
from imago.schedules import Schedule

OptimizerFactory = Callable[[Iterable[nn.Parameter]], torch.optim.Optimizer]
Normal = Callable[..., Tensor]  # (n, *shape) → standard normal numbers of that shape, float32
Terms = dict[str, Float[Tensor, " n"]]


class GenerativeModel(LightningModule, ABC):
    """A distribution over images that can be trained and sampled.

    Args:
        spec: shape, levels and classes of the images.
        optimizer: for each player a function from its parameters to a torch optimiser.
        conditional: whether the model generates a given class. Needs labelled data.
        schedule: factor on all learning rates as a function of the images seen; ``None`` keeps them constant.
        gradient_clip: largest Euclidean norm of one player's gradient; longer gradients are scaled down to it.

    Attributes:
        likelihood: ``exact``, ``lower_bound`` or ``none``: what the model can say about p(x).
        averaged: names of the submodules that :meth:`sample` needs, whose weights are worth averaging.
        usage: settings that say how a trained model is used. They alone may be changed once it is trained.
        kinds: of data that it can learn: pixels, tokens of a codebook, points in R^d.
        images_seen: training images shown so far, over all devices.
        batches_seen: batches they came in; the position in the data stream.
        updates: optimiser steps of the model (of the generator, for a GAN).
        batches_per_update: how many batches one of them takes.
        observed: whether a row of the log is due soon, so that gradient norms are worth computing.
        gradient_skip: a step along a longer gradient than this is left out; for deep models, which set it.
    """

    likelihood: ClassVar[Literal["exact", "lower_bound", "none"]]
    averaged: ClassVar[tuple[str, ...]]
    usage: ClassVar[tuple[str, ...]] = ()
    kinds: ClassVar[tuple[Kind, ...]] = ("pixels",)

    def __init__(
        self,
        spec: ImageSpec,
        *,
        optimizer: Mapping[str, OptimizerFactory],
        conditional: bool = False,
        schedule: Schedule | None = None,
        gradient_clip: float | None = None,
    ) -> None:
        super().__init__()
        spec.require(self.kinds, type(self).__name__)
        if conditional and not spec.classes:
            raise UserError("conditional=true: the data has no labels; choose labelled data or conditional=false")
        self.automatic_optimization = False
        self.spec = spec
        self.conditional = conditional
        self.classes = spec.classes if conditional else 0
        self.schedule = schedule
        self.done = 0.0  # share of the run, which the run keeps up to date
        self.gradient_clip = gradient_clip
        self.images_seen = 0
        self.batches_seen = 0
        self.updates = 0
        self.batches_per_update = 1
        self.log_grad_norm = True
        self.gradient_skip: float | None = None
        self._optimizer_factories = dict(optimizer)
        self._terms: dict[str, tuple[Tensor, int | Tensor]] = {}
        self._progress: Callable[[int, int], None] | None = None

    # --- what a family writes -----------------------------------------------------------------------------------------

    @property
    @abstractmethod
    def networks(self) -> dict[str, nn.Module]:
        """The modules that are optimised, by name; ``optimizer`` has an entry for each."""

    @abstractmethod
    def learn(self, batch: Batch) -> None:
        """Train on one batch: compute losses, :meth:`record` what is worth seeing, :meth:`descend` for each player."""

    @abstractmethod
    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """Draw images; called by :meth:`sample`, which has checked the labels and switched to evaluation mode."""

    @property
    def nfe(self) -> int:
        """How often one sample asks the network, or a part of it, after another: what makes sampling slow."""
        return 1

    @property
    def sampling(self) -> str:
        """How samples are drawn, where there is a choice; for the protocol of what is measured of them."""
        return ""

    # --- what everybody uses ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def sample(
        self,
        n: int,
        *,
        labels: Labels | None = None,
        generator: PerImageGenerator,
        progress: Callable[[int, int], None] | None = None,
    ) -> Images:
        """Draw ``n`` images.

        Args:
            n: number of images.
            labels: int64 (n,), the class of each image; conditional models only, which without it draw classes as
                :meth:`draw_labels` does.
            generator: the random stream of each image. Image k depends on its own stream alone, not on ``n``.
            progress: called with (steps done, steps in all) by models that draw all images step by step.

        Returns:
            uint8 (n, channels, height, width) with values 0..levels-1, on the model's device.

        Raises:
            UserError: labels given to an unconditional model, or labels that are not classes of the data.
        """
        if labels is None and self.conditional:
            labels = self.draw_labels(n, generator)
        if labels is not None:
            self.check_labels(labels, n)
            labels = labels.to(self.device)
        if n == 0:
            return torch.zeros(0, *self.spec.shape, dtype=self.spec.dtype, device=self.device)
        self._progress = progress
        try:
            with evaluating(self):
                return self.generate(n, labels, generator)
        finally:
            self._progress = None

    def report(self, done: int, total: int) -> None:
        """Tell whoever waits for :meth:`sample` or a bound how far it has come."""
        if self._progress is not None:
            self._progress(done, total)

    def draw_labels(self, n: int, generator: PerImageGenerator) -> Labels:
        """Classes (n,) of a conditional model, as frequent as in the training split: the first number of each stream.

        Uniform where the model does not know the frequencies.
        """
        counts = self.spec.class_counts
        return generator.choices(n, counts) if counts else generator.integers(n, self.classes)

    def check_labels(self, labels: Tensor, n: int) -> None:
        """Refuse labels that the model was not made for.

        Raises:
            UserError: an unconditional model, another number than ``n``, classes that do not exist, or that had no
                training images.
        """
        if not self.conditional:
            raise UserError("labels given to an unconditional model: train it with conditional=true, or leave them out")
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

    def checked(self, images: Images, labels: Labels | None) -> tuple[Images, Labels | None]:
        """Images and labels on the model's device.

        Raises:
            UserError: images or labels that the model was not made for.
        """
        self.check_images(images)
        if labels is not None:
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

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        """Learn from one batch and count it (Lightning's entry)."""
        self.learn(batch)
        self.batches_seen += 1
        self.images_seen += len(batch.images) * self.trainer.world_size

    def descend(self, player: str, loss: Float[Tensor, ""]) -> None:
        """One optimiser step of one player along the gradient of its loss.

        The gradient's norm is recorded as ``gradient_norm/<player>`` where it is computed anyway or about to be logged.
        """
        optimizer = self._optimizers[player]
        parameters = self._parameters_of[player]
        optimizer.zero_grad(set_to_none=True)
        if self.trainer.world_size > 1:
            self.manual_backward(loss)  # tells DDP's reducer what is coming
        else:
            loss.backward()  # the same, without a third of a millisecond of hooks
        if self.gradient_clip is not None or self.gradient_skip is not None or self.log_grad_norm:
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = nn.utils.get_total_norm(gradients)
            if self.gradient_clip is not None:
                nn.utils.clip_grads_with_norm_(parameters, self.gradient_clip, norm)
            if self.gradient_skip is not None:
                skipped = not bool(norm <= self.gradient_skip)  # also where the norm is not a number
                self.record(f"skipped/{player}", norm.new_tensor(float(skipped)))
                if skipped:
                    return
            self.record(f"gradient_norm/{player}", norm)
        if self.schedule is not None:
            factor = self.schedule(self.images_seen, self.done)
            for group in optimizer.param_groups:
                group["lr"] = factor * group["initial_lr"]
        optimizer.step()

    def configure_optimizers(self) -> list[torch.optim.Optimizer]:
        """One optimiser for each player, in the order of :attr:`networks` (Lightning's entry)."""
        networks = self.networks
        if set(networks) != set(self._optimizer_factories):
            raise UserError(
                f"model.optimizer has entries for {sorted(self._optimizer_factories)}, the model's networks are "
                f"{sorted(networks)}: give exactly one optimiser for each"
            )
        self._parameters_of = {name: list(module.parameters()) for name, module in networks.items()}
        self._optimizers = {name: self._optimizer_factories[name](p) for name, p in self._parameters_of.items()}
        for optimizer in self._optimizers.values():
            for group in optimizer.param_groups:
                group.setdefault("initial_lr", group["lr"])
        return list(self._optimizers.values())

    def noise(self, n: int, *shape: int) -> Tensor:
        """Standard normal noise (n, *shape) for training, from torch's global generator.

        It is drawn for the batch of all devices and cut, so that two processes together take the step that one would.
        """
        world, rank = self.trainer.world_size, self.trainer.global_rank
        z = torch.randn(n * world, *shape, device=self.device)
        return z[rank * n : (rank + 1) * n]

    # --- running means of what is worth seeing -----------------------------------------------------------------------

    def record(self, name: str, value: Float[Tensor, ""]) -> None:
        """Add to the running mean of a named number; the training log writes the mean as ``train/<name>``.

        Where steps are skipped (``gradient_skip``), numbers that are not finite are left out of it, unless all are.
        """
        total, count = self._terms.get(name, (0, 0))
        value = value.detach().float()
        if self.gradient_skip is None:
            self._terms[name] = (total + value, count + 1)
        else:
            finite = value.isfinite()
            self._terms[name] = (total + torch.where(finite, value, 0.0), count + finite)

    def take_records(self) -> dict[str, float]:
        """The means recorded since the last call, averaged over all devices."""
        if not self._terms:
            return {}
        means = torch.stack([torch.as_tensor(total / count) for total, count in self._terms.values()])
        if self.trainer.world_size > 1:
            means = self.trainer.strategy.reduce(means, reduce_op="mean")
        names = list(self._terms)
        self._terms.clear()
        return dict(zip(names, means.tolist(), strict=True))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Counters and running means go along, so that a continued run logs the rows of one that never stopped."""
        checkpoint["progress"] = {
            "images_seen": self.images_seen,
            "batches_seen": self.batches_seen,
            "updates": self.updates,
            "terms": {name: [total, count] for name, (total, count) in self._terms.items()},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore what :meth:`on_save_checkpoint` kept."""
        progress = checkpoint["progress"]
        self.images_seen = progress["images_seen"]
        self.batches_seen = progress["batches_seen"]
        self.updates = progress["updates"]
        self._terms = {name: (total, count) for name, (total, count) in progress["terms"].items()}


class ExplicitModel(GenerativeModel, ABC):
    """A model that can say how likely an image is: exactly, or by a lower bound (:attr:`likelihood` says which)."""

    def log_prob(self, images: Images, labels: Tensor | None) -> Float[Tensor, " n"]:
        """log p(x) of each image in nats, differentiable, in any mode: what models write that know it.

        Those that know a bound write :meth:`terms` instead, because its estimate needs noise.
        """
        raise NotImplementedError

    def nll_terms(self, images: Images, labels: Tensor | None, normal: Normal) -> Terms:
        """−log p(x), or its bound, as a sum of named parts in nats, (n,) each. Differentiable, in any mode.

        Args:
            images: uint8 (n, channels, height, width).
            labels: int64 (n,), conditional models only.
            normal: source of the noise with which a bound is estimated.
        """
        return {"nats": -self.log_prob(images, labels)}

    def log_likelihood(
        self, images: Images, labels: Labels | None = None, generator: PerImageGenerator | None = None
    ) -> Float[Tensor, " n"]:
        """log p(x) or log p(x | label) of the integer images, or the bound, in evaluation mode.

        Args:
            images: uint8 (n, channels, height, width) with values 0..levels-1.
            labels: int64 (n,), for conditional models.
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
        images: Images,
        labels: Labels | None = None,
        generator: PerImageGenerator | None = None,
        progress: Callable[[int, int], None] | None = None,
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
