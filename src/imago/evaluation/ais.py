"""The likelihood of models that only decode: annealed importance sampling over z (Wu et al. 2017).

A decoder gives an image p(x|z), by its own distribution or, for a generator G without one, by a stated observation
model: every value normal about G(z) with standard deviation σ, integrated over its level. Then p(x) = ∫ p(z) p(x|z) dz
has a value, which a chain from the prior to the posterior estimates (Neal 2001). With 0 = β_0 < … < β_T = 1

    z_0 ~ p(z),    z_t from z_{t−1} by a step that leaves p(z) p(x|z)^β_t as it is                                   (1)
    log w = Σ_t (β_t − β_{t−1}) log p(x|z_{t−1}),    E[w] = p(x)                                                     (2)

The steps of (1) are Hamiltonian Monte Carlo (Neal 2011). Their lengths are found by chains of their own, which take no
part in the estimate: lengths that a chain chose for itself would spoil (2). log of a mean of w is too small on average,
by how much shows on images that the model made: of those a z of the posterior is known, the one that they were made
from, and the same chain backwards gives a value that is too large (Grosse et al. 2015, "Sandwiching the marginal
likelihood using bidirectional Monte Carlo"). Their distance is the gap.

Wu, Burda, Salakhutdinov & Grosse 2017, "On the quantitative analysis of decoder-based generative models".
"""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
from jaxtyping import Float, Float64
from torch import Tensor

from imago.config import choices_of
from imago.data import ImageDataModule
from imago.data.base import Dataset, fixed_permutation, seen_by
from imago.distributions import discretised_normal
from imago.errors import UserError
from imago.evaluation.likelihood import BINARIZATION, NegativeLogLikelihood
from imago.images import Images, Labels, quantize
from imago.measures import Measurement, Protocol
from imago.models.base import GenerativeModel, evaluating, knows_likelihood
from imago.models.gan import GAN
from imago.models.latent import LatentModel, Latents
from imago.models.variational import Variational
from imago.processes import shared
from imago.progress import Progress
from imago.rng import PerImageGenerator

LogProb = Callable[[Latents], Float[Tensor, " rows"]]
LEAPFROG = 10  # steps of a proposal, as Wu et al. take
ACCEPTED = 0.65  # of proposals: near the best share where z has many dimensions (Neal 2011, section 4.4)
PILOTS = 4  # chains for each image that find the lengths of steps
FEW, SIMULATED = 100, 20  # images that are measured unless another number is given, and that the model makes
ROWS = 512  # chains at a time
SIGMAS = (0.025, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.4)


def decoder_log_prob(
    model: LatentModel, z: Latents, images: Images, labels: Labels | None, sigma: float
) -> Float[Tensor, " n"]:
    """log p(x|z) of each image in nats: by the model's own distribution, or normal about what it decodes.

    Args:
        model: a variational one or a GAN.
        z: latent vectors (n, latent).
        images: (n, channels, height, width), integers or points.
        labels: for conditional models.
        sigma: standard deviation of the observation model of a GAN, in units in which an image spans [-1, 1].
    """
    if isinstance(model, Variational):
        return model.distribution.log_prob(model.parameters_at(z, labels), images).flatten(1).sum(1)
    mean = model.decode(z, labels).float()
    log_scale = torch.full_like(mean, math.log(sigma))
    if not model.spec.levels:
        return (-0.5 * ((images - mean) / sigma).square() - log_scale - 0.5 * math.log(2 * math.pi)).flatten(1).sum(1)
    return discretised_normal(mean, log_scale, images, model.spec.levels).flatten(1).sum(1)


def observed(
    model: LatentModel, z: Latents, labels: Labels | None, sigma: float, generator: PerImageGenerator
) -> Images:
    """Images x ~ p(x|z) by the distribution of :func:`decoder_log_prob`."""
    n = len(z)
    if isinstance(model, Variational):
        uniform = generator.uniform(n, *model.spec.shape).to(model.device, torch.float32)
        return model.distribution.sample(model.parameters_at(z, labels), uniform).to(model.spec.dtype)
    noise = generator.normal(n, *model.spec.shape).to(model.device)
    return quantize(model.decode(z, labels).float() + sigma * noise, model.spec.levels)


def inverse_temperatures(count: int) -> list[float]:
    """β_0 … β_T with T = ``count``: a logistic curve between −4 and 4, slow at both ends (Wu et al., section 4)."""
    curve = torch.sigmoid(torch.linspace(-4, 4, count + 1, dtype=torch.float64))
    return ((curve - curve[0]) / (curve[-1] - curve[0])).tolist()


def hamiltonian_step(
    z: Latents,
    log_prob: LogProb,
    beta: float,
    length: Float[Tensor, " rows"],
    normal: Latents,
    uniform: Float[Tensor, " rows"],
) -> tuple[Latents, Float[Tensor, " rows"]]:
    """A step that leaves p(z) p(x|z)^β as it is: some leapfrog steps, accepted or not (Neal 2011, figure 2).

    Args:
        z: where the chains are.
        log_prob: log p(x|z).
        beta: of the density, with p(z) = N(0, I).
        length: of a leapfrog step, for each chain.
        normal: momenta, standard normal.
        uniform: on (0, 1), to accept by.

    Returns:
        Where the chains are then, and with what probability each proposal was accepted.
    """

    def energy_of(z: Latents) -> tuple[Float[Tensor, " rows"], Latents]:
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            energy = 0.5 * z.square().sum(1) - beta * log_prob(z)
            (gradient,) = torch.autograd.grad(energy.sum(), z)
        return energy.detach(), gradient

    step = length[:, None]
    before, gradient = energy_of(z)
    before = before + 0.5 * normal.square().sum(1)
    moved, momentum = z, normal - 0.5 * step * gradient
    for k in range(LEAPFROG):
        moved = moved + step * momentum
        energy, gradient = energy_of(moved)
        momentum = momentum - (1.0 if k < LEAPFROG - 1 else 0.5) * step * gradient
    after = energy + 0.5 * momentum.square().sum(1)
    accepted = torch.exp((before - after).clamp(max=0)).nan_to_num(0.0)  # of an energy that is none, nothing
    return torch.where((uniform < accepted)[:, None], moved, z), accepted


def log_weights(
    log_prob: LogProb,
    start: Latents,
    betas: list[float],
    lengths: Float[Tensor, "steps rows"] | None,
    draw: Callable[[], tuple[Latents, Float[Tensor, " rows"]]],
    *,
    backwards: bool = False,
    tell: Callable[[float], None] = lambda share: None,
) -> tuple[Float[Tensor, " rows"], Float[Tensor, "steps rows"]]:
    """log w of equation 2 for each chain, float64.

    Args:
        log_prob: log p(x|z) of each chain's image.
        start: z_0 from the prior; backwards, from the posterior.
        betas: β_0 … β_T.
        lengths: of the leapfrog steps of each of the T − 1 steps; ``None`` for chains that find them.
        draw: momenta and uniform numbers of a step.
        backwards: from β_T to β_0, in which case E[1/w] = 1/p(x).
        tell: called with the share of the steps that is done.

    Returns:
        log w, and the lengths.
    """
    z, weights = start, torch.zeros(len(start), dtype=torch.float64)
    steps = list(range(1, len(betas)))
    found = start.new_full((len(steps) - 1, len(start)), 0.5) if lengths is None else lengths
    length = found[0] if len(found) else None
    for done, t in enumerate(reversed(steps) if backwards else steps):
        with torch.no_grad():
            weights += (betas[t] - betas[t - 1]) * log_prob(z).double().cpu()
        k = t - 2 if backwards else t - 1  # of the step that follows
        if 0 <= k < len(found):
            length = found[k] if lengths is not None else length
            assert length is not None
            z, accepted = hamiltonian_step(z, log_prob, betas[k + 1], length, *draw())
            if lengths is None:
                found[k] = length
                length = length * torch.where(accepted > ACCEPTED, 1.1, 1 / 1.1)
        tell((done + 1) / len(steps))
    return weights, found


def estimated_log_prob(
    model: LatentModel,
    images: Images,
    labels: Labels | None,
    generator: PerImageGenerator,
    *,
    chains: int,
    temperatures: int,
    sigma: float,
    posterior: Latents | None = None,
    tell: Callable[[float], None] = lambda share: None,
) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"] | None]:
    """log p(x) of each image in nats, estimated; and, where a z of its posterior is given, from above.

    Args:
        model: in evaluation mode.
        images: (n, channels, height, width) on the model's device.
        labels: for conditional models.
        generator: the random stream of each image.
        chains: for each image.
        temperatures: T of equation 2.
        sigma: see :func:`decoder_log_prob`.
        posterior: z ~ p(z|x) of each image, (n, latent).
        tell: called with the share of the work that is done.
    """
    n, betas = len(images), inverse_temperatures(temperatures)

    def run(count: int, lengths: Tensor | None, first: float, backwards: bool = False) -> tuple[Tensor, Tensor]:
        def repeated(tensor: Tensor) -> Tensor:
            return tensor.repeat_interleave(count, 0)

        def normal() -> Latents:
            return generator.normal(n, count, model.latent).flatten(0, 1).to(model.device)

        def draw() -> tuple[Latents, Tensor]:
            return normal(), generator.uniform(n, count).flatten().to(model.device, torch.float32)

        shown, given = repeated(images), None if labels is None else repeated(labels)
        return log_weights(
            lambda z: decoder_log_prob(model, z, shown, given, sigma),
            repeated(posterior) if backwards and posterior is not None else normal(),
            betas,
            lengths if lengths is None else lengths.repeat_interleave(count, 1),
            draw,
            backwards=backwards,
            tell=lambda share: tell((first + share * count) / total),
        )

    total = PILOTS + chains * (1 if posterior is None else 2)
    _, found = run(PILOTS, None, 0)
    # The geometric mean of what an image's pilots found.
    lengths = found.view(len(found), n, PILOTS).log().mean(2).exp()
    forwards, _ = run(chains, lengths, PILOTS)
    below = (forwards.view(n, chains).logsumexp(1) - math.log(chains)).float()
    if posterior is None:
        return below, None
    backwards, _ = run(chains, lengths, PILOTS + chains, backwards=True)
    return below, (math.log(chains) - (-backwards.view(n, chains)).logsumexp(1)).float()


@torch.no_grad()
def measure_by_ais(
    model: GenerativeModel,
    data: ImageDataModule,
    split: Literal["train", "val", "test"],
    *,
    averaged: bool,
    images: int | None = None,
    chains: int = 16,
    temperatures: int = 1000,
    sigma: float | None = None,
    progress: Progress | None = None,
) -> list[Measurement]:
    """The mean negative log-likelihood of images under a decoder, estimated, and how far the estimate may be off.

    A group of processes calls it together: each measures a share, and all get the numbers of one.

    Args:
        model: a variational one or a GAN, with the weights to be judged.
        data: prepared.
        split: its images in the order of a fixed permutation.
        averaged: whether the model has averaged weights; for the protocol.
        images: how many of them; ``None`` for 100.
        chains: for each image.
        temperatures: T of equation 2.
        sigma: of a GAN's observation model, in units in which an image spans [-1, 1]; ``None`` for the one of
            :data:`SIGMAS` that validation images are most likely with.
        progress: called with (images so far, images in all).

    Returns:
        ``nats`` and ``bpd`` of a GAN, ``ais/nats`` and ``ais/bpd`` of a model that has a bound, with the standard error
        of the mean over the images; ``ais/gap``, the nats between the two estimates of images that the model made.

    Raises:
        UserError: the model does not decode a z of a known prior, or has no use for ``sigma``.
    """
    if not isinstance(model, Variational | GAN):
        known = sorted({*choices_of("model", Variational), *choices_of("model", GAN)})
        raise UserError(
            f"ais=true: {type(model).__name__} has no decoder with a known prior of z; models that have one are "
            f"{', '.join(known)}; leave it out"
        )
    own = isinstance(model, Variational)
    if own and sigma is not None:
        raise UserError(f"ais_sigma={sigma:g}: {type(model).__name__} has a p(x|z) of its own; leave it out")
    part = seen_by(model, data.split(split))
    count = min(len(part), images or FEW)
    if not count:
        raise UserError(f"{data.name} {split}: there are no images to measure; choose another split")
    if own:
        sigma = 1.0
    elif sigma is None:
        sigma = _likeliest_sigma(model, data)
    settings: dict[str, Any] = {"chains": chains, "temperatures": temperatures, "sigma": sigma}
    nats, gap = _nats_and_gaps(model, part, count, settings, progress)
    told = "" if own else f" of p(x|z) normal about G(z) with deviation {sigma:g}"
    protocol = Protocol(
        data=f"{data.name} {split}",
        data_fingerprint=data.fingerprint,
        images=count,
        selection="drawn" if split == "test" and count < len(part) else None,
        likelihood="estimate",
        estimator=f"AIS{told}, {chains} chains, {temperatures:,} temperatures",
        binarization=BINARIZATION[data.binarize],
        conditional=model.conditional,
        weights="averaged" if averaged else "last",
        caveat="an estimate that is too small a likelihood on average; the gap says by how much it may be",
    )
    values = {key: float(value) for key, value in nats.compute().items()}
    prefix = "ais/" if knows_likelihood(model) else ""
    error = float(gap.std()) / math.sqrt(len(gap)) if len(gap) > 1 else math.nan
    between = "between estimates from below and from above"
    return [
        Measurement(f"{prefix}bpd", values["bpd"], replace(protocol, standard_error=values["bpd_error"])),
        Measurement(f"{prefix}nats", values["nats"], replace(protocol, standard_error=values["nats_error"]), nats.each),
        Measurement(
            "ais/gap",
            float(gap.mean()),
            replace(
                protocol, likelihood="part", standard_error=error, images=len(gap),
                caveat=f"{between}, of images that the model made",
            ),
        ),
    ]  # fmt: skip


def _nats_and_gaps(
    model: Variational | GAN, part: Dataset, count: int, settings: dict[str, Any], progress: Progress | None
) -> tuple[NegativeLogLikelihood, Float64[Tensor, " made"]]:
    """Estimate log p(x) of images, and from both sides of as many that the model makes, :data:`SIMULATED` at most.

    A group of processes shares the work.

    Args:
        model: with the weights to be judged.
        part: of the data.
        count: how many of its images, in the order of a fixed permutation.
        settings: of :func:`estimated_log_prob`.
        progress: called with (images so far, images in all).

    Returns:
        The nats of the images, and of each that the model made how many lie between its two estimates.
    """
    few = max(1, ROWS // settings["chains"])
    numbers = torch.from_numpy(fixed_permutation(len(part))[:count])
    made = min(count, SIMULATED)
    work = [(False, k) for k in range(0, count, few)] + [(True, k) for k in range(0, made, few)]

    def measured(item: tuple[bool, int]) -> tuple[Tensor, Tensor | None]:
        simulated, first = item
        size = min(few, (made if simulated else count) - first)
        generator = PerImageGenerator(4 if simulated else 3, first=first, device=model.device)

        def tell(share: float) -> None:
            if progress is not None:
                progress(count * simulated + first + int(share * size), count + made)

        if simulated:
            labels = model.labels_for(size, None, generator)
            z = model.draw_latents(size, generator, labels)
            shown = observed(model, z, labels, settings["sigma"], generator)
            below, above = estimated_log_prob(model, shown, labels, generator, **settings, posterior=z, tell=tell)
            assert above is not None
            return below.cpu(), above.cpu()
        batch = part.part(numbers[first : first + size])
        condition = batch.condition if model.conditional else None
        shown, labels = model.checked(batch.images, condition)
        return estimated_log_prob(model, shown, labels, generator, **settings, tell=tell)[0].cpu(), None

    nats, gaps = NegativeLogLikelihood(model.spec.dimensions, sync_on_compute=False), []
    with evaluating(model):
        for below, above in shared(measured, work):
            if above is not None:
                gaps.append(above - below)
            else:
                nats.update(-below)
    return nats, torch.cat(gaps).double()


def _likeliest_sigma(model: LatentModel, data: ImageDataModule) -> float:
    """The σ of :data:`SIGMAS` with which some validation images are most likely, by short chains."""
    part = seen_by(model, data.val if len(data.val) else data.train)
    numbers = torch.from_numpy(fixed_permutation(len(part))[:SIMULATED])
    batch = part.part(numbers)
    images, labels = model.checked(batch.images, batch.condition if model.conditional else None)
    found = {}
    with evaluating(model):
        for sigma in SIGMAS:
            generator = PerImageGenerator(5, device=model.device)
            settings: dict[str, Any] = {"chains": PILOTS, "temperatures": 100, "sigma": sigma}
            found[sigma] = float(estimated_log_prob(model, images, labels, generator, **settings)[0].mean())
    return max(found, key=lambda sigma: found[sigma])
