"""Arrays that flow to rank 0 beside the training: a piece goes when the last one has gone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

PIECE = 2**22  # bytes of a message


class Flow:
    """What a rank lets flow; it holds nothing that is not the caller's own array.

    Args:
        send: starts to send a piece, returns the request.
    """

    def __init__(self, send: Callable[[np.ndarray], Any]) -> None:
        self._send = send
        self._pieces: Iterator[np.ndarray] = iter(())
        self._request: Any = None

    def begin(self, arrays: Sequence[np.ndarray]) -> int:
        """Start with contiguous arrays, which must not change until all of it is taken; returns bytes."""
        flat = [array.reshape(-1).view(np.uint8) for array in arrays]
        self._pieces = (each[k : k + PIECE] for each in flat for k in range(0, each.size, PIECE))
        self._next()
        return sum(each.size for each in flat)

    def go_on(self) -> None:
        """Called from between the steps and from waits; costs nothing where nothing flows."""
        while self._request is not None and self._request.Test():
            self._next()

    def _next(self) -> None:
        piece = next(self._pieces, None)
        self._request = None if piece is None else self._send(piece)
