"""Masked diffusion: values vanish one after the other, at random, and a network learns to say what they were.

*Forward* every value of an image x is hidden at a random time of its own: at time t from 0 to 1 it is still seen with
probability α(t), which falls from 1 to 0, and once hidden it stays so (an *absorbing* state m). *Backward*, from t to
an earlier s, a hidden value comes back with probability (α_s − α_t) / (1 − α_t), drawn from what a network says of it

    p_θ(x_s,i | x_t) = (1 − α_s)/(1 − α_t) δ_m + (α_s − α_t)/(1 − α_t) Cat(μ_θ,i(x_t))     where x_t,i = m          (1)

and values that are seen stay as they are. The bound of Gaussian diffusion (:mod:`imago.models.diffusion`) becomes, with
infinitely many steps, a weighted cross-entropy of the hidden values (Shi et al. 2024, eq. 5; Sahoo et al. 2024, eq. 10)

    −log p(x) ≤ L = ∫_0^1 −α'(t)/(1 − α(t)) E_q(x_t|x) [ Σ_{i: x_t,i = m} −log μ_θ,i(x_t)[x_i] ] dt.                (2)

Nothing is lost at the ends: x_1 is all hidden, x_0 is x. What is hidden at time t depends on 1 − α(t) alone, so that
another schedule is a substitution in (2): L does not depend on it. Of D values each is hidden with u = 1 − α(t), and
with ∫ u^{k−1} (1 − u)^{D−k} du = (k − 1)! (D − k)! / D! the integral is done: with M a random k of the D values,

    L = Σ_{k=1}^D 1/k E_M [ Σ_{i∈M} −log μ_θ,i(x_{∖M})[x_i] ]
      = E_σ [ −Σ_j log μ_θ,σ(j)(x_σ(1), …, x_σ(j−1))[x_σ(j)] ]                                                       (3)

which in the second line is the chain rule of a fully visible belief net, averaged over all orders σ of the values:
masked diffusion is an autoregressive model of any order (Uria et al. 2014; Hoogeboom et al. 2022; Ou et al. 2024), if
the network is told no more than which values are seen. The share that is hidden, which it is told too, follows from it.

So p(x) = E_σ p(x | σ), and L is what Jensen's inequality leaves of it. Drawn one value a step, samples are of p itself;
with fewer steps those that come back together do not know of each other. And what is seen may be anywhere: an image is
completed from any part of it (:meth:`~imago.models.completing.Completing.complete`).

Training takes one k for each image, spread evenly over a batch (Kingma et al. 2021, appendix I.1), and M at random.

Shi, Han, Wang, Doucet & Titsias 2024, "Simplified and generalized masked diffusion for discrete data" (MD4); Sahoo et
al. 2024, "Simple and effective masked diffusion language models"; Austin et al. 2021, "Structured denoising diffusion
models in discrete state-spaces"; Hoogeboom et al. 2022, "Autoregressive diffusion models".
"""

import math
from collections.abc import Callable, Iterator
from typing import Literal, Unpack

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from imago.capacity import Steps
from imago.distributions import Categorical, DistributionFactory, distribution_of, sampling_dtype
from imago.errors import UserError
from imago.images import Batch, Images, ImageSpec, Labels, bits_per_dim, normalize
from imago.models.base import Common, Loss, Normal, Terms
from imago.models.completing import Completing
from imago.models.summed import SummedBound
from imago.nets.unet import UNet
from imago.rng import BatchGenerator, PerImageGenerator

Seen = Bool[Tensor, "n channels height width"]
Masking = Literal["linear", "cosine"]
TOKEN_FEATURES = 16  # of each entry of a codebook, and of what is hidden


class MaskedDiffusion(Completing, SummedBound):
    """Masked diffusion over the values of an image.

    Args:
        spec: the images.
        network: from the spec, the parameters of a value's distribution, the number of classes and of ``inputs`` for
            each pixel, to the network; called with these inputs, the share that is hidden (n,) and labels, it returns
            (n, parameters, channels, height, width).
        distribution: of a hidden value, for a number of levels; two levels are always Bernoulli.
        masking: 1 − α(t), the share that is hidden: ``linear``, t, or ``cosine``, cos(π/2 (1 − t)) (Shi et al. 2024,
            table 4), which looks more at images that are nearly hidden, and begins samples with fewer values a step.
        steps: of :meth:`sample`, at times spread evenly; ``None`` draws one value a step.
        common: see :class:`Common`; the largest norm of the gradient is 1 unless another is given.

    Raises:
        UserError: a distribution that has a bound only.
    """

    leaf = "diffusion"
    ema = ("net",)
    kinds = ("pixels", "tokens")
    inference_settings = ("steps", "masking")
    any_order = True

    def __init__(
        self,
        spec: ImageSpec,
        *,
        network: Callable[..., nn.Module] = UNet,
        distribution: DistributionFactory = Categorical,
        masking: Masking = "linear",
        steps: Steps | None = 20,
        **common: Unpack[Common],
    ) -> None:
        common.setdefault("gradient_clip", 1.0)
        super().__init__(spec, **common)
        self.distribution = distribution_of(distribution, spec.levels)
        if not self.distribution.exact:
            raise UserError(
                f"distribution={type(self.distribution).__name__}: has a bound of the likelihood only; choose "
                "model/distribution=softmax or logistic_mixture"
            )
        self.masking = masking
        self.steps = steps
        self.net = MaskedNet(spec, network, self.distribution.parameters, self.classes)
        counts = torch.arange(spec.dimensions + 1, dtype=torch.float64)
        often = self.time_of(counts / spec.dimensions).diff()  # P(k) of a uniform t
        self.register_buffer("weights", (1 / (counts[1:] * often)).float(), persistent=False)

    weights: Float[Tensor, " values"]

    @property
    def networks(self) -> dict[str, nn.Module]:
        """One network."""
        return {"net": self.net}

    @property
    def nfe(self) -> int:
        """The steps."""
        return self.steps or self.spec.dimensions

    @property
    def sampling(self) -> str:
        """How many steps, and how they are spread."""
        return "one value a step" if self.steps is None else f"ancestral, {self.steps} steps, {self.masking}"

    # --- how much is hidden -------------------------------------------------------------------------------------------

    def hidden_share(self, t: Tensor) -> Tensor:
        """1 − α(t)."""
        return t if self.masking == "linear" else torch.sin(math.pi / 2 * t)

    def time_of(self, share: Tensor) -> Tensor:
        """The inverse: when a share is hidden."""
        return share if self.masking == "linear" else 2 / math.pi * torch.asin(share)

    # --- the bound ----------------------------------------------------------------------------------------------------

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """One term of (3) for each image, weighted so that it is the bound on average; per dimension."""
        n, values = len(batch.images), self.spec.dimensions
        strata = torch.arange(n, device=self.device) + rng.rank * n  # of the batch of all devices
        t = (strata + rng.uniform(n)) / (n * rng.world_size)
        hidden = (values * self.hidden_share(t)).ceil().long().clamp(1, values)
        order = rng.uniform(n, values).argsort(1).argsort(1)
        nats = (self.weights[hidden - 1] * self.hidden_nats(batch.images, order, hidden, batch.labels).sum(1)).mean()
        yield Loss("net", nats / values, {"nats": nats, "bpd": bits_per_dim(nats, self.spec)})

    def hidden_nats(
        self, images: Images, order: Tensor, hidden: Tensor, labels: Tensor | None
    ) -> Float[Tensor, "n values"]:
        """−log μ_θ,i of (3), in nats, where M is the last ``hidden`` values in an order; 0 for those that are seen.

        Args:
            images: of the data.
            order: the place of every value in the order, 0..values-1, (n, values).
            hidden: how many are hidden, (n,).
            labels: int64 (n,), conditional models only.
        """
        seen = (order < self.spec.dimensions - hidden[:, None]).view(images.shape)
        log_probs = self.distribution.log_prob(self.net(images, seen, labels), images)
        return -torch.where(seen, 0.0, log_probs).flatten(1)

    @property
    def bound_terms(self) -> int:
        """How many terms of (3) an estimate for one image visits."""
        return min(self.spec.dimensions, self.bound_steps or self.spec.dimensions)

    def nll_terms(self, images: Images, labels: Tensor | None, normal: Normal) -> Terms:
        """Equation 3 in nats: −log p(x | σ) for one random order σ of each image's own.

        If the network's answers were the conditionals of one distribution, all orders would agree. With
        :attr:`bound_steps` m the sum over k is D / m times the sum over m numbers k, spread evenly from a random start:
        right on average, with an error that shows in the differences between images.
        """
        n, values, terms = len(images), self.spec.dimensions, self.bound_terms
        order = normal(n, values).argsort(1).argsort(1)
        if terms == values:
            counts = torch.arange(1, values + 1, device=order.device)[:, None].expand(values, n)
        else:
            start = torch.special.ndtr(normal(n))
            share = (torch.arange(terms, device=order.device)[:, None] + start) / terms
            counts = (1 + (share * values).long()).clamp(max=values)
        total = torch.zeros(n, device=order.device)
        for done, hidden in enumerate(counts, 1):
            nats = self.hidden_nats(images, order, hidden, labels)
            if terms == values:  # the first hidden value alone is next in the order
                total = total + torch.where(order == values - hidden[:, None], nats, 0.0).sum(1)
            else:
                total = total + nats.sum(1) / hidden * (values / terms)
            self.report(done, terms)
        return {"nats": total}

    # --- samples ------------------------------------------------------------------------------------------------------

    def draw_values(
        self,
        n: int,
        labels: Tensor | None,
        generator: PerImageGenerator,
        given: Images | None,
        known: Tensor | None,
    ) -> Images:
        """Equation 1 from t = 1 to 0, or one value after the other in a random order.

        A value comes back when α passes its own uniform number: that is (1) for any number of steps, and in the limit
        of many the order of these numbers.
        """
        shape, values, device = (n, *self.spec.shape), self.spec.dimensions, self.device
        turn = generator.uniform(n, values).to(device, sampling_dtype(device))
        uniform = generator.uniform(n, values).to(device, sampling_dtype(device))
        images = torch.zeros(n, values, dtype=self.spec.dtype, device=device)
        seen = torch.zeros(n, values, dtype=torch.bool, device=device)
        if given is not None and known is not None:
            seen = known.reshape(n, values).clone()
            images = torch.where(seen, given.reshape(n, values), images)
        steps = self.steps
        if steps is None:
            turn = turn.masked_fill(seen, math.inf).argsort(1).argsort(1)
            steps = values - int(seen.sum(1).min())
            ends = [float(place) for place in range(1, steps + 1)]
        else:
            times = torch.arange(steps, dtype=torch.float64).flip(0) / steps
            ends = (1 - self.hidden_share(times)).tolist()
        for done, end in enumerate(ends, 1):
            fresh = ~seen & (turn < end)
            if bool(fresh.any()):
                parameters = self.net(images.view(shape), seen.view(shape), labels).flatten(1, 3)[fresh]
                drawn = self.distribution.sample(parameters, uniform[fresh], self.temperature)
                images[fresh] = drawn.to(images.dtype)
                seen |= fresh
            self.report(done, len(ends))
        return images.view(shape)


class MaskedNet(nn.Module):
    """What is said of every value, from those that are seen.

    Args:
        spec: the images.
        network: see :class:`MaskedDiffusion`.
        parameters: of the distribution of one value.
        classes: number of classes, 0 for an unconditional model.
    """

    def __init__(self, spec: ImageSpec, network: Callable[..., nn.Module], parameters: int, classes: int) -> None:
        super().__init__()
        self.levels = spec.levels
        self.embed = nn.Embedding(spec.levels + 1, TOKEN_FEATURES) if spec.tokens else None
        inputs = spec.channels * (TOKEN_FEATURES if spec.tokens else 2)
        self.body = network(spec, parameters, classes, inputs=inputs)

    def forward(self, images: Images, seen: Seen, labels: Labels | None = None) -> Tensor:
        """(n, channels, height, width) → (n, channels, height, width, parameters); hidden values are not read.

        Intensities are given as such, 0 where they are hidden, beside what is seen; tokens by a vector of each, of
        which one stands for what is hidden.
        """
        if self.embed is None:
            inputs = torch.cat([normalize(images, self.levels) * seen, seen.float()], 1)
        else:
            inputs = self.embed(torch.where(seen, images.long(), self.levels)).movedim(-1, 2).flatten(1, 2)
        share = 1 - seen.flatten(1).float().mean(1)
        return self.body(inputs, share, labels).movedim(1, -1).float()
