"""Which bytes a model makes of images.

The fewest bits that an image x can have on average are −log2 p(x), p being what images are drawn from (Shannon 1948);
with a model's p in its place a coder comes as close to the model's own −log2 p(x), and the decoder needs the model. So
a likelihood can be held in the hand: images that take fewer bytes are images that the model knows better.

**By the chain rule** (:class:`ChainRule`) a value x_i takes −log2 p(x_i | x_<i) bits. Whoever decodes has x_<i when x_i
is due, as whoever draws a sample has; so both visit the values as sampling does, and what a sampler would draw from its
random stream is popped from the stack instead. Encoding computes every distribution by the same operations on the
same memory, value after value, though all values are known: a forward pass of the whole network gives the same
numbers up to rounding, and the last bit is what decides whether a decoder can follow.

**Bits back** (:class:`BitsBack`; Frey & Hinton 1997; Townsend et al. 2019). Of a model with latents p(x) is not known,
but p(z) and p(x|z) are, and a posterior q(z|x). With the stack's own bits for chance

    pop z ~ q(z|x),    push x by p(x|z),    push z by p(z)                                                       (1)

the stack grows by log2 q(z|x) − log2 p(x|z) − log2 p(z), on average the negative ELBO: the bits that chose z are not
lost, since the decoder finds z and x, computes q(z|x) and pushes z, which makes the bits again. Real numbers have no
code, so z is rounded to the medians of 2^12 intervals that are equally probable under p(z) = N(0, 1), as in that paper,
section 2.5.1. The first images find no bits to be chosen with: the stack begins with random ones, which stay in the
file, and batches are so small at first that they suffice.

A ladder of latents (:mod:`imago.models.hvae`) is coded in its whitened variables, whose prior is N(0, I) in all groups:
its posterior is popped group by group from the top, each knowing those before it, as in HiLLoC (Townsend et al. 2020).
Bit-Swap (Kingma et al. 2019), which begins with fewer bits by pushing a group before the next is popped, is for ladders
whose posterior runs from the image up; here every q(e_l | e_<l, x) needs x, which is the last that is decoded.

Shannon 1948, "A mathematical theory of communication"; Townsend, Bird & Barber 2019, "Practical lossless compression
with latent variables using bits back coding" (arXiv 1901.04866); Townsend, Bird, Kunze & Barber 2020, "HiLLoC: lossless
image compression with hierarchical latent variable models" (arXiv 1912.09953); Kingma, Abbeel & Ho 2019, "Bit-Swap:
recursive bits-back coding for lossless compression with hierarchical latent variables" (arXiv 1905.06845).
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Float64, Int64, UInt32
from torch import Tensor

from imago.compression.ans import WORD, Stack
from imago.config import choices_of
from imago.distributions import Distribution, Parameters, Values, sampling_dtype
from imago.errors import UserError
from imago.images import Images, ImageSpec, normalize
from imago.models.autoregressive import Autoregressive
from imago.models.base import GenerativeModel, Progress, evaluating
from imago.models.latent import Latents
from imago.models.variational import Variational
from imago.nets.incremental import Incremental
from imago.threads import suitable_threads

AT_ONCE = 2**22  # probabilities that are computed together
KEPT = 2**29  # bytes of distributions that wait until they are pushed
HALF = 6  # bits of one of the two symbols that a latent is
NOTHING = 1e-30  # the least probability, so that there is one where numbers round to none

Tell = Callable[[float], None]


class Code(ABC):
    """Batches of images on a stack.

    Args:
        model: in evaluation mode.
    """

    def __init__(self, model: Any) -> None:
        self.model = model
        self.spec: ImageSpec = model.spec

    @abstractmethod
    def push(self, stack: Stack, images: Images, labels: Tensor | None, tell: Tell) -> None:
        """Push a batch; ``tell`` is called with the share of it that is done."""

    @abstractmethod
    def pop(self, stack: Stack, n: int, labels: Tensor | None, tell: Tell) -> Images:
        """Pop a batch of ``n`` images."""

    def start(self) -> Stack:
        """What the first batch is pushed on."""
        return Stack()

    def batch(self, stack: Stack, most: int) -> int:
        """How many images are pushed next, at least 1 and at most ``most``."""
        return most

    @abstractmethod
    def seconds(self, images: Images, labels: Tensor | None, batch_size: int) -> float:
        """How long pushing and popping all these images takes, about, from a small part of the work."""


class ChainRule(Code):
    """Value after value, as an autoregressive model draws them."""

    model: Autoregressive

    def push(self, stack: Stack, images: Images, labels: Tensor | None, tell: Tell) -> None:
        """See :meth:`Code.push`. The last value is pushed first, so all distributions wait for it."""
        waiting = []
        state = self.model.begin(len(images), labels)
        for row in range(self.spec.height):
            for values, parameters in self._row(state, row, images[:, :, row].long()):
                waiting.append((values, parameters.clone()))
            tell((row + 1) / self.spec.height)
        for values, parameters in reversed(waiting):
            push_values(stack, self.model.distribution, parameters, values)

    def pop(self, stack: Stack, n: int, labels: Tensor | None, tell: Tell) -> Images:
        """See :meth:`Code.pop`."""
        state = self.model.begin(n, labels)
        images = torch.zeros(n, *self.spec.shape, dtype=torch.long, device=self.model.device)
        for row in range(self.spec.height):
            for values, parameters in self._row(state, row, images[:, :, row]):
                values.copy_(pop_values(stack, self.model.distribution, parameters))
            tell((row + 1) / self.spec.height)
        return images.to(self.spec.dtype)

    def _row(self, state: Incremental, row: int, values: Tensor) -> Iterator[tuple[Tensor, Parameters]]:
        """Views of the values of a row, (n,), each with the parameters of its distributions."""
        for column, channel, parameters in self.model.visit(state, row, values):
            yield values[:, channel, column], parameters

    def batch(self, stack: Stack, most: int) -> int:
        """As many as their distributions find room for."""
        return max(1, min(most, KEPT // (4 * self.model.distribution.parameters * self.spec.dimensions)))

    def seconds(self, images: Images, labels: Tensor | None, batch_size: int) -> float:
        """From one row of a batch, on both ways."""
        stack, distribution = Stack(), self.model.distribution
        n = self.batch(stack, min(batch_size, len(images)))
        given, row = None if labels is None else labels[:n], images[:n, :, 0].long()
        states = [self.model.begin(n, given) for _ in range(2)]
        began = time.perf_counter()
        for values, parameters in self._row(states[0], 0, row):
            push_values(stack, distribution, parameters, values)
        for _, parameters in self._row(states[1], 0, row):
            pop_values(stack, distribution, parameters)
        return (time.perf_counter() - began) * self.spec.height * len(images) / n


class BitsBack(Code):
    """Equation 1, for models with an approximate posterior."""

    model: Variational

    def push(self, stack: Stack, images: Images, labels: Tensor | None, tell: Tell) -> None:
        """See :meth:`Code.push`."""
        numbers: list[Tensor] = []

        def choose(mean: Latents, log_scale: Latents) -> Latents:
            numbers.append(pop_latents(stack, mean, log_scale))
            return medians(numbers[-1])

        self.model.infer(self._observed(images, labels), labels, choose)
        chosen = torch.cat(numbers, 1)
        parameters = self.model.parameters_at(medians(chosen), labels)
        push_values(stack, self.model.distribution, parameters.flatten(0, 3), images.flatten().long())
        stack.push_uniform(chosen.flatten(), 4**HALF)

    def pop(self, stack: Stack, n: int, labels: Tensor | None, tell: Tell) -> Images:
        """See :meth:`Code.pop`."""
        chosen = stack.pop_uniform(n * self.model.latent, 4**HALF).view(n, -1).to(self.model.device)
        parameters = self.model.parameters_at(medians(chosen), labels)
        values = pop_values(stack, self.model.distribution, parameters.flatten(0, 3))
        images = values.view(n, *self.spec.shape).to(self.spec.dtype)
        pushed: list[tuple[Tensor, Latents, Latents]] = []
        done = 0

        def choose(mean: Latents, log_scale: Latents) -> Latents:
            nonlocal done
            numbers = chosen[:, done : done + mean.shape[1]]
            done += mean.shape[1]
            pushed.append((numbers, mean, log_scale))
            return medians(numbers)

        self.model.infer(self._observed(images, labels), labels, choose)
        for part in reversed(pushed):
            push_latents(stack, *part)
        return images

    def _observed(self, images: Images, labels: Tensor | None) -> list[Tensor]:
        return self.model.encoder_features(normalize(images, self.spec.levels), labels)

    def start(self) -> Stack:
        """Random bits for one image."""
        words = np.random.default_rng(0).integers(1, 2**WORD, self._needed // WORD + 2, dtype=np.uint32)
        return Stack(words)

    @property
    def _needed(self) -> int:
        """Bits for one image, at most."""
        return 2 * HALF * self.model.latent

    def batch(self, stack: Stack, most: int) -> int:
        """As many as there are bits for."""
        return max(1, min(most, stack.bits // self._needed))

    def seconds(self, images: Images, labels: Tensor | None, batch_size: int) -> float:
        """From a few images."""
        stack, few = self.start(), min(8, batch_size, len(images))
        labels = None if labels is None else labels[:few]
        began = time.perf_counter()
        self.push(stack, images[:few], labels, nobody)
        self.pop(stack, few, labels, nobody)
        return (time.perf_counter() - began) * len(images) / few


def nobody(share: float) -> None:
    """Is told, and does nothing."""


# --- values -----------------------------------------------------------------------------------------------------------


def push_values(stack: Stack, distribution: Distribution, parameters: Parameters, values: Values) -> None:
    """Push values (n,) by their distributions, of parameters (n, parameters)."""
    for rows in reversed(parts(len(values), distribution.levels)):
        stack.push(values[rows], distribution.probabilities(parameters[rows]))


def pop_values(stack: Stack, distribution: Distribution, parameters: Parameters) -> Values:
    """The inverse of :func:`push_values`."""
    found = [
        stack.pop(distribution.probabilities(parameters[rows])) for rows in parts(len(parameters), distribution.levels)
    ]
    return torch.cat(found)


def parts(n: int, each: int) -> list[slice]:
    """So many rows of ``each`` numbers, cut so that not more than ``AT_ONCE`` of these are in memory."""
    step = max(1, AT_ONCE // each)
    return [slice(first, first + step) for first in range(0, n, step)]


# --- latents ----------------------------------------------------------------------------------------------------------
#
# The number of an interval has two digits of HALF bits. As one symbol it would have so many possible values that the
# 2⁻²⁴ that each has at least were a chance in thousands to draw an interval far away from everything that q means.


def medians(numbers: Int64[Tensor, "n units"]) -> Latents:
    """The z that the intervals of these numbers stand for: of the prior's mass in each, half lies below."""
    share = (numbers.to(sampling_dtype(numbers.device)) + 0.5) / 4**HALF
    return torch.special.ndtri(share).float()


def pop_latents(stack: Stack, mean: Latents, log_scale: Latents) -> Int64[Tensor, "n units"]:
    """Numbers of intervals, from N(mean, scale²)."""
    flat = mean.flatten(), log_scale.flatten()
    found = []
    for rows in parts(len(flat[0]), 2**HALF):
        few = flat[0][rows], flat[1][rows]
        first = stack.pop(masses(*few, None))
        found.append(first * 2**HALF + stack.pop(masses(*few, first)))
    return torch.cat(found).view(mean.shape)


def push_latents(stack: Stack, numbers: Int64[Tensor, "n units"], mean: Latents, log_scale: Latents) -> None:
    """The inverse of :func:`pop_latents`."""
    flat = mean.flatten(), log_scale.flatten()
    for rows in reversed(parts(len(flat[0]), 2**HALF)):
        number, few = numbers.flatten()[rows], (flat[0][rows], flat[1][rows])
        first = number // 2**HALF
        stack.push(number % 2**HALF, masses(*few, first))
        stack.push(first, masses(*few, None))


def masses(
    mean: Float[Tensor, " n"], log_scale: Float[Tensor, " n"], first: Int64[Tensor, " n"] | None
) -> Float[Tensor, "n symbols"]:
    """What N(mean, scale²) has in each interval of the first digit, or of the second, the first being known."""
    dtype = sampling_dtype(mean.device)
    edges = torch.arange(2**HALF + 1, device=mean.device).to(dtype) / 2**HALF
    if first is not None:
        edges = (first[:, None] + edges) / 2**HALF
    z = (torch.special.ndtri(edges) - mean[:, None].to(dtype)) * torch.exp(-log_scale[:, None].to(dtype))
    # In both tails differences of small numbers, Φ(b) − Φ(a) = Φ(−a) − Φ(−b); where there is nothing at all, evenly.
    upper = z[:, :1] > 0
    below = torch.special.ndtr(torch.where(upper, -z, z))
    return below.diff(dim=1).abs() + NOTHING


# --- all images -------------------------------------------------------------------------------------------------------

CODES: dict[type, Callable[[Any], Code]] = {Autoregressive: ChainRule, Variational: BitsBack}


def code_of(model: GenerativeModel) -> Code:
    """How a model codes images.

    Raises:
        UserError: it cannot.
    """
    for kind, code in CODES.items():
        if isinstance(model, kind):
            if not model.spec.levels:
                raise UserError(f"checkpoint: a model of {model.spec}: real numbers have no lossless code")
            if model.conditional and model.spec.embedding:
                raise UserError("checkpoint: a model of images given embeddings, which a decoder would not have")
            return code(model)
    able = sorted({name for kind in CODES for name in choices_of("model", kind)})
    raise UserError(
        f"checkpoint: a {type(model).__name__} cannot code images: it draws values neither one after the other nor "
        f"given latents with a posterior; models that do are {', '.join(able)}"
    )


class Encoded(NamedTuple):
    """Images on a stack.

    Attributes:
        words: of the stack.
        sizes: of the batches, from the first image on.
        start: bits that were there before the first image.
    """

    words: UInt32[np.ndarray, " words"]
    sizes: list[int]
    start: int


def encode(
    model: GenerativeModel, images: Images, labels: Tensor | None, batch_size: int, progress: Progress
) -> Encoded:
    """Images as one stack.

    Args:
        model: that codes them.
        images: (n, channels, height, width), of its data.
        labels: int64 (n,), for conditional models; they are coded too, as frequent as in training.
        batch_size: at most so many images at a time.
        progress: called with (done, total).
    """
    code, n = code_of(model), len(images)
    images, labels = images.to(model.device), None if labels is None else labels.to(model.device)
    with coding(model):
        stack, end, sizes = code.start(), n, []
        start = stack.bits
        while end:
            first = end - code.batch(stack, min(batch_size, end))
            given = None if labels is None else labels[first:end]
            code.push(stack, images[first:end], given, telling(progress, n - end, end - first, n))
            if given is not None:
                stack.push(given, frequencies(model.spec).expand(len(given), -1))
            sizes.append(end - first)
            end = first
        return Encoded(stack.words, sizes[::-1], start)


def decode(
    model: GenerativeModel, words: UInt32[np.ndarray, " words"], sizes: Sequence[int], progress: Progress
) -> tuple[Images, Tensor | None]:
    """The inverse of :func:`encode`: images, and labels of a conditional model, on the CPU.

    Args:
        model: the very model that coded them.
        words: of the stack.
        sizes: of the batches, from the first image on.
        progress: called with (done, total).

    Raises:
        ValueError: there are no such words.
    """
    code, spec, n = code_of(model), model.spec, sum(sizes)
    images, labels = torch.zeros(n, *spec.shape, dtype=spec.dtype), torch.zeros(n, dtype=torch.long)
    first = 0
    with coding(model):
        stack = Stack(words)
        for count in sizes:
            given = None
            if model.conditional:
                labels[first : first + count] = stack.pop(frequencies(spec).expand(count, -1))
                given = labels[first : first + count].to(model.device)
            images[first : first + count] = code.pop(stack, count, given, telling(progress, first, count, n))
            first += count
    return images, labels if model.conditional else None


def seconds_for(model: GenerativeModel, images: Images, labels: Tensor | None, batch_size: int) -> float:
    """How long encoding and decoding takes together, about; arguments as of :func:`encode`."""
    with coding(model):
        few = images[: min(batch_size, len(images))]
        given = None if labels is None else labels[: len(few)].to(model.device)
        return code_of(model).seconds(few.to(model.device), given, batch_size) * len(images) / len(few)


@contextmanager
def coding(model: GenerativeModel) -> Iterator[None]:
    """Inside, the same operations give the same numbers, to the last bit."""
    with (
        torch.inference_mode(),
        evaluating(model),
        suitable_threads(model.device),
        torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True),
    ):
        yield


def telling(progress: Progress, before: int, count: int, n: int) -> Tell:
    """Say how far all images are, of which ``before`` are done and ``count`` are in work."""
    return lambda share: progress(before + int(share * count), n)


def frequencies(spec: ImageSpec) -> Float64[Tensor, " classes"]:
    """Of each class in training; all alike where they are not known."""
    return torch.tensor(spec.class_counts or [1] * spec.classes, dtype=torch.float64)
