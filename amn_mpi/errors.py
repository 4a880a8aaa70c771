"""Errors that a user can mend: one line, no traceback. And two ways in which training is cut short."""

from __future__ import annotations

import signal

AGAIN = 75  # EX_TEMPFAIL: stopped, submit it again


class UserError(Exception):
    """Something the user gave (a key, a file, a folder) cannot be used.

    The message is one line that says what was wrong, where, and what is valid.
    """

    status = 1


class ConfigError(UserError):
    """A configuration key is unknown, of the wrong type or out of range (exit status 2)."""

    status = 2


class Diverged(UserError):
    """Training left the numbers; raised by every rank at the end of the same round."""


class Stopped(UserError):
    """The run was asked to stop by a signal.

    Attributes:
        agreed: all ranks stop together, everything is written, and none needs to be ended by force.
    """

    status = AGAIN

    def __init__(self, number: int, told: str = "the run is unfinished", agreed: bool = False) -> None:
        super().__init__(f"stopped by {signal.Signals(number).name}; {told}")
        self.agreed, self._made = agreed, (number, told, agreed)

    def __reduce__(self) -> tuple[type[Stopped], tuple[int, str, bool]]:
        return Stopped, self._made


class Misdeclared(TypeError):
    """A method returns something else than it declares: its author hears of it in one line."""


class Interrupted(Exception):
    """Between two steps: all ranks are to stop. Training and evaluation end early where they are."""
