"""Runs from a script of one's own, alone or under mpirun: ``result = amn_mpi.train(config)``.

Every rank of the job calls ``train`` with the same configuration, as often as it likes, and lives on
afterwards. What cannot be is raised on every rank. Only what one rank alone runs into in the midst of
a run ends all ranks, as ``python -m amn_mpi.main`` does: the others could not be reached.
"""

from __future__ import annotations

import atexit
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from typing import Any

from amn_mpi import main, signals
from amn_mpi.comm import Communicator
from amn_mpi.errors import ConfigError, Diverged, Interrupted, Stopped, UserError

Layer = str | os.PathLike[str] | Mapping[str, Any]


def train(*config: Layer) -> dict[str, Any]:
    """One run with its baselines; a collective call: every rank of the job takes part.

    Args:
        config: what rank 0 gives counts. A YAML file or the name of one that comes with the package, or a
            mapping of keys, nested (``{"data": {"clients": 8}}``) or dotted (``{"data.clients": 8}``);
            of several, later ones win.

    Returns:
        The content of result.json on rank 0, {} on the other ranks. A run that is finished already
        (``resume: auto``) gives back its result.

    Raises:
        ConfigError, UserError: one line that says what is wrong; on every rank.
        Diverged: training left the numbers; on every rank.
        Stopped: a signal came; on every rank, what is done is saved. Later calls stop at once, but
            where this process is alone.
    """
    if threading.current_thread() is not threading.main_thread():
        raise UserError("amn_mpi.train: was called from a thread; valid is the main thread, for signals")
    comm = communicator()
    work, trouble = _Call(config), None
    with _own_signals(comm):
        try:
            work(comm, ())
        except UserError as error:
            trouble = error
        except Exception as error:
            trouble = _stopped(comm, error)
        with signals.patience():
            _check_alone(comm, trouble)
            comm.meet()
            comm.widen()
            comm.share(trouble)  # idle ranks know of none yet, nor the others of one at the very end
    if trouble is not None:
        raise trouble
    return work.result if comm.is_server else {}


@cache
def communicator() -> Communicator:
    """This process's door to MPI, made by the first call and closed when Python ends."""
    finalize = "mpi4py.MPI" not in sys.modules  # the script's own MPI ends by itself
    comm = Communicator()
    comm.lasting = True
    comm.watch()
    atexit.register(comm.leave, finalize)
    if comm.size > 1 and not hasattr(sys, "ps1"):
        sys.excepthook = _Last(comm)
    return comm


class _Call(main.Work):
    """A run whose configuration comes from Python."""

    def __init__(self, layers: tuple[Layer, ...]) -> None:
        super().__init__(None, time.monotonic())
        self._layers = layers

    def asked_for(self, comm: Communicator, argv: object) -> tuple[Any, bool]:
        return (main.with_own_clients(resolved(self._layers)) if comm.is_server else None), False


def resolved(layers: tuple[Layer, ...]) -> Any:
    """The Config that files and mappings make together.

    Raises:
        ConfigError: one line that names the key, the value and what is valid.
    """
    from amn_mpi import cli

    read = []
    for number, one in enumerate(layers, 1):
        if isinstance(one, Mapping):
            read.append(cli.layer(_plain(one), f"mapping {number} of amn_mpi.train"))
        elif isinstance(one, (str, os.PathLike)):
            read.append(cli.read(os.fspath(one)))
        else:
            raise ConfigError(f"amn_mpi.train: {one!r}: valid are mappings of keys, and YAML files' names")
    config = cli.resolve(read, [])
    if config.faults.survive:
        raise ConfigError(
            "faults.survive = true: valid in amn_mpi.train is false; python -m amn_mpi.main can"
        )
    return config


def _plain(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """Nested keys with plain values: what a YAML file could have held."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        where = f"{prefix}{name}"
        if isinstance(value, Mapping):
            found[str(name)] = _plain(value, f"{where}.")
            continue
        if isinstance(value, os.PathLike):
            value = os.fspath(value)
        if hasattr(value, "item") and not getattr(value, "shape", ()):
            value = value.item()  # a number out of numpy or torch
        value = list(value) if isinstance(value, tuple) else value
        parts = value if isinstance(value, list) else [value]
        if not all(part is None or isinstance(part, (bool, int, float, str)) for part in parts):
            kind = type(value).__name__
            raise ConfigError(f"{where}: a {kind} is no value of a key; valid are numbers, text, true, false")
        found[str(name)] = value
    return found


@contextmanager
def _own_signals(comm: Communicator) -> Iterator[None]:
    """Signals ask for a stop meanwhile; afterwards they are the script's again."""
    before = {number: signal.getsignal(number) for number in signals.NUMBERS}
    if comm.size == 1:
        signals.asked = signals.raised = 0
        comm.unstop()
    signals.install()
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


def _check_alone(comm: Communicator, error: UserError | None) -> None:
    """An error that this rank alone has, while others wait for something else than an answer, is the end."""
    if error is None or comm.size == 1 or isinstance(error, Diverged):
        return
    alone = not error.agreed if isinstance(error, Stopped) else comm.busy
    if alone:
        comm.fail(f"amn_mpi: {error}", error.status, everywhere=isinstance(error, Stopped))


def _stopped(comm: Communicator, error: Exception) -> Stopped:
    """A stop in the guise of another exception; a bug, or no memory, is raised here, or the end of all."""
    if isinstance(error, Interrupted) or signals.raised:
        return Stopped(comm.stopping or signals.raised)
    if comm.size == 1:
        raise error
    comm.fail(main.account(error, comm))


class _Last:
    """What nobody caught ends all ranks: the others would wait for this one for ever."""

    def __init__(self, comm: Communicator) -> None:
        self._comm = comm

    def __call__(self, kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if isinstance(error, UserError):
            self._comm.fail(f"amn_mpi: {error}", error.status, everywhere=True)
        text = "".join(traceback.format_exception(kind, error, trace))
        self._comm.fail(f"amn_mpi: error on rank {self._comm.rank} ({self._comm.host}):\n{text.rstrip()}")
