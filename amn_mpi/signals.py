"""What SIGTERM, SIGUSR1 and SIGINT do: they ask for a stop, and a job script may submit the run again.

While a run trains, a signal is only noted; the ranks agree on the stop between two steps. Elsewhere
there is nothing to save, and it ends the rank at once (and with it the others).
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from amn_mpi.errors import Stopped

NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)

asked = 0  # number of the first signal that came to this rank; 0: none
raised = 0  # number of the one that ended it at once; libraries turn the exception into others
_patient = False


def install() -> None:
    _handle(_arrived)


def ignore() -> None:
    _handle(signal.SIG_IGN)


@contextmanager
def held() -> Iterator[None]:
    """A signal meanwhile counts afterwards: an exception through the C++ of an import is a crash."""
    _handle(_note)
    yield
    _handle(_arrived)
    if asked:
        raise Stopped(asked)


@contextmanager
def patience() -> Iterator[None]:
    """Signals are noted in ``asked``; only a second SIGINT ends the rank at once."""
    global _patient
    before, _patient = _patient, True
    try:
        yield
    finally:
        _patient = before


def _handle(handler: Any) -> None:
    for number in NUMBERS:
        signal.signal(number, handler)


def _note(number: int, frame: Any) -> None:
    global asked
    asked = asked or number


def _arrived(number: int, frame: Any) -> None:
    global raised
    insists = asked == number == signal.SIGINT
    _note(number, frame)
    if insists or not _patient:
        raised = number
        raise Stopped(number)
