"""What was written elsewhere, read as plain data of a sane size, or refused with the reason.

Checkpoints and run directories may come from anybody. What is in them is text, numbers and lists of these: nothing of
it is imported, constructed, interpolated or followed here. Nesting, length and number of entries are bounded, because
a few bytes can describe more than any memory holds, and references can lead in circles.
"""

import json
import math
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from imago.errors import UserError

# A configuration of this program is nested 6 deep and has some 200 entries.
DEEPEST = 32
MOST = 100_000
LONGEST = 100_000  # characters of a text
LARGEST = 16 * 2**20  # bytes of a file that is read whole

# Written in C where PyYAML was built so: a hundred configurations take a second otherwise.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def check_plain(value: Any, key: str) -> None:
    """Refuse what is no plain data of a sane size, and what a later reader might take for an interpolation.

    Args:
        value: mappings, lists, text and numbers at any depth.
        key: where they stand, for messages.

    Raises:
        UserError: naming the place.
    """
    place, reason = _not_plain(value, key)
    if reason:
        raise UserError(f"{place}: {reason}; a configuration holds text, numbers and lists of them, as train.py writes")


def _not_plain(value: Any, key: str) -> tuple[str, str]:
    """The first place that is not plain, and why; an empty reason if there is none."""
    waiting, entries = [(key, value, 1)], 1
    while waiting:
        place, found, depth = waiting.pop()
        if isinstance(found, Mapping | list | tuple):
            entries += len(found)  # each time it is referred to
            if entries > MOST:
                return key, f"holds more than {MOST:,} entries"
            if depth > DEEPEST:
                return shortened(place), f"is nested deeper than {DEEPEST} levels"
            if isinstance(found, Mapping):
                unnamed = [name for name in found if not isinstance(name, str) or len(name) > 1000 or "${" in name]
                if unnamed:
                    return place, f"has the name {shortened(repr(unnamed[0]))}"
                waiting += [(f"{place}.{name}", item, depth + 1) for name, item in found.items()]
            else:
                waiting += [(f"{place}[{k}]", item, depth + 1) for k, item in enumerate(found)]
        elif reason := _no_scalar(found):
            return shortened(place), reason
    return "", ""


def _no_scalar(value: Any) -> str:
    if isinstance(value, str):
        if len(value) > LONGEST:
            return f"a text of {len(value):,} characters"
        return f"{shortened(value)!r} holds an interpolation, ${{...}}, which is not resolved" if "${" in value else ""
    if isinstance(value, int) and not isinstance(value, bool):
        return "" if -(2**63) <= value < 2**63 else "a number of more than 64 bits"
    return "" if value is None or isinstance(value, bool | float) else f"a {type(value).__name__} is no plain value"


def shortened(text: str, longest: int = 100) -> str:
    """Text of unknown length for a message: of long ones the beginning."""
    return text if len(text) <= longest else f"{text[:longest]}…"


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """A regular file, whole. Pipes and devices are not read, since they may never end.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than ``largest`` bytes.
    """
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
        status = os.fstat(file.fileno())
        if stat.S_ISDIR(status.st_mode):
            raise ValueError("is a folder")
        if not stat.S_ISREG(status.st_mode):
            raise ValueError("is a pipe or a device")
        if status.st_size > largest:
            raise ValueError(f"has {status.st_size:,} bytes, more than the {largest:,} that such a file may have")
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"has more than the {largest:,} bytes that such a file may have")
    return content


def read_json(path: Path) -> Any:
    """What a JSON file holds; numbers beyond 64 bits become floating-point numbers, or infinite.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none, or holds more than such a file of ours ever does.
    """
    try:
        content = json.loads(_text(path), parse_int=_integer)
    except RecursionError:
        raise ValueError("nested too deep") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"damaged or cut short: {error}") from None
    return _sane(content)


def read_yaml(path: Path) -> Any:
    """What a YAML file holds, of mappings, lists, text and numbers alone; dates are text.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none, or holds more than such a file of ours ever does.
    """
    text = _text(path)
    depth = count = 0
    try:
        # The events first: composing is recursive, in C without a bound, and merged keys multiply.
        for event in yaml.parse(text, _Plain):
            depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
            count += 1
            if depth > DEEPEST or count > 2 * MOST:
                raise ValueError("nested too deep" if depth > DEEPEST else f"more than {MOST:,} entries")
        return _sane(yaml.load(text, _Plain))
    except yaml.YAMLError as error:
        raise ValueError(f"damaged or cut short: {' '.join(str(error).split())}") from None


class _Plain(_Safe):
    """Makes mappings, lists, text and numbers; every other tag is an error, and no key merges others."""

    def flatten_mapping(self, node: Any) -> None:
        """Nothing is merged."""


def _among(tag: str | None, *kinds: str) -> bool:
    return tag is None or tag.rsplit(":", 1)[-1] in kinds


_SCALARS = ("null", "bool", "int", "float")
_Plain.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if _among(tag, *_SCALARS)]
    for first, resolvers in _Safe.yaml_implicit_resolvers.items()
}
_Plain.yaml_constructors = {
    tag: made for tag, made in _Safe.yaml_constructors.items() if _among(tag, *_SCALARS, "str", "seq", "map")
}


def _text(path: Path) -> str:
    try:
        return read_bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"no text in UTF-8: {error.reason} at byte {error.start:,}") from None


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) < 19 else float(digits)


def _sane(value: Any, depth: int = 1, left: list[int] | None = None) -> Any:
    """Plain data again, with text for names, numbers of 64 bits at most, and each reference a copy.

    Raises:
        ValueError: nested too deep, or too many entries.
    """
    left = [MOST] if left is None else left
    left[0] -= 1
    if left[0] < 0:
        raise ValueError(f"more than {MOST:,} entries")
    if depth > DEEPEST:
        raise ValueError("nested too deep")
    if isinstance(value, Mapping):
        return {_name(name): _sane(item, depth + 1, left) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_sane(item, depth + 1, left) for item in value]
    if isinstance(value, int) and not isinstance(value, bool) and not -(2**63) <= value < 2**63:
        return math.copysign(math.inf, value) if value.bit_length() > 1000 else float(value)
    return value


def _name(name: Any) -> str:
    return name if isinstance(name, str) else str(_sane(name))
