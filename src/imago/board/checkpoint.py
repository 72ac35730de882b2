"""What a checkpoint says of itself, read without torch and without its weights."""

from pathlib import Path
from typing import Any

from imago.legacy import today
from imago.untrusted import opened, read_archive


def peek(path: Path) -> dict[str, Any]:
    """``config``, ``spec`` and ``progress`` of a checkpoint; what it lacks of them is empty.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none of ours.
    """
    names = ("config", "spec", "progress")
    with opened(path) as file:
        parts = today(read_archive(file, names))
    return {name: part if isinstance(part := parts.get(name), dict) else {} for name in names}
