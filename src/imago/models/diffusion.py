"""Diffusion: an image is noise from which a network has taken the noise away, a little at a time.

*Forward* a fixed Markov chain q(x_1:T | x_0) drowns an image in noise (:mod:`imago.diffusion.process`). *Backward* a
chain with learned steps

    p(x_0:T) = p(x_T) Π_t p_θ(x_{t−1} | x_t),    p(x_T) = N(0, I),    p_θ(x_{t−1} | x_t) = N(μ_θ(x_t, t), σ_t² I)   (1)

walks from noise to an image. It is a latent-variable model whose encoder is not learned, and has the bound of one
(lecture, chapter "Diffusion models"; Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 5)

    −log p(x_0) ≤ KL(q(x_T|x_0) ‖ p(x_T))                                 regularisation L_T
                + Σ_{t≥2} E_q KL(q(x_{t−1}|x_t, x_0) ‖ p_θ(x_{t−1}|x_t))     denoising L_{t−1}                       (2)
                − E_q log p_θ(x_0|x_1)                                      reconstruction L_0.

All are KL divergences between normal distributions, but the last: there the normal density is integrated over each of
the image's levels (Ho et al., eq. 13), so that the bound is of the integer image as every other model's. In L_T there
is nothing to learn.

q(x_{t−1}|x_t, x_0) is known, so the network need only guess x_0. It is asked for the noise ε, from which
x_0 = (x_t − √(1−ᾱ_t) ε) / √ᾱ_t (or for x_0, or v: :mod:`imago.diffusion.predictions`); the mean of (1) is then

    μ_θ(x_t, t) = c_0(t) x̂_0(x_t, t) + c_t(t) x_t                                                                   (3)

and L_{t−1} a weighted ‖ε − ε_θ(x_t, t)‖². Leaving the weights out trains better pictures and a looser bound (Ho et al.,
eq. 14; :mod:`imago.diffusion.losses`). Sampling is (1), or something faster: :mod:`imago.diffusion.samplers`.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Annotated, Unpack

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from imago.capacity import Steps
from imago.diffusion.losses import DiffusionLoss, Simple
from imago.diffusion.predictions import Epsilon, Prediction
from imago.diffusion.process import Process, Times
from imago.diffusion.samplers import DDIM, Context, Estimate, Sampler, State
from imago.diffusion.schedules import Linear, NoiseSchedule
from imago.diffusion.variances import FixedSmall, Variance
from imago.distributions import discretised_normal
from imago.errors import UserError
from imago.images import Batch, Images, ImageSpec, LabelsLike, Normalized, bits_per_dim, normalize, quantize
from imago.models.base import Common, ExplicitModel, Loss, Normal, Terms, evaluating
from imago.nets.unet import UNet
from imago.rng import BatchGenerator, PerImageGenerator


@dataclass(frozen=True)
class Chain:
    """Stations of a walk.

    Attributes:
        times: t of each.
        noisy: signals x_t, (snapshots, n, channels, height, width); not confined to [-1, 1].
        image: on the way back, the x_0 that the network expects of each, the same shape; ``None`` on the way forward.
    """

    times: list[int]
    noisy: Float[Tensor, "snapshots n channels height width"]
    image: Float[Tensor, "snapshots n channels height width"] | None


class Diffusion(ExplicitModel):
    """A denoising diffusion probabilistic model.

    Args:
        spec: the images.
        network: from the spec, the number of outputs for each value, and the number of labels, to the network; called
            with x_t (n, channels, height, width), t / T (n,) and labels.
        steps: T.
        noise_schedule: of the forward process.
        prediction: what the network is asked for.
        variance: σ_t² of (1).
        loss: of training.
        sampler: how :meth:`sample` walks back.
        guidance: weight w of classifier-free guidance (Ho & Salimans 2022, eq. 6), conditional models with
            ``p_uncond`` only: (1 + w) ε(x, label) − w ε(x). 0 for none.
        p_uncond: share of training images whose label is hidden, so that the network knows ε(x) too.
        compile: let torch.compile translate the network, in place: minutes before the first step, repaid on a GPU only.
        common: see :class:`Common`; the largest norm of the gradient is 1 unless another is given.

    Attributes:
        bound_steps: of the T − 1 terms of the denoising sum, how many an estimate of the bound visits, drawn for each
            image; ``None`` for all. What is measured says which.

    Raises:
        UserError: guidance of a model that it cannot be had from, or a learned variance that the loss does not train.
    """

    likelihood = "lower_bound"
    ema = ("net",)
    inference_settings = ("sampler", "guidance", "variance", "compile")

    def __init__(
        self,
        spec: ImageSpec,
        *,
        network: Callable[[ImageSpec, int, int], nn.Module] = UNet,
        steps: Steps = 1000,
        noise_schedule: NoiseSchedule | None = None,
        prediction: Prediction | None = None,
        variance: Variance | None = None,
        loss: DiffusionLoss | None = None,
        sampler: Sampler | None = None,
        guidance: NonNegativeFloat = 0.0,
        p_uncond: Annotated[float, Field(ge=0, le=1)] = 0.0,
        compile: bool = False,
        **common: Unpack[Common],
    ) -> None:
        common.setdefault("gradient_clip", 1.0)
        super().__init__(spec, **common)
        conditional, loss, variance = self.conditional, loss or Simple(), variance or FixedSmall()
        if guidance and not (conditional and p_uncond):
            raise UserError(
                f"model.guidance={guidance}: needs a network that knows images with and without a label; give "
                "conditional=true and model.p_uncond=0.1, or guidance=0"
            )
        if p_uncond and not conditional:
            raise UserError(
                f"model.p_uncond={p_uncond}: there are no labels to hide; give conditional=true, or p_uncond=0"
            )
        if variance.learned and not loss.needs_bound:
            raise UserError(
                f"model.variance: a learned one gets no gradient from the loss {type(loss).__name__}; choose "
                "model/loss=hybrid or vlb, or a fixed variance"
            )
        self.process = Process(noise_schedule or Linear(), steps)
        self.prediction = prediction or Epsilon()
        self.variance = variance
        self.loss = loss
        self.sampler = sampler or DDIM(50)
        self.sampler.times(steps)  # refuses what cannot be walked
        self.guidance = guidance
        self.p_uncond = p_uncond
        self.bound_steps: int | None = None
        # A label more stands for none.
        self.net = network(spec, 1 + variance.learned, self.classes + bool(self.p_uncond))
        if compile:  # in place: the names of the weights stay, and checkpoints fit with and without
            self.net.compile()

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network."""
        return {"net": self.net}

    @property
    def nfe(self) -> int:
        """Steps of the sampler, twice as many with guidance."""
        return (len(self.sampler.times(self.process.steps)) - 1) * (2 if self.guidance else 1)

    @property
    def sampling(self) -> str:
        """Sampler, its steps, and guidance."""
        words = str(self.sampler)
        if self.sampler.uses_variance:
            words += f", variance {self.variance}"
        return words + (f", guidance {self.guidance:g}" if self.guidance else "")

    @property
    def bound_terms(self) -> int:
        """How many terms of (2) an estimate for one image visits."""
        every = self.process.steps + 1
        return every if self.bound_steps is None else min(every, self.bound_steps + 2)

    @contextmanager
    def visiting(self, bound_steps: int | None) -> Iterator[None]:
        """Estimate bounds from so many terms inside, afterwards as before."""
        before, self.bound_steps = self.bound_steps, bound_steps
        try:
            yield
        finally:
            self.bound_steps = before

    # --- the network --------------------------------------------------------------------------------------------------

    def predict(self, noisy: Normalized, t: Times, labels: Tensor | None) -> tuple[Normalized, Normalized | None]:
        """What the network says of x_t, float32: its prediction, and its output for a learned variance.

        ``t`` is of each image, (n,), or of all, (1,).
        """
        out = self.net(noisy, t.float() / self.process.steps, labels).float()
        return out[:, 0], (out[:, 1] if self.variance.learned else None)

    def estimate(self, noisy: Normalized, t: Times, labels: Tensor | None) -> Estimate:
        """x̂_0, clipped to what an image can be."""
        output, raw = self.predict(noisy, t, labels)
        a, s = self.process.at("signal", t), self.process.at("noise", t)
        return Estimate(self.prediction.image(output, noisy, a, s).clamp(-1, 1), raw)

    def guided(self, noisy: Normalized, t: Times, labels: Tensor | None) -> Estimate:
        """As :meth:`estimate`, moved away from what the network would say without the label.

        Every prediction is linear in ε at given x_t, so that ε and x̂_0 may be extrapolated alike.
        """
        if not self.guidance or labels is None:
            return self.estimate(noisy, t, labels)
        both = torch.cat([labels, torch.full_like(labels, self.classes)])
        output, raw = self.predict(torch.cat([noisy, noisy]), t if len(t) == 1 else torch.cat([t, t]), both)
        known, unknown = output.chunk(2)
        a, s = self.process.at("signal", t), self.process.at("noise", t)
        image = self.prediction.image(known + self.guidance * (known - unknown), noisy, a, s)
        return Estimate(image.clamp(-1, 1), None if raw is None else raw[: len(noisy)])

    # --- training -----------------------------------------------------------------------------------------------------

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """The error of what the network says of every image at a random time."""
        x = normalize(batch.images, self.spec.levels)
        n = len(x)
        t = _uniform(n, rng).mul(self.process.steps).long().add(1).clamp(max=self.process.steps)
        noise = rng.normal(n, *self.spec.shape)
        labels = batch.labels if self.conditional else None
        if self.p_uncond and labels is not None:
            labels = torch.where(_uniform(n, rng) < self.p_uncond, self.classes, labels)
        noisy = self.process.diffuse(x, t, noise)
        output, raw = self.predict(noisy, t, labels)
        a, s = self.process.at("signal", t), self.process.at("noise", t)
        squared = (output - self.prediction.target(x, noise, a, s)).square().mean((1, 2, 3))
        bits, logs = squared, {}
        if self.loss.needs_bound:
            image = self.prediction.image(output if self.loss.bound_trains_mean else output.detach(), noisy, a, s)
            estimate = Estimate(image, raw)
            nats = torch.where(
                t > 1, self._denoising(x, t, estimate), self._reconstruction(batch.images, noisy, t, estimate)
            )
            bits = bits_per_dim(nats * self.process.steps, self.spec)
            logs["bits"] = bits.mean()
        loss = self.loss(squared, bits).mean()
        yield Loss("net", loss, logs | {"squared_error": squared.mean(), "loss": loss})

    # --- the bound ----------------------------------------------------------------------------------------------------

    def nll_terms(self, images: Images, labels: Tensor | None, normal: Normal) -> Terms:
        """The three parts of (2) in nats.

        With :attr:`bound_steps` m the sum over t is (T − 1) / m times the sum over m times, spread evenly from a random
        start of each image's own: right on average, with an error that shows in the differences between images.
        """
        steps = self.process.steps
        n = len(images)
        x = normalize(images, self.spec.levels)
        if self.bound_steps is None or self.bound_steps >= steps - 1:
            times = [torch.full((n,), t, device=x.device) for t in range(2, steps + 1)]
            weight = 1.0
        else:
            start = torch.special.ndtr(normal(n))
            share = (torch.arange(self.bound_steps, device=x.device)[:, None] + start) / self.bound_steps
            times = list((2 + (share * (steps - 1)).long()).clamp(max=steps))
            weight = (steps - 1) / self.bound_steps
        denoising = torch.zeros(n, device=x.device)
        for k, t in enumerate(times):
            noisy = self.process.diffuse(x, t, normal(n, *self.spec.shape))
            denoising += self._denoising(x, t, self.estimate(noisy, t, labels))
            self.report(k + 1, len(times) + 1)
        return {
            "elbo/regularisation": self.regularisation(x),
            "elbo/denoising": weight * denoising,
            "elbo/reconstruction": self.term(images, 1, labels, normal),
        }

    def regularisation(self, x: Normalized) -> Float[Tensor, " n"]:
        """L_T = KL(N(√ᾱ_T x_0, 1 − ᾱ_T) ‖ N(0, 1)), in nats."""
        alpha_bar = float(self.process.alpha_bar[-1])
        constant = -alpha_bar - math.log1p(-alpha_bar)  # σ² − 1 − log σ²
        return 0.5 * (alpha_bar * x.square() + constant).flatten(1).sum(1)

    def term(self, images: Images, t: int, labels: Tensor | None, normal: Normal) -> Float[Tensor, " n"]:
        """L_{t−1} of (2) in nats, at one x_t ~ q(x_t | x_0) for each image; at t = 1 the reconstruction."""
        x = normalize(images, self.spec.levels)
        at = torch.full((1,), t, device=x.device)
        noisy = self.process.diffuse(x, at, normal(len(x), *self.spec.shape))
        estimate = self.estimate(noisy, at, labels)
        return self._reconstruction(images, noisy, at, estimate) if t == 1 else self._denoising(x, at, estimate)

    def _denoising(self, x: Normalized, t: Times, estimate: Estimate) -> Float[Tensor, " n"]:
        """KL(q(x_{t−1}|x_t, x_0) ‖ p_θ(x_{t−1}|x_t)) for t ≥ 2."""
        log_tilde = self.process.at("log_tilde", t)
        log_variance = self.variance.log(self.process.at("log_beta", t), log_tilde, estimate.raw_variance)
        step = self.process.at("from_image", t) * (estimate.image - x)  # of the means: their part of x_t is the same
        kl = 0.5 * (log_variance - log_tilde + torch.exp(log_tilde - log_variance) - 1)
        return (kl + 0.5 * step.square() * torch.exp(-log_variance)).flatten(1).sum(1)

    def _reconstruction(self, images: Images, noisy: Normalized, t: Times, estimate: Estimate) -> Float[Tensor, " n"]:
        """−log p_θ(x_0|x_1), of images at t = 1."""
        at = self.process.at
        log_tilde = at("log_tilde", t)
        # β̃_2 stands for β_1 too unless it is learned (Ho et al., as coded): the decoder is narrow.
        log_beta = at("log_beta", t) if self.variance.learned else log_tilde
        mean = at("from_image", t) * estimate.image + at("from_noisy", t) * noisy
        log_scale = 0.5 * self.variance.log(log_beta, log_tilde, estimate.raw_variance)
        return -discretised_normal(mean, log_scale.expand_as(mean), images, self.spec.levels).flatten(1).sum(1)

    # --- samples and chains -------------------------------------------------------------------------------------------

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """Walk back from x_T ~ N(0, I)."""
        (last,) = deque(self._trajectory(n, labels, generator), maxlen=1)
        return quantize(last.noisy, self.spec.levels)

    def _trajectory(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Iterator[State]:
        def draw() -> Normalized:
            return generator.normal(n, *self.spec.shape).to(self.device)

        def denoise(noisy: Normalized, t: int) -> Estimate:
            return self.guided(noisy, torch.full((1,), t, device=self.device), labels)

        calls = len(self.sampler.times(self.process.steps)) - 1
        for k, state in enumerate(self.sampler.trajectory(denoise, draw(), Context(self.process, draw, self.variance))):
            self.report(min(k + 1, calls), calls)
            yield state

    @torch.no_grad()
    def chain(self, images: Images, times: list[int], generator: PerImageGenerator) -> Chain:
        """The forward chain of images at the times given, ascending, from one path x_0, x_1, …, x_T.

        Raises:
            UserError: images that the model was not made for, or times outside 0..T.
        """
        images, _ = self.checked(images, torch.zeros(len(images), dtype=torch.long) if self.conditional else None)
        if not times or sorted(set(times)) != times or times[0] < 0 or times[-1] > self.process.steps:
            raise UserError(f"times={times}: give ascending times in 0..{self.process.steps}")
        x = normalize(images, self.spec.levels)
        found = [x] if times[0] == 0 else []
        for t in range(1, times[-1] + 1):
            x = self.process.step(x, t, generator.normal(len(x), *self.spec.shape).to(self.device))
            if t in times:
                found.append(x)
        return Chain(times, torch.stack(found), None)

    @torch.no_grad()
    def sample_chain(
        self,
        n: int,
        snapshots: int,
        generator: PerImageGenerator,
        labels: LabelsLike | None = None,
        progress: Callable[[int, int], None] | None = None,
    ) -> Chain:
        """The walk back of ``n`` samples, the same that :meth:`sample` gives, seen at so many moments from T to 0.

        Args:
            n: number of samples.
            snapshots: at least 2; fewer are returned where the sampler takes fewer steps.
            generator: the random stream of each image.
            labels: int64 (n,), conditional models only; drawn without it.
            progress: called with (steps done, steps in all).

        Raises:
            UserError: less than two snapshots, or labels that the model was not made for.
        """
        if snapshots < 2:
            raise UserError(f"snapshots={snapshots}: the chain has at least its two ends; give 2 or more")
        labels = self.labels_for(n, labels, generator)
        moments = len(self.sampler.times(self.process.steps))
        wanted = set(torch.linspace(0, moments - 1, min(snapshots, moments)).round().long().tolist())
        self._progress = progress
        try:
            with evaluating(self):
                kept = [state for k, state in enumerate(self._trajectory(n, labels, generator)) if k in wanted]
        finally:
            self._progress = None
        return Chain([s.t for s in kept], torch.stack([s.noisy for s in kept]), torch.stack([s.image for s in kept]))


def _uniform(n: int, rng: BatchGenerator) -> Float[Tensor, " n"]:
    return torch.special.ndtr(rng.normal(n))
