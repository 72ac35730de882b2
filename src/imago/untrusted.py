"""What was written elsewhere, read as plain data of a sane size, or refused with the reason.

Checkpoints and run directories may come from anybody. What is in them is text, numbers and lists of these: nothing of
it is imported, constructed, interpolated or followed here. Nesting, length and number of entries are bounded, because
a few bytes can describe more than any memory holds, and references can lead in circles.
"""

import io
import json
import math
import os
import pickle
import resource
import stat
import zipfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import yaml

from imago.errors import UserError

# A configuration of this program is nested 6 deep and has some 200 entries.
DEEPEST = 32
MOST = 100_000
LONGEST = 100_000  # characters of a text
LONGEST_NAME = 1000
LARGEST = 8 * 2**20  # bytes of a file that is read whole; of a checkpoint, without its weights: 62 have 40 to 300 kB

# Written in C where PyYAML was built so: a hundred configurations take a second otherwise.
_Safe: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
_SCALARS = ("null", "bool", "int", "float")


def check_plain(value: Any, key: str) -> None:
    """Refuse what is no plain data of a sane size, and what a later reader might take for an interpolation.

    Args:
        value: mappings, lists, text and numbers at any depth.
        key: where they stand, for messages.

    Raises:
        UserError: naming the place.
    """
    for place, found in entries(value, key):
        reason = _no_scalar(found)
        if reason:
            raise UserError(f"{place}: {reason}; a configuration holds plain text, numbers and lists of them")


def entries(value: Any, key: str, most: int = MOST) -> Iterator[tuple[str, Any]]:
    """Everything that containers hold at any depth and is no container itself, with its place.

    Raises:
        UserError: there is more than ``most`` of it, counted as often as it is referred to; it is nested too deep, or
            has names that are no text.
    """
    waiting, count = [(key, value, 1)], 1
    while waiting:
        place, found, depth = waiting.pop()
        if not isinstance(found, Mapping | list | tuple):
            yield shortened(place), found
            continue
        count += len(found)
        if count > most or depth > DEEPEST:
            reason = f"holds more than {most:,} entries" if count > most else f"is nested deeper than {DEEPEST} levels"
            raise UserError(f"{shortened(place)}: {reason}; no file of this program does")
        if isinstance(found, Mapping):
            waiting += [(f"{place}.{_name_of(name, place)}", item, depth + 1) for name, item in found.items()]
        else:
            waiting += [(f"{place}[{k}]", item, depth + 1) for k, item in enumerate(found)]


def _name_of(name: Any, place: str) -> str:
    plain = isinstance(name, str) and len(name) <= LONGEST_NAME and name.isprintable()
    if isinstance(name, int) or (plain and "${" not in name):
        return str(name)
    raise UserError(f"{shortened(place)}: has the name {shortened(repr(name))}; no file of this program does")


def _no_scalar(value: Any) -> str:
    if isinstance(value, str):
        if len(value) > LONGEST:
            return f"a text of {len(value):,} characters"
        return (
            f"{shortened(value, 40)!r} holds an interpolation, ${{...}}, and is never resolved" if "${" in value else ""
        )
    if isinstance(value, int) and not isinstance(value, bool):
        return "" if -(2**63) <= value < 2**63 else "a number of more than 64 bits"
    return "" if value is None or isinstance(value, bool | float) else f"a {type(value).__name__} is no plain value"


def shortened(text: str, longest: int = 100) -> str:
    """Text of unknown length for a message: of long ones the beginning."""
    return text if len(text) <= longest else f"{text[:longest]}…"


def first_line(error: Exception) -> str:
    """What an error says, for a message of one line."""
    return shortened(next(iter(str(error).splitlines()), ""), 300)


def opened(path: Path) -> BinaryIO:
    """A regular file, open for reading. Pipes and devices are not opened to be read, since they may never end.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is no regular file.
    """
    file = os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb")
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ValueError("is no regular file")
    return file


def read_bytes(path: Path, largest: int = LARGEST) -> bytes:
    """A regular file, whole.

    Raises:
        OSError: it cannot be read.
        ValueError: it is no regular file, or larger than ``largest`` bytes.
    """
    with opened(path) as file:
        content = file.read(largest + 1)
    if len(content) > largest:
        raise ValueError(f"larger than the {largest:,} bytes that such a file may have")
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
    except json.JSONDecodeError:
        raise ValueError("damaged or cut short") from None
    return _sane(content)


def read_archive(file: BinaryIO, parts: Iterable[str] = ()) -> dict[str, Any]:
    """Parts of what a checkpoint holds beside its weights, as plain data; ``None`` stands for all else in them.

    Args:
        file: a zip archive as torch writes them, open for reading.
        parts: their names; those that are not there are left out.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none, or claims to hold more than it does.
    """
    size = os.fstat(file.fileno()).st_size
    try:
        with zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            names = {entry.filename for entry in entries}
            pickles = [entry for entry in entries if entry.filename.endswith("/data.pkl")]
            if len(pickles) != 1 or len({name.split("/")[0] for name in names}) != 1 or len(names) != len(entries):
                raise ValueError("is no checkpoint of ours")
            packed = any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)
            if packed or sum(entry.file_size for entry in entries) > size or pickles[0].file_size > LARGEST:
                raise ValueError("claims to hold more than it does: no checkpoint of ours")
            found = _Unpickler(io.BytesIO(archive.read(pickles[0]))).load()
    except zipfile.BadZipFile:
        raise ValueError("cannot be read: cut short, or no checkpoint") from None
    except (OSError, ValueError):
        raise
    except Exception as error:  # a damaged archive or pickle raises whatever it likes
        raise ValueError(f"cannot be read ({type(error).__name__})") from None
    if not isinstance(found, dict):
        raise ValueError("is no checkpoint of ours")
    return {name: _sane(found[name]) for name in parts if name in found}


class _Other:
    """Stands for whatever is not plain, such as a tensor, an array or a generator; what is put into it is lost."""

    def lose(self, *given: Any) -> None:
        """Nothing."""

    __setitem__ = append = extend = lose


def _call(unpickler: Any) -> None:
    """An ordered mapping begins empty; nothing else is called."""
    unpickler.stack.pop()
    unpickler.stack[-1] = {} if unpickler.stack[-1] == "collections.OrderedDict" else _Other()


def _tuple(length: int) -> Callable[[Any], None]:
    """Tuples are read as lists, which are no names: of nested ones, finding the place can break the process."""

    def load(unpickler: Any) -> None:
        unpickler.stack[-length:] = [unpickler.stack[-length:]]

    return load


_KNOWN = pickle._Unpickler.dispatch


class _Unpickler(pickle._Unpickler):
    """What is plain in a pickle with the codes that torch writes; nothing is imported or called.

    Python's own reader in C takes memory for whatever number a pickle names (LONG_BINPUT), the one in Python does not.
    """

    dispatch = {code: _KNOWN[code] for code in b"(.GJKMNX]acehjqrsu}\x80\x88\x89\x8aQ"} | {
        ord("t"): _KNOWN[ord("l")],
        ord(")"): _KNOWN[ord("]")],
        **{0x84 + length: _tuple(length) for length in (1, 2, 3)},
        **dict.fromkeys((ord("R"), 0x81), _call),
        ord("b"): lambda unpickler: unpickler.stack.pop(),
    }

    def find_class(self, module: str, name: str) -> str:
        """The name alone."""
        return f"{module}.{name}"

    def persistent_load(self, pid: Any) -> _Other:
        """A part of a tensor."""
        return _Other()


@contextmanager
def limited_memory(more: int) -> Iterator[None]:
    """Inside, this process gets so many bytes more than it has, and no others: who asks for them gets an error.

    Only Linux keeps to it. What threads reserve and never use is allowed for.
    """
    before = resource.getrlimit(resource.RLIMIT_AS)
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[0])
    except OSError:
        yield
        return
    limit = pages * resource.getpagesize() + more + 2**32 + (os.cpu_count() or 1) * 2**27
    if before[0] != resource.RLIM_INFINITY:
        limit = min(limit, before[0])
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


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
    except ValueError:
        raise
    except Exception:  # a word that a tag calls a number raises whatever it likes
        raise ValueError("damaged or cut short") from None


class _Plain(_Safe):
    """Days are text, and no key merges others."""

    def flatten_mapping(self, node: Any) -> None:
        """Nothing is merged."""


_Plain.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag.rpartition(":")[2] in _SCALARS]
    for first, resolvers in _Safe.yaml_implicit_resolvers.items()
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
    return value if value is None or isinstance(value, str | bool | int | float) else None


def _name(name: Any) -> str:
    return name if isinstance(name, str) else str(_sane(name))
