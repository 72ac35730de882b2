"""An energy that a network computes, with Langevin chains as its samples (Du & Mordatch 2019; Nijkamp et al. 2019).

Any network f with one output is a distribution over real x, here against a reference q that keeps x in place: uniform
on [-1, 1]^d for pixels, N(0, s²I) for points in R^d (Xie et al. 2016, eq. 1):

    p(x) = e^(−f(x)) q(x) / Z,        E(x) = f(x) − log q(x).                                             (1)

The gradient of −log p is down with the energy of data, up with that of the model's own samples x' (as for
:mod:`imago.models.rbm`). The difference alone lets both energies drift, so a penalty keeps them near zero where
precision could suffer (Du & Mordatch 2019):

    loss = mean E(x) − mean E(x') + a · (mean E(x)² + mean E(x')²).                                       (2)

x' are states of chains of Langevin steps, a walk down the energy with noise. Where η is small and σ² = 2η, their
distribution is p:

    x ← x − η ∇E(x) + σ ε,        ε ~ N(0, I).                                                            (3)

A step that is not small is wrong: on a quadratic energy ½ x²/v the states have variance v / (1 − η/(2v)) instead of v.
The Metropolis adjustment takes a step from x to y with probability

    min(1, e^(E(x) − E(y)) · N(x; y − η ∇E(y), σ²I) / N(y; x − η ∇E(x), σ²I)),                            (4)

and else stays at x. As much then flows from x to y as from y to x (detailed balance), so p is kept exactly, by steps of
any size (Roberts & Tweedie 1996); large ones are only refused more often.

Chains begin at q and go on from update to update in a *replay buffer*, in turns; a few begin anew each time.

Between pictures lie walls of energy that no walk climbs in any affordable time. There η is larger than σ²/2, which
samples a colder p and is a descent more than a walk, and no step is refused. Chains stop at black and white. Pixels are
integers, which a density would give infinite peaks; so data get normal noise, and stop at black and white as well.

log Z is an integral over R^d. Of points in at most two dimensions it is summed over a grid, so their likelihood is
exact, up to a truncation beyond five standard deviations of q. Of pictures it is unknown, and the model knows no
likelihood.

Xie et al. 2016, "A theory of generative ConvNet"; Du & Mordatch 2019, "Implicit generation and modeling with
energy-based models"; Nijkamp et al. 2019, "Learning non-convergent non-persistent short-run MCMC toward energy-based
model"; Roberts & Tweedie 1996, "Exponential convergence of Langevin distributions and their discrete approximations".
"""

import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import pairwise
from typing import Annotated, Unpack

import torch
from jaxtyping import Float
from pydantic import Field, NonNegativeFloat, PositiveFloat, PositiveInt
from torch import Tensor, nn

from imago.capacity import Drawn, Steps, Width
from imago.errors import UserError
from imago.images import Batch, Images, ImageSpec, Normalized, normalize, quantize
from imago.measures import Likelihood
from imago.models.base import Common, ExplicitModel, Loss, evaluating, frozen
from imago.nets.residual import ResidualEncoder
from imago.progress import Progress
from imago.rng import BatchGenerator, PerImageGenerator

CELLS = 400  # of the grid in each dimension
REACH = 5.0  # where it ends, in standard deviations of q
TOGETHER = 2**15  # points of it
Share = Annotated[float, Field(ge=0, le=1)]
Source = Callable[..., Tensor]  # of noise: shape → random numbers


class EBM(ExplicitModel):
    """A network's energy and its chains.

    Its likelihood is exact for points in at most two dimensions; of other data it knows none.

    Args:
        spec: pixels, or points in R^d.
        energy: builds f from ``spec``, ``outputs`` (1) and ``classes`` (0).
        steps: Langevin steps for an update.
        step_size: η.
        noise: σ; ``None`` is √(2η), with which steps sample p.
        metropolis: whether steps are taken or refused by equation 4; of points.
        buffer: chains that go on from update to update.
        fresh: share of the chains of an update that begin anew.
        regularizer: a.
        data_noise: standard deviation of what is added to pixels in [-1, 1].
        reference: s, of points.
        sampling_steps: Langevin steps of a sample, from one of the chains.
        common: see :class:`Common`.

    Raises:
        UserError: steps that the Metropolis adjustment cannot weigh.
    """

    likelihood: Likelihood = "none"
    leaf = "energy"
    ema = ("net",)
    kinds = ("pixels", "points")
    conditions = ()
    inference_settings = ("sampling_steps",)
    chain: Tensor
    visited: Tensor

    def __init__(
        self,
        spec: ImageSpec,
        *,
        energy: Callable[..., nn.Module] = partial(ResidualEncoder, width=8, widest=64, blocks=0),
        steps: PositiveInt = 20,
        step_size: PositiveFloat = 1.0,
        noise: NonNegativeFloat | None = 0.01,
        metropolis: bool = False,
        buffer: Drawn = 1024,
        fresh: Share = 0.05,
        regularizer: NonNegativeFloat = 0.1,
        data_noise: NonNegativeFloat = 0.03,
        reference: PositiveFloat = 2.0,
        sampling_steps: Steps = 20,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(spec, **common)
        self.points = spec.kind == "points"
        self.likelihood = "exact" if self.points and spec.dimensions <= 2 else "none"
        self.steps = steps
        self.step_size = step_size
        self.noise = math.sqrt(2 * step_size) if noise is None else noise
        self.metropolis = metropolis
        self.fresh = fresh
        self.regularizer = regularizer
        self.data_noise = data_noise
        self.reference = reference
        self.sampling_steps = sampling_steps
        if metropolis and not self.points:
            raise UserError("model.metropolis=true: chains of pixels stop at black and white; choose false")
        if metropolis and not self.noise:
            raise UserError("model.metropolis=true: steps without noise are not weighed; choose model.noise=null")
        self.net = energy(spec=spec, outputs=1, classes=0)
        # What goes on from update to update, whole in every process: chains, and how many have been visited so far.
        self.register_buffer("chain", self.begin(buffer, torch.randn if self.points else torch.rand))
        self.register_buffer("visited", torch.zeros((), dtype=torch.long))
        self._log_z: tuple[list[Tensor], Tensor] | None = None

    @property
    def networks(self) -> dict[str, nn.Module]:
        """f."""
        return {"net": self.net}

    @property
    def nfe(self) -> int:
        """The Langevin steps of a sample."""
        return self.sampling_steps

    @property
    def sampling(self) -> str:
        """How long the chain of a sample is, and where it begins."""
        adjusted = "adjusted " if self.metropolis else ""
        return f"Langevin, {self.sampling_steps:,} {adjusted}steps from the chains of training"

    def energy(self, x: Normalized) -> Float[Tensor, " n"]:
        """E(x) (equation 1), without the constant of q."""
        f = self.net(x).squeeze(1).float()
        return f + x.flatten(1).square().sum(1) / (2 * self.reference**2) if self.points else f

    # --- chains -------------------------------------------------------------------------------------------------------

    def begin(self, n: int, noise: Source) -> Normalized:
        """States of q from normal numbers, of pixels from uniform ones."""
        z = noise(n, *self.spec.shape)
        return self.reference * z if self.points else 2 * z - 1

    def langevin(
        self, x: Normalized, steps: int, normal: Source, uniform: Source, report: Progress | None = None
    ) -> Normalized:
        """Take steps (equation 3), or with the Metropolis adjustment refuse some (equation 4).

        Args:
            x: states, (n, channels, height, width).
            steps: how many.
            normal: source of ε.
            uniform: source of numbers in [0, 1) that decide what is refused.
            report: called with (steps done, steps in all).
        """
        with frozen(self.net), evaluating(self.net):
            energy, slope = self.slope(x)
            for step in range(steps):
                y = x - self.step_size * slope + self.noise * normal(*x.shape)
                if not self.points:
                    y = y.clamp(-1, 1)
                energy_y, slope_y = self.slope(y)
                if self.metropolis:
                    there = (y - x + self.step_size * slope).flatten(1).square().sum(1)
                    back = (x - y + self.step_size * slope_y).flatten(1).square().sum(1)
                    log_ratio = energy - energy_y + (there - back) / (2 * self.noise**2)
                    taken = uniform(len(x)).log() < log_ratio
                    energy_y = torch.where(taken, energy_y, energy)
                    taken = taken.view(-1, 1, 1, 1)
                    y, slope_y = torch.where(taken, y, x), torch.where(taken, slope_y, slope)
                x, energy, slope = y, energy_y, slope_y
                if report is not None:
                    report(step + 1, steps)
        return x

    def slope(self, x: Normalized) -> tuple[Float[Tensor, " n"], Normalized]:
        """E(x) and ∇E(x), in any mode."""
        with torch.inference_mode(False), torch.enable_grad():
            x = x.clone().requires_grad_(True)
            energy = self.energy(x)
            (gradient,) = torch.autograd.grad(energy.sum(), x)
        return energy.detach(), gradient

    def advance(self, n: int, rng: BatchGenerator) -> Normalized:
        """Let the next chains of the buffer go on; this device's n of them.

        Raises:
            UserError: a buffer of fewer chains than the batch has images.
        """
        count = n * rng.world_size
        if count > len(self.chain):
            raise UserError(f"model.buffer={len(self.chain)}: fewer chains than a batch of {count} takes; choose more")
        turns = (self.visited + torch.arange(count, device=self.chain.device)) % len(self.chain)
        x = self.chain[turns[rng.rank * n : (rng.rank + 1) * n]]
        anew = rng.uniform(n, 1, 1, 1) < self.fresh
        x = torch.where(anew, self.begin(n, rng.normal if self.points else rng.uniform), x)
        x = self.langevin(x, self.steps, rng.normal, rng.uniform)
        self.chain[turns] = rng.gather(x)
        self.visited += count
        return x

    def batch_losses(self, batch: Batch, rng: BatchGenerator) -> Iterator[Loss]:
        """The difference of energies (equation 2)."""
        real = self.noisy(batch.images, rng.normal)
        chains = self.advance(len(real), rng)
        of_data, of_chains = self.energy(torch.cat([real, chains])).split(len(real))
        penalty = of_data.square().mean() + of_chains.square().mean()
        loss = of_data.mean() - of_chains.mean() + self.regularizer * penalty
        logs = {"loss": loss, "energy/data": of_data.mean(), "energy/chains": of_chains.mean()}
        yield Loss("net", loss, {name: value.detach() for name, value in logs.items()})

    def noisy(self, images: Images, normal: Source) -> Normalized:
        """Data as they are learned: pixels in [-1, 1] with noise, points as they are."""
        x = normalize(images, self.spec.levels)
        return x if self.points else (x + self.data_noise * normal(*x.shape)).clamp(-1, 1)

    def generate(self, n: int, labels: Tensor | None, generator: PerImageGenerator) -> Images:
        """Langevin steps from chains of training."""
        x = self.chain[generator.integers(n, len(self.chain)).to(self.device)]
        x = self.langevin(x, self.sampling_steps, *self.noise_of(generator), self.report)
        return quantize(x, self.spec.levels)

    def noise_of(self, generator: PerImageGenerator) -> tuple[Source, Source]:
        """Normal and uniform numbers of images, on the model's device."""

        def normal(*shape: int) -> Tensor:
            return generator.normal(*shape).to(self.device)

        def uniform(*shape: int) -> Tensor:
            return generator.uniform(*shape).float().to(self.device)

        return normal, uniform

    # --- likelihood, of points in at most two dimensions --------------------------------------------------------------

    def log_prob(self, images: Images, labels: Tensor | None) -> Float[Tensor, " n"]:
        """−E(x) − log Z.

        Raises:
            UserError: data of which log Z is unknown.
        """
        if self.likelihood == "none":
            raise UserError(
                f"model: an EBM of {self.spec} knows no likelihood, because log Z is an integral over all of them; "
                "measure samples instead"
            )
        return -self.energy(images) - self.log_z()

    def log_z(self) -> Float[Tensor, ""]:
        """log ∫ e^(−E) of the weights as they are, summed over a grid; kept where no gradient is asked for."""
        if torch.is_grad_enabled():
            return self._summed()
        weights = list(self.net.parameters())
        if self._log_z is None or not all(map(torch.equal, self._log_z[0], weights)):
            self._log_z = [weight.detach().clone() for weight in weights], self._summed()
        return self._log_z[1]

    def _summed(self) -> Float[Tensor, ""]:
        grid, side = self.grid(CELLS, REACH * self.reference)
        energies = torch.cat([self.energy(part) for part in grid.split(TOGETHER)])
        return torch.logsumexp(-energies, 0) + self.spec.dimensions * math.log(side)

    def grid(self, cells: int, reach: float) -> tuple[Normalized, float]:
        """The middles of cells over [-reach, reach]^d, (cells^d, d, 1, 1), and the length of a cell's sides."""
        side = 2 * reach / cells
        middles = (torch.arange(cells, device=self.device) + 0.5) * side - reach
        return torch.cartesian_prod(*[middles] * self.spec.dimensions).view(-1, *self.spec.shape), side


class MLPEnergy(nn.Module):
    """Fully connected layers with a smooth activation, for points: steps follow its gradient.

    Args:
        spec: the data.
        outputs: length of the vector.
        classes: 0, there are none.
        hidden: width of each hidden layer.
    """

    def __init__(
        self,
        spec: ImageSpec,
        outputs: int,
        classes: int,
        hidden: Annotated[Sequence[Width], Field(min_length=1)] = (128, 128),
    ) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for width, following in pairwise([spec.dimensions, *hidden]):
            layers += [nn.Linear(width, following), nn.SiLU()]
        self.layers = nn.Sequential(*layers, nn.Linear(hidden[-1], outputs))

    def forward(self, x: Normalized) -> Float[Tensor, "n outputs"]:
        """(n, channels, height, width) → (n, outputs)."""
        return self.layers(x.flatten(1))
