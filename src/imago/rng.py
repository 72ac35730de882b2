"""Random numbers that belong to images, not to batches.

Image k of a sample must be the same whether it was drawn alone, in a batch of 64 or on another device. So every image
has a random stream of its own: SplitMix64 (Steele, Lea & Flood 2014, "Fast splittable pseudorandom number generators",
figure 12) started from a hash of (seed, k) and evaluated for a whole batch with integer tensor operations. Integer
arithmetic is exact, so the uniform numbers agree bit for bit between devices.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15


def _signed(value: int) -> int:
    """The 64-bit pattern of a non-negative integer, as the signed integer that torch.int64 holds."""
    value &= _MASK
    return value - (1 << 64) if value >> 63 else value


_MULTIPLY_1 = _signed(0xBF58476D1CE4E5B9)
_MULTIPLY_2 = _signed(0x94D049BB133111EB)


def _shift_right(x: Tensor, bits: int) -> Tensor:
    """Logical shift of int64 (torch's is arithmetic)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def _mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of 64-bit words in which every input bit moves every output bit."""
    x = (x ^ _shift_right(x, 30)) * _MULTIPLY_1
    x = (x ^ _shift_right(x, 27)) * _MULTIPLY_2
    return x ^ _shift_right(x, 31)


def _mix_integer(x: int) -> int:
    """The same bijection of one word, on the host."""
    x &= _MASK
    x = ((x ^ (x >> 30)) * (_MULTIPLY_1 & _MASK)) & _MASK
    x = ((x ^ (x >> 27)) * (_MULTIPLY_2 & _MASK)) & _MASK
    return _signed(x ^ (x >> 31))


class PerImageGenerator:
    """A batch of independent random streams, one per image.

    Every draw advances all streams alike. Two generators with the same ``seed`` give image ``k`` the same numbers,
    whatever the number of images drawn with it.

    Args:
        seed: the seed of the whole set of streams, any integer.
        first: index of the first image; ``PerImageGenerator(0, first=64)`` continues where a batch of 64 ended.
        device: where the numbers are made.
    """

    def __init__(self, seed: int, first: int = 0, device: torch.device | str = "cpu") -> None:
        self.seed = seed
        self.first = first
        # Apple's devices have no float64; there the numbers are made on the CPU, and moved by the model that asked.
        self.device = torch.device("cpu" if torch.device(device).type == "mps" else device)
        self._drawn = 0

    def _words(self, n: int, shape: tuple[int, ...]) -> Tensor:
        size = math.prod(shape)
        index = torch.arange(self.first, self.first + n, device=self.device)
        # The seed is mixed on the host: a number sent to a GPU would make the host wait for it.
        key = _mix(_mix(index * _signed(_GOLDEN) + 1) ^ _mix_integer(self.seed + _GOLDEN))
        counter = torch.arange(self._drawn + 1, self._drawn + size + 1, device=self.device) * _signed(_GOLDEN)
        self._drawn += size
        return _mix(key[:, None] + counter[None, :]).view(n, *shape)

    def _open_unit(self, n: int, shape: tuple[int, ...]) -> Tensor:
        return (_shift_right(self._words(n, shape), 12).double() + 0.5) * 2.0**-52

    def uniform(self, n: int, *shape: int) -> Tensor:
        """float64 (n, *shape), uniform on the open interval (0, 1)."""
        return self._open_unit(n, shape)

    def normal(self, n: int, *shape: int) -> Tensor:
        """float32 (n, *shape), standard normal by inversion."""
        return (math.sqrt(2) * torch.erfinv(2 * self._open_unit(n, shape) - 1)).float()

    def integers(self, n: int, high: int, *shape: int) -> Tensor:
        """int64 (n, *shape), uniform on 0..high-1."""
        return (self._open_unit(n, shape) * high).long()

    def choices(self, n: int, weights: Sequence[int]) -> Tensor:
        """int64 (n,): k with probability weights[k] / sum(weights), by inversion of the cumulated weights."""
        ends = torch.tensor(weights, device=self.device).cumsum(0).double()
        return torch.searchsorted(ends, self._open_unit(n, ()) * ends[-1], right=True)


class BatchGenerator:
    """The noise of training: drawn for the batch of all devices and cut, so that two take the step that one would.

    Args:
        device: where the numbers are made.
        rank: which part of the batch is this device's.
        world_size: number of devices.
        generator: its source; ``None`` is torch's global generator.
    """

    def __init__(
        self,
        device: torch.device | str = "cpu",
        rank: int = 0,
        world_size: int = 1,
        generator: torch.Generator | None = None,
    ) -> None:
        self.device = torch.device(device)
        self.rank = rank
        self.world_size = world_size
        self.generator = generator

    def normal(self, n: int, *shape: int) -> Tensor:
        """float32 (n, *shape), standard normal."""
        z = torch.randn(n * self.world_size, *shape, device=self.device, generator=self.generator)
        return z[self.rank * n : (self.rank + 1) * n]

    def uniform(self, n: int, *shape: int) -> Tensor:
        """float32 (n, *shape), uniform on [0, 1)."""
        u = torch.rand(n * self.world_size, *shape, device=self.device, generator=self.generator)
        return u[self.rank * n : (self.rank + 1) * n]

    def gather(self, values: Tensor) -> Tensor:
        """The parts (n, ...) of all devices, (n · devices, ...), in the order in which noise is cut."""
        if self.world_size == 1:
            return values
        parts = [torch.empty_like(values) for _ in range(self.world_size)]
        torch.distributed.all_gather(parts, values)
        return torch.cat(parts)

    def mean(self, values: Tensor) -> Tensor:
        """The mean of a tensor over all devices, without a gradient."""
        values = values.detach()
        if self.world_size > 1:
            values = values.clone()
            torch.distributed.all_reduce(values)
            values /= self.world_size
        return values
