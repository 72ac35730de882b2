"""Denoising diffusion probabilistic models: a denoiser in discrete time that bounds log p(x).

*Forward* a fixed Markov chain q(x_1:T | x_0) drowns an image in noise (:mod:`imago.diffusion.schedules`). *Backward* a
chain with learned steps

    p(x_0:T) = p(x_T) Π_t p_θ(x_{t−1} | x_t),    p(x_T) = N(0, I),    p_θ(x_{t−1} | x_t) = N(μ_θ(x_t, t), σ_t² I)   (1)

walks from noise to an image. It is a latent-variable model whose encoder is not learned, and has the bound of one
(lecture, chapter "Diffusion models"; Sohl-Dickstein et al. 2015; Ho et al. 2020, eq. 5)

    −log p(x_0) ≤ KL(q(x_T|x_0) ‖ p(x_T))                                 regularisation L_T
                + Σ_{t≥2} E_q KL(q(x_{t−1}|x_t, x_0) ‖ p_θ(x_{t−1}|x_t))     denoising L_{t−1}                       (2)
                − E_q log p_θ(x_0|x_1)                                      reconstruction L_0.

All are KL divergences between normal distributions, but the last: there the normal density is integrated over each of
the image's levels (Ho et al., eq. 13), so that the bound is of the integer image as every other model's. Points in R^d
have no levels: there it stays a density, and the bound is of a density too. In L_T there is nothing to learn.

q(x_{t−1}|x_t, x_0) is known, so the network need only guess x_0. It is asked for the noise ε, from which
x_0 = (x_t − √(1−ᾱ_t) ε) / √ᾱ_t (or for x_0, or v: :mod:`imago.diffusion.predictions`); the mean of (1) is then

    μ_θ(x_t, t) = c_0(t) x̂_0(x_t, t) + c_t(t) x_t                                                                   (3)

and L_{t−1} a weighted ‖ε − ε_θ(x_t, t)‖². Leaving the weights out trains better pictures and a looser bound (Ho et al.,
eq. 14; :mod:`imago.diffusion.losses`). Sampling is (1), or something faster: :mod:`imago.diffusion.samplers`.

Here t counts steps, 1..T; in the code it is t / T, as of every :class:`~imago.models.denoiser.Denoiser`.
"""

import math
from typing import Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from imago.capacity import Steps
from imago.diffusion.losses import DiffusionLoss, Simple
from imago.diffusion.samplers import Estimate
from imago.diffusion.schedules import BetaSchedule, DiscreteSchedule, Linear, Times, column
from imago.distributions import discretised_normal, log_normal
from imago.errors import UserError
from imago.images import Images, ImageSpec, Normalized, bits_per_dim, normalize, quantize
from imago.models.base import Normal, Terms
from imago.models.denoiser import DenoiserSettings
from imago.models.probability_flow import ProbabilityFlow
from imago.models.summed import SummedBound


class Diffusion(ProbabilityFlow, SummedBound):
    """A denoising diffusion probabilistic model.

    Args:
        spec: the images.
        steps: T.
        noise_schedule: β_1..β_T.
        loss: of training.
        settings: see :class:`~imago.models.denoiser.DenoiserSettings`; ``variance`` is σ_t² of (1).

    Of the bound's terms ``bound_steps`` counts the T − 1 of the denoising sum; the other two are always there.

    Raises:
        UserError: a learned variance that the loss does not train, and what :class:`Denoiser` refuses.
    """

    likelihood = "lower_bound"
    kinds = ("pixels", "points")
    noise_schedule: DiscreteSchedule

    def __init__(
        self,
        spec: ImageSpec,
        *,
        steps: Steps = 1000,
        noise_schedule: BetaSchedule | None = None,
        loss: DiffusionLoss | None = None,
        **settings: Unpack[DenoiserSettings],
    ) -> None:
        super().__init__(spec, noise_schedule=DiscreteSchedule(noise_schedule or Linear(), steps), **settings)
        self.weighting = loss or Simple()
        if self.variance.learned and not self.weighting.needs_bound:
            raise UserError(
                f"model.variance: a learned one gets no gradient from the loss {type(self.weighting).__name__}; choose "
                "model/loss=hybrid or vlb, or a fixed variance"
            )
        self.steps = steps

    @property
    def bound_terms(self) -> int:
        """How many terms of (2) an estimate for one image visits."""
        every = self.steps + 1
        return every if self.bound_steps is None else min(every, self.bound_steps + 2)

    def loss(self, x: Normalized, t: Times, noise: Normalized, labels: Tensor | None) -> dict[str, Float[Tensor, " n"]]:
        """The squared error of the prediction and T times the term of (2) at t, as :attr:`weighting` weighs them."""
        alpha, sigma = self.noise_schedule(column(t))
        noisy = alpha * x + sigma * noise
        outputs = self(noisy, t, labels)
        output = outputs[:, 0]
        squared = (output - self.prediction.target(x, noise, alpha, sigma)).square().mean((1, 2, 3))
        bits, logs = squared, {}
        if self.weighting.needs_bound:
            output = output if self.weighting.bound_trains_mean else output.detach()
            raw = outputs[:, 1] if self.variance.learned else None
            estimate = Estimate(self.prediction.image(output, noisy, alpha, sigma), raw)  # not clipped: for gradients
            nats = torch.where(
                self.noise_schedule.index(t) > 1,
                self._denoising(x, t, estimate),
                self._reconstruction(x, noisy, t, estimate),
            )
            bits = bits_per_dim(nats * self.steps, self.spec)
            logs["bits"] = bits
        return logs | {"squared_error": squared, "loss": self.weighting(squared, bits)}

    # --- the flow -----------------------------------------------------------------------------------------------------

    @property
    def ends(self) -> tuple[float, float]:  # type: ignore[override]
        """See :class:`~imago.models.probability_flow.ProbabilityFlow`."""
        first, last = (self.noise_schedule.at(t) for t in (1 / self.steps, 1.0))
        return first[1] / sum(first), last[1] / sum(last)

    def on_schedule(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`~imago.models.probability_flow.ProbabilityFlow`; here α² + σ² = 1, also between two steps."""
        size = torch.hypot(1 - tau, tau)
        return self.noise_schedule.between(tau), (1 - tau) / size, tau / size

    # --- the bound ----------------------------------------------------------------------------------------------------

    def nll_terms(self, images: Images, labels: Tensor | None, normal: Normal) -> Terms:
        """The three parts of (2) in nats.

        With :attr:`bound_steps` m the sum over t is (T − 1) / m times the sum over m times, spread evenly from a random
        start of each image's own: right on average, with an error that shows in the differences between images.
        """
        steps, n = self.steps, len(images)
        x = normalize(images, self.spec.levels)
        if self.bound_steps is None or self.bound_steps >= steps - 1:
            times = [torch.full((n,), k, device=x.device) for k in range(2, steps + 1)]
            weight = 1.0
        else:
            start = torch.special.ndtr(normal(n))
            share = (torch.arange(self.bound_steps, device=x.device)[:, None] + start) / self.bound_steps
            times = list((2 + (share * (steps - 1)).long()).clamp(max=steps))
            weight = (steps - 1) / self.bound_steps
        denoising = torch.zeros(n, device=x.device)
        for done, k in enumerate(times, 1):
            t = k / steps
            noisy = self.noise_schedule.diffuse(x, t, normal(n, *self.spec.shape))
            denoising += self._denoising(x, t, self.predict(noisy, t, labels))
            self.report(done, len(times) + 1)
        return {
            "elbo/regularisation": self.regularisation(x),
            "elbo/denoising": weight * denoising,
            "elbo/reconstruction": self.term(x, 1, labels, normal),
        }

    def regularisation(self, x: Normalized) -> Float[Tensor, " n"]:
        """L_T = KL(N(√ᾱ_T x_0, 1 − ᾱ_T) ‖ N(0, 1)), in nats."""
        alpha_bar = float(self.noise_schedule.alpha_bar[-1])
        constant = -alpha_bar - math.log1p(-alpha_bar)  # σ² − 1 − log σ²
        return 0.5 * (alpha_bar * x.square() + constant).flatten(1).sum(1)

    def term(self, x: Normalized, k: int, labels: Tensor | None, normal: Normal) -> Float[Tensor, " n"]:
        """L_{k−1} of (2) in nats, at one x_k ~ q(x_k | x_0) for each image; at k = 1 the reconstruction."""
        t = torch.full((1,), k / self.steps, device=x.device)
        noisy = self.noise_schedule.diffuse(x, t, normal(len(x), *self.spec.shape))
        estimate = self.predict(noisy, t, labels)
        return self._reconstruction(x, noisy, t, estimate) if k == 1 else self._denoising(x, t, estimate)

    def _denoising(self, x: Normalized, t: Times, estimate: Estimate) -> Float[Tensor, " n"]:
        """KL(q(x_{t−1}|x_t, x_0) ‖ p_θ(x_{t−1}|x_t)) for t ≥ 2."""
        c_0, _, log_tilde, log_beta = self.noise_schedule.last_step(t)
        log_variance = self.variance.log(log_beta, log_tilde, estimate.raw_variance)
        step = c_0 * (estimate.image - x)  # of the means: their part of x_t is the same
        kl = 0.5 * (log_variance - log_tilde + torch.exp(log_tilde - log_variance) - 1)
        return (kl + 0.5 * step.square() * torch.exp(-log_variance)).flatten(1).sum(1)

    def _reconstruction(self, x: Normalized, noisy: Normalized, t: Times, estimate: Estimate) -> Float[Tensor, " n"]:
        """−log p_θ(x_0|x_1), of images at t = 1."""
        c_0, c_t, log_tilde, log_beta = self.noise_schedule.last_step(t)
        # β̃_2 stands for β_1 too unless it is learned (Ho et al., as coded): the decoder is narrow.
        log_beta = log_beta if self.variance.learned else log_tilde
        mean = c_0 * estimate.image + c_t * noisy
        log_scale = 0.5 * self.variance.log(log_beta, log_tilde, estimate.raw_variance)
        levels, log_scale = self.spec.levels, log_scale.expand_as(mean)
        if not levels:
            return -log_normal(mean, log_scale, x).flatten(1).sum(1)
        return -discretised_normal(mean, log_scale, quantize(x, levels), levels).flatten(1).sum(1)
