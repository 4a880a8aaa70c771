"""The only door to MPI's messages: rows from flat buffers, exact sums, small objects.

Ranks, waits and ends are those of ``ranks.Ranks``.
"""

from __future__ import annotations

import os
import pickle
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from amn_mpi.errors import Stopped, UserError
from amn_mpi.flow import PIECE
from amn_mpi.launcher import check_family
from amn_mpi.ranks import FLOW, Ranks

SPREAD, SUM, TURN = 1, 2, 4
SMALL = 4096  # bytes of a small object that travel in one message with its length


class Communicator(Ranks):
    """MPI_COMM_WORLD as this project uses it.

    In collective calls every rank takes part in the same order, idle ones too.
    """

    def __init__(self) -> None:
        super().__init__(*_initialised())

    # ---- arrays

    def broadcast(self, array: np.ndarray) -> None:
        """Rank 0's array replaces everybody's, in place."""
        if self.size == 1:
            return
        self._spread(array, "broadcast")

    def scatter_rows(
        self, rows: np.ndarray | None, counts: Sequence[int] | np.ndarray, out: np.ndarray
    ) -> np.ndarray:
        """Send consecutive rows of rank 0's (sum(counts), ...) array to the owners.

        Args:
            counts: rows for each owner, known to all ranks.
            out: this owner's (own count, ...) array; untouched where rank 0 is alone.

        Returns:
            ``out``, or ``rows`` itself where rank 0 is alone (nothing is copied).
        """
        if self.size == 1:
            return rows if rows is not None else out
        send, row = None, self._row(rows if rows is not None else out)
        with self._timed("scatter"):
            if self.is_server and rows is not None:
                send = [rows, *self._placed(counts), row]
                self._count("scatter", rows.nbytes)
            receive = [out, 0 if self.is_server else len(out), row]
            self._wait(self._world.Iscatterv(send, receive, root=0), "scatter", *self._down, row.size)
        row.Free()
        return out

    def gather_rows(
        self, own: np.ndarray, counts: Sequence[int] | np.ndarray, out: np.ndarray | None
    ) -> np.ndarray:
        """The owners' rows one below the other on rank 0, in the order of the owners.

        Returns:
            ``out`` (sum(counts), ...) on rank 0; ``own`` itself where rank 0 is alone, and on
            the other ranks.
        """
        if self.size == 1:
            return own
        row = self._row(own if out is None else out)
        receive = None if out is None else [out, *self._placed(counts), row]
        if not self.is_server:
            self._count("gather", own.nbytes)
        send = [own, 0 if self.is_server else len(own), row]
        with self._timed("gather"):
            self._wait(self._world.Igatherv(send, receive, root=0), "gather", *self._up, row.size)
        row.Free()
        return own if out is None else out

    def sum_exact(self, numbers: np.ndarray) -> np.ndarray:
        """Sum of int64 arrays over all ranks, valid on rank 0.

        Integer addition is associative: the sum does not depend on the number of ranks or on the
        order in which they arrive, which no sum of floats can promise.
        """
        if self.size == 1:
            return numbers
        if not self.is_server:
            self._count("reduce", numbers.nbytes)
        with self._timed("reduce"):
            return self._sum(numbers)

    def swap(self, own: np.ndarray, give: Sequence[int], into: np.ndarray, take: Sequence[int]) -> None:
        """Flat pieces from every owner to every owner, itself included; both sides in owners' order.

        Args:
            give, take: numbers for and from each owner.
        """
        if self.size == 1:
            into[:] = own
            return
        kind, me = self._mpi.FLOAT, self.rank
        (given, places), (taken, into_places) = self._placed(give), self._placed(take)
        # What stays is copied here: UCX moves a message to oneself by 8 KB with each look at the
        # request, and between looks a rank sleeps: seconds for a megabyte (MPICH 5.0).
        with self._timed("alltoall"):
            here = slice(into_places[me], into_places[me] + taken[me])
            into[here] = own[places[me] : places[me] + given[me]]
            given[me] = taken[me] = 0
            self._count("alltoall", sum(given) * own.itemsize)
            request = self._world.Ialltoallv([own, given, places, kind], [into, taken, into_places, kind])
            owners = range(1, self.size)
            self._wait(request, "alltoall", owners, owners, own.nbytes // self.owners)

    def in_turn(self, own: np.ndarray | None, owners: int, box: np.ndarray) -> Iterator[np.ndarray]:
        """On rank 0 the array of each of the first ``owners`` owners, one after another in ``box``.

        Each is overwritten by the next. An owner that has none gives None; nothing is yielded
        elsewhere, but every rank has to go through it.
        """
        if self.size == 1:
            yield from () if own is None else (own,)
        elif self.is_server:
            row = self._row(box)
            for owner in range(owners):
                with self._timed("turns"):
                    request = self._world.Irecv([box, len(box), row], source=owner + 1, tag=TURN)
                    self._wait(request, "turns", of=[owner + 1], nbytes=box.nbytes)
                yield box
            row.Free()
        elif own is not None:
            row = self._row(own)
            self._count("turns", own.nbytes)
            with self._timed("turns"):
                request = self._world.Isend([own, len(own), row], dest=0, tag=TURN)
                self._wait(request, "turns", to=[0], nbytes=own.nbytes)
            row.Free()

    # ---- small objects

    def share(self, thing: Any = None) -> Any:
        """Rank 0's object on every rank; pickled, so for small control objects only.

        Raises:
            UserError: on the ranks other than 0, where that is what rank 0 gives.
        """
        if self.size == 1:
            return thing
        packed = pickle.dumps(thing) if self.is_server else b""
        box = np.zeros(SMALL, np.uint8)
        if self.is_server:
            box[:8] = np.frombuffer(np.int64(len(packed)).tobytes(), np.uint8)
            box[8 : 8 + len(packed)] = np.frombuffer(packed[: SMALL - 8], np.uint8)
        self._spread(box, "share")
        length = int(box[:8].view(np.int64)[0])
        if length > SMALL - 8:
            box = np.concatenate([box[:8], np.frombuffer(packed or bytes(length), np.uint8)])
            self._spread(box, "share")
        found = thing if self.is_server else pickle.loads(box[8 : 8 + length].tobytes())
        if isinstance(found, UserError) and not self.is_server:
            raise found
        return found

    @contextmanager
    def awaited(self) -> Iterator[None]:
        """Around what rank 0 does while the others wait in ``share``; lasting ranks raise its error, too."""
        try:
            yield
        except UserError as error:
            if self.lasting and self.is_server and not isinstance(error, Stopped):
                self.share(error)
            raise

    def collect(self, thing: Any) -> list[Any]:
        """Every rank's object on rank 0, by rank; an empty list elsewhere. Pickled, small."""
        if self.size == 1:
            return [thing]
        packed = np.frombuffer(pickle.dumps(thing), np.uint8)
        lengths = np.zeros(self.size, np.int64)
        mine = np.array([packed.size], np.int64)
        with self._timed("collect"):
            self._wait(self._world.Igather(mine, lengths, root=0), "collect")
            box = np.empty(int(lengths.sum()), np.uint8)
            places = [lengths.tolist(), [0, *np.cumsum(lengths)[:-1].tolist()], self._mpi.BYTE]
            receive = [box, *places] if self.is_server else None
            self._count("collect", 0 if self.is_server else packed.nbytes)
            request = self._world.Igatherv([packed, self._mpi.BYTE], receive, root=0)
            self._wait(request, "collect", *self._up, packed.nbytes)
        if not self.is_server:
            return []
        pieces = np.split(box, np.cumsum(lengths)[:-1])
        return [pickle.loads(piece.tobytes()) for piece in pieces]

    # ---- arrays that flow to rank 0 beside the training

    def let_flow(self, arrays: Sequence[np.ndarray]) -> None:
        """Send contiguous arrays to rank 0, piece by piece from between the steps.

        Rank 0 takes them with ``take_flow``; until it has them all they must not change.
        """
        self._count("checkpoint", self._flow.begin(arrays))

    def take_flow(self, owner: int, nbytes: int) -> Iterator[np.ndarray]:
        """On rank 0: an array of ``nbytes`` bytes that an owner lets flow, a piece at a time.

        Each piece is overwritten by the next.
        """
        box = np.empty(min(nbytes, PIECE), np.uint8)
        for start in range(0, nbytes, PIECE):
            piece = box[: nbytes - start]
            with self._timed("checkpoint"):
                request = self._world.Irecv(piece, source=owner + 1, tag=FLOW)
                self._wait(request, "checkpoint", of=[owner + 1], nbytes=piece.nbytes)
            yield piece

    # ---- inside

    @property
    def _up(self) -> tuple[Sequence[int], Sequence[int]]:
        """(to, of) where all others send to rank 0."""
        return ((), range(1, self.size)) if self.is_server else ([0], ())

    @property
    def _down(self) -> tuple[Sequence[int], Sequence[int]]:
        """(to, of) where rank 0 sends to all others."""
        return (range(1, self.size), ()) if self.is_server else ((), [0])

    def _spread(self, array: np.ndarray, what: str) -> None:
        """Rank 0's array to all.

        Along a tree where ranks spin. Where they sleep, straight from rank 0: in a tree every
        level would first have to wake up.
        """
        self._count(what, array.nbytes * (self.size - 1) if self.is_server else 0)
        with self._timed(what):
            if self.spins:
                self._wait(self._world.Ibcast(array, root=0), what)
            elif self.is_server:
                sends = [self._world.Isend(array, dest=r, tag=SPREAD) for r in range(1, self.size)]
                for rank, request in enumerate(sends, 1):
                    self._wait(request, what, to=[rank], nbytes=array.nbytes)
            else:
                request = self._world.Irecv(array, source=0, tag=SPREAD)
                self._wait(request, what, of=[0], nbytes=array.nbytes)

    def _sum(self, numbers: np.ndarray) -> np.ndarray:
        if self.spins:
            total = np.empty_like(numbers) if self.is_server else None
            self._wait(self._world.Ireduce(numbers, total, op=self._mpi.SUM, root=0), "reduce")
            return numbers if total is None else total
        if not self.is_server:
            request = self._world.Isend(numbers, dest=0, tag=SUM)
            self._wait(request, "reduce", to=[0], nbytes=numbers.nbytes)
            return numbers
        total, other = numbers.copy(), np.empty_like(numbers)
        for rank in range(1, self.size):
            request = self._world.Irecv(other, source=rank, tag=SUM)
            self._wait(request, "reduce", of=[rank], nbytes=other.nbytes)
            total += other
        return total

    def _row(self, rows: np.ndarray) -> Any:
        """One row as a datatype: counts are then numbers of rows, far from 2^31."""
        from mpi4py.util.dtlib import from_numpy_dtype

        length = int(np.prod(rows.shape[1:], dtype=np.int64))
        return from_numpy_dtype(rows.dtype).Create_contiguous(length).Commit()

    def _placed(self, counts: Sequence[int] | np.ndarray) -> tuple[list[int], list[int]]:
        """(counts, displacements) by rank; rank 0 has no rows of its own here."""
        by_rank = [0, *map(int, counts)]
        return by_rank, [0, *np.cumsum(by_rank)[:-1].tolist()]

    def _count(self, kind: str, nbytes: int) -> None:
        self.sent[kind] += int(nbytes)

    @contextmanager
    def _timed(self, kind: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        self.took[kind] += time.perf_counter() - began
        self.calls[kind] += 1


def _initialised() -> tuple[Any, str]:
    """mpi4py's module, and the name of the MPI library; stops where the launcher is another MPI's."""
    import mpi4py

    mpi4py.rc.initialize = False
    with warnings.catch_warnings():  # of a launcher that does not match; told better below
        warnings.simplefilter("ignore")
        from mpi4py import MPI

        library = " ".join(MPI.Get_library_version().split("\n")[0].strip("\x00").split())
        check_family(library)
        if not MPI.Is_initialized():
            if library.startswith("MPICH") and "SLURM_PROCID" in os.environ:
                _in_fresh_memory(MPI.Init_thread, MPI.THREAD_SERIALIZED)
            else:
                MPI.Init_thread(MPI.THREAD_FUNNELED)
    return MPI, library


def _in_fresh_memory(init: Callable[[int], int], level: int) -> None:
    """MPI_Init in a thread of its own, whose heap is new and thus full of zeros.

    MPICH 5 over UCX publishes 4 KB from the heap, of which a rank's address is the first tenth,
    in hexadecimal with runs of zeros shortened. Slurm's PMI cuts lines at 1,023 bytes: where Python
    has left long text in that memory, such as docstrings, the addresses arrive broken. The later
    calls come from the main thread: hence level SERIALIZED, which costs MPICH no lock.
    """
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as fresh:
        fresh.submit(init, level).result()
