"""What a machine can hold: asked before memory is touched, for a kernel that runs out of it kills without a word."""

import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from imago.errors import UserError

# Rows or columns of a picture of pictures, and what is drawn beside each other in one.
Cells = Annotated[int, Field(gt=0, le=256)]
# Images that are drawn and kept together; published protocols use 50,000.
Drawn = Annotated[int, Field(gt=0, le=1_000_000)]
# Features of a layer.
Width = Annotated[int, Field(gt=0, le=1_000_000)]
# Steps of a chain, which has tables of them.
Steps = Annotated[int, Field(gt=0, le=100_000)]
# Parts of a network, such as layers: thousands would be built for hours.
MOST_PARTS = 10_000


def available_memory() -> int:
    """Bytes that this process can still have, by the machine, its container and its own limit; 2^60 if unknown."""
    free = [2**60]
    with suppress(OSError, ValueError, IndexError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    with suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        free.append(int((group / "memory.max").read_text()) - int((group / "memory.current").read_text()))
    with suppress(ImportError, OSError, ValueError):
        import resource

        limit, _ = resource.getrlimit(resource.RLIMIT_AS)
        if limit != resource.RLIM_INFINITY:
            pages = int(Path("/proc/self/statm").read_text().split()[0])
            free.append(limit - pages * os.sysconf("SC_PAGE_SIZE"))
    return max(0, min(free))


def affordable(key: str, bytes_for_each: int) -> AbstractContextManager[None]:
    """Inside, networks are built as long as their numbers fit into memory.

    Args:
        key: where their settings stand, for messages.
        bytes_for_each: what training keeps for each number: itself, its gradient and what the optimiser remembers.

    Raises:
        UserError: they do not, or there are more parts than anything is built of.
    """
    memory = available_memory()
    told = f"for which training keeps {bytes_for_each} bytes each, and {memory / 1e9:,.1f} GB are free; make it smaller"
    return bounded(key, memory // bytes_for_each, told)


@contextmanager
def bounded(key: str, most: int, told: str) -> Iterator[None]:
    """Inside, no networks of more numbers, or of more parts than anything is built of; no memory is touched for them.

    Args:
        key: where their settings stand, for messages.
        most: numbers in all.
        told: what is said of too many.

    Raises:
        UserError: there are.
    """
    from torch.nn.modules.module import register_module_parameter_registration_hook

    numbers = parts = 0

    def count(owner: Any, name: str, parameter: Any) -> None:
        nonlocal numbers, parts
        numbers += 0 if parameter is None else parameter.numel()
        parts += 1
        if numbers > most:
            raise UserError(f"{key}: a network of more than {most:,} parameters, {told}")
        if parts > MOST_PARTS:
            raise UserError(f"{key}: a network of more than {MOST_PARTS:,} parts; make it smaller")

    hook = register_module_parameter_registration_hook(count)
    try:
        yield
    finally:
        hook.remove()


def enough(error: BaseException) -> str:
    """What to say of an error that is :func:`exhausted`."""
    return f"the memory is not enough ({(str(error).splitlines() or ['no more'])[0]})"


def exhausted(error: BaseException) -> bool:
    """Whether an error says that there is no more memory, of the machine or of an accelerator."""
    told = isinstance(error, RuntimeError) and ("allocate memory" in str(error) or "not enough memory" in str(error))
    return told or isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError"
