"""Noise conditional score networks: climb the log-density of ever less noisy images (Song & Ermon 2019).

The *score* of a density is ∇ log p(x). It has no normaliser, and with it Langevin's walk draws from p:

    x ← x + a ∇ log p(x) + √(2a) z,    z ~ N(0, I),                                                                  (1)

for ever and with small steps a. Two things are in the way. The score of images is not known; and where there are none
nobody can learn it, so a walk that begins there is lost, and one that has found a mode does not find another. Noise
helps with both. Let p_σ be the density of x̃ = x + σ ε. Its score is what denoising learns (Vincent 2011): by

    ∇ log p_σ(x̃) = E[∇ log N(x̃; x, σ² I) | x̃] = −E[ε | x̃] / σ = (E[x | x̃] − x̃) / σ²                              (2)

(the last is Tweedie's formula) the minimum of the *denoising score matching* loss

    ℓ(σ) = ½ E ‖s_θ(x̃, σ) + ε / σ‖²                                                                                 (3)

is the score of p_σ. With much noise p_σ reaches everywhere and has one mode. So one network learns the scores of L
levels of noise, σ_1 > … > σ_L, and the walk goes through them (*annealed Langevin dynamics*; algorithm 1): it begins in
N(0, σ_1² I) and each level hands its images to the next (:class:`~imago.diffusion.samplers.AnnealedLangevin`).

Levels weigh the same if ℓ is multiplied by σ² (section 4.2): with s_θ = −ε_θ / σ, σ² ℓ(σ) = ½ E ‖ε_θ − ε‖² is what any
:class:`~imago.models.denoiser.Denoiser` minimises that is asked for ε. So this is one, with α = 1: the noise grows, and
the image stays as it is. Its network, samplers and figures are those of diffusion models; what is new are the levels
and the walk. With much noise σ ε̂ has to be right to a small part of it. So the network f says how ε_θ differs from what
it were if the data were N(0, I) (Karras et al. 2022, table 1):

    ε_θ(x̃, σ) = σ / (1 + σ²) x̃ + f(x̃ / √(1 + σ²), σ) / √(1 + σ²).                                                  (4)

*Levels* (Song & Ermon 2020) are geometric: σ_{i−1} / σ_i = γ. The first has to bridge the largest distance of two
images (technique 1), for which stands 2√D here, the diagonal of [−1, 1]^D. Neighbours have to overlap. The distance of
x̃ from x is σ (√D ± 1/√2), so half of a level's mass lies within three deviations of the next larger one's if
(technique 2)

    Φ(√(2D) (γ − 1) + 3γ) − Φ(√(2D) (γ − 1) − 3γ) ≈ ½,    so    γ = 1 / (1 − 3 / √(2D)),                           (5)

since the first Φ is 1. ``steps=None`` asks for as many levels: 102 of 28x28 gray images, 222 of 32x32 RGB.

There is no likelihood: what is learned is a walk. (The scores would give one, by the probability flow.)

Song & Ermon 2019, "Generative modeling by estimating gradients of the data distribution"; 2020, "Improved techniques
for training score-based generative models"; Vincent 2011, "A connection between score matching and denoising
autoencoders"; Karras et al. 2022, "Elucidating the design space of diffusion-based generative models".
"""

import math
from typing import Unpack

import torch
from pydantic import PositiveFloat
from torch import Tensor

from imago.capacity import Steps
from imago.diffusion.samplers import AnnealedLangevin
from imago.diffusion.schedules import GeometricNoise, Times, column
from imago.errors import UserError
from imago.images import ImageSpec, Normalized
from imago.models.denoiser import Denoiser, DenoiserSettings, Outputs

WIDEST = 1.5  # γ where (5) has no solution or a larger one: in few dimensions all levels overlap


class NCSN(Denoiser):
    """A noise conditional score network.

    Args:
        spec: the images, or points in R^d.
        steps: L, levels of noise; ``None`` for those of equation 5.
        smallest: σ_L, in units in which pixels span [-1, 1].
        largest: σ_1; ``None`` for 2√D.
        settings: see :class:`~imago.models.denoiser.DenoiserSettings`; the sampler is annealed Langevin dynamics unless
            another is given.

    Raises:
        UserError: no level between the two, and what :class:`~imago.models.denoiser.Denoiser` refuses.
    """

    likelihood = "none"
    leaf = "markov_chain"

    def __init__(
        self,
        spec: ImageSpec,
        *,
        steps: Steps | None = 50,
        smallest: PositiveFloat = 0.02,
        largest: PositiveFloat | None = None,
        **settings: Unpack[DenoiserSettings],
    ) -> None:
        largest = largest or 2 * math.sqrt(spec.dimensions)
        if smallest >= largest:
            raise UserError(f"model.smallest={smallest:g}: must lie below model.largest={largest:g}")
        if steps is None:
            steps = 1 + math.ceil(math.log(largest / smallest) / math.log(ratio_of(spec.dimensions)))
        settings["sampler"] = settings.get("sampler") or AnnealedLangevin()
        super().__init__(spec, noise_schedule=GeometricNoise(smallest, largest, steps), **settings)

    def forward(self, noisy: Normalized, t: Times, labels: Tensor | None) -> Outputs:
        """ε_θ by equation 4, float32; other outputs as they are."""
        _, sigma = self.noise_schedule(column(t))
        scale = (1 + sigma.square()).sqrt()
        outputs = super().forward(noisy / scale, t, labels)
        epsilon = sigma / scale.square() * noisy + outputs[:, 0] / scale
        return torch.cat([epsilon[:, None], outputs[:, 1:]], 1)


def ratio_of(dimensions: int) -> float:
    """γ of equation 5."""
    overlap = 3 / math.sqrt(2 * dimensions)
    return min(WIDEST, 1 / (1 - overlap)) if overlap < 1 else WIDEST
