"""Which folders this user has trained with: of those that a checkpoint names, only these are opened unasked."""

import json
import os
from contextlib import suppress
from pathlib import Path

from imago.files import state_folder
from imago.untrusted import read_bytes

MOST = 2**22  # bytes of the list: some 50,000 places


def remember(*places: Path) -> None:
    """Add folders and zip files of images to the list of this user on this machine; where none can be kept, nothing."""
    new = [name for name in dict.fromkeys(map(_name, places)) if name not in _listed()]
    with suppress(OSError, RuntimeError):  # a home that cannot be written to, or none
        file = _file()
        file.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with os.fdopen(os.open(file, flags, 0o600), "a", encoding="utf-8") as opened:
            opened.write("".join(f"{json.dumps(name)}\n" for name in new))


def known(place: str) -> bool:
    """Whether somebody here has trained with it. Nothing is looked up at the place itself."""
    return _name(place) in _listed()


def _file() -> Path:
    return state_folder() / "places"


def _name(place: str | Path) -> str:
    return os.path.abspath(os.path.expanduser(place))  # noqa: PTH100, PTH111 - following links would open it


def _listed() -> set[str]:
    with suppress(OSError, RuntimeError, ValueError):
        lines = read_bytes(_file(), MOST).decode("utf-8", "replace").splitlines()
        return {json.loads(line) for line in lines if line.startswith('"') and line.endswith('"')}
    return set()
