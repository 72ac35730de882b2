"""Generative stochastic networks: a Markov chain whose steps are learned, and that ends in images (Bengio et al. 2014).

Nobody writes down p(x), not even up to a constant. What is learned is one step of a chain that has p as its stationary
distribution. A step spoils the image by a *corruption* C(x̃|x) that is fixed, and draws an image from what a network
takes the uncorrupted one to be, its *reconstruction distribution*:

    x̃_t ~ C(x̃ | x_t),    x_{t+1} ~ P_θ(x | x̃_t).                                                                    (1)

If P_θ(x|x̃) is the true posterior, p(x) C(x̃|x) / p(x̃), then (1) is Gibbs sampling of the joint p(x) C(x̃|x), so p is
stationary; and if the chain can get everywhere, it is from anywhere that it gets there (Bengio et al. 2013, theorem 1;
2014, theorem 1). The posterior is learned from pairs, as a denoising autoencoder: maximise E log P_θ(x | x̃). That is
one distribution of few modes, where p has many: this is what the chain buys. The corruption decides how few. Here the
values of P_θ are independent given x̃, which a posterior is the more nearly the less is corrupted; and the less is
corrupted, the longer the chain takes from one mode to the next. (Bengio et al. 2014 let x̃ be a noisy hidden state,
of which it may be truer; the theorem is the same.)

*Walkback.* Far from the data nobody has said where to go, and the chain may stay there. So training follows the chain
for k steps, x_0 = x, x̃_0, x_1, x̃_1, …, and asks at each of them for the image where it began (Bengio et al. 2013,
algorithm 1):

    loss = −1/k Σ_{t<k} log P_θ(x_0 | x̃_t).                                                                          (2)

What the chain draws counts as given. C, followed by some steps of the chain, is but another corruption, so the
stationary distribution is the same (Bengio et al. 2013, proposition 1).

Samples are where the chain is after some steps from an image of which nothing is left. What the corruption is: of
pixels, each is black or white, at random, with a probability (salt and pepper); points get normal noise.

Bengio, Yao, Alain & Vincent 2013, "Generalized denoising auto-encoders as generative models"; Bengio, Thibodeau-Laufer,
Alain & Yosinski 2014, "Deep generative stochastic networks trainable by backprop".
"""

import copy
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from typing import Unpack

import torch
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn

from imago.capacity import Steps
from imago.diffusion.samplers import State
from imago.distributions import DistributionFactory, LogisticMixture, Parameters, distribution_of, sampling_dtype
from imago.errors import UserError
from imago.images import Batch, Images, ImageSpec, Normalized, bits_per_dim, normalize, quantize
from imago.models.base import Common, Loss
from imago.models.stepwise import Stepwise
from imago.nets.mlp import MLPDecoder
from imago.rng import BatchGenerator, PerImageGenerator

SMALLEST = 2.0**-25  # of a uniform number: at 0 a normal quantile would be infinite

Noise = BatchGenerator | PerImageGenerator


class GSN(Stepwise):
    """A generative stochastic network.

    Args:
        spec: the images, or points in R^d.
        network: builds P_θ from ``spec``, ``latent`` (the number of values that come in), ``parameters`` (that come out
            for each value) and ``classes``.
        distribution: P_θ of a value, for a number of levels; two levels are always Bernoulli, points normal.
        corruption: of pixels the probability with which one is black or white at random, of points the standard
            deviation of the noise.
        walkback: k of equation 2.
        steps: of the chain, for a sample.
        common: see :class:`Common`.

    Raises:
        UserError: a corruption that is no probability.
    """

    likelihood = "none"
    leaf = "markov_chain"
    ema = ("net",)
    kinds = ("pixels", "points")
    inference_settings = ("steps",)

    def __init__(
        self,
        spec: ImageSpec,
        *,
        network: Callable[..., nn.Module] = partial(MLPDecoder, hidden=(500, 500)),
        distribution: DistributionFactory = partial(LogisticMixture, components=1, largest_scale=0.5),
        corruption: PositiveFloat = 0.4,
        walkback: PositiveInt = 3,
        steps: Steps = 50,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(spec, **common)
        if spec.levels and corruption > 1:
            raise UserError(f"model.corruption={corruption}: is a probability of pixels; give one up to 1")
        self.distribution = distribution_of(distribution, spec.levels)
        self.corruption = corruption
        self.walkback = walkback
        self.steps = steps
        self.net = network(
            spec=spec, latent=spec.dimensions, parameters=self.distribution.parameters, classes=self.classes
        )

    @property
    def networks(self) -> dict[str, nn.Module]:
        """P_θ."""
        return {"net": self.net}

    @property
    def nfe(self) -> int:
        """The steps of the chain."""
        return self.steps

    @property
    def sampling(self) -> str:
        """How long the chain of a sample is."""
        return f"chain, {self.steps:,} steps"

    def corrupt(self, x: Normalized, amount: float, noise: Noise) -> Normalized:
        """x̃ ~ C(x̃|x); at an amount of 1 nothing is left of pixels."""
        if not self.spec.levels:
            return x + amount * noise.normal(*x.shape).to(x)
        u = noise.uniform(*x.shape).to(x)
        return torch.where(u < amount, torch.where(u < amount / 2, -1.0, 1.0), x)

    def draw(self, parameters: Parameters, noise: Noise) -> Images:
        """x ~ P_θ(x|x̃)."""
        uniform = noise.uniform(*parameters.shape[:-1]).to(parameters.device, sampling_dtype(parameters.device))
        return self.distribution.sample(parameters, uniform.clamp(min=SMALLEST)).to(self.spec.dtype)

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """Equation 2, in bits per dimension; of points, whose log p is a density, it may be negative."""
        images, bits = batch.images, []
        for _ in range(self.walkback):
            corrupted = self.corrupt(normalize(images, self.spec.levels), self.corruption, rng)
            parameters = self.net(corrupted.flatten(1), batch.labels).float()
            nats = -self.distribution.log_prob(parameters, batch.images).flatten(1).sum(1)
            bits.append(bits_per_dim(nats, self.spec).mean())
            with torch.no_grad():
                images = self.draw(parameters, rng)
        loss = torch.stack(bits).mean()
        yield Loss("net", loss, {"loss": loss, "loss/first": bits[0], "loss/last": bits[-1]})

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """The last step of a trajectory."""
        (last,) = deque(self.trajectory(n, labels, generator), maxlen=1)
        return quantize(last.image, self.spec.levels)

    @property
    def moments(self) -> int:
        """The steps of the chain."""
        return self.steps

    @torch.no_grad()
    def trajectory(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Iterator[State]:
        """Yield the steps of the chain, x̃_t and x_{t+1} of equation 1; see :meth:`Stepwise.trajectory`.

        In double precision: in single precision a batch size that rounds a value differently would lead a chain
        elsewhere.
        """
        precise = sampling_dtype(self.device)
        net = copy.deepcopy(self.net).to(precise)
        corrupted = self.corrupt(torch.zeros(n, *self.spec.shape, dtype=precise, device=self.device), 1.0, generator)
        for step in range(self.steps):
            images = self.draw(net(corrupted.flatten(1), labels), generator)
            x = normalize(images, self.spec.levels, precise)
            yield State(1 - step / self.steps, corrupted, x)
            self.report(step + 1, self.steps)
            corrupted = self.corrupt(x, self.corruption, generator)
