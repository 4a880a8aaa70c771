"""A run that takes $TRAIN seconds longer for each client's training, $CORRECT for each model's test.

AMN's clients count errors of their held-out samples, too: only what ``rounds.evaluate`` asks for is a test.

``TRAIN=stuck``: the first client never ends its training, nor takes any step in it. $MARK appears with
each test of a model, and where a run is stuck.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from amn_mpi import compiled, local, main


def longer(call: Callable[..., Any], seconds: float) -> Callable[..., Any]:
    """In steps, between which a stop is heard."""

    def slow(self: local.Engine, *args: Any, **kwargs: Any) -> Any:
        if call.__name__ == "correct":
            if not sys._getframe(1).f_code.co_filename.endswith("rounds.py"):
                return call(self, *args, **kwargs)
            mark()
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            self.tick()
            time.sleep(0.01)
        return call(self, *args, **kwargs)

    return slow


def stuck(self: local.Engine, *args: Any, **kwargs: Any) -> Any:
    mark()
    time.sleep(3600)


def mark() -> None:
    if "MARK" in os.environ:
        Path(os.environ["MARK"]).touch()


for kind in (local.Engine, compiled.CompiledEngine):
    if os.environ.get("TRAIN") == "stuck":
        kind.train = stuck
    else:
        kind.train = longer(kind.train, float(os.environ.get("TRAIN", 0)))
    kind.correct = longer(kind.correct, float(os.environ.get("CORRECT", 0)))
main.main(sys.argv[1:])
