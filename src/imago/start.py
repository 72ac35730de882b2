"""How every command begins. Until its modules are loaded there is nothing to save: Ctrl-C ends it at once."""

import importlib
import os
import signal
import sys


def start(name: str, function: str = "command") -> None:
    """Carry out a command of :mod:`imago.cli`, such as ``train``; ends the process with its exit code."""
    waiting = signal.getsignal(signal.SIGINT) is signal.default_int_handler  # else whoever started us has it ignored
    if waiting:  # an exception would be lost where a library's import catches it
        signal.signal(signal.SIGINT, lambda *_: os._exit(130))
    module = importlib.import_module(f"imago.cli.{name}")
    try:
        if waiting:
            signal.signal(signal.SIGINT, signal.default_int_handler)
        getattr(module, function)()
    except KeyboardInterrupt:
        sys.exit(130)


def main() -> None:
    """Carry out ``imago COMMAND``."""
    start("main", "main")
