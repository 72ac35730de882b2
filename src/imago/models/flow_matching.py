"""Flow matching: a velocity field that carries noise to images, learned without ever following it.

Let a velocity u(x, t) move points, dx/dt = u. A distribution p_t that moves with them obeys the continuity equation
∂p_t/∂t = −∇·(p_t u). For one image x_0 and one noise ε the straight line

    x_t = (1 − t) x_0 + t ε,    0 ≤ t ≤ 1                                                                            (1)

has the velocity ε − x_0. Over all pairs, the distribution of x_t moves from the images at t = 0 to N(0, I) at t = 1,
and the field that moves it is the mean of the velocities of the lines through a point,

    u(x, t) = E[ε − x_0 | x_t = x],                                                                                  (2)

because the continuity equation is linear in p_t u (Lipman et al. 2023, theorem 1). A mean is what least squares finds:

    min_θ E_{t, x_0, ε} ‖v_θ(x_t, t) − (ε − x_0)‖²                                                                  (3)

has (2) as its solution (Lipman et al., theorem 2). Samples follow dx/dt = v_θ from noise at t = 1 back to t = 0; the
straighter the paths, the fewer steps. (These papers let t run from noise to data; here, as for every
:class:`~imago.models.denoiser.Denoiser`, t = 1 is noise.) With x̂ = x_t − t v_θ it is a denoiser like any other, so
samplers, guidance and figures of diffusion models are its own: what is new are the line and what pairs it joins.

*Pairs.* (2) is right for any joint distribution of x_0 and ε with the right marginals. Drawn independently, lines
cross, and paths bend where they do. Pairing images and noise of a batch such that the sum of ‖ε − x_0‖² is
least, which is optimal transport between the two samples, crosses less (Tong et al. 2024, section 3.2; Pooladian et al.
2023). A conditional model pairs within a class only: else a class would have noise of its own, which no sample begins
with.

*Likelihood.* The field moves densities too, so that log p(x) is known up to what a solver and one draw for each image
leave open (:mod:`imago.models.probability_flow`).

*Times.* Middle times are the hardest, so t may be drawn as the logistic function of a normal number (Esser et al. 2024,
section 3.1); the solution of (3) is the same.

Lipman, Chen, Ben-Hamu, Nickel & Le 2023, "Flow matching for generative modeling"; Liu, Gong & Liu 2023, "Flow straight
and fast: learning to generate and transfer data with rectified flow"; Albergo & Vanden-Eijnden 2023, "Building
normalizing flows with stochastic interpolants"; Tong et al. 2024, "Improving and generalizing flow-based generative
models with minibatch optimal transport"; Esser et al. 2024, "Scaling rectified flow transformers".
"""

from typing import Literal, Unpack

import torch
from jaxtyping import Float
from torch import Tensor

from imago.diffusion.predictions import FlowVelocity
from imago.diffusion.samplers import Heun
from imago.diffusion.schedules import StraightLines
from imago.images import Images, ImageSpec, Normalized
from imago.models.base import ExplicitModel, Normal, Terms
from imago.models.denoiser import DenoiserSettings
from imago.models.probability_flow import ProbabilityFlow
from imago.rng import BatchGenerator

TOLERANCE = 1e-4  # of the paths of likelihoods


class FlowMatching(ProbabilityFlow, ExplicitModel):
    """A velocity field along straight lines.

    Args:
        spec: the images, or points in R^d.
        coupling: of images and noise in a batch: ``independent``, or by ``optimal_transport``, which is paired on the
            CPU in a time that grows with the cube of the batch.
        times: of training: ``uniform``, or ``logit_normal``, the logistic function of N(0, 1).
        settings: see :class:`~imago.models.denoiser.DenoiserSettings`; the prediction is a velocity and the sampler
            Heun's of 10 steps unless others are given.
    """

    likelihood = "estimate"
    leaf = "transport"
    ends = (1e-3, 1.0)

    def __init__(
        self,
        spec: ImageSpec,
        *,
        coupling: Literal["independent", "optimal_transport"] = "independent",
        times: Literal["uniform", "logit_normal"] = "uniform",
        **settings: Unpack[DenoiserSettings],
    ) -> None:
        settings["prediction"] = settings.get("prediction") or FlowVelocity()
        settings["sampler"] = settings.get("sampler") or Heun(10)
        super().__init__(spec, noise_schedule=StraightLines(), **settings)
        self.coupling = coupling
        self.times = times

    def training_times(self, n: int, rng: BatchGenerator) -> Float[Tensor, " n"]:
        """Times at which a batch is looked at."""
        z = rng.normal(n)
        return torch.sigmoid(z) if self.times == "logit_normal" else torch.special.ndtr(z)

    def training_noise(self, x: Normalized, labels: Tensor | None, rng: BatchGenerator) -> Normalized:
        """ε of each image, of the batch of all devices."""
        noise = super().training_noise(x, labels, rng)
        if self.coupling == "independent":
            return noise
        n = len(x)
        images, everything = rng.gather(x), rng.gather(noise)
        classes = None if labels is None else rng.gather(labels)
        return everything[nearest_pairs(images, everything, classes)[rng.rank * n : (rng.rank + 1) * n]]

    # --- likelihood ---------------------------------------------------------------------------------------------------

    @property
    def estimator(self) -> str:
        """See :meth:`ProbabilityFlow.flow_estimator`."""
        return self.flow_estimator(TOLERANCE)

    def on_schedule(self, tau: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """See :class:`ProbabilityFlow`: τ is the time."""
        return tau, *self.noise_schedule(tau)

    def nll_terms(self, images: Images, labels: Tensor | None, normal: Normal) -> Terms:
        """−log p(x) in nats, an estimate, without a gradient."""
        return {"nats": self.flow_nats(images, labels, normal, TOLERANCE)}


def nearest_pairs(x: Normalized, noise: Normalized, labels: Tensor | None = None) -> Tensor:
    """The permutation k ↦ π(k) that minimises Σ_k ‖x_k − ε_π(k)‖², int64 (n,).

    With labels noise k belongs to the label of image k, and is permuted among the images of it.
    """
    from scipy.optimize import linear_sum_assignment  # what it loads is needed by no other model

    cost = -(x.flatten(1).double() @ noise.flatten(1).double().T)  # the squares of both are the same in any order
    if labels is not None:
        others = labels[:, None] != labels[None]
        cost = cost.masked_fill(others, 1e3 * (1 + float(cost.abs().max())))
    _, columns = linear_sum_assignment(cost.cpu().numpy())
    return torch.from_numpy(columns).to(x.device)
