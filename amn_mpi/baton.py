"""Several pieces of ordinary code that stop at the same kind of place, so that what they ask for there
is done for all of them at once.

Each piece runs in a thread of its own, but only one thread at a time: the one that has been handed the
baton. So nothing depends on chance. The calling thread does what is asked for; MPI, signals and heavy
arithmetic stay there.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from queue import SimpleQueue
from typing import Any, Generic, NamedTuple, TypeVar

T = TypeVar("T")


class Request(NamedTuple):
    """What a piece asks for: requests of one kind can be met together."""

    kind: Hashable
    what: Any


Ask = Callable[[Request], Any]
# All pieces that wait, by number, to the answers of some of them.
Meet = Callable[[Mapping[int, Request]], Mapping[int, Any]]


class Ended(BaseException):
    """In a piece that is not to go on; no Exception, so that no handler in it takes it for its own."""


class Piece(threading.Thread, Generic[T]):
    """One piece: from its start, or an answer, it runs to its next request or its end."""

    def __init__(self, work: Callable[[Ask], T]) -> None:
        super().__init__(daemon=True)
        self.request: Request | None = None
        self.result: T
        self.error: BaseException | None = None
        self._work = work
        self._answers: SimpleQueue[Any] = SimpleQueue()
        self._back: SimpleQueue[None] = SimpleQueue()

    def go_on(self, answer: Any = None) -> None:
        """Hand it the baton, and wait for it to come back.

        Raises:
            BaseException: what the piece raised.
        """
        self.request = None
        if self.ident is None:
            self.start()
        else:
            self._answers.put(answer)
        self._back.get()
        if self.error is not None:
            raise self.error

    def stop(self) -> None:
        """It ends where it waits; one that runs, at its next request."""
        if self.ident is not None:
            self._answers.put(Ended())
            self.join()

    def run(self) -> None:
        try:
            self.result = self._work(self._ask)
        except Ended:
            pass
        except BaseException as error:  # raised again where the baton goes back to
            self.error = error
        finally:
            self._back.put(None)

    def _ask(self, request: Request) -> Any:
        self.request = request
        self._back.put(None)
        answer = self._answers.get()
        if isinstance(answer, Ended):
            raise answer
        return answer


def together(works: Sequence[Callable[[Ask], T]], meet: Meet) -> list[T]:
    """What the pieces return, in their order.

    Args:
        meet: called while at least one waits and none runs; it answers one at least. In between
            the pieces run one by one, in their order.

    Raises:
        BaseException: what one of the pieces, or ``meet``, raised; by then all of them have ended.
    """
    pieces = [Piece(work) for work in works]
    try:
        answers: Mapping[int, Any] = dict.fromkeys(range(len(pieces)))
        while answers:
            for number in sorted(answers):
                pieces[number].go_on(answers[number])
            waiting = {k: piece.request for k, piece in enumerate(pieces) if piece.request is not None}
            answers = meet(waiting) if waiting else {}
        return [piece.result for piece in pieces]
    finally:
        for piece in pieces:
            piece.stop()
