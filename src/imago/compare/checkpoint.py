"""What a checkpoint says of itself, read without torch and without its weights."""

import io
import pickle
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

# Of the part without weights; 62 checkpoints of this project have 40 to 300 kB.
LARGEST = 64 * 2**20


class _Nothing:
    """Stands for whatever is not plain: tensors, arrays, generators. Nothing of a checkpoint is ever executed."""

    def __new__(cls, *args: Any, **kwargs: Any) -> "_Nothing":
        return object.__new__(cls)

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...

    def __setstate__(self, state: Any) -> None: ...


class _Plain(pickle.Unpickler):
    """Reads plain containers, text and numbers; the rest becomes :class:`_Nothing`."""

    def find_class(self, module: str, name: str) -> type:
        """No class but the dictionary that weights lie in."""
        return OrderedDict if (module, name) == ("collections", "OrderedDict") else _Nothing

    def persistent_load(self, pid: Any) -> None:
        """Weights are not read."""


def peek(path: Path) -> dict[str, Any]:
    """``config``, ``spec`` and ``progress`` of a checkpoint; what it lacks of them is empty.

    Raises:
        ValueError: it cannot be read, or is none of ours.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            member = next((name for name in archive.namelist() if name.endswith("/data.pkl")), None)
            if member is None or archive.getinfo(member).file_size > LARGEST:
                raise ValueError("is no checkpoint of ours")
            content = _Plain(io.BytesIO(archive.read(member))).load()
    except zipfile.BadZipFile:
        raise ValueError("cannot be read: cut short, or no checkpoint") from None
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle raises whatever it likes
        raise ValueError(f"cannot be read ({type(error).__name__})") from None
    if not isinstance(content, dict):
        raise ValueError("is no checkpoint of ours")
    parts = {name: content.get(name) for name in ("config", "spec", "progress")}
    return {name: part if isinstance(part, dict) else {} for name, part in parts.items()}
