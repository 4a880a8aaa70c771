"""Standard output and standard error that cost what cannot be written, and nothing else.

A log lies on the quota that a run fills up; a reader leaves (``| head``); a batch system closes them. None
of it is a reason to lose a run, or to end with a traceback.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO


class Harmless:
    """A stream whose errors are passed over; None, a closed one, counts as one that takes everything."""

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = _nowhere() if stream is None else stream
        self.failed = False

    def write(self, text: str) -> int:
        with self._passed_over():
            try:
                self._stream.write(text)
            except UnicodeEncodeError as error:  # a terminal that cannot show a sign
                self._stream.write(text.encode(error.encoding, "replace").decode(error.encoding))
        return len(text)

    def flush(self) -> None:
        with self._passed_over():
            self._stream.flush()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @contextmanager
    def _passed_over(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError) as error:  # ValueError: closed meanwhile
            self.failed = True
            if isinstance(error, BrokenPipeError):
                self._stream = _nowhere()  # it will not come back, as room on a disk may


def harmless() -> None:
    """For the rest of this process."""
    sys.stdout, sys.stderr = _made(sys.stdout), _made(sys.stderr)


@contextmanager
def harmless_here() -> Iterator[None]:
    """For a part of it; a stream that has failed stays so, else Python complains of it at the end."""
    both = sys.stdout, sys.stderr
    harmless()
    try:
        yield
    finally:
        now = _made(sys.stdout), _made(sys.stderr)
        sys.stdout, sys.stderr = (new if new.failed else old for old, new in zip(both, now))


def _made(stream: Any) -> Any:
    return stream if isinstance(stream, Harmless) else Harmless(stream)


def _nowhere() -> TextIO:
    return open(os.devnull, "w")  # noqa: SIM115
