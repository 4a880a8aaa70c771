"""Who and where the ranks are, how they wait for each other, and how they end.

Every wait is a non-blocking call, polled. In between a rank sleeps when ranks outnumber cores:
waiting ranks in blocking collectives take every core there is and slow a computation beside them
tenfold, whatever the library's settings. The sleep grows with the time waited (5 % of it, 50
microseconds to 20 ms), so short rounds stay short and long waits cost next to nothing; a rank on the
same host that starts a message ends it (``bells.py``).
"""

from __future__ import annotations

import ctypes
import os
import socket
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from typing import Any, NoReturn

import numpy as np

from amn_mpi import signals, watch
from amn_mpi.bells import Bells
from amn_mpi.errors import ConfigError, Interrupted
from amn_mpi.flow import Flow
from amn_mpi.launcher import check_launcher, local_rank, node_name
from amn_mpi.liveness import Liveness

SHORTEST, LONGEST, SHARE = 50e-6, 20e-3, 0.05
UNHURRIED = 2e-3  # instead of SHORTEST, where a bell tells when to look
LONG = 4096  # bytes; the MPI libraries send so much at once
FLOW = 3
ULFM = "OMPI_MCA_mpi_ft_enable"  # what mpirun --with-ft ulfm sets


class Ranks:
    """The ranks of MPI_COMM_WORLD; ``mpi`` is mpi4py's module (only ``comm.py`` imports it).

    Rank 0 serves; the clients belong to the ranks 1..n-1, or to rank 0 where it is alone.

    Attributes:
        sent: bytes by collective that this rank sent, on rank 0 to all the others together.
        took, calls: wall seconds inside by collective, those of waiting for the others included, and
            how often; a collective whose messages go one by one counts each.
        wait_seconds, wait_cpu: wall and CPU seconds spent inside waits.
        stopping: number of the signal for which all ranks are to stop; 0 while they are not.
        lost: "rank r on host" of those that this one has survived.
        lasting: the process lives on after a run, so what rank 0 alone runs into is raised on every rank.
        busy: amid a run: the others wait for arrays, and an error of one rank cannot be shared.
    """

    lasting = busy = False

    def __init__(self, mpi: Any, library: str) -> None:
        self._mpi, self.library = mpi, library
        self.host = socket.gethostname()
        check_launcher(mpi.COMM_WORLD.size, library)
        self.sent: dict[str, int] = defaultdict(int)
        self.took: dict[str, float] = defaultdict(float)
        self.calls: dict[str, int] = defaultdict(int)
        self.wait_seconds = self.wait_cpu = 0.0
        self.lost: list[str] = []
        self._line: socket.socket | None = None
        self.stopping, self._asked = 0, False
        self._settle(mpi.COMM_WORLD)

    def _settle(self, everybody: Any) -> None:
        """Find out who and where the ranks are: at the start, and when some have been lost."""
        self._everybody = self._world = everybody
        self.rank: int = everybody.rank
        self.size: int = everybody.size
        node = self._node = self._neighbours(everybody)
        self.ranks_on_host: int = node.size
        self.rank_on_host: int = node.rank
        self.server_on_host: bool = node.allreduce(self.rank == 0, self._mpi.LOR)
        self._alive = Liveness(self._mpi, everybody)
        self._bells = Bells(node, self.rank)
        # Of the whole job: all ranks have to wait, and so to send, in the same way.
        cores = set[int]().union(*node.allgather(os.sched_getaffinity(0)))
        self._crowded = everybody.allreduce(self.ranks_on_host > len(cores), self._mpi.LOR)
        self.configure("auto", 1800.0)
        self._last_tick = 0.0
        self._flow = Flow(self._send_piece)

    def _neighbours(self, everybody: Any) -> Any:
        """The ranks on this host, as MPI sees them, or as the launcher does where it counts more.

        Under srun with a list of hosts (``--distribution=arbitrary``) MPICH takes every rank for
        alone on its host.
        """
        node = everybody.Split_type(self._mpi.COMM_TYPE_SHARED)
        if not everybody.allreduce(local_rank() >= node.size, self._mpi.LOR):
            return node
        node.Free()
        names = everybody.allgather(node_name(self.host))
        return everybody.Split(names.index(names[everybody.rank]), everybody.rank)

    def configure(self, wait: str, timeout: float) -> None:
        """Set how to wait (``auto``, ``sleep``, ``spin``) and when a silent rank counts as hung."""
        self.spins = wait == "spin" or (wait == "auto" and not self._crowded)
        self._timeout = timeout

    def keep(self, size: int) -> bool:
        """Go on with the first ``size`` ranks; False on the others, which have nothing to do."""
        if size >= self.size:
            return True
        stays = self.rank < size
        self._world = self._world.Split(0 if stays else 1, self.rank)
        self.size = self._world.size
        return stays

    def widen(self) -> None:
        """The end of what ``keep`` began: all ranks again. A collective call where ``keep`` left any out."""
        if self._world is not self._everybody:
            self._world.Free()
        self._world, self.size = self._everybody, self._everybody.size
        self.busy = False

    # ---- roles

    @property
    def is_server(self) -> bool:
        return self.rank == 0

    @property
    def owners(self) -> int:
        """How many ranks can own clients."""
        return max(1, self.size - 1)

    @property
    def owner(self) -> int | None:
        """This rank's number among the owners; None on a rank that only serves."""
        if self.size == 1:
            return 0
        return self.rank - 1 if self.rank else None

    # ---- liveness and the end

    def tick(self) -> None:
        """Say "still at work"; called between steps of anything long, costs nothing mostly."""
        self._flow.go_on()
        now = time.monotonic()
        if now - self._last_tick > 0.5 or (signals.asked and not self._asked):
            self._last_tick = now
            self._hear()

    def step(self) -> None:
        """``tick`` between two steps of training or evaluation.

        Raises:
            Interrupted: all ranks are to stop.
        """
        self.tick()
        if self.stopping:
            raise Interrupted

    def _hear(self) -> None:
        """Answer the others, and pass on that a stop is asked for: any rank to rank 0, it to all."""
        self._alive.answer()
        number = self._alive.told_to_stop()
        if signals.asked and not self._asked:
            self._asked = True
            if self.rank:
                self._alive.ask_to_stop(signals.asked)
            else:
                number = signals.asked
        if number and not self.stopping:
            self.stopping = number
            if not self.rank:
                self._alive.order_to_stop(number)

    def fail(self, message: str, status: int = 1, everywhere: bool = False) -> NoReturn:
        """Print once, on the lowest of the ranks that fail together, and end all with ``status``.

        Args:
            everywhere: the cause reaches most ranks (a signal): rank 0 gets time to speak first.
        """
        watch.end(self._line)
        if self._alive.may_speak(1.5 if everywhere else 0.25):
            sys.stdout.flush()
            print(message, file=sys.stderr, flush=True)
        else:
            time.sleep(8.0)  # the one that speaks ends this rank, too
        if self._everybody.size == 1:
            os._exit(status)
        time.sleep(0.3)  # the launcher loses what it has not forwarded when it ends the ranks
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the library's own note on MPI_Abort
        self._world.Abort(status)
        os._exit(status)

    def meet(self, status: int = 0) -> int:
        """Wait until all ranks are done; returns the highest status that any of them gives.

        Idle ranks wait here for the whole run: they do not ask whether the others hang.
        """
        highest = np.array([status])
        if self._everybody.size > 1:
            request = self._everybody.Iallreduce(self._mpi.IN_PLACE, highest, op=self._mpi.MAX)
            self._wait(request, "end", asks=self._world is self._everybody)
        return int(highest[0])

    def close(self, status: int = 0) -> NoReturn:
        """End this rank, after ``meet``.

        Without Python's teardown: it takes ten seconds over 33 ranks and can change nothing.
        """
        self.leave(finalize=not self.lost)  # with a rank missing it hangs now and then (Open MPI 5.0)
        sys.stdout.flush()
        sys.stderr.flush()
        if not self.lost:
            # The C library's exit: MPICH takes leave of its launcher in an atexit handler, and a
            # rank that skips it (os._exit) is taken for a crashed one.
            ctypes.CDLL(None).exit(status)
        os._exit(status)

    def leave(self, finalize: bool) -> None:
        """Take leave of the watcher and, where ``finalize``, of MPI; the process lives on."""
        watch.end(self._line)
        if finalize:
            self._alive.drain()
            self._mpi.Finalize()

    def unstop(self) -> None:
        """A rank that is alone forgets the stop that ended its last run."""
        self.stopping, self._asked = 0, False

    # ---- the loss of a rank

    def watch(self) -> None:
        """From now on have a rank that is killed named: MPICH's launcher does not, others do."""
        if self.library.startswith("MPICH") and "MPI_LOCALRANKID" in os.environ and self.size > 1:
            address = self._node.bcast(watch.start() if self.rank_on_host == 0 else "")
            name = f"rank {self.rank} on {self.host} (process {os.getpid()})"
            self._line = watch.join(address, name)

    def check_survival(self) -> None:
        """Raises ConfigError where this MPI ends all ranks when it loses one."""
        started = os.environ.get(ULFM) == "1"
        if not (started and self.library.startswith("Open MPI")):
            raise ConfigError(
                f"faults.survive = true: {self.library.split(',')[0]} as it was started ends all ranks when "
                "it loses one; valid is false, with --resume auto at the next start, or true under Open "
                "MPI 5 with mpirun --with-ft ulfm"
            )
        self._hosts = self._everybody.allgather(self.host)

    def is_loss(self, error: BaseException) -> bool:
        """Whether an error says that a rank is lost, here or noticed by another one first."""
        mpi = self._mpi
        kinds = (mpi.ERR_PROC_FAILED, mpi.ERR_PROC_FAILED_PENDING, mpi.ERR_REVOKED)
        return isinstance(error, mpi.Exception) and error.Get_error_class() in kinds

    def recover(self) -> None:
        """Go on with the ranks that are left; rank 0 is then the first of them.

        Every rank that is left comes here: what it waits for is revoked by those that came before.
        Another loss on the way raises (``is_loss``): then call it again.
        """
        everybody, hosts = self._everybody, self._hosts
        self._alive.revoke()
        for comm in {id(c): c for c in (self._world, everybody, self._node)}.values():
            comm.Revoke()
        left = everybody.Shrink()
        old = self._mpi.Group.Translate_ranks(left.group, list(range(left.size)), everybody.group)
        self.lost += [f"rank {r} on {host}" for r, host in enumerate(hosts) if r not in old]
        self._hosts = [hosts[r] for r in old]
        self._settle(left)

    # ---- inside

    def _send_piece(self, piece: np.ndarray) -> Any:
        request = self._world.Isend(piece, dest=0, tag=FLOW)
        if not self.spins:
            self._bells.ring([0])
        return request

    def _wait(
        self,
        request: Any,
        what: str,
        to: Sequence[int] = (),
        of: Sequence[int] = (),
        nbytes: int = 0,
        asks: bool = True,
    ) -> None:
        """Wait for a request.

        Args:
            to, of: the ranks that messages go to, and come from.
            nbytes: length of the messages. A long one waits at its sender for its receiver.
        """
        start = looked = time.monotonic()
        cpu = time.thread_time()
        self.tick()
        self._alive.forget()
        long, since, least = nbytes > LONG, start, SHORTEST
        if not self.spins:
            self._bells.ring([*to, *of] if long else to)
            if (to or of) and self._bells.reach([*to, *of]):
                least = UNHURRIED
        while not request.Test():
            now = time.monotonic()
            self._flow.go_on()
            if not self.spins and self._bells.sleep(min(LONGEST, max(least, SHARE * (now - since)))):
                since, least = now, SHORTEST
            if now - looked > 0.2:
                looked = now
                self._hear()
                silent = self._alive.silent(now - start, self._timeout) if asks else []
                if silent:
                    self._name(silent, what, now - start)
        if long and not self.spins:
            self._bells.ring(of)
        self.wait_seconds += time.monotonic() - start
        self.wait_cpu += time.thread_time() - cpu

    def _name(self, silent: list[int], what: str, waited: float) -> NoReturn:
        names = ", ".join(map(str, silent))
        self.fail(
            f"amn_mpi: rank {names} hangs: no sign of life while rank {self.rank} on {self.host} "
            f"waited {waited:.0f} s in {what} (comm.timeout = {self._timeout:g})"
        )
