"""The entry: ``mpirun -n 33 python -m amn_mpi.main --config FILE.yaml --key value ...``

Exit status: 0 finished, 1 something the user can mend (one line says what) or an error with its
traceback, 2 a wrong configuration, 128 + n stopped by signal n.
"""

from __future__ import annotations

import _signal  # built in: the signal module costs milliseconds, and Ctrl-C may come in them

if __name__ == "__main__":
    # Until main() takes over: Python's own handler would raise amid imports and the start of MPI.
    _signal.signal(_signal.SIGINT, _signal.SIG_DFL)

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

STARTED = time.monotonic()
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # one thread a rank; torch's is set from the config

from amn_mpi.clock import Clock
from amn_mpi.comm import Communicator
from amn_mpi.errors import Diverged, Stopped, UserError

if TYPE_CHECKING:
    from amn_mpi.config import Config
    from amn_mpi.data import Federation
    from amn_mpi.runfolder import RunFolder


def main(argv: Sequence[str], do: Callable[[Communicator, Sequence[str]], None] | None = None) -> NoReturn:
    """Run on this rank and end the process; never returns. ``do`` is the work, by default a run."""
    comm = Communicator()
    try:
        _on_signals(_stop)
        (do or work)(comm, argv)
    except UserError as error:
        _on_signals(signal.SIG_IGN)  # a second one would interrupt the account of the first
        comm.fail(f"amn_mpi: {error}", error.status, everywhere=isinstance(error, (Diverged, Stopped)))
    except BaseException as error:
        _on_signals(signal.SIG_IGN)
        comm.fail(_account(error, comm))
    comm.close()


def _on_signals(handler: Any) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, handler)


def _account(error: BaseException, comm: Communicator) -> str:
    """One line where memory ran out, for that is no bug; else the traceback."""
    where = f"on rank {comm.rank} ({comm.host})"
    reason = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in reason or "out of memory" in reason:
        return f"amn_mpi: out of memory {where}: {reason}; --dry_run shows what a run needs"
    return f"amn_mpi: error {where}:\n{traceback.format_exc()}"


def work(comm: Communicator, argv: Sequence[str]) -> None:
    """Configuration, data, runs, result."""
    clock = Clock(comm, STARTED)
    config, dry = comm.share(_configure(argv) if comm.is_server else None)
    if config is None:
        return
    comm.configure(config.comm.wait, config.comm.timeout)
    if not _needed(comm, config):
        return
    if dry:
        if comm.is_server:
            _dry_run(config, comm)
        return
    folder = _open_folder(config) if comm.is_server else None
    with folder or nullcontext():
        fed = None
        if comm.is_server:
            with clock("prepare"):
                fed = prepare(config)
        with signals_held():  # torch takes a second or more a rank; rank 0 prepares the data meanwhile
            from amn_mpi import job
        if fed is not None:
            _check(config, fed, comm)
        job.run_all(config, comm, comm.share(fed), folder, clock)


def _configure(argv: Sequence[str]) -> tuple[Config | None, bool]:
    from amn_mpi import cli

    try:
        return cli.parse(argv)
    except cli.Printed as answer:
        try:
            print(answer, flush=True)
        except BrokenPipeError:  # --help | head
            sys.stdout = open(os.devnull, "w")  # noqa: SIM115
        return None, False


def _needed(comm: Communicator, config: Config) -> bool:
    """Whether this rank has work; ranks beyond the clients only wait for the end."""
    ranks = config.data.clients + 1
    if comm.size > ranks and comm.is_server:
        print(
            f"amn_mpi: warning: {comm.size} ranks for {config.data.clients} clients and the "
            f"server: {comm.size - ranks} stay idle",
            file=sys.stderr,
            flush=True,
        )
    return comm.keep(ranks)


def _open_folder(config: Config) -> RunFolder:
    from amn_mpi.runfolder import RunFolder, default_folder

    if config.out:
        return RunFolder(config.out)
    return RunFolder(default_folder(config), made=True)


def prepare(config: Config) -> Federation:
    """Rank 0 reads the data, or finds it prepared."""
    from amn_mpi import data

    return data.prepare(config.data, config.seed)


def _check(config: Config, fed: Federation, comm: Communicator) -> None:
    """What cannot be is refused, and a warning given where the run will not fit into this machine."""
    import dataclasses

    from amn_mpi import budget, methods

    budget.check(config, fed)
    for name in (config.method.name, *methods.listed(config.baselines)):
        own = name == config.method.name
        run = config if own else dataclasses.replace(config, method=methods.options(name)())
        for line in budget.warnings(run, fed, comm):
            print(f"amn_mpi: warning: {'' if own else name + ': '}{line}", file=sys.stderr, flush=True)


def _dry_run(config: Config, comm: Communicator) -> None:
    import yaml

    from amn_mpi import budget, data

    fed = data.describe(config.data, config.seed)
    budget.check(config, fed)  # before anything is printed
    print(yaml.safe_dump(config.as_dict(), sort_keys=False))
    budget.show(config, fed, comm)


@contextmanager
def signals_held() -> Iterator[None]:
    """A signal meanwhile counts afterwards: an exception through the C++ of an import is a crash."""
    noted: list[int] = []
    _on_signals(lambda number, frame: noted.append(number))
    yield
    _on_signals(_stop)
    if noted:
        _stop(noted[0], None)


def _stop(number: int, frame: Any) -> NoReturn:
    name = signal.Signals(number).name
    raise Stopped(f"stopped by {name}; the run is unfinished", 128 + number)


if __name__ == "__main__":
    main(sys.argv[1:])
