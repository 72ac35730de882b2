"""How a run may end other than by finishing: told why it cannot be done, or asked to stop."""

import signal


class UserError(Exception):
    """Something the user asked for cannot be done; the text says what, why and what to do instead.

    The scripts print the text alone, without a traceback, and exit with code 2. The text names the configuration key
    and the value that caused it wherever there is one, then the remedy: ``data.batch_size=0: must be at least 1``.
    """


class Interrupted(BaseException):
    """The run was asked to stop. Not an ``Exception``: nothing but the script's end should catch it.

    Args:
        signal_number: of the signal that asked.
    """

    def __init__(self, signal_number: int) -> None:
        super().__init__(signal.Signals(signal_number).name)
        self.exit_code = 128 + signal_number
