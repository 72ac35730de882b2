"""Denoisers: an image is noise from which a network has taken the noise away, a little at a time.

A noise schedule says how an image x_0 is destroyed at times t from 0 to 1,

    x_t = α(t) x_0 + σ(t) ε,    ε ~ N(0, I)                                                                          (1)

so that almost nothing is left of it at t = 1. A network learns to undo this: from x_t and t it estimates x_0, or what
says the same (:mod:`imago.diffusion.predictions`), by least squares, so that it tends to E[x_0 | x_t]. That is the
score of the noisy images, and with it differential equations lead from noise to images (Song et al. 2021, "Score-based
generative modeling through stochastic differential equations"); a sampler solves one of them in some steps
(:mod:`imago.diffusion.samplers`).

Flow matching is this with α = 1 − t, σ = t and the prediction ε − x_0 (:mod:`imago.models.flow_matching`), EDM with
α = 1 and a scaled prediction (Karras et al. 2022). :mod:`imago.models.diffusion` is its case in discrete time, with a
bound of the likelihood.
"""

import math
from collections import deque
from collections.abc import Callable, Iterator
from typing import Annotated, ClassVar, Unpack

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat
from torch import Tensor, nn

from imago.diffusion.predictions import Epsilon, Prediction
from imago.diffusion.samplers import DDIM, Context, Estimate, Sampler, State
from imago.diffusion.schedules import NoiseSchedule, Times, column
from imago.diffusion.variances import FixedSmall, Variance
from imago.errors import UserError
from imago.images import Batch, Images, ImageSpec, Learned, Normalized, normalize, quantize
from imago.measures import Likelihood
from imago.models.base import Common, Loss
from imago.models.stepwise import Stepwise
from imago.nets.unet import UNet
from imago.rng import BatchGenerator, PerImageGenerator

Outputs = Float[Tensor, "n outputs channels height width"]


class DenoiserSettings(Common, total=False):
    """Settings of denoisers.

    Attributes:
        network: from the spec, the number of outputs for each value, and the number of labels, to the network; called
            with x_t (n, channels, height, width), t (n,) or (1,) and labels, it returns (n, outputs, channels, height,
            width).
        prediction: what the network is asked for.
        variance: of steps back that add noise; a learned one has an output of its own, and needs a loss that trains it.
        sampler: how :meth:`~imago.models.base.GenerativeModel.sample` goes from noise to images.
        guidance: weight w of classifier-free guidance (Ho & Salimans 2022, eq. 6), conditional models with
            ``p_uncond`` only: (1 + w) ε(x, label) − w ε(x). 0 for none.
        p_uncond: share of training images whose label is hidden, so that the network knows ε(x) too.
    """

    network: Callable[[ImageSpec, int, int], nn.Module]
    prediction: Prediction | None
    variance: Variance | None
    sampler: Sampler | None
    guidance: NonNegativeFloat
    p_uncond: Annotated[float, Field(ge=0, le=1)]


class Denoiser(Stepwise):
    """A network that estimates x_0 from x_t of equation 1.

    Its settings are those of :class:`DenoiserSettings`.

    Args:
        spec: the images, or points in R^d.
        noise_schedule: t ↦ (α, σ).
        common: see :class:`Common`; the largest norm of the gradient is 1 unless another is given.

    Raises:
        UserError: guidance of a model that it cannot be had from, or a sampler that cannot walk in this schedule.
    """

    likelihood: Likelihood = "none"
    leaf = "diffusion"
    ema = ("net",)
    inference_settings = ("sampler", "guidance", "variance")
    kinds: ClassVar[tuple[Learned, ...]] = ("pixels", "points")

    def __init__(
        self,
        spec: ImageSpec,
        *,
        noise_schedule: NoiseSchedule,
        network: Callable[[ImageSpec, int, int], nn.Module] = UNet,
        prediction: Prediction | None = None,
        variance: Variance | None = None,
        sampler: Sampler | None = None,
        guidance: NonNegativeFloat = 0.0,
        p_uncond: Annotated[float, Field(ge=0, le=1)] = 0.0,
        **common: Unpack[Common],
    ) -> None:
        common.setdefault("gradient_clip", 1.0)
        super().__init__(spec, **common)
        if guidance and not (self.conditional and p_uncond):
            raise UserError(
                f"model.guidance={guidance}: needs a network that knows images with and without a label; give "
                "conditional=true and model.p_uncond=0.1, or guidance=0"
            )
        if p_uncond and not self.conditional:
            raise UserError(
                f"model.p_uncond={p_uncond}: there are no labels to hide; give conditional=true, or p_uncond=0"
            )
        self.noise_schedule = noise_schedule
        self.prediction = prediction or Epsilon()
        self.variance = variance or FixedSmall()
        self.sampler = sampler or DDIM(min(50, noise_schedule.steps or 50))
        self.sampler.times(noise_schedule.steps)  # refuses what it cannot walk
        self.guidance = guidance
        self.p_uncond = p_uncond
        # A label more stands for none.
        self.net = network(spec, 1 + self.variance.learned, self.classes + bool(p_uncond))

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The network."""
        return {"net": self.net}

    @property
    def nfe(self) -> int:
        """Calls of the sampler, twice as many with guidance."""
        return self.sampler.nfe(self.noise_schedule.steps) * (2 if self.guidance else 1)

    @property
    def sampling(self) -> str:
        """Sampler, its steps, and guidance."""
        words = str(self.sampler)
        if self.sampler.uses_variance:
            words += f", variance {self.variance}"
        return words + (f", guidance {self.guidance:g}" if self.guidance else "")

    # --- the network --------------------------------------------------------------------------------------------------

    def forward(self, noisy: Normalized, t: Times, labels: Tensor | None) -> Outputs:
        """What the network says of x_t, float32: its prediction, and its output for a learned variance."""
        outputs: Outputs = self.net(noisy, t, labels).float()
        return outputs

    def predict(self, noisy: Normalized, t: Times, labels: Tensor | None = None, guidance: float = 0.0) -> Estimate:
        """x̂_0, clipped to what an image can be.

        Args:
            noisy: x_t.
            t: in (0, 1], of each image, (n,), or of all, (1,).
            labels: of each image, conditional models only.
            guidance: how far to move away from what the network would say without the label. Every prediction is linear
                in ε at given x_t, so that it may be extrapolated as ε is.
        """
        if guidance and labels is not None:
            both = torch.cat([labels, torch.full_like(labels, self.classes)])
            known, unknown = self(torch.cat([noisy, noisy]), t if len(t) == 1 else torch.cat([t, t]), both).chunk(2)
            output = known[:, 0] + guidance * (known[:, 0] - unknown[:, 0])
        else:
            known = self(noisy, t, labels)
            output = known[:, 0]
        image = self.prediction.image(output, noisy, *self.noise_schedule(column(t)))
        return Estimate(
            image.clamp(-1, 1) if self.spec.levels else image, known[:, 1] if self.variance.learned else None
        )

    # --- training -----------------------------------------------------------------------------------------------------

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """The error of what the network says of every image at a random time."""
        x = normalize(batch.images, self.spec.levels)
        n = len(x)
        t = self.training_times(n, rng)
        labels = batch.labels
        noise = self.training_noise(x, labels, rng)
        if self.p_uncond and labels is not None:
            labels = torch.where(torch.special.ndtr(rng.normal(n)) < self.p_uncond, self.classes, labels)
        logs = {name: value.mean() for name, value in self.loss(x, t, noise, labels).items()}
        yield Loss("net", logs["loss"], logs)

    def training_times(self, n: int, rng: BatchGenerator) -> Float[Tensor, " n"]:
        """Times at which a batch is looked at: uniform on (0, 1), or on the steps of a process in discrete time."""
        t, steps = torch.special.ndtr(rng.normal(n)), self.noise_schedule.steps
        return t if steps is None else t.mul(steps).floor().add(1).clamp(max=steps) / steps

    def training_noise(self, x: Normalized, labels: Tensor | None, rng: BatchGenerator) -> Normalized:
        """ε of each image: standard normal, and independent of it."""
        return rng.normal(len(x), *self.spec.shape)

    def loss(self, x: Normalized, t: Times, noise: Normalized, labels: Tensor | None) -> dict[str, Float[Tensor, " n"]]:
        """What is minimised, ``loss``, and what else is logged, of each image.

        Here the mean squared error of the prediction at x_t = α(t) x + σ(t) noise.
        """
        alpha, sigma = self.noise_schedule(column(t))
        output = self(alpha * x + sigma * noise, t, labels)[:, 0]
        return {"loss": (output - self.prediction.target(x, noise, alpha, sigma)).square().mean((1, 2, 3))}

    # --- samples ------------------------------------------------------------------------------------------------------

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """Follow a trajectory from noise to its end."""
        (last,) = deque(self.trajectory(n, labels, generator), maxlen=1)
        return quantize(last.noisy, self.spec.levels)

    @property
    def moments(self) -> int:
        """The sampler's times."""
        return len(self.sampler.times(self.noise_schedule.steps))

    def trajectory(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Iterator[State]:
        """Yield the states at each of the sampler's times, from t = 1 to t = 0; see :meth:`Stepwise.trajectory`."""
        schedule = self.noise_schedule

        def draw() -> Normalized:
            return generator.normal(n, *self.spec.shape).to(self.device)

        def predict(noisy: Normalized, t: float | Tensor) -> Estimate:
            times = t if isinstance(t, Tensor) else torch.full((1,), t, device=self.device)
            return self.predict(noisy, times, labels, self.guidance)

        start = math.hypot(*schedule.at(1.0)) * draw()  # as wide as x_1 of images with variance 1
        calls = self.moments - 1
        context = Context(schedule, predict, draw, self.variance)
        for k, state in enumerate(self.sampler.trajectory(start, context), 1):
            self.report(min(k, calls), calls)
            yield state
