"""The content of result.json, and the table at the end of a run."""

from __future__ import annotations

import platform
import statistics
from importlib.metadata import version
from typing import Any

import numpy as np

from amn_mpi import __version__, metrics, plugin
from amn_mpi.comm import Communicator
from amn_mpi.progress import table
from amn_mpi.recorder import Recorder
from amn_mpi.session import Session


def describe(
    ready: Session,
    recorder: Recorder,
    cost: list[dict[str, Any]],
    digest: str,
) -> dict[str, Any]:
    """The content of result.json, but for the baselines."""
    run, fed, comm = recorder.run, ready.fed, ready.comm
    config = run.config
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
        "layers": [group.name for group in ready.layout.groups],
        "class_names": list(fed.class_names),
        "engine": ready.engine_name,
        "precision": config.precision,
        "model": run.method.headline,
        **recorder.scores(),
        "by_size": metrics.by_size(percent[:, headline], fed.train),
        "models_sha256": digest,
        "diverged": {str(client): times for client, times in recorder.diverged.items()},
        "starts": recorder.starts,
        "checkpoints": {"written": run.keeper.written, "failed": run.keeper.failures},
        "round_seconds": round_seconds(recorder.seconds),
        "seconds": _seconds([c["seconds"] for c in cost]),
        "training_cpu_seconds": round(sum(c["training_cpu"] for c in cost), 3),
        "wait_cpu_seconds": round(sum(c["wait_cpu"] for c in cost), 3),
        "bytes_sent": _bytes(cost),
        "start_seconds": _seconds([c["start"] for c in cost]),
        "collective_seconds": _seconds([c["took"] for c in cost]),
        "collective_calls": cost[0]["calls"],
        "peak_memory_mb": [c["memory_mb"] for c in cost],
        "per_client": {
            "accuracy": [round(float(v), 6) for v in percent[:, headline]],
            "models": {
                name: [round(float(v), 6) for v in percent[:, k]] for k, name in enumerate(run.method.models)
            },
            **({"names": list(fed.client_names)} if fed.client_names else {}),
            "train_samples": fed.train.tolist(),
            "train_counts": np.asarray(fed.train_counts).tolist(),
            "test_samples": fed.test.tolist(),
            "concept_group": np.asarray(fed.concept_group).tolist(),
            "label_group": np.asarray(fed.label_group).tolist(),
        },
        "config": config.as_dict(),
        "versions": {**_versions(comm), **ready.arithmetic},
    }


def show(result: dict[str, Any], folder: str) -> None:
    """The table at the end: the run's models, then the baselines."""
    rows = [
        (f"{plugin.short(result['method'])}: {name}" + (" *" if name == result["model"] else ""), s)
        for name, s in result["models"].items()
    ]
    baselines = result["baselines"]
    rows += [(plugin.short(name), s) for name, s in baselines.items() if "diverged" not in s]
    cells = [
        [name]
        + [f"{s[k]:.2f}" for k in ("mean_accuracy", "mean_last5", "std", "worst10", "weighted_accuracy")]
        for name, s in rows
    ]
    title = (
        f"{result['data']}: {result['clients']} clients, {result['rounds']} rounds, "
        f"{result['ranks']} rank{'s' * (result['ranks'] > 1)}, {result['parameters']:,} parameters"
    )
    columns = ["test accuracy, %", "mean", "last 5 rounds", "std", "worst tenth", "by samples"]
    table(title, columns, cells)
    if "newcomers" in result:
        from amn_mpi import newcomers

        newcomers.show(result)
    seconds = result["seconds"]["rank0"]
    spent = ", ".join(f"{name} {value:.1f}" for name, value in seconds.items() if value >= 0.05)
    for name in baselines:
        if "diverged" in baselines[name]:
            print(f"  {plugin.short(name)}: {baselines[name]['diverged']}")
    if result["diverged"]:
        turns = sum(result["diverged"].values())
        print(f"  {turns} turns of {len(result['diverged'])} clients diverged and were not used")
    if result["checkpoints"]["failed"]:
        print(f"  {result['checkpoints']['failed']} checkpoints could not be written")
    print(f"  * the client's own model    {result['round_seconds']:.3f} s a round")
    print(f"  seconds on rank 0: {spent}")
    print(f"  models_sha256 {result['models_sha256']}")
    print(f"  result in {folder}/result.json", flush=True)


def round_seconds(seconds: list[float]) -> float:
    """Median over the rounds after the first, which pays for warming up."""
    return round(statistics.median(seconds[1:] or seconds), 6)


def _seconds(ranks: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Wall seconds by name: of rank 0, and mean and maximum over all ranks."""
    names = {name: None for each in ranks for name in each}
    every = {name: [each.get(name, 0.0) for each in ranks] for name in names}
    return {
        "rank0": {name: round(v[0], 4) for name, v in every.items()},
        "mean": {name: round(statistics.fmean(v), 4) for name, v in every.items()},
        "max": {name: round(max(v), 4) for name, v in every.items()},
    }


def _bytes(cost: list[dict[str, Any]]) -> dict[str, int]:
    kinds = sorted({kind for c in cost for kind in c["sent"]})
    return {kind: sum(c["sent"].get(kind, 0) for c in cost) for kind in kinds}


def _versions(comm: Communicator) -> dict[str, str]:
    packages = ("torch", "numpy", "h5py", "mpi4py")
    return {
        "amn_mpi": __version__,
        "python": platform.python_version(),
        **{name: version(name) for name in packages},
        "mpi": comm.library,
    }
