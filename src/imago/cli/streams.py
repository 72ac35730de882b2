"""Standard output and errors that nothing can break: a closed pipe or terminal, a full disk, an encoding without ≤."""

import codecs
import io
import logging
import os
import sys
import threading
from contextlib import suppress
from typing import Any

# What we print beyond ASCII, for terminals that have nothing else.
PLAIN = {
    "≤": "<=",
    "≥": ">=",
    "≈": "~",
    "±": "+-",
    "·": "-",
    "†": "*",
    "–": "-",
    "—": "-",
    "−": "-",
    "×": "x",
    "→": "->",
    "…": "...",
}


class Forgiving(io.FileIO):
    """A descriptor to write to; what it does not take is lost.

    Args:
        descriptor: open, and left open.
        name: as Python calls the stream.
    """

    def __init__(self, descriptor: int, name: str) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self.name = name

    def write(self, data: Any) -> int:
        """Write what can be written."""
        try:
            written = super().write(data)
        except OSError:
            written = None
        return len(data) if written is None else written


def make_forgiving() -> None:
    """Let printing never fail from here on, and no file be opened under the number of a closed standard stream.

    Streams that somebody put in the place of Python's own, such as tests and notebooks, stay; so do ours.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
    codecs.register_error("imago.plain", _in_plain_letters)
    logging.raiseExceptions = False  # a log that cannot be written is no news
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _in_a_thread
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        stream = getattr(sys, name)
        known = isinstance(getattr(getattr(stream, "buffer", None), "raw", None), Forgiving)
        if known or stream is not getattr(sys, f"__{name}__"):
            continue
        encoding = "utf-8"
        if stream is not None:
            encoding = stream.encoding
            with suppress(OSError, ValueError):
                stream.flush()
        raw = Forgiving(descriptor, f"<{name}>")
        text = io.TextIOWrapper(
            io.BufferedWriter(raw), encoding, "imago.plain", line_buffering=name == "stderr" or raw.isatty()
        )
        setattr(sys, name, text)
        setattr(sys, f"__{name}__", text)
    if sys.stdin is None:
        sys.stdin = open(0, closefd=False)  # noqa: SIM115 - the stream of the process


def _in_a_thread(error: threading.ExceptHookArgs) -> None:
    """What a thread of a library could not write is raised where that library is asked next."""
    if not isinstance(error.exc_value, OSError):
        threading.__excepthook__(error)


def _in_plain_letters(error: UnicodeError) -> tuple[str, int]:
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    told = "".join(PLAIN.get(letter, letter).encode("ascii", "backslashreplace").decode() for letter in text)
    return told, error.end
