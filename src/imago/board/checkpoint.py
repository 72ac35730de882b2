"""What a checkpoint says of itself, read without torch and without its weights."""

from pathlib import Path
from typing import Any

from imago.legacy import today
from imago.pretrained import SETTINGS
from imago.untrusted import opened, read_archive, read_json


def peek(path: Path) -> dict[str, Any]:
    """``config``, ``spec`` and ``progress`` of a checkpoint, or of an exported model's config.json; what is not there
    is empty.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none of ours.
    """
    names = ("config", "spec", "progress")
    if path.name == SETTINGS:
        parts = today(read_json(path))
        if not isinstance(parts, dict):
            raise ValueError("holds no settings by name")
    else:
        with opened(path) as file:
            parts = today(read_archive(file, names))
    return {name: part if isinstance(part := parts.get(name), dict) else {} for name in names}
