"""Runs, newcomers of theirs and newcomers from checkpoints, one after another.

Argument: a JSON file with lines [what, word, ...]: ``main`` and ``join`` with their words; ``edit``, a
checkpoint, the folder for a copy, and JSON of what the copy says otherwise (null: nothing).
What the newcomers of a run got is kept beside the JSON file: METHOD.npy. A refusal is printed.
"""

from __future__ import annotations

import dataclasses
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from amn_mpi import checkpoint, join, main, newcomers
from amn_mpi.comm import Communicator
from amn_mpi.errors import UserError
from amn_mpi.startup import Startup

ATTEND = newcomers.attend


def edit(source: str, folder: str, changes: str) -> None:
    """A copy of a checkpoint that says something else of its run, as an older version would write it."""
    with checkpoint.Reader(Path(source)) as reader:
        about, history, server = reader.text("about"), reader.text("history"), reader.server()
        shapes = reader.shapes("client")
        changed = {**about, **json.loads(changes)}
        about = {name: value for name, value in changed.items() if value is not None or about[name] is None}
        with checkpoint.Writer(Path(folder), about["round"], about, history, server, shapes) as writer:
            for name, (shape, _) in shapes.items():
                for client in range(shape[0]):
                    writer.put(reader.row(name, client))


def each(comm: Communicator, argv: Sequence[str]) -> None:
    try:
        do(comm, Path(argv[0]))
    finally:
        newcomers.attend = ATTEND


def do(comm: Communicator, lines: Path) -> None:
    """A refusal is printed where there is one rank."""

    def attend(desk: newcomers.Desk) -> newcomers.Served:
        found = ATTEND(dataclasses.replace(desk, keep=True))
        if comm.is_server and not found.refused:
            np.save(lines.parent / f"{desk.method.options.name}.npy", found.models)
        return found

    for what, *words in json.loads(lines.read_text()):
        try:
            if what == "main":
                newcomers.attend = attend
                main.Work(Startup(time.monotonic()))(comm, words)
            elif what == "join":
                newcomers.attend = ATTEND
                join.work(comm, words)
            elif comm.is_server:
                edit(*words)
            comm.meet()
            comm.widen()
        except UserError as error:
            if comm.size > 1:
                raise
            print(f"refused {error.status}: {error}", flush=True)
