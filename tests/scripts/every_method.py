"""All methods one after another in one start of the ranks; rank 0 writes what must not depend on them.

Arguments: OUT.json, then options of the main program.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import sys
import time
from pathlib import Path

from amn_mpi import cli, data, methods, session
from amn_mpi.clock import Clock
from amn_mpi.comm import Communicator
from amn_mpi.config import Config, Model
from amn_mpi.session import Session

# Options that make rounds as few and small as these show what each method does.
EARLY = {"amn": {"common_rounds": 1}, "fedrep": {"head_epochs": 2}, "fedfomo": {"models": 3}}


def main(out: Path, words: list[str]) -> None:
    comm = Communicator()
    config = comm.share(cli.parse(words)[0] if comm.is_server else None)
    fed = comm.share(data.prepare(config.data, config.seed) if comm.is_server else None)
    found = {}
    for bn in (False, True):
        base = dataclasses.replace(config, model=Model("mlp_bn")) if bn else config
        ready = Session(base, comm, fed)
        for name in methods.METHODS if not bn else ("fedbn", "fedavg", "ditto"):
            if name != "fedbn" or bn:
                found[name + "_bn" * bn] = one(ready, base, name)
    if comm.is_server:
        out.write_text(json.dumps(found))
    comm.close()


def one(ready: Session, base: Config, name: str) -> dict:
    """Bitwise facts of one method's run, empty on ranks other than 0."""
    config = dataclasses.replace(base, method=methods.options(name)(**EARLY.get(name, {})))
    run, recorder = session.train(ready, config, Clock(ready.comm, time.monotonic()), None)
    models = {client: hashlib.sha256(row.tobytes()).hexdigest() for client, row in session.final_models(run)}
    if recorder is None:
        return {}
    rows = [{k: v for k, v in row.items() if k != "turn_seconds"} for row in recorder.rounds]
    return {
        "models": [models[client] for client in sorted(models)],
        "rounds": rows,
        "headline": run.method.headline,
    }


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
