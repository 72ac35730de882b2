"""How a run may end other than by finishing: told why it cannot be done, or asked to stop."""

import signal
import unicodedata

# What steers a terminal instead of being shown: controls, marks of direction, halves of characters, separators.
_STEERING = ("Cc", "Cf", "Cs", "Zl", "Zp")
_SHOWN = "\n\t\u200c\u200d"  # the last two join letters of some scripts


class UserError(Exception):
    """Something the user asked for cannot be done; the text says what, why and what to do instead.

    The scripts print the text alone, without a traceback, and exit with code 2. The text names the configuration key
    and the value that caused it wherever there is one, then the remedy: ``data.batch_size=0: must be at least 1``.
    What it quotes may come from files of others, so it is kept :func:`printable`.
    """

    def __init__(self, text: object = "") -> None:
        super().__init__(printable(str(text)))


class RunError(Exception):
    """A run that has begun cannot go on; the text says why, and what there is to continue from.

    The scripts print the text alone, without a traceback, and exit with code 1.
    """


class Interrupted(BaseException):
    """The run was asked to stop. Not an ``Exception``: nothing but the script's end should catch it.

    Args:
        signal_number: of the signal that asked.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number


def reason_of(error: OSError) -> str:
    """What the system says, with the file where it names one."""
    reason = error.strerror or " ".join(str(error).split())
    return f"{reason}: {error.filename}" if error.filename else reason


def how_to_install(extra: str) -> str:
    """The command that installs what an extra of this program names; no index has the program itself."""
    from imago import __version__

    wheel = f"imago-{__version__}-py3-none-any.whl"
    return f"pip install '.[{extra}]' in a copy of imago's repository, or '{wheel}[{extra}]' of the wheel"


def printable(text: str) -> str:
    """Text of whatever origin as a terminal can show it: what would steer the terminal is written as its code."""
    if text.isprintable():
        return text
    return "".join(
        c if c in _SHOWN or unicodedata.category(c) not in _STEERING else c.encode("unicode_escape").decode()
        for c in text
    )
