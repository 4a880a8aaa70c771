"""The runs of one start, and what they leave: models.h5, result.json, the table."""

from __future__ import annotations

import dataclasses
import json
import platform
import statistics
import time
from typing import Any

import numpy as np
import torch

from amn_mpi import __version__, methods, session
from amn_mpi.clock import Clock
from amn_mpi.comm import Communicator
from amn_mpi.config import Config
from amn_mpi.data import Federation
from amn_mpi.errors import UserError
from amn_mpi.progress import table
from amn_mpi.rounds import Run
from amn_mpi.runfolder import RunFolder
from amn_mpi.session import Recorder, Session


def run_all(
    config: Config, comm: Communicator, fed: Federation, folder: RunFolder | None, started: float
) -> None:
    """The configured run, its baselines on the same clients, and the result of it all."""
    clock = Clock(comm, started)
    with clock("prepare"):
        ready = _ready(config, comm, fed)
    if folder is not None:
        folder.start(config)
    cpu = time.process_time()
    waited = comm.wait_cpu
    run, recorder = session.train(ready, config, clock, folder)
    cost = comm.collect(
        {
            "seconds": clock.snapshot(),
            "training_cpu": time.process_time() - cpu,
            "wait_cpu": comm.wait_cpu - waited,
            "sent": dict(comm.sent),
            "memory_mb": _peak_memory(),
            "engine": f"{ready.engine.device.type}-{ready.engine.name}",
        }
    )
    rows = session.final_models(run)
    digest = ""
    if folder is not None:
        digest = folder.write_models(ready.layout, fed.clients, rows, _about(config, fed))
    else:
        for _ in rows:
            pass
    del run.exchange, run.state
    baselines = _baselines(ready, config)
    if folder is not None and recorder is not None:
        result = describe(ready, run, recorder, cost, digest, baselines)
        folder.finish(result)
        show(result, str(folder.path))


def describe(
    ready: Session,
    run: Run,
    recorder: Recorder,
    cost: list[dict[str, Any]],
    digest: str,
    baselines: dict[str, Any],
) -> dict[str, Any]:
    """The content of result.json."""
    config, fed, comm = run.config, ready.fed, ready.comm
    headline = run.method.models.index(run.method.headline)
    percent = 100.0 * recorder.correct / fed.test[:, None]
    return {
        "method": config.method.name,
        "data": config.data.name,
        "heterogeneity": {
            name: getattr(config.data, name)
            for name in ("labels", "alpha", "classes_per_client", "label_groups", "sizes", "sigma")
            + ("concept", "concept_groups", "train_per_client", "test_per_client")
        },
        "seed": config.seed,
        "rounds": config.rounds,
        "ranks": comm.size,
        "clients": fed.clients,
        "parameters": ready.layout.size,
        "engine": cost[-1]["engine"],
        "model": run.method.headline,
        **recorder.scores(),
        "baselines": baselines,
        "models_sha256": digest,
        "round_seconds": _round_seconds(recorder.seconds),
        "seconds": _seconds(cost),
        "training_cpu_seconds": round(sum(c["training_cpu"] for c in cost), 3),
        "wait_cpu_seconds": round(sum(c["wait_cpu"] for c in cost), 3),
        "bytes_sent": _bytes(cost),
        "peak_memory_mb": [c["memory_mb"] for c in cost],
        "per_client": {
            "accuracy": [round(float(v), 6) for v in percent[:, headline]],
            "models": {
                name: [round(float(v), 6) for v in percent[:, k]]
                for k, name in enumerate(run.method.models)
            },
            "train_samples": fed.train.tolist(),
            "test_samples": fed.test.tolist(),
            "concept_group": np.asarray(fed.concept_group).tolist(),
            "label_group": np.asarray(fed.label_group).tolist(),
        },
        "config": config.as_dict(),
        "versions": _versions(comm),
    }


def show(result: dict[str, Any], folder: str) -> None:
    """The table at the end: the run's models, then the baselines."""
    rows = [
        (f"{result['method']}: {name}" + (" *" if name == result["model"] else ""), s)
        for name, s in result["models"].items()
    ]
    rows += list(result["baselines"].items())
    cells = [
        [name]
        + [f"{s[k]:.2f}" for k in ("mean_accuracy", "mean_last5", "std", "worst10", "weighted_accuracy")]
        for name, s in rows
    ]
    title = (
        f"{result['data']}: {result['clients']} clients, {result['rounds']} rounds, "
        f"{result['ranks']} ranks, {result['parameters']:,} parameters"
    )
    columns = ["test accuracy, %", "mean", "last 5 rounds", "std", "worst tenth", "by samples"]
    table(title, columns, cells)
    seconds = result["seconds"]["rank0"]
    spent = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if value >= 0.05)
    print(f"  * the client's own model    {result['round_seconds']:.3f} s a round")
    print(f"  seconds on rank 0: {spent}")
    print(f"  models_sha256 {result['models_sha256']}")
    print(f"  result in {folder}/result.json", flush=True)


def _ready(config: Config, comm: Communicator, fed: Federation) -> Session:
    """The session; trouble on any rank (a cache it cannot see) is told once."""
    try:
        ready, trouble = Session(config, comm, fed), None
    except UserError as error:
        ready, trouble = None, error
    session.check_everywhere(comm, trouble)
    if ready is None:
        raise UserError("not reached: rank 0 ends the run")
    return ready


def _baselines(ready: Session, config: Config) -> dict[str, Any]:
    """Other methods on the same clients with the same local training; scores by name."""
    found: dict[str, Any] = {}
    for name in methods.listed(config.baselines):
        other = dataclasses.replace(config, method=methods.options(name)())
        clock = Clock(ready.comm, time.monotonic())
        recorder = session.train(ready, other, clock, None)[1]
        if recorder is not None:
            found[name] = recorder.scores()
            found[name]["round_seconds"] = _round_seconds(recorder.seconds)
    return found


def _round_seconds(seconds: list[float]) -> float:
    """Median over the rounds after the first, which pays for warming up."""
    return round(statistics.median(seconds[1:] or seconds), 6)


def _seconds(cost: list[dict[str, Any]]) -> dict[str, dict[str, float]]:
    """Wall seconds by phase: rank 0, and mean and maximum over all ranks."""
    phases = cost[0]["seconds"]
    every = {phase: [c["seconds"][phase] for c in cost] for phase in phases}
    return {
        "rank0": phases,
        "mean": {phase: round(statistics.fmean(v), 4) for phase, v in every.items()},
        "max": {phase: max(v) for phase, v in every.items()},
    }


def _bytes(cost: list[dict[str, Any]]) -> dict[str, int]:
    kinds = sorted({kind for c in cost for kind in c["sent"]})
    return {kind: sum(c["sent"].get(kind, 0) for c in cost) for kind in kinds}


def _about(config: Config, fed: Federation) -> dict[str, Any]:
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


def _versions(comm: Communicator) -> dict[str, str]:
    import h5py
    import mpi4py

    return {
        "amn_mpi": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "h5py": h5py.__version__,
        "mpi4py": mpi4py.__version__,
        "mpi": comm.library,
    }
