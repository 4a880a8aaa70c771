"""Runs with the models on rank 0 and in columns over the ranks; rank 0 writes what must be the same.

Arguments: OUT.json, then options of the main program. Checkpoints go to ``checkpoints`` beside OUT;
those that a start on other ranks has left there are gone on from, too.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from every_method import one

from amn_mpi import blocks, cli, data, methods
from amn_mpi.checkpoint import file_name
from amn_mpi.comm import Communicator
from amn_mpi.config import Checkpoint, Config
from amn_mpi.rounds import Run
from amn_mpi.session import Session

BLOCK = 500  # ten blocks of 4810 parameters, the narrow ones in the middle and at the end
OPTIONS: dict[str, dict[str, Any]] = {
    "amn": {"common_rounds": 1, "sketch": 96, "drift": 0.0},
    "corrected": {"name": "amn", "common_rounds": 1, "sketch": 96, "drift": 0.8},
    "fedamp": {},
    "heur_fedamp": {},
}
SERVERS = ("rank0", "sharded")
SICK = 4


def each(comm: Communicator, argv: Sequence[str]) -> None:
    with mock.patch.object(blocks, "BLOCK", BLOCK):
        write(comm, Path(argv[0]), argv[1:])


def write(comm: Communicator, out: Path, words: Sequence[str]) -> None:
    config = comm.share(cli.parse(words)[0] if comm.is_server else None)
    fed = comm.share(data.prepare(config.data, config.seed) if comm.is_server else None)
    ready = Session(config, comm, fed)
    ready.meet()
    found = {
        f"{name} {cohort} {server}": facts(ready, variant(config, name, cohort, server))
        for name in OPTIONS
        for cohort in (1.0, 0.5)
        for server in SERVERS
    }
    found |= resumed(ready, config, out.parent / "checkpoints")
    ready.run = diverging(ready.run)  # type: ignore[method-assign]
    for cohort in (1.0, 0.5):
        for server in SERVERS:
            found[f"diverged {cohort} {server}"] = facts(ready, variant(config, "corrected", cohort, server))
    if comm.is_server:
        out.write_text(json.dumps(found))


def variant(config: Config, name: str, cohort: float, server: Any) -> Config:
    made = methods.options(OPTIONS[name].get("name", name))(**OPTIONS[name])
    return dataclasses.replace(config, method=made, cohort=cohort, server=server)


def facts(ready: Session, config: Config, **places: Path | None) -> dict[str, Any]:
    """What must not depend on where the models are."""
    found = one(ready, config, **places)
    for name in ("models", "drifts"):
        found.get("server", {}).pop(name, None)
    return found


def resumed(ready: Session, config: Config, folder: Path) -> dict[str, Any]:
    """To the end from every checkpoint after round 2, with either server, whatever it was made with."""
    comm, found = ready.comm, {}
    whole = {server: variant(config, "corrected", 0.5, server) for server in SERVERS}
    for server in SERVERS:
        saving = dataclasses.replace(whole[server], rounds=2, checkpoint=Checkpoint(every=1, minutes=0))
        one(ready, saving, keeps=folder / f"{comm.size} {server}")
    saved = comm.share(sorted(folder.glob(f"*/{file_name(2)}")) if comm.is_server else [])
    for server in SERVERS:
        for path in saved:
            found[f"from {path.parent.name} {server}"] = facts(ready, whole[server], saved=path)
    return found


def diverging(usual: Any) -> Any:
    """Runs in which a client returns NaN in round 2."""

    def run(*args: Any) -> Run:
        made = usual(*args)
        update = made.method.local_update

        def sick(client: Any, *rest: Any) -> Any:
            found = update(client, *rest)
            if (client.number, client.round) == (SICK, 2):
                client.up.fill_(torch.nan)
            return found

        made.method.local_update = sick
        return made

    return run
