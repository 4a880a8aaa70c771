"""Newcomers are served by a trained network: a first model, the method's answer, and on from there.

``python -m amn_mpi.join CHECKPOINT --data FILE [--out DIR] [--epochs 5] [--first_epochs 1]
[--device cpu] [--engine torch]``

CHECKPOINT is a file, or the folder of a run: its newest checkpoint. Nothing of the run is changed.
FILE has x, y and, for the test, x_test, y_test or a mask ``test``: a newcomer's own samples, .npz or .h5, as
those of the run were. With an array ``client``, or where it is a folder of clients' files, it is several.
DIR gets models.h5 and result.json. ``device`` and ``engine`` are the run's unless they are given.

Exit status: 0 served, 1 something the user can mend (one line says what), 2 a wrong command line,
75 stopped by a signal.
"""

from __future__ import annotations

from amn_mpi import early

if __name__ == "__main__":
    early.listen()

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from amn_mpi import main, signals, trained
from amn_mpi.comm import Communicator
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.trained import Trained

if TYPE_CHECKING:
    from amn_mpi.checkpoint import Reader
    from amn_mpi.config import Config
    from amn_mpi.data import Federation
    from amn_mpi.joined import Outcome
    from amn_mpi.runfolder import RunFolder

HELP = (__doc__ or "").strip()
USAGE = "CHECKPOINT --data FILE [--out DIR] [--epochs N] [--first_epochs N] [--device D] [--engine E]"
TEXTS, NUMBERS = ("data", "out"), {"epochs": "5", "first_epochs": "1"}
OF_RUN = ("device", "engine")


@dataclass(frozen=True)
class Request:
    """What a command line asks for.

    Attributes:
        epochs: after the answer. first_epochs: before it. words: ``--key value`` of the run's keys.
    """

    checkpoint: str
    data: str
    out: str
    epochs: int
    first_epochs: int
    words: tuple[str, ...]


@dataclass(frozen=True)
class Held:
    """What rank 0 has found before the ranks get ready.

    Attributes:
        fed: the clients that trained, without samples; its ``newcomers`` are those of ``names``.
        reader: the open checkpoint. folder: where the result goes; None where it is only shown.
    """

    request: Request
    network: Trained
    fed: Federation
    names: tuple[str, ...]
    reader: Reader
    folder: RunFolder | None


def parse(argv: Sequence[str]) -> Request:
    """Raises ConfigError in one line."""
    from amn_mpi import tool  # by rank 0 alone

    given, names = tool.options(argv, (*TEXTS, *NUMBERS, *OF_RUN), USAGE)
    if len(names) != 1 or "data" not in given:
        raise ConfigError(
            f"{'give one checkpoint' if len(names) != 1 else '--data is missing'}; valid is {USAGE}"
        )
    words = [word for name in OF_RUN if name in given for word in (f"--{name}", given[name])]
    epochs, first = (_number(name, given.get(name, default)) for name, default in NUMBERS.items())
    return Request(names[0], given["data"], given.get("out", ""), epochs, first, tuple(words))


def _number(name: str, text: str) -> int:
    least = int(name == "first_epochs")
    if not text.isdecimal() or not least <= int(text) < 2**31:
        raise ConfigError(f"--{name} {text}: valid is a whole number >= {least}")
    return int(text)


def work(comm: Communicator, argv: Sequence[str]) -> None:
    """Rank 0 reads, keeps and tells; the newcomers are spread over the other ranks, as clients are."""
    with contextlib.ExitStack() as stack:
        held = _open(stack, argv, comm) if comm.is_server else None
        facts = comm.share(None if held is None else (held.request, held.network, held.fed))
        if facts is None:
            return
        request, network, fed = facts
        if not comm.keep(fed.newcomers.clients + 1):
            return
        comm.configure(network.config.comm.wait, network.config.comm.timeout)
        with signals.held():  # torch
            from amn_mpi import joined
        desk, served, left = joined.serve(comm, request, network, fed, None if held is None else held.reader)
        if held is not None:
            _keep_and_tell(held, joined.Outcome(request, network, held.names, desk, served, left))


def _open(stack: contextlib.ExitStack, argv: Sequence[str], comm: Communicator) -> Held | None:
    """Everything that can be refused before the ranks get ready; None where only help was asked for."""
    if {"--help", "-h"} & set(argv):
        print(HELP, flush=True)
        return None
    from amn_mpi.config import Data
    from amn_mpi.data import arrivals
    from amn_mpi.data.cache_place import folder

    request = parse(argv)
    reader = trained.opened(request.checkpoint)
    stack.push(reader)
    network = trained.of(reader, request.words)
    config = network.config
    raw = arrivals.read(request.data, network.fed)
    out = _folder(stack, request.out, config) if request.out else None
    place = folder(Data()) if comm.size > 1 else Path(tempfile.gettempdir())
    late = stack.enter_context(arrivals.prepared(raw, network.fed, config, place))
    fed = dataclasses.replace(network.fed, newcomers=late)
    return Held(request, network, fed, raw.client_names, reader, out)


def _folder(stack: contextlib.ExitStack, out: str, config: Config) -> RunFolder:
    from amn_mpi.runfolder import HELD, RunFolder

    there = [name for name in HELD if (Path(out) / name).exists()]
    if there:
        raise UserError(f"--out {out}: holds {', '.join(there)} already; choose another folder")
    return stack.enter_context(RunFolder(out, config))


def _keep_and_tell(held: Held, outcome: Outcome) -> None:
    from amn_mpi import joined

    joined.check(outcome)
    if held.folder is not None:
        joined.keep(outcome, held.folder)
    joined.show(outcome)


if __name__ == "__main__":
    main.main(sys.argv[1:], work)
