"""The restricted Boltzmann machine: an energy of visible and hidden bits (Smolensky 1986; Hinton 2002).

Pixels v ∈ {0, 1}^D and hidden units h ∈ {0, 1}^H have an energy with connections between the two layers and none
within them. Its exponential is the joint distribution, up to the partition function Z, a sum over 2^(D+H) states:

    E(v, h) = −b·v − c·h − v·W h,        p(v, h) = e^(−E(v, h)) / Z.                                       (1)

Given one layer the units of the other are independent, so each is drawn at once:

    p(h_j = 1 | v) = σ(c_j + v·W_j),     p(v_i = 1 | h) = σ(b_i + W_i·h).                                  (2)

The sum over h factorises; what is left is the *free energy*, all that training and the likelihood need:

    F(v) = −log Σ_h e^(−E(v, h)) = −b·v − Σ_j log(1 + e^(c_j + v·W_j)),      p(v) = e^(−F(v)) / Z.         (3)

The gradient of −log p(v) is that of F at the data, less its mean over the model's own images, which (2) draws by going
back and forth for ever (block Gibbs sampling). Contrastive divergence goes back and forth k times from the data
(CD-k, Hinton 2002); persistent contrastive divergence goes on with chains of its own, which follow the model while it
learns slowly (Tieleman 2008). Either way the loss is a difference of free energies, at images v' that count as given:

    loss = mean F(v) − mean F(v'),        v' after k steps of (2).                                         (4)

log Z is a sum over the states of the smaller layer where that has no more than EXACT units. Otherwise annealed
importance sampling estimates it (Neal 2001; Salakhutdinov & Murray 2008): from p_0, in which pixels are independent
with the frequencies of the data, log-odds a, over distributions p_β*(v), 0 = β_0 < … < β_T = 1, to the machine,

    log p_β*(v) = (1−β) a·v + β b·v + Σ_j log(1 + e^(β (c_j + v·W_j))),                                    (5)
    log w = Σ_t log p_{β_t}*(v_{t−1}) − log p_{β_{t−1}}*(v_{t−1}),    v_t by one Gibbs step of p_{β_t},    (6)
    Z ≈ Z_0 · mean w,    log Z_0 = H log 2 + Σ_i log(1 + e^(a_i)).                                         (7)

E[w] = Z / Z_0 exactly, so log Z is underestimated on average, and log p(v) overestimated, by half the variance of
log mean w where that is small. Its standard error, std(w) / (mean(w) √chains), is the same for all images; it says
nothing of regions that no chain has found.

Smolensky 1986, "Information processing in dynamical systems: foundations of harmony theory"; Hinton 2002, "Training
products of experts by minimizing contrastive divergence"; Tieleman 2008, "Training restricted Boltzmann machines using
approximations to the likelihood gradient"; Salakhutdinov & Murray 2008, "On the quantitative analysis of deep belief
networks"; Neal 2001, "Annealed importance sampling".
"""

import copy
import math
from collections.abc import Callable, Iterator
from typing import Annotated, NamedTuple, Unpack

import numpy as np
import torch
from jaxtyping import Float
from pydantic import Field, PositiveInt
from torch import Tensor, nn
from torch.nn import functional as F

from imago.capacity import Drawn, Steps, Width
from imago.errors import UserError
from imago.images import Batch, Images, ImageSpec
from imago.measures import Likelihood
from imago.models.base import Common, ExplicitModel, Loss
from imago.rng import BatchGenerator, PerImageGenerator

EXACT = 20  # units of a layer whose states are all summed over: a million
TOGETHER = 2**13  # of these states
RAREST = 0.01  # frequency of a pixel in p_0; further out a chain would have to find what the data have once in a while
Bits = Float[Tensor, "n units"]  # 0 or 1
Uniform = Callable[..., Tensor]  # (n, units) → uniform numbers in [0, 1)


class Partition(NamedTuple):
    """log Z and its standard error, 0 where it is exact."""

    log_z: Float[Tensor, ""]
    error: float


class RBM(ExplicitModel):
    """A restricted Boltzmann machine of binary pixels.

    Its likelihood is exact where the smaller layer has at most 20 units, else an estimate.

    Args:
        spec: images of two levels.
        hidden: H, hidden units.
        k: Gibbs steps for an update.
        persistent: whether chains go on from update to update (persistent contrastive divergence), instead of
            beginning at the data (CD-k).
        chains: how many go on; a multiple of the number of devices.
        steps: Gibbs steps of a sample, from one of the chains that go on, or else from pixels of the data's
            frequencies.
        ais_chains: chains of the estimate of log Z.
        ais_temperatures: T, its steps.
        common: see :class:`Common`.
    """

    likelihood: Likelihood = "estimate"
    leaf = "energy"
    ema = ("net",)
    kinds = ("binary",)
    conditions = ()
    inference_settings = ("steps", "ais_chains", "ais_temperatures")
    chain: Tensor
    frequencies: Tensor
    batches: Tensor

    def __init__(
        self,
        spec: ImageSpec,
        *,
        hidden: Width = 500,
        k: PositiveInt = 1,
        persistent: bool = False,
        chains: Drawn = 128,
        steps: Steps = 200,
        ais_chains: Annotated[int, Field(ge=2, le=1_000_000)] = 100,
        ais_temperatures: Steps = 1000,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(spec, **common)
        self.likelihood = "exact" if min(spec.dimensions, hidden) <= EXACT else "estimate"
        self.k = k
        self.persistent = persistent
        self.steps = steps
        self.ais_chains = ais_chains
        self.ais_temperatures = ais_temperatures
        self.net = RBMNet(spec.dimensions, hidden)
        # What goes on from update to update, whole in every process: chains, and the data's frequencies so far.
        if persistent:
            self.register_buffer("chain", (torch.rand(chains, spec.dimensions) < 0.5).byte())
        self.register_buffer("frequencies", torch.full((spec.dimensions,), 0.5))
        self.register_buffer("batches", torch.zeros((), dtype=torch.long))
        self._partition: tuple[list[Tensor], Partition] | None = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """The machine."""
        return {"net": self.net}

    @property
    def nfe(self) -> int:
        """The Gibbs steps of a sample."""
        return self.steps

    @property
    def sampling(self) -> str:
        """Where the chain of a sample begins, and how long it is."""
        return (
            f"Gibbs, {self.steps:,} steps from {'the chains of training' if self.persistent else 'independent pixels'}"
        )

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """The difference of free energies (equation 4)."""
        with torch.autocast(self.device.type, enabled=False):
            data = batch.images.flatten(1).float()
            self._count(data, rng)
            images = self.negative(data, rng)
            energy = self.net(torch.cat([data, images]))
            of_data, of_images = energy[: len(data)].mean(), energy[len(data) :].mean()
            loss = of_data - of_images
        logs = {"loss": loss, "free_energy/data": of_data, "free_energy/chains": of_images}
        yield Loss("net", loss, {name: value.detach() for name, value in logs.items()})

    @torch.no_grad()
    def negative(self, data: Bits, rng: BatchGenerator) -> Float[Tensor, "chains units"]:
        """v' of equation 4: this device's part of it.

        Raises:
            UserError: chains that cannot be shared equally among the devices.
        """
        if not self.persistent:
            return self.net.gibbs(data, self.k, rng.uniform)
        share, left = divmod(len(self.chain), rng.world_size)
        if left:
            raise UserError(
                f"model.chains={len(self.chain)}: cannot be shared equally among {rng.world_size} devices; choose a "
                "multiple"
            )
        own = self.chain[rng.rank * share : (rng.rank + 1) * share].float()
        images = self.net.gibbs(own, self.k, rng.uniform)
        self.chain.copy_(rng.gather(images.byte()))
        return images

    @torch.no_grad()
    def _count(self, data: Bits, rng: BatchGenerator) -> None:
        """Bring the frequencies of the data up to date: their mean over all batches so far."""
        self.batches += 1
        self.frequencies += (rng.mean(data.mean(0)) - self.frequencies) / self.batches

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """Gibbs steps in double precision: a bit that a batch size rounds differently would lead a chain elsewhere."""
        precise = torch.float32 if self.device.type == "mps" else torch.float64
        net = self.net.to_copy(precise)

        def uniform(n: int, units: int) -> Tensor:
            return generator.uniform(n, units).to(self.device, precise)

        if self.persistent:
            v = self.chain[generator.integers(n, len(self.chain)).to(self.device)].to(precise)
        else:
            v = (uniform(n, self.spec.dimensions) < self.frequencies).to(precise)
        for step in range(self.steps):
            v = net.gibbs(v, 1, uniform)
            self.report(step + 1, self.steps)
        return v.byte().view(n, *self.spec.shape)

    # --- likelihood ---------------------------------------------------------------------------------------------------

    @property
    def estimator(self) -> str:
        """Annealed importance sampling, where the likelihood is an estimate."""
        if self.likelihood == "exact":
            return ""
        return f"AIS, {self.ais_chains:,} chains, {self.ais_temperatures:,} temperatures"

    @property
    def common_error(self) -> float:
        """The standard error of log Z."""
        return self.partition().error

    def log_prob(self, images: Images, labels: Tensor | None) -> Float[Tensor, " n"]:
        """−F(v) − log Z (equation 3); an estimated log Z counts as a constant for gradients."""
        with torch.autocast(self.device.type, enabled=False):
            return -self.net(images.flatten(1).float()) - self.partition().log_z

    def partition(self) -> Partition:
        """log Z of the weights as they are: summed, or estimated once and with the same noise every time."""
        if self.likelihood == "exact" and torch.is_grad_enabled():
            return Partition(self.net.log_partition(), 0.0)
        weights = [self.frequencies, *self.net.parameters()]
        if self._partition is None or not all(map(torch.equal, self._partition[0], weights)):
            with torch.no_grad():
                kept = [tensor.detach().clone() for tensor in weights]
                exact = self.likelihood == "exact"
                self._partition = kept, Partition(self.net.log_partition(), 0.0) if exact else self._estimated()
        return self._partition[1]

    def _estimated(self) -> Partition:
        odds = self.frequencies.clamp(RAREST, 1 - RAREST).logit()
        log_w = annealed(self.net, odds, self.ais_chains, self.ais_temperatures, seed=0, report=self.report)
        return partition_from(log_w, odds, self.net.weight.shape[1])


class RBMNet(nn.Module):
    """The energy: weights (D, H), and biases of both layers."""

    def __init__(self, visible: int, hidden: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(0.01 * torch.randn(visible, hidden))
        self.visible = nn.Parameter(torch.zeros(visible))
        self.hidden = nn.Parameter(torch.zeros(hidden))

    def forward(self, v: Bits) -> Float[Tensor, " n"]:
        """F(v) (equation 3), (n, D) → (n,)."""
        return -(v @ self.visible) - F.softplus(torch.addmm(self.hidden, v, self.weight)).sum(1)

    def gibbs(self, v: Bits, steps: int, uniform: Uniform) -> Bits:
        """Draw all hidden units given v, then all visible ones, so often (equation 2)."""
        for _ in range(steps):
            h = self.hidden_given(v)
            h = (uniform(*h.shape) < h).to(v)
            v = self.visible_given(h)
            v = (uniform(*v.shape) < v).to(h)
        return v

    def hidden_given(self, v: Bits) -> Float[Tensor, "n hidden"]:
        """p(h_j = 1 | v)."""
        return torch.sigmoid(torch.addmm(self.hidden, v, self.weight))

    def visible_given(self, h: Bits) -> Float[Tensor, "n visible"]:
        """p(v_i = 1 | h)."""
        return torch.sigmoid(torch.addmm(self.visible, h, self.weight.T))

    def to_copy(self, dtype: torch.dtype) -> "RBMNet":
        """The same energy in another precision, without gradients."""
        return copy.deepcopy(self).requires_grad_(False).to(dtype)

    def log_partition(self) -> Float[Tensor, ""]:
        """log Z as a sum over all states of the smaller layer, those of the other summed by factors; differentiable."""
        few, many, weight = self.visible, self.hidden, self.weight.flatten(1)
        if len(few) > len(many):
            few, many, weight = many, few, weight.T
        places = torch.arange(len(few), device=few.device)
        parts = []
        for first in range(0, 2 ** len(few), TOGETHER):
            states = torch.arange(first, min(first + TOGETHER, 2 ** len(few)), device=few.device)
            bits = ((states[:, None] >> places) & 1).to(few)
            parts.append(torch.logsumexp(bits @ few + F.softplus(torch.addmm(many, bits, weight)).sum(1), 0))
        return torch.logsumexp(torch.stack(parts), 0)


def betas_of(temperatures: int) -> list[float]:
    """0 = β_0 < … < β_T = 1: most of the steps near 1, in the shares of Salakhutdinov & Murray 2008, section 4."""
    shares, ends = (0.0, 1 / 29, 9 / 29, 1.0), (0.0, 0.5, 0.9, 1.0)  # 500, 4,000 and 10,000 of 14,500
    return [float(beta) for beta in np.interp(np.linspace(0, 1, temperatures + 1), shares, ends)]


@torch.no_grad()
def annealed(
    net: RBMNet,
    odds: Float[Tensor, " visible"],
    chains: int,
    temperatures: int,
    seed: int,
    report: Callable[[int, int], None] = lambda done, total: None,
) -> Float[Tensor, " chains"]:
    """log w of annealed importance sampling (equations 5 and 6), float64 on the CPU.

    Args:
        net: the machine.
        odds: a, the log-odds of the pixels in p_0.
        chains: how many w.
        temperatures: T.
        seed: of the noise.
        report: called with (steps done, T).
    """
    home = torch.device("cpu") if odds.device.type == "mps" else odds.device
    net, odds = net.to_copy(torch.float32).to(home), odds.float().to(home)
    generator = torch.Generator(home).manual_seed(seed)
    log_w = torch.zeros(chains, dtype=torch.float64, device=home)

    def uniform(n: int, units: int) -> Tensor:
        return torch.rand(n, units, device=home, generator=generator)

    def hidden_part(field: Tensor, beta: float) -> Tensor:
        return F.softplus((beta * field).double()).sum(1)

    v = (uniform(chains, len(odds)) < torch.sigmoid(odds)).float()
    before = 0.0
    for step, beta in enumerate(betas_of(temperatures)[1:], 1):
        field = torch.addmm(net.hidden, v, net.weight)
        log_w += (beta - before) * (v @ (net.visible - odds)).double()
        log_w += hidden_part(field, beta) - hidden_part(field, before)
        if step < temperatures:
            h = (uniform(*field.shape) < torch.sigmoid(beta * field)).float()
            field = (1 - beta) * odds + beta * torch.addmm(net.visible, h, net.weight.T)
            v = (uniform(*v.shape) < torch.sigmoid(field)).float()
        before = beta
        report(step, temperatures)
    return log_w.cpu()


def partition_from(log_w: Float[Tensor, " chains"], odds: Float[Tensor, " visible"], hidden: int) -> Partition:
    """log Z and its standard error from the weights of chains (equation 7).

    The error of log mean w is that of mean w over its value, to first order in it.
    """
    chains = len(log_w)
    log_z0 = hidden * math.log(2) + float(F.softplus(odds.double().cpu()).sum())
    log_mean = torch.logsumexp(log_w, 0) - math.log(chains)
    error = float((log_w - log_mean).exp().std()) / math.sqrt(chains)
    return Partition((log_z0 + log_mean).to(odds), error)
