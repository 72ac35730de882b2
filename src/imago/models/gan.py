"""Generative adversarial networks (Goodfellow et al. 2014; lecture chapter 4).

Two networks. The generator G turns noise z ~ N(0, I) into an image; the discriminator D says how likely an image is
real. They play

    min_G max_D  V(D, G) = E_x[log D(x)] + E_z[log(1 − D(G(z)))]                                  (eq. 1)

by alternating steps (algorithm 1): k times {m noise samples, m data samples, D ascends V}, then {m noise samples, G
descends}. At the optimal discriminator D*(x) = p_data(x) / (p_data(x) + p_G(x)) the value is −log 4 + 2 JSD(p_data ‖
p_G) (theorem 1). Nothing here knows p_G(x): a GAN is an implicit model, it samples and has no likelihood.

``log(1 − D(G(z)))`` is flat where samples are bad, so G ascends ``log D(G(z))`` instead (section 3): that and other
games are the :class:`Objective` objects. What a discriminator pays for steep gradients is a :class:`Penalty`.

The networks are arguments: fully connected ones make the GAN of the paper, convolutional ones DCGAN (Radford et al.
2016).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from typing import Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import PositiveFloat, PositiveInt
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from imago.capacity import Width
from imago.errors import UserError
from imago.images import Batch, Images, ImageSpec, Labels, Normalized, normalize, quantize
from imago.models.base import Common, Loss, frozen
from imago.models.latent import LatentModel, Latents
from imago.nets.mlp import MLPDiscriminator, MLPGenerator
from imago.rng import BatchGenerator, PerImageGenerator

Logits = Float[Tensor, " n"]


class Objective(ABC):
    """What each player minimises, image by image, as a function of the discriminator's logits."""

    @abstractmethod
    def discriminator(self, real: Logits, fake: Logits) -> dict[str, Logits]:
        """Named terms of the discriminator's loss, (n,) each; their sum is minimised."""

    @abstractmethod
    def generator(self, fake: Logits) -> Logits:
        """The generator's loss (n,)."""

    @abstractmethod
    def score(self, logits: Logits) -> Logits:
        """The discriminator's output as the papers plot it: D(x) in (0, 1) where it is a probability."""


class Critic(Objective):
    """Games in which D(x) is any real number."""

    def score(self, logits: Logits) -> Logits:
        """The logit itself."""
        return logits


class CrossEntropy(Objective):
    """Games in which D(x) = sigmoid(logit) is a probability and D ascends V(D, G) (Goodfellow et al. 2014, eq. 1)."""

    def discriminator(self, real: Logits, fake: Logits) -> dict[str, Logits]:
        """−log D(x) and −log(1 − D(G(z)))."""
        return {"real": F.softplus(-real), "fake": F.softplus(fake)}

    def score(self, logits: Logits) -> Logits:
        """sigmoid(logit)."""
        return torch.sigmoid(logits)


class Minimax(CrossEntropy):
    """G descends log(1 − D(G(z))) (Goodfellow et al. 2014, eq. 1)."""

    def generator(self, fake: Logits) -> Logits:
        """log(1 − D(G(z)))."""
        return -F.softplus(fake)


class NonSaturating(CrossEntropy):
    """G ascends log D(G(z)) (Goodfellow et al. 2014, section 3)."""

    def generator(self, fake: Logits) -> Logits:
        """−log D(G(z))."""
        return F.softplus(-fake)


class Hinge(Critic):
    """D stops caring beyond a margin of one (Lim & Ye 2017; Miyato et al. 2018, eq. 16-17)."""

    def discriminator(self, real: Logits, fake: Logits) -> dict[str, Logits]:
        """max(0, 1 − D(x)) and max(0, 1 + D(G(z)))."""
        return {"real": F.relu(1 - real), "fake": F.relu(1 + fake)}

    def generator(self, fake: Logits) -> Logits:
        """−D(G(z))."""
        return -fake


class LeastSquares(Critic):
    """D regresses 1 for real and 0 for generated images (Mao et al. 2017, eq. 9)."""

    def discriminator(self, real: Logits, fake: Logits) -> dict[str, Logits]:
        """½ (D(x) − 1)² and ½ D(G(z))²."""
        return {"real": 0.5 * (real - 1).square(), "fake": 0.5 * fake.square()}

    def generator(self, fake: Logits) -> Logits:
        """½ (D(G(z)) − 1)²."""
        return 0.5 * (fake - 1).square()


class Wasserstein(Critic):
    """D is a critic whose mean difference estimates the Wasserstein-1 distance (Arjovsky et al. 2017, eq. 2).

    The estimate holds for 1-Lipschitz critics: use it with :class:`GradientPenalty` or spectral normalisation.
    """

    def discriminator(self, real: Logits, fake: Logits) -> dict[str, Logits]:
        """−D(x) and D(G(z))."""
        return {"real": -real, "fake": fake}

    def generator(self, fake: Logits) -> Logits:
        """−D(G(z))."""
        return -fake


Discriminator = Callable[[Tensor], Tensor]


class Penalty(ABC):
    """A price on the discriminator's gradient with respect to single images."""

    @abstractmethod
    def __call__(self, discriminator: Discriminator, real: Normalized, fake: Normalized, rng: BatchGenerator) -> Logits:
        """The penalty of each image, (n,), differentiable in the discriminator's parameters."""

    @staticmethod
    def gradients(discriminator: Discriminator, x: Normalized) -> Float[Tensor, "n dimensions"]:
        """∇_x D(x) of every image, as a function of the parameters."""
        x = x.detach().requires_grad_(True)
        (gradient,) = torch.autograd.grad(discriminator(x).sum(), x, create_graph=True)
        return gradient.flatten(1)


class R1(Penalty):
    """γ/2 ‖∇D(x)‖² on real images (Mescheder et al. 2018, eq. 9)."""

    def __init__(self, gamma: PositiveFloat = 10.0) -> None:
        self.gamma = gamma

    def __call__(self, discriminator: Discriminator, real: Normalized, fake: Normalized, rng: BatchGenerator) -> Logits:
        """See the class."""
        return 0.5 * self.gamma * self.gradients(discriminator, real).square().sum(1)


class GradientPenalty(Penalty):
    """λ (‖∇D(x̂)‖ − 1)² at random points x̂ between real and generated images (Gulrajani et al. 2017, eq. 3)."""

    def __init__(self, weight: PositiveFloat = 10.0) -> None:
        self.weight = weight

    def __call__(self, discriminator: Discriminator, real: Normalized, fake: Normalized, rng: BatchGenerator) -> Logits:
        """See the class."""
        mix = rng.uniform(len(real), 1, 1, 1)
        between = mix * real + (1 - mix) * fake.detach()
        return self.weight * (self.gradients(discriminator, between).norm(dim=1) - 1).square()


class GAN(LatentModel):
    """A generator and a discriminator in alternating optimisation.

    Args:
        spec: the images; the only place where their shape comes from.
        latent: length of z.
        generator: builds G from ``spec``, ``latent`` and ``classes``.
        discriminator: builds D from ``spec`` and ``classes``.
        objective: the game.
        penalty: price on D's gradients, ``None`` for none.
        discriminator_steps: k of algorithm 1. Every step of D takes a new batch of data, so k batches make one update.
        common: see :class:`Common`; conditional models are those of Mirza & Osindero 2014.
    """

    likelihood = "none"
    leaf = "direct"
    ema = ("generator",)
    kinds = ("pixels", "points")
    default_optimizer = partial(torch.optim.Adam, lr=2e-4, betas=(0.5, 0.999), fused=True)  # Radford et al. 2016

    def __init__(
        self,
        spec: ImageSpec,
        *,
        latent: Width = 100,
        generator: Callable[..., nn.Module] = partial(MLPGenerator, hidden=(256, 512, 1024)),
        discriminator: Callable[..., nn.Module] = partial(MLPDiscriminator, hidden=(1024, 512, 256), dropout=0.3),
        objective: Objective | None = None,
        penalty: Penalty | None = None,
        discriminator_steps: PositiveInt = 1,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(spec, **common)
        self.latent = latent
        self.objective = objective or NonSaturating()
        self.penalty = penalty
        self.discriminator_steps = self.batches_per_update = discriminator_steps
        self.generator = generator(spec=spec, latent=latent, classes=self.classes)
        self.discriminator = discriminator(spec=spec, classes=self.classes)
        if penalty is not None and any(isinstance(m, _BatchNorm) for m in self.discriminator.modules()):
            raise UserError(
                f"model.penalty={type(penalty).__name__}: a penalty on single images' gradients is undefined under "
                "batch norm, which mixes them; add model.discriminator.batch_norm=false"
            )

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The discriminator and the generator."""
        return {"discriminator": self.discriminator, "generator": self.generator}

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """A step of D; after every k-th of them a step of G (Goodfellow et al. 2014, algorithm 1)."""
        labels = batch.labels
        yield self.discriminator_loss(normalize(batch.images, self.spec.levels), labels, rng)
        if (self.state.batches + 1) % self.discriminator_steps == 0:
            yield self.generator_loss(len(batch.images), labels, rng)

    def discriminator_loss(self, real: Normalized, labels: Labels | None, rng: BatchGenerator) -> Loss:
        """The sum of the objective's terms on m real and m generated images."""
        with torch.no_grad():
            fake = self.generator(rng.normal(len(real), self.latent), labels)
        d_real = self.discriminator(real, labels).float()
        d_fake = self.discriminator(fake, labels).float()
        terms = self.objective.discriminator(d_real, d_fake)
        if self.penalty is not None:
            terms["penalty"] = self.penalty(lambda x: self.discriminator(x, labels), real, fake, rng)
        loss = torch.stack(list(terms.values())).sum(0).mean()
        logs = {
            "loss/discriminator": loss,
            "d_x": self.objective.score(d_real.detach()).mean(),
            "d_g_z": self.objective.score(d_fake.detach()).mean(),
        }
        if self.penalty is not None:
            logs["loss/discriminator/penalty"] = terms["penalty"].mean()
        return Loss("discriminator", loss, logs)

    def generator_loss(self, n: int, labels: Labels | None, rng: BatchGenerator) -> Loss:
        """G's loss on m new noise samples; gradients pass through D and none is computed for it."""
        with frozen(self.discriminator):
            fake = self.generator(rng.normal(n, self.latent), labels)
            loss = self.objective.generator(self.discriminator(fake, labels).float()).mean()
        return Loss("generator", loss, {"loss/generator": loss})

    def decode(self, z: Latents, labels: Labels | None = None) -> Normalized:
        """G(z); see :meth:`LatentModel.decode`."""
        return self.generator(z.to(self.device), labels)

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """G(z) for z ~ N(0, I)."""
        return quantize(self.decode(self.draw_latents(n, generator, labels), labels), self.spec.levels)
