"""What Lightning's own loops take: one epoch after the other, one pass over a held-out split, numbers of samples."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from imago.data.stream import BatchStream
from imago.images import Batch


@dataclass
class Epoch:
    """The rest of the epoch that training has reached, and then, asked again, the next one.

    Args:
        stream: the batches, from any position on.
        position: how many batches a model has seen; ``None`` counts those that were taken from here.
    """

    stream: BatchStream
    position: Callable[[], int] | None = None
    taken: int = 0

    def __len__(self) -> int:
        return self.stream.batches_per_epoch

    def __iter__(self) -> Iterator[Batch]:
        start = self.taken if self.position is None else self.position()
        for batch in islice(replace(self.stream, start=start), len(self) - start % len(self)):
            self.taken += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """What Lightning keeps of it; a model's own position counts where there is one."""
        return {"taken": self.taken}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Restore :meth:`state_dict`."""
        self.taken = state_dict["taken"]


@dataclass(frozen=True)
class OnePass:
    """A split from its first image to its last, or other batches of known number.

    Args:
        batches: makes a pass.
        length: number of batches.
    """

    batches: Callable[[], Iterator[Any]]
    length: int

    def __len__(self) -> int:
        return self.length

    def __iter__(self) -> Iterator[Any]:
        return self.batches()
