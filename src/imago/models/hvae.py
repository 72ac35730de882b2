"""A ladder of latent variables, in the manner of the very deep VAE (Child 2021; Sønderby et al. 2016).

A VAE with one layer of latents has to say all of an image in one vector of independent numbers. Here z = (z_1, …, z_L)
comes in groups, the first of them maps of a few pixels, the last almost as large as the image, and each is drawn
knowing those before it:

    prior      p(z) = Π_l p(z_l | z_<l),        p(z_l | z_<l)    = N(μ_l, diag σ_l²)
    posterior  q(z|x) = Π_l q(z_l | z_<l, x),   q(z_l | z_<l, x) = N(μ_l + σ_l Δ_l, diag (σ_l s_l)²)

With enough groups it could write down an image value by value, as an autoregressive model does (Child 2021, proposition
1), but a group is drawn in one step, whatever the number of its values.

Both products run *top-down*, from small maps to large ones, over one stream of features h. It starts as a learned
constant; a block computes μ_l, σ_l from h, and adds to h what the z_l drawn has to say. Nothing else distinguishes
sampling from inference: the posterior's blocks read h too, beside the features that a *bottom-up* network found in the
image at the same map size. The posterior is written relative to the prior (Vahdat & Kautz 2020, section 3.2): Δ_l is
the step from the prior's mean in units of its scale, s_l the factor on that scale. Then in the *whitened* variables

    e_l = (z_l − μ_l) / σ_l,      p(e) = N(0, I),      q(e_l | e_<l, x) = N(Δ_l, diag s_l²),

and the regularisation term of the bound (equation 1 of :mod:`imago.models.latent`) is a sum of terms that need neither
μ_l nor σ_l and cannot overflow where σ_l is small,

    KL(q(z|x) ‖ p(z)) = Σ_l E_q(z_<l|x) ½ Σ_j (s_lj² + Δ_lj² − 1 − log s_lj²),

each of them known in closed form once z_<l is drawn. With one block it is the VAE. The vector z that
:meth:`HierarchicalVAE.decode` takes is e, all groups one after the other.

Many blocks in a row are kept stable by small beginnings (Child 2021, section 3.2): what is added to h is scaled by
1/√blocks when the weights are drawn, log σ_l and log s_l are bounded, and steps along gradients out of all proportion
are left out (``gradient_skip``).
"""

import math
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from typing import Annotated, NamedTuple, Unpack

import torch
import torch.nn.functional as F
from jaxtyping import Float
from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt
from torch import Tensor, channels_last, nn

from imago.capacity import Width
from imago.distributions import Parameters
from imago.errors import UserError
from imago.images import ImagesLike, ImageSpec, Labels, LabelsLike, Normalized, normalize
from imago.models.base import Normal
from imago.models.latent import Latents
from imago.models.variational import Choose, PosteriorSample, Variational, VariationalSettings, gaussian_kl
from imago.nets.dcgan import size_ladder
from imago.nets.residual import channels_of

Maps = Float[Tensor, "n _ height width"]
Size = tuple[int, int]

# At first, in units of what they read.
SCALE_OF_PARAMETERS = 0.3
SCALE_OF_POSTERIOR = 0.1
LARGEST_LOG_SCALE = 6.0  # of a prior, and of a posterior relative to it: factors of 400 in either direction


def bounded(raw: Maps) -> Maps:
    """A log-scale: the number itself near 0, never beyond ±6, and float32 under any precision."""
    return LARGEST_LOG_SCALE * torch.tanh(raw.float() / LARGEST_LOG_SCALE)


def flat(maps: Maps) -> Latents:
    """Maps as rows, (n, height · width · channels); of channels-last maps without a copy."""
    return maps.permute(0, 2, 3, 1).flatten(1)


def convolution(inputs: int, outputs: int, kernel: int, scale: float = 1.0, stride: int = 1) -> nn.Conv2d:
    """Weights such that outputs vary as much as inputs, times ``scale`` (LeCun et al. 1998, section 4.6)."""
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=kernel // 2)
    nn.init.normal_(layer.weight, 0.0, scale / math.sqrt(inputs * kernel**2))
    nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return layer


class Bottleneck(nn.Sequential):
    """3x3 to few channels, 1x1 back, each after a nonlinearity; nothing is added.

    Child's blocks have two more convolutions of the few; on small maps a convolution costs more than its arithmetic.

    Args:
        inputs: channels.
        middle: channels between.
        outputs: channels.
        size: (height, width) of the maps; where a pixel has hardly any neighbours, 1x1 takes the place of 3x3.
        scale: of the outputs at first, where inputs are about 1.
    """

    def __init__(self, inputs: int, middle: int, outputs: int, size: Size, scale: float) -> None:
        super().__init__(
            nn.ELU(),
            convolution(inputs, middle, 3 if max(size) > 2 else 1),
            nn.ELU(inplace=True),
            convolution(middle, outputs, 1, scale),
        )


class BottomUp(nn.Module):
    """Image → features at every map size of the ladder, the smallest first.

    Args:
        spec: the images.
        sizes: (height, width) of the maps, from the smallest.
        channels: of each map.
        patch: side of the squares of pixels that the largest map's pixels stand for.
        bottleneck: part of the channels that a block's middle has.
        blocks: residual blocks at each size.
        classes: number of classes, 0 for an unconditional model.
    """

    def __init__(
        self,
        spec: ImageSpec,
        sizes: list[Size],
        channels: list[int],
        patch: int,
        bottleneck: float,
        blocks: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.patch = patch
        self.padding = (0, sizes[-1][1] * patch - spec.width, 0, sizes[-1][0] * patch - spec.height)
        self.first = convolution(spec.channels * patch**2, channels[-1], 3)
        self.halvings = nn.ModuleList(convolution(c, d, 3, stride=2) for c, d in pairwise(reversed(channels)))
        scale = 1 / math.sqrt(max(1, blocks * len(sizes)))
        self.blocks = nn.ModuleList(
            nn.ModuleList(Bottleneck(c, max(1, round(bottleneck * c)), c, size, scale) for _ in range(blocks))
            for c, size in zip(reversed(channels), reversed(sizes), strict=True)
        )
        self.embed = nn.Embedding(classes, channels[0]) if classes else None

    def forward(self, x: Normalized, labels: Labels | None) -> list[Tensor]:
        """Features (n, channels, height, width), from the smallest map to the largest."""
        h = self.first(F.pixel_unshuffle(F.pad(x, self.padding), self.patch).contiguous(memory_format=channels_last))
        features = []
        for k, blocks in enumerate(self.blocks):
            if k > 0:
                h = self.halvings[k - 1](F.elu(h))
            if k == len(self.halvings) and self.embed is not None:
                h = h + self.embed(labels)[:, :, None, None]
            for block in blocks:  # type: ignore[attr-defined]
                h = h + block(h)
            features.append(h)
        return features[::-1]


class Posterior(NamedTuple):
    """q(e_l | e_<l, x) of one group, or of all, in whitened variables."""

    mean: Tensor
    log_scale: Tensor


class TopDownBlock(nn.Module):
    """One group of latents, maps of ``zdim`` channels: prior, posterior, and what the group adds to the stream.

    Args:
        channels: of h, and of the image's features.
        middle: channels between the convolutions.
        zdim: latents at each pixel of the map.
        size: (height, width) of the map.
        scale: factor on the initial weights of all that is added to h.
    """

    def __init__(self, channels: int, middle: int, zdim: int, size: Size, scale: float) -> None:
        super().__init__()
        self.zdim = zdim
        self.prior = Bottleneck(channels, middle, 2 * zdim + channels, size, 0.0)
        self.posterior = Bottleneck(2 * channels, middle, 2 * zdim, size, SCALE_OF_POSTERIOR)
        self.project = convolution(zdim, channels, 1, scale)
        self.residual = Bottleneck(channels, middle, channels, size, scale)

    def forward(self, h: Maps, noise: Maps, features: Maps | None) -> tuple[Maps, Posterior | None]:
        """The stream after this block.

        Args:
            h: the stream, (n, channels, height, width).
            noise: standard normal numbers, (n, zdim, height, width).
            features: of the image; ``None`` draws from the prior instead of the posterior: the noise is e itself.

        Returns:
            The stream, and the posterior if there is one.
        """
        mean, log_scale, update = self.prior(h).split([self.zdim, self.zdim, h.shape[1]], 1)
        posterior = None
        if features is not None:
            posterior = self.posterior_of(h, features)
            noise = posterior.mean + torch.exp(posterior.log_scale) * noise
        z = mean.float() + torch.exp(bounded(log_scale)) * noise
        h = h + update + self.project(z)
        return h + self.residual(h), posterior

    def posterior_of(self, h: Maps, features: Maps) -> Posterior:
        """q(e_l | e_<l, x), from the stream before this block."""
        delta, log_factor = self.posterior(torch.cat([h, features], 1)).chunk(2, 1)
        return Posterior(delta.float(), bounded(log_factor))


class TopDown(nn.Module):
    """Noise, and the features of images where there are any → the parameters of every value's distribution.

    Args:
        spec: the images.
        sizes: (height, width) of the maps, from the smallest.
        channels: of each map.
        patch: side of the squares of pixels that the largest map's pixels stand for.
        bottleneck: part of the channels that a block's middle has.
        blocks: groups of latents at each size.
        zdim: latents at each pixel of a group.
        parameters: how many numbers describe the distribution of a value.
        classes: number of classes, 0 for an unconditional model.
    """

    def __init__(
        self,
        spec: ImageSpec,
        sizes: list[Size],
        channels: list[int],
        patch: int,
        bottleneck: float,
        blocks: list[int],
        zdim: int,
        parameters: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.spec, self.sizes, self.patch, self.zdim = spec, sizes, patch, zdim
        # What every map starts from: the same for all images, it tells pixels where they are.
        self.places = nn.ParameterList(
            nn.Parameter(torch.zeros(1, c, *s)) for c, s in zip(channels, sizes, strict=True)
        )
        self.embed = nn.Embedding(classes, channels[0]) if classes else None
        self.widenings = nn.ModuleList(convolution(c, d, 1) for c, d in pairwise(channels))
        scale = 1 / math.sqrt(sum(blocks))
        self.blocks = nn.ModuleList(
            nn.ModuleList(TopDownBlock(c, max(1, round(bottleneck * c)), zdim, size, scale) for _ in range(count))
            for c, size, count in zip(channels, sizes, blocks, strict=True)
        )
        self.last = convolution(channels[-1], spec.channels * parameters * patch**2, 3, SCALE_OF_PARAMETERS)
        # Values of a group at each size, and how many groups: the layout of the vector z.
        self.groups = [zdim * math.prod(size) for size, count in zip(sizes, blocks, strict=True) for _ in range(count)]

    def forward(
        self, noise: Latents, labels: Labels | None, features: list[Tensor] | None
    ) -> tuple[Parameters, Posterior | None]:
        """Parameters (n, channels, height, width, parameters), and the posterior of all groups, (n, latent) each."""
        groups: Iterator[Tensor] = iter(noise.split(self.groups, 1))
        posteriors = []

        def after(block: TopDownBlock, h: Maps, k: int) -> Maps:
            h, posterior = block(h, self.maps(next(groups), k), None if features is None else features[k])
            if posterior is not None:
                posteriors.append(Posterior(*map(flat, posterior)))
            return h

        h = self.stream(len(noise), labels, after)
        out = F.pixel_shuffle(self.last(F.elu(h)), self.patch)[:, :, : self.spec.height, : self.spec.width]
        parameters = out.unflatten(1, (self.spec.channels, -1)).permute(0, 1, 3, 4, 2)
        if not posteriors:
            return parameters, None
        return parameters, Posterior(*(torch.cat(rows, 1) for rows in zip(*posteriors, strict=True)))

    def infer(self, labels: Labels | None, features: list[Tensor], choose: Choose) -> None:
        """Let somebody choose e group by group, who is told q(e_l | e_<l, x); see :meth:`Variational.infer`."""

        def after(block: TopDownBlock, h: Maps, k: int) -> Maps:
            e = choose(*map(flat, block.posterior_of(h, features[k])))
            return block(h, self.maps(e, k), None)[0]

        self.stream(len(features[0]), labels, after)

    def stream(self, n: int, labels: Labels | None, after: Callable[[TopDownBlock, Maps, int], Maps]) -> Maps:
        """h of ``n`` images behind all blocks; ``after`` gives it behind one, of maps of the k-th size."""
        h = self.places[0].expand(n, -1, -1, -1).contiguous(memory_format=channels_last)
        if self.embed is not None:
            h = h + self.embed(labels)[:, :, None, None]
        for k, (blocks, size) in enumerate(zip(self.blocks, self.sizes, strict=True)):
            if k > 0:
                h = F.interpolate(self.widenings[k - 1](h), size) + self.places[k]
            for block in blocks:  # type: ignore[attr-defined]
                h = after(block, h, k)
        return h

    def maps(self, e: Latents, k: int) -> Maps:
        """The inverse of :func:`flat`, of a group on maps of the k-th size."""
        return e.unflatten(1, (*self.sizes[k], self.zdim)).permute(0, 3, 1, 2)


class HierarchicalVAE(Variational):
    """Several groups of latent variables, each drawn knowing those before it.

    Args:
        spec: the images; the only place where their shape comes from.
        blocks: groups of latents at each map size, from the smallest map on. Sides double from one to the next. A list
            that ends before the image's own size leaves out the large maps: a pixel of the largest then stands for a
            square of image pixels. A longer list is cut.
        zdim: latents at each pixel of a group.
        width: channels of the largest map; every halving doubles them.
        widest: at most so many channels.
        bottleneck: part of the channels that the middle of a block has.
        encoder_blocks: residual blocks at each map size on the way up.
        depth: number of halvings from the image to the smallest map, ``None`` for about 4 pixels.
        gradient_skip: a step along a gradient of a larger norm, before clipping, is left out and counted as
            ``skipped/net``.
        settings: see :class:`VariationalSettings`; the largest norm of the gradient is 1 unless another is given.

    Raises:
        UserError: no group at any map size.
    """

    def __init__(
        self,
        spec: ImageSpec,
        *,
        blocks: Annotated[Sequence[NonNegativeInt], Field(min_length=1)] = (3, 2, 1),
        zdim: Width = 8,
        width: Width = 32,
        widest: Width = 64,
        bottleneck: Annotated[float, Field(gt=0, le=1)] = 0.5,
        encoder_blocks: NonNegativeInt = 1,
        depth: PositiveInt | None = None,
        gradient_skip: PositiveFloat | None = 3000.0,
        **settings: Unpack[VariationalSettings],
    ) -> None:
        settings.setdefault("gradient_clip", 1.0)
        super().__init__(spec, **settings)
        self.gradient_skip = gradient_skip
        ladder = size_ladder(spec, depth)
        sizes = ladder[: len(blocks)]
        counts = list(blocks[: len(sizes)])
        if any(counts) and not counts[0]:
            raise UserError(
                f"blocks={list(blocks)}: no latents at the smallest maps, which then have nothing to say; give a "
                "smaller model.depth, or a first number above 0"
            )
        if not any(counts):
            raise UserError(
                f"blocks={list(blocks)}: no latents at any of the map sizes {sizes} of {spec.height}x{spec.width} "
                "images; give at least one of the numbers, which start at the smallest map, a value above 0"
            )
        patch = 2 ** (len(ladder) - len(sizes))
        channels = channels_of(width, widest, len(sizes))[::-1]
        top_down = TopDown(
            spec, sizes, channels, patch, bottleneck, counts, zdim, self.distribution.parameters, self.classes
        )
        bottom_up = BottomUp(spec, sizes, channels, patch, bottleneck, encoder_blocks, self.classes)
        self.latent = sum(top_down.groups)
        self.net = nn.ModuleDict({"bottom_up": bottom_up, "top_down": top_down}).to(memory_format=channels_last)

    def encoder_features(self, signal: Normalized, labels: Labels | None) -> list[Tensor]:
        """Features of the images at each map size, the smallest first."""
        return self.net["bottom_up"](signal, labels)

    def rsample(self, observed: list[Tensor], labels: Labels | None, normal: Normal) -> PosteriorSample:
        """z group by group. The KL terms are those of the whitened variables, whose prior is N(0, I)."""
        noise = normal(len(observed[0]), self.latent)
        parameters, (mean, log_scale) = self.net["top_down"](noise, labels, observed)
        e = mean + torch.exp(log_scale) * noise
        # log q − log p: the constants of the normal densities cancel, and so do the σ_l of the change of variables.
        log_ratio = (0.5 * (e.square() - noise.square()) - log_scale).sum(1)
        return PosteriorSample(parameters, gaussian_kl(mean, log_scale), log_ratio)

    def infer(self, observed: list[Tensor], labels: Labels | None, choose: Choose) -> None:
        """Group by group, whitened: e of each knows those before it."""
        top_down = self.net["top_down"]
        assert isinstance(top_down, TopDown)
        top_down.infer(labels, observed, choose)

    def parameters_at(self, z: Latents, labels: Labels | None) -> Parameters:
        """The way down, with the whitened z in place of noise."""
        return self.net["top_down"](z, labels, None)[0]

    def encode(self, images: ImagesLike, labels: LabelsLike | None = None) -> Latents:
        """The means of q(e_l | e_<l, x), whitened (n, latent), each e_<l being at its mean."""
        images, labels = self.checked(images, labels)
        observed = self.encoder_features(normalize(images, self.spec.levels), labels)
        none = torch.zeros(len(images), self.latent, device=self.device)
        return self.net["top_down"](none, labels, observed)[1].mean
