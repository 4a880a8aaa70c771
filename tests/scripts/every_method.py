"""All methods one after another; rank 0 writes what must not depend on them.

Arguments: OUT.json, "once" or "resume", options of the main program. With "resume" checkpoints go to
``checkpoints`` beside OUT; those that a start on other ranks has left there are gone on from, too.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from amn_mpi import cli, data, methods, session
from amn_mpi.checkpoint import file_name
from amn_mpi.clock import Clock
from amn_mpi.comm import Communicator
from amn_mpi.config import Checkpoint, Config, Model
from amn_mpi.session import Session

# Options that make rounds as few and small as these show what each method does.
EARLY = {"amn": {"common_rounds": 1}, "fedrep": {"head_epochs": 2}, "fedfomo": {"models": 3}}
PRIOR = ("fedavg", "fedavg_ft")  # once more with class offsets, which are no default of theirs


def each(comm: Communicator, argv: Sequence[str]) -> None:
    out, resume, words = Path(argv[0]), argv[1] == "resume", argv[2:]
    config = comm.share(cli.parse(words)[0] if comm.is_server else None)
    fed = comm.share(data.prepare(config.data, config.seed) if comm.is_server else None)
    unbroken, resumed = {}, {}
    for bn in (False, True):
        model = Model("mlp_bn", hidden=config.model.hidden) if bn else config.model
        base = dataclasses.replace(config, model=model)
        ready = Session(base, comm, fed)
        ready.meet()
        for key, options in every(bn):
            own = dataclasses.replace(base, method=options)
            unbroken[key] = one(ready, own)
            if resume:
                resumed[key] = broken(ready, own, out.parent / "checkpoints", key)
    if comm.is_server:
        out.write_text(json.dumps({"unbroken": unbroken, "resumed": resumed}))


def every(bn: bool) -> Iterator[tuple[str, Any]]:
    """What is run with a network, by name, with its options."""
    for name in methods.METHODS if not bn else ("fedbn", "fedavg", "ditto"):
        if name != "fedbn" or bn:
            yield name + "_bn" * bn, methods.options(name)(**EARLY.get(name, {}))
        if name in PRIOR and not bn:
            yield f"{name}_prior", methods.options(name)(prior=1.0)
    if not bn:
        yield "amn_plain", methods.options("amn")(**EARLY["amn"], drift=0.0)


def broken(ready: Session, config: Config, folder: Path, key: str) -> dict[str, dict]:
    """Two rounds with a checkpoint of each, then on to the end from each checkpoint, set up anew.

    That of round 1 was written while round 2 went on. Of other starts that of round 2 is taken.
    """
    comm, own = ready.comm, folder / f"{ready.comm.size}" / key
    saving = Checkpoint(every=1, minutes=0)
    one(ready, dataclasses.replace(config, rounds=2, checkpoint=saving), keeps=own)
    saved = [own / file_name(1)] if comm.is_server else []
    saved += sorted(folder.glob(f"*/{key}/{file_name(2)}")) if comm.is_server else []
    saved = comm.share(saved)
    return {f"{path.parts[-3]} {path.name}": one(ready, config, saved=path) for path in saved}


def one(ready: Session, config: Config, keeps: Path | None = None, saved: Path | None = None) -> dict:
    """Bitwise facts of one method's run, empty on ranks other than 0."""
    if not ready.comm.is_server:
        keeps = saved = None
    run, recorder = session.train(ready, config, Clock(ready.comm, time.monotonic()), None, keeps, saved)
    models = {client: digest(row) for client, row in session.final_models(run)}
    own = {
        client: {name: digest(v[k]) for name, v in run.state.items()} for k, client in enumerate(run.samples)
    }
    state = {client: digests for each in run.comm.collect(own) for client, digests in each.items()}
    if recorder is None:
        return {}
    rows = [{k: v for k, v in row.items() if k != "turn_seconds"} for row in recorder.rounds]
    return {
        "models": [models[client] for client in sorted(models)],
        "state": [state[client] for client in sorted(state)],
        "server": {name: digest(value) for name, value in run.server.items()},
        "rounds": rows,
        "correct": recorder.correct.tolist(),
        "scores": recorder.scores(),
        "headline": run.method.headline,
    }


def digest(values: Any) -> str:
    return hashlib.sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
