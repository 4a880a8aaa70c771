"""The runs of one start of the ranks: the configured one, its baselines, and what they leave."""

from __future__ import annotations

import dataclasses
import json
import time
from collections import deque
from typing import TYPE_CHECKING, Any

from amn_mpi import methods, newcomers, plugin, resume, session, signals
from amn_mpi.clock import Clock
from amn_mpi.comm import Communicator
from amn_mpi.config import Config
from amn_mpi.data import Federation
from amn_mpi.errors import Diverged, UserError
from amn_mpi.left import together
from amn_mpi.session import Session

if TYPE_CHECKING:
    from amn_mpi.runfolder import RunFolder


def run_all(
    config: Config, comm: Communicator, fed: Federation, folder: RunFolder | None, clock: Clock
) -> dict[str, Any]:
    """The configured run, its baselines on the same clients, and the result of it all, which it returns."""
    with clock("prepare"):
        ready = made_ready(config, comm, fed)
    clock.over("session")
    comm.busy = True
    found = run_one(ready, config, folder, clock, models=True)
    found["baselines"] = _baselines(ready, config, folder)
    comm.busy = False
    if folder is not None:
        with signals.patience():  # a stop that comes now finds nothing left to stop
            _keep_and_tell(found, config, comm, folder)
    return found


def _keep_and_tell(found: dict[str, Any], config: Config, comm: Communicator, folder: RunFolder) -> None:
    """The end of a run on rank 0: result.json first, then everything that can go wrong without harm to it."""
    from amn_mpi import result  # here and below: on rank 0 alone

    folder.finish(found)
    folder.callbacks.end(found)
    if not (comm.lasting and config.progress == "off"):
        result.show(found, str(folder.path))
    if config.logging.report:
        from amn_mpi.report import at_end

        at_end(folder.path)


def run_one(
    ready: Session, config: Config, folder: RunFolder | None, clock: Clock, models: bool
) -> dict[str, Any]:
    """One run from its beginning to its result, which is empty on ranks other than 0.

    Args:
        models: keep the clients' own models in the folder.

    Raises:
        Diverged: on every rank.
    """
    comm = ready.comm
    cpu, counted = (time.process_time(), comm.wait_cpu), _counters(comm)
    keeps, saved = (None, None) if folder is None else (folder.checkpoints, folder.saved)
    run, recorder = session.train(ready, config, clock, folder, keeps, saved)
    cost = comm.collect(_cost(ready, clock, *cpu, counted))
    digest = ""
    if models:
        rows = session.final_models(run)
        if folder is not None:
            about = about_models(config, ready.fed)
            digest = folder.write_models(ready.layout, ready.fed.clients, rows, about, config.rounds)
        else:
            deque(rows, maxlen=0)  # the other ranks only send
    served = newcomers.serve(ready, run)
    left = together(comm.collect(dict(run.exchange.left.bytes)))
    if recorder is None:
        return {}
    from amn_mpi import result

    found = {**result.describe(ready, recorder, cost, digest), "left": left}
    return {**found, "newcomers": served} if served else found


def cell(config: Config, comm: Communicator, fed: Federation, folder: RunFolder | None) -> dict[str, Any]:
    """One run of a comparison; a diverged one has a result that says so. Empty on other ranks."""
    clock = Clock(comm, time.monotonic())
    with clock("prepare"):
        ready = made_ready(config, comm, fed)
    try:
        return run_one(ready, config, folder, clock, models=False)
    except Diverged as reason:
        told = {"method": config.method.name, "seed": config.seed, "diverged": str(reason)}
        return {} if folder is None else {**told, "config": config.as_dict()}


def _counters(comm: Communicator) -> tuple[dict[str, Any], ...]:
    """What has gone through each collective so far: bytes, seconds, calls."""
    return dict(comm.sent), dict(comm.took), dict(comm.calls)


def _cost(
    ready: Session, clock: Clock, cpu: float, wait_cpu: float, counted: tuple[dict[str, Any], ...]
) -> dict[str, Any]:
    """What training cost this rank."""
    comm = ready.comm
    sent, took, calls = (
        {kind: now[kind] - then.get(kind, 0) for kind in now if now[kind] > then.get(kind, 0)}
        for now, then in zip(_counters(comm), counted)
    )
    return {
        "seconds": clock.snapshot(),
        "training_cpu": time.process_time() - cpu,
        "wait_cpu": comm.wait_cpu - wait_cpu,
        "sent": sent,
        "took": took,
        "calls": calls,
        "memory_mb": _peak_memory(),
        "start": clock.startup.told(comm.ranks_on_host) if clock.startup else {},
    }


def made_ready(config: Config, comm: Communicator, fed: Federation) -> Session:
    """The session; trouble on any rank (a cache it cannot see) is told once."""
    try:
        ready, trouble = Session(config, comm, fed), None
    except UserError as error:
        ready, trouble = None, error
    session.check_everywhere(comm, trouble)
    if ready is None:
        raise UserError("not reached: rank 0 ends the run")
    return ready.meet()


def _baselines(ready: Session, config: Config, folder: RunFolder | None) -> dict[str, Any]:
    """Other methods on the same clients with the same local training; scores by name."""
    found: dict[str, Any] = {}
    for name in methods.listed(config.baselines):
        other = methods.baseline(config, name)
        clock = Clock(ready.comm, time.monotonic())
        keeps, saved = None, None
        if folder is not None:
            keeps = folder.checkpoints / plugin.short(name)
            saved = resume.find(
                dataclasses.replace(other, resume="never" if config.resume == "never" else "auto"), keeps
            )
        try:
            run, recorder = session.train(ready, other, clock, None, keeps, saved)
        except Diverged as reason:
            found[name] = {"diverged": str(reason)}
            continue
        served = newcomers.serve(ready, run)
        if recorder is not None:
            from amn_mpi import result

            found[name] = recorder.scores()
            found[name]["round_seconds"] = result.round_seconds(recorder.seconds)
            found[name] |= {"newcomers": served} if served else {}
    return found


def about_models(config: Config, fed: Federation) -> dict[str, Any]:
    """Attributes of models.h5: all that is needed to rebuild and use a model."""
    return {
        "class_names": json.dumps(list(fed.class_names)),
        "shape": list(fed.shape),
        "scale": fed.scale,
        "shift": fed.shift,
        "classes": fed.classes,
        "config": json.dumps(config.as_dict()),
    }


def _peak_memory() -> float:
    """Most resident memory so far in MB, libraries included.

    Not getrusage: its maximum counts the process that this one was started from as well.
    """
    import re
    from pathlib import Path

    status = Path("/proc/self/status").read_text()
    return round(int(re.findall(r"VmHWM:\s*(\d+)", status)[0]) / 1024, 1)
