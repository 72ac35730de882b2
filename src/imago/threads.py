"""How many threads a piece of work is worth."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def suitable_threads(device: torch.device, threads: int = 1) -> Iterator[None]:
    """Inside, torch works with so many threads if the work is done on a CPU; afterwards with as many as before.

    Splitting an operation of a few microseconds among threads costs more than it saves.
    """
    before = torch.get_num_threads()
    if device.type == "cpu" and threads < before:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        if torch.get_num_threads() != before:
            torch.set_num_threads(before)
