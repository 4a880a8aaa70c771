"""The checkpoints of one run, as all ranks see them: when, and how the clients' state gets to rank 0.

What is saved after round t is written while the owners train round t + 1: their state changes only
when that round is committed, so it is a snapshot as it lies there. It flows to rank 0 in pieces
from between the steps of the training. Rank 0, which has nothing else to do then, writes them
through: no rank holds anything twice.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from amn_mpi import methods
from amn_mpi.checkpoint import Reader, Shape, Writer, listed, prune, tidy
from amn_mpi.errors import UserError
from amn_mpi.left import STATE
from amn_mpi.resume import warn

if TYPE_CHECKING:
    from amn_mpi.comm import Communicator
    from amn_mpi.config import Checkpoint
    from amn_mpi.methods.base import Method, State
    from amn_mpi.rounds import Run


class Keeper:
    """Args:
        folder: where checkpoints go, on rank 0; None there keeps none, on all ranks.
        about: rank 0's facts of the run for the file, as plain values.

    Attributes:
        history: rank 0's account of the rounds, as plain values.
        last_path, failed: the newest checkpoint of this start, and why the last one failed.
    """

    def __init__(self, comm: Communicator, options: Checkpoint, folder: Path | None) -> None:
        self._comm, self._options, self._folder = comm, options, folder
        self.on: bool = comm.share(folder is not None)
        self.about: dict[str, Any] = {}
        self.history: Callable[[], dict[str, Any]] = dict
        self._offered, self._began = False, time.monotonic()
        self._saved = (-1, False)
        self.written, self.failures = 0, 0
        self.last_path, self.failed = "", ""

    # ---- when

    def due(self, round: int) -> bool:
        """Whether to save after this round; rank 0 decides for all."""
        every, minutes = self._options.every, self._options.minutes
        late = bool(minutes) and time.monotonic() - self._began > 60 * minutes
        return self.on and (late or bool(every and round % every == 0))

    def offer(self, run: Run) -> None:
        """After a round: what the ranks hold now is to be saved; the owners let it flow."""
        self._offered = True
        self._began = time.monotonic()
        if self._comm.size == 1:
            self.write(run)
        elif self._comm.owner is not None:
            arrays = [run.state[name].numpy() for name in sorted(run.state)]
            run.exchange.left.add(sum(array.nbytes for array in arrays), STATE)
            self._comm.let_flow(arrays)

    def finish(self, run: Run) -> None:
        """Before the run ends or stops: save what is not saved yet, and wait until it is."""
        due = self.on and self._saved != self._point(run)
        if self._comm.share(due):
            self.offer(run)
            if self._comm.is_server:
                self.write(run)
            self._comm.share(None)

    # ---- writing, on rank 0

    def write(self, run: Run) -> None:
        """Write what was offered, if anything was; a disk that takes no more is only a warning."""
        if not (self._offered and self._comm.is_server):
            return
        self._offered = False
        pieces = self._pieces(run)
        try:
            self._write(run, pieces)
        except OSError as error:
            for _ in pieces:  # what flows has to be taken
                pass
            self._fails(run, os.strerror(error.errno) if error.errno else str(error))

    def _write(self, run: Run, pieces: Iterator[np.ndarray]) -> None:
        if self._folder is None:
            return
        server = {name: value.numpy() for name, value in _kept(run).items()}
        about = {**self.about, "round": run.done, "open": _plain(run)}
        with Writer(
            self._folder, run.done, about, self.history(), server, client_shapes(run), self._comm.tick
        ) as writer:
            for piece in pieces:
                writer.put(piece)
        self.written, self.failed, self.last_path = self.written + 1, "", str(writer.path)
        self._saved = self._point(run)
        prune(self._folder, self._options.keep)

    def _pieces(self, run: Run) -> Iterator[np.ndarray]:
        """The clients' state as ``Writer.put`` wants it."""
        for name in sorted(run.state):
            if self._comm.size == 1:
                yield run.state[name].numpy()
                continue
            row = row_bytes(client_shapes(run)[name])
            for owner, count in enumerate(np.diff(run.placement.bounds)):
                yield from self._comm.take_flow(owner, int(count) * row)

    def _fails(self, run: Run, reason: str) -> None:
        """The newest good checkpoint stays; ``_began`` lets the next try come no sooner than usual."""
        self.failures, self.failed = self.failures + 1, reason
        if self._folder is None:
            return
        left = listed(self._folder)
        good = f"{left[0].name} stays the newest" if left else "there is none yet"
        warn(f"{self._folder}: no checkpoint after round {run.done}: {reason}; {good}, the run goes on")

    @staticmethod
    def _point(run: Run) -> tuple[int, bool]:
        return run.done, run.open is not None

    def told(self, run: Run) -> str:
        """What a stop leaves, in words; on rank 0."""
        if not self.on:
            return "the run is unfinished"
        where = f"after round {run.done} of {run.config.rounds}"
        if self.failed:
            return f"{where}; its checkpoint could not be written ({self.failed})"
        return f"{where}; --resume auto goes on from {self.last_path or 'the checkpoint it started from'}"

    # ---- reading

    def restore(self, run: Run, path: Path | None) -> dict[str, Any] | None:
        """Set a run at its beginning to where a checkpoint was made; a collective call.

        Returns:
            On rank 0 the history, None where the run starts afresh.

        Raises:
            UserError: the checkpoint is of other data, another model or another engine.
        """
        if not self._comm.is_server:
            self._take(run, self._comm.share(None), None)
            return None
        if self._folder is not None:
            tidy(self._folder)
        if path is None:
            self._comm.share(None)
            return None
        with Reader(path) as reader:
            about = reader.text("about")
            fresh = self._compare(run, reader, about, path)
            mirrors = {name for name, own in run.method.mirrors.items() if own not in fresh}
            fill(run.method, run.server, reader, mirrors & set(run.server))
            facts = {"round": about["round"], "open": about["open"], "fresh": sorted(fresh)}
            self._take(run, self._comm.share(facts), reader)
            if self._folder is not None and path.resolve().parent == self._folder.resolve():
                self._saved = self._point(run)
            return reader.text("history")

    def _take(self, run: Run, facts: dict[str, Any] | None, reader: Reader | None) -> None:
        if facts is None:
            return
        run.done = facts["round"]
        if facts["open"]:
            run.reopen(facts["open"])
        for name, shape in client_shapes(run).items():
            if name not in facts["fresh"]:
                self._deal(run, name, shape, reader)
        if run.shards is not None:
            run.shards.restore(run.server, run.state)

    def _deal(self, run: Run, name: str, shape: Shape, reader: Reader | None) -> None:
        """One client of each owner at a time: rank 0 needs a row an owner."""
        comm, bounds = self._comm, run.placement.bounds
        own = np.diff(bounds)
        for k in range(int(own.max())):
            counts = (own > k).astype(int)
            rows = None
            if reader is not None:
                rows = np.stack([reader.row(name, bounds[j] + k) for j in np.flatnonzero(counts)])
                rows = np.ascontiguousarray(rows).reshape(len(rows), -1).view(np.uint8)
            mine = 0 if comm.owner is None else int(counts[comm.owner])
            got = comm.scatter_rows(rows, counts, np.empty((mine, row_bytes(shape)), np.uint8))
            if mine:
                run.state[name][k].numpy()[...] = got.reshape(-1).view(shape[1]).reshape(shape[0][1:])
            comm.tick()

    def _compare(self, run: Run, reader: Reader, about: dict[str, Any], path: Path) -> set[str]:
        """Refuse what cannot be continued bit by bit.

        Returns:
            Names of clients' state that begins anew: the file lacks it, and an option of the method that was
            accepted (``checkpoint.accept``) brings it. What such an option takes away is left in the file.
        """
        for what, words in COMPARED.items():
            then, now = about.get(what), self.about[what]
            if then != now:
                shown = f" ({then}, now {now})" if isinstance(now, (str, int)) else ""
                raise UserError(f"{path}: was made with {words}{shown}; it cannot be continued here")
        mine, there = client_shapes(run), reader.shapes("client")
        fresh: set[str] = set()
        if any(name.startswith("method.") for name in methods.listed(run.config.checkpoint.accept)):
            fresh = mine.keys() - there.keys()
            there = {name: shape for name, shape in there.items() if name in mine}
        compare_state(reader, run.method, "client", {k: mine[k] for k in mine.keys() - fresh}, there)
        compare_state(reader, run.method, "server", shapes(_kept(run)))
        compare_versions(path, about, self.about)
        return fresh


COMPARED = {
    "layout": "another model",
    "data": "other data, or another share of it for each client",
    "engine": "another engine",
}


def fill(method: Method, server: State, reader: Reader, mirrors: Iterable[str]) -> None:
    """The server's state, begun by ``Method.init``, as it was saved, ``mirrors`` included."""
    from torch import as_tensor

    for name, value in reader.server().items():
        server[name].numpy()[...] = value
    for name in mirrors:
        for client in range(method.setting.clients):
            method.mirror(server, name, client, as_tensor(reader.row(method.mirrors[name], client)))


def compare_state(
    reader: Reader,
    method: Method,
    kind: str,
    mine: Mapping[str, Shape],
    there: Mapping[str, Shape] | None = None,
) -> None:
    """Raises UserError where a file has other ``client`` or ``server`` state than the method keeps.

    Args:
        there: what counts of what the file has; None: all of it.
    """
    found = reader.shapes(kind) if there is None else there
    differing = sorted({name for name, _ in found.items() ^ mine.items()})
    if differing:
        raise UserError(
            f"{reader.path}: holds other {kind} state than method.name = {method.options.name} keeps "
            f"({', '.join(differing)}); it cannot be continued with this version"
        )


def compare_versions(path: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Warn of other versions than those of ``then``, the facts in a file."""
    for name, version in then["versions"].items():
        mine = now["versions"].get(name)
        if version != mine:
            warn(f"{path} was made with {name} {version}, now {mine}: bits may differ")


def shapes(state: State) -> dict[str, Shape]:
    """Shape and type by name."""
    return {name: (tuple(value.shape), value.numpy().dtype) for name, value in state.items()}


def client_shapes(run: Run) -> dict[str, Shape]:
    """Shape and type of the state of all clients, by name in the order of the file."""
    return {
        name: ((run.clients, *run.state[name].shape[1:]), run.state[name].numpy().dtype)
        for name in sorted(run.state)
    }


def row_bytes(shape: Shape) -> int:
    """Bytes of one client's part."""
    return math.prod(shape[0][1:]) * shape[1].itemsize


def _kept(run: Run) -> State:
    """The server's state without what is there as the clients' state already."""
    return {name: value for name, value in run.server.items() if name not in run.method.mirrors}


def _plain(run: Run) -> dict[str, Any] | None:
    return None if run.open is None else run.open.plain()
