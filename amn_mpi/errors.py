"""Errors that a user can mend: one line, no traceback."""


class UserError(Exception):
    """Something the user gave (a key, a file, a folder) cannot be used.

    The message is one line that says what was wrong, where, and what is valid.
    """

    status = 1


class ConfigError(UserError):
    """A configuration key is unknown, of the wrong type or out of range (exit status 2)."""

    status = 2


class Diverged(UserError):
    """A client's training left the numbers; raised by every rank at the end of the same round."""


class Stopped(UserError):
    """The run was asked to stop by a signal; ``status`` is 128 plus its number."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status
