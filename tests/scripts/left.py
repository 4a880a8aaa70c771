"""Runs whose messages are kept: every buffer that leaves a rank with clients is searched for samples.

Arguments: LINES.json, a list of command lines; FOLDER, which gets RUN-RANK.json for each of them.
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amn_mpi import main, methods, session
from amn_mpi.comm import Communicator
from amn_mpi.exchange import Exchange
from amn_mpi.ranks import FLOW
from amn_mpi.startup import Startup

for leak in ("Rows", "Mean", "Labels"):
    methods.METHODS[f"leaky_{leak.lower()}"] = f"leaky:{leak}"
CALLS = ("gather_rows", "sum_exact", "swap", "in_turn", "collect", "share", "broadcast", "scatter_rows")
WORDS = (np.uint8, np.int32, np.int64, np.float32, np.float64)  # as which labels could be sent


class World:
    """MPI's communicator as it is, but for keeping what is sent through it."""

    def __init__(self, real: Any) -> None:
        self.real, self.call = real, ""
        self.kept: list[tuple[str, bytes]] = []
        self.sent: Counter[str] = Counter()

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.real, name)
        if name not in ("Isend", "Igather", "Igatherv", "Ireduce", "Ialltoallv"):
            return found

        def sending(what: Any, *args: Any, **more: Any) -> Any:
            array = what[0] if isinstance(what, list) else what
            given = sum(what[1]) * array.itemsize if name == "Ialltoallv" else array.nbytes
            kind = "flow" if more.get("tag") == FLOW else self.call
            self.kept.append((kind, array.tobytes()))
            self.sent[kind] += given
            return found(what, *args, **more)

        return sending


class Watched(Communicator):
    def _settle(self, everybody: Any) -> None:
        super()._settle(everybody)
        self.world = self._everybody = self._world = World(everybody)


def watched(name: str) -> Any:
    real = getattr(Communicator, name)

    def calling(self: Watched, *args: Any) -> Any:
        self.world.call = name
        return real(self, *args)

    return calling


for call in CALLS:
    setattr(Watched, call, watched(call))
samples: dict[int, Any] = {}
slots: list[tuple[str, bytes]] = []
load, take = session.load_samples, Exchange.take


def loading(*args: Any) -> dict[int, Any]:
    samples.clear()
    samples.update(load(*args))
    return samples


def taking(self: Exchange, client: int, position: int, cohort: np.ndarray, update: Any) -> int:
    slots.append(("slot", self.slot(position).numpy().tobytes()))  # a sum would hide it
    return take(self, client, position, cohort, update)


session.load_samples = loading
Exchange.take = taking


def secrets() -> list[tuple[str, bytes]]:
    """The middle half of every sample, and each client's labels; pieces of one value tell nothing."""
    found = []
    for client in samples.values():
        for part in (client.x, client.x_test):
            for row in part.reshape(len(part), -1).numpy():
                middle = row[len(row) // 4 : -len(row) // 4]
                found += [("sample", middle.tobytes())] * (len(set(middle)) > 3)
        for y in (client.y.numpy(), client.y_test.numpy()):
            found += [("labels", y[:16].astype(word).tobytes()) for word in WORDS if len(set(y[:16])) > 1]
    return found


def each(comm: Any, argv: Sequence[str]) -> None:
    for number, words in enumerate(json.loads(Path(argv[0]).read_text())):
        comm.world.kept.clear()
        comm.world.sent.clear()
        slots.clear()
        before = Counter(comm.sent)
        main.Work(Startup(time.monotonic()))(comm, words)
        if comm.owner is None:
            continue
        looked = [*comm.world.kept, *slots]
        hits = {f"{what} in {kind}" for what, piece in secrets() for kind, sent in looked if piece in sent}
        told = {
            "secrets": Counter(what for what, _ in secrets()),
            "messages": Counter(kind for kind, _ in looked),
            "sent": comm.world.sent,
            "counted": {kind: n for kind, n in (Counter(comm.sent) - before).items() if n},
            "hits": sorted(hits),
        }
        (Path(argv[1]) / f"{number}-{comm.rank}.json").write_text(json.dumps(told))


main.Communicator = Watched
main.main(sys.argv[1:], each)
