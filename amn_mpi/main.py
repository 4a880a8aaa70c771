"""The entry: ``mpirun -n 33 python -m amn_mpi.main --config FILE.yaml --key value ...``

Exit status: 0 finished, 1 something the user can mend (one line says what) or an error with its
traceback, 2 a wrong configuration, 75 stopped by a signal: the same command with --resume auto goes on.
"""

from __future__ import annotations

from amn_mpi import early

if __name__ == "__main__":
    early.listen()

import dataclasses
import os
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, NoReturn

STARTED = time.monotonic()
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")  # one thread a rank; torch's is set from the config

from amn_mpi import plugin, signals, streams
from amn_mpi.clock import Clock
from amn_mpi.comm import Communicator
from amn_mpi.errors import Diverged, Interrupted, Misdeclared, Stopped, UserError
from amn_mpi.startup import Startup

if TYPE_CHECKING:
    from amn_mpi.config import Config
    from amn_mpi.data import Federation
    from amn_mpi.runfolder import RunFolder


def main(argv: Sequence[str], do: Callable[[Communicator, Sequence[str]], None] | None = None) -> NoReturn:
    """Run on this rank and end the process; never returns. ``do`` is the work, by default a run."""
    streams.harmless()
    startup = Startup(STARTED)
    work = Work(startup)
    startup.over("modules")
    comm = Communicator()
    comm.watch()
    startup.over("mpi")
    lost = False
    while True:
        try:
            if lost:
                comm.recover()
                lost = False
            signals.install()
            (do or work)(comm, argv)
            with signals.patience():
                status = comm.meet()
            break
        except BaseException as error:
            lost = work.survives and comm.is_loss(error)
            if not lost:
                _end(comm, error)
    comm.close(status)


def _end(comm: Communicator, error: BaseException) -> NoReturn:
    """Say what happened, once, and end all ranks."""
    signals.ignore()  # a second one would interrupt the account of the first
    if isinstance(error, Interrupted) or signals.raised:
        error = Stopped(comm.stopping or signals.raised)
    if isinstance(error, Stopped) and error.agreed:
        if comm.is_server:
            print(f"amn_mpi: {error}", file=sys.stderr, flush=True)
        comm.close(comm.meet(error.status))
    if isinstance(error, UserError):
        comm.fail(f"amn_mpi: {error}", error.status, everywhere=isinstance(error, (Diverged, Stopped)))
    comm.fail(account(error, comm))


def account(error: BaseException, comm: Communicator) -> str:
    """One line where memory ran out or a user's own file went wrong, which is no bug; else the traceback."""
    where = f"on rank {comm.rank} ({comm.host})"
    reason = " ".join(str(error).split())
    if isinstance(error, MemoryError) or "allocate memory" in reason or "out of memory" in reason:
        return f"amn_mpi: out of memory {where}: {reason}; --dry_run shows what a run needs"
    if own := str(error) if isinstance(error, Misdeclared) else plugin.culprit(error):
        return f"amn_mpi: error {where}: {own}"
    if isinstance(error, OSError) and error.filename and not isinstance(error, FileNotFoundError):
        return (
            f"amn_mpi: error {where}: {error.filename}: {error.strerror}"  # a folder that one may not search
        )
    return f"amn_mpi: error {where}:\n{traceback.format_exc()}"


class Work:
    """The configured run: data, training, result. Called again by the ranks that are left when one is lost.

    Attributes:
        config: known to every rank as soon as there is something that could go on.
        result: the content of result.json on rank 0, at the end.
    """

    def __init__(self, startup: Startup | None, started: float = STARTED) -> None:
        self.config: Config | None = None
        self.startup, self._started = startup, started
        self.result: dict[str, Any] = {}

    @property
    def survives(self) -> bool:
        return self.config is not None and self.config.faults.survive

    def __call__(self, comm: Communicator, argv: Sequence[str]) -> None:
        clock = Clock(comm, self._started, self.startup)
        with comm.awaited():
            config, dry = self.asked_for(comm, argv)
            folder = _open_folder(config) if comm.is_server and config is not None and not dry else None
        with folder or nullcontext():
            if comm.lost and folder is not None:
                _tell_loss(comm, folder)
            config, dry, out = comm.share(
                (None if _finished(folder) else config, dry, str(folder and folder.path))
            )
            if config is None:
                self.result = folder.result() if folder is not None else {}
                return
            clock.over("configuration")
            comm.configure(config.comm.wait, config.comm.timeout)
            if dry:
                if comm.is_server:
                    _dry_run(config, comm)
                return
            if config.faults.survive:
                comm.check_survival()
                self.config = dataclasses.replace(config, out=out, resume="auto")
            if _needed(comm, config):
                self.result = _carry_out(config, comm, folder, clock)

    def asked_for(self, comm: Communicator, argv: Sequence[str]) -> tuple[Config | None, bool]:
        if comm.lost:
            return self.config, False
        return _configure(argv) if comm.is_server else (None, False)


def _carry_out(config: Config, comm: Communicator, folder: RunFolder | None, clock: Clock) -> dict[str, Any]:
    fed = None
    if comm.is_server:
        from amn_mpi import progress

        with comm.awaited(), clock("prepare"):
            fed = prepare(config)
        progress.starting(config.progress, comm.size)
    clock.over("data")
    with signals.held():  # torch takes a second or more a rank; rank 0 prepares the data meanwhile
        import torch  # noqa: F401  # by itself, for its share of the start

        clock.over("torch")
        from amn_mpi import job
    clock.over("modules")
    if fed is not None:
        with comm.awaited():
            _check(config, fed, comm)
    return job.run_all(config, comm, comm.share(fed), folder, clock)


def _tell_loss(comm: Communicator, folder: RunFolder) -> None:
    where = f"from {folder.saved}" if folder.saved else "from the beginning: there is no checkpoint yet"
    print(
        f"amn_mpi: warning: {', '.join(comm.lost)} lost; the other {comm.size} ranks go on {where}",
        file=sys.stderr,
        flush=True,
    )


def _configure(argv: Sequence[str]) -> tuple[Config | None, bool]:
    from amn_mpi import cli

    try:
        config, dry = cli.parse(argv)
    except cli.Printed as answer:
        print(answer, flush=True)
        return None, False
    return with_own_clients(config), dry


def with_own_clients(config: Config) -> Config:
    """With the real number of clients where the data has its own; on rank 0. Raises UserError."""
    from amn_mpi import data

    return dataclasses.replace(config, data=data.resolved(config.data))


def _needed(comm: Communicator, config: Config) -> bool:
    """Whether this rank has work; ranks beyond the clients only wait for the end."""
    ranks = config.data.training + 1
    if comm.size > ranks and comm.is_server:
        print(
            f"amn_mpi: warning: {comm.size} ranks for {config.data.training} clients and the "
            f"server: {comm.size - ranks} stay idle",
            file=sys.stderr,
            flush=True,
        )
    return comm.keep(ranks)


def _open_folder(config: Config) -> RunFolder:
    from amn_mpi.runfolder import RunFolder, default_folder

    if config.out:
        return RunFolder(config.out, config)
    return RunFolder(default_folder(config), config, made=True)


def _finished(folder: RunFolder | None) -> bool:
    if folder is None or not folder.finished:
        return False
    print(folder.finished, flush=True)
    folder.leave()
    return True


def prepare(config: Config) -> Federation:
    """Rank 0 reads the data, or finds it prepared."""
    from amn_mpi import data

    return data.prepare(config.data, config.seed, config.model.tokens)


def _check(config: Config, fed: Federation, comm: Communicator) -> None:
    """What cannot be is refused, and a warning given where the run will not fit into this machine."""
    from amn_mpi import budget, forecast, methods

    budget.check(config, fed)
    for name in (config.method.name, *methods.listed(config.baselines)):
        own = name == config.method.name
        run = config if own else methods.baseline(config, name)
        for line in forecast.warnings(run, fed, comm):
            print(f"amn_mpi: warning: {'' if own else name + ': '}{line}", file=sys.stderr, flush=True)


def _dry_run(config: Config, comm: Communicator) -> None:
    import yaml

    from amn_mpi import budget, callbacks, data, forecast

    callbacks.Callbacks(config.logging)
    fed = data.describe(config.data, config.seed, config.model.tokens)
    budget.check(config, fed)  # before anything is printed
    print(yaml.safe_dump(config.as_dict(), sort_keys=False))
    forecast.show(config, fed, comm)


if __name__ == "__main__":
    main(sys.argv[1:])
