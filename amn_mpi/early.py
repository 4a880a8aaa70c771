"""What signals do until a program is ready for them. Imports only what is built in: it costs nothing."""

from __future__ import annotations

import _signal
import posix


def listen() -> None:
    """The first thing that a program does, before the imports that take time.

    Python's own handler of SIGINT would raise amid imports and the start of MPI. What asks for a stop
    ends the rank with 75, as it does later: the job is to be submitted again.
    """
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)
    for number in (_signal.SIGTERM, _signal.SIGUSR1):
        _signal.signal(number, lambda number, frame: posix._exit(75))
