"""The one exception that is a message to the user and not a defect of the program."""


class UserError(Exception):
    """Something the user asked for cannot be done; the text says what, why and what to do instead.

    The scripts print the text alone, without a traceback, and exit with code 2. The text names the configuration key
    and the value that caused it wherever there is one, then the remedy: ``data.batch_size=0: must be at least 1``.
    """
