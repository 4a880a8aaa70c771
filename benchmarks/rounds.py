"""Seconds of whole rounds beside a plain PyTorch loop, in turns: ``python benchmarks/rounds.py``

    python benchmarks/rounds.py [--quick] [--only W1,W2] [--out FILE]

The workloads of ``loads.py`` on 3 ranks (two train), and W1 on 33, against plain PyTorch in float32 in two
processes (``plain_loop.py``). A turn is rounds of the plain loop, then as many of each workload with the same
samples, model and batch, and the rate of sgemm on one core; then the next turn. The processes of both sides
stay, and sleep while others are timed. A ratio is the median of the turns' ratios. *of sgemm*: the dense
operations of the round's steps, by its seconds and the rate of two cores; the compiled steps leave out most
of what relu and max-pooling make zero, so it can exceed 1. AMN's is told of as many steps as FedAvg's,
though it trains on seven eighths of the samples. Writes Markdown, and JSON to FILE.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arithmetic import flops, sgemm  # noqa: E402
from loads import LOADS, QUICK, Load, pool  # noqa: E402
from plain_loop import Job, PlainLoop  # noqa: E402
from report import table, write  # noqa: E402

from amn_mpi.config import Model  # noqa: E402

SHORT = 0.5  # seconds: of shorter rounds a turn has ten
CORES = 2  # that train on each side


class OnRanks:
    """The ranks of ``rounds_on_ranks.py``, until the ``with`` ends."""

    def __init__(self, ranks: int, names: Sequence[str], folder: str) -> None:
        script = Path(__file__).with_name("rounds_on_ranks.py")
        launcher = [str(Path(sys.executable).parent / "mpirun"), "-n", str(ranks)]
        command = [*launcher, sys.executable, str(script), folder, *names]
        pipe = subprocess.PIPE
        self._ranks: Any = subprocess.Popen(command, text=True, stdin=pipe, stdout=pipe)

    def __enter__(self) -> OnRanks:
        self._answer()
        return self

    def __exit__(self, *error: object) -> None:
        self._ranks.stdin.close()
        self._ranks.wait()

    def rounds(self, name: str, count: int) -> dict[str, Any]:
        print(json.dumps({"name": name, "rounds": count}), file=self._ranks.stdin, flush=True)
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        for line in self._ranks.stdout:
            if line.startswith("{"):
                return json.loads(line)
        raise SystemExit(f"rounds_on_ranks.py ended with status {self._ranks.wait()}")


def job(load: Load, x: np.ndarray, y: np.ndarray) -> Job:
    n = load.clients * load.samples
    images = (
        torch.from_numpy(x[:n].copy()).float().view(load.clients, load.samples, 1, 28, 28) / 255 - 0.28
    ) / 0.35
    labels = torch.from_numpy(y[:n].copy()).long().view(load.clients, load.samples)
    return Job(Model(load.model, hidden=64), images, labels, load.batch, 0.01)  # type: ignore[arg-type]


def measure(names: Sequence[str], turns: int) -> dict[str, Any]:
    """Figures by name. Workloads on as many ranks share a start of these; the plain loop is started once."""
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        jobs: dict[tuple[str, int, int, int], Job] = {}
        for load in (LOADS[name] for name in names):
            if load.peers not in jobs:
                x, y = pool(load)
                np.savez(f"{folder}/{load.clients}x{load.samples}.npz", x=x, y=y)
                jobs[load.peers] = job(load, x, y)
        with PlainLoop(list(jobs.values())) as plain:
            for ranks in sorted({LOADS[name].ranks for name in names}):
                here = [name for name in names if LOADS[name].ranks == ranks]
                with OnRanks(ranks, here, folder) as ours:
                    for which, peers in enumerate(jobs):
                        group = [name for name in here if LOADS[name].peers == peers]
                        if group:
                            found.update(in_turns(plain, which, ours, group, turns, jobs[peers]))
    return {name: found[name] for name in names}


def in_turns(
    plain: PlainLoop, which: int, ours: OnRanks, names: Sequence[str], turns: int, what: Job
) -> dict[str, Any]:
    """Wall seconds a round. The plain loop's first round does not count, as the ranks' first two do not."""
    count = 10 if min(plain.rounds(which, 1)) < SHORT else 1
    beside: list[float] = []
    rates: list[float] = []
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in names}
    for _ in range(turns):
        beside.append(statistics.median(plain.rounds(which, count)))
        for name in names:
            answers[name].append(ours.rounds(name, count))
        rates.append(sgemm())
    rate = statistics.median(rates)
    steps = len(what.x) * -(-what.x.shape[1] // what.batch)
    work = steps * flops(what.module(), tuple(what.x.shape[2:]), what.batch) / 1e9
    found = {}
    for name in names:
        seconds = [statistics.median(answer["seconds"]) for answer in answers[name]]
        ratios = [own / other for own, other in zip(seconds, beside)]
        parts = {p: statistics.median(answer[p] for answer in answers[name]) for p in ("exchange", "server")}
        found[name] = {
            "seconds": statistics.median(seconds),
            "plain": statistics.median(beside),
            "ratio": statistics.median(ratios),
            "ratios": ratios,
            **parts,
            "sgemm_gflops": rate,
            "of_sgemm": work / statistics.median(seconds) / (CORES * rate),
        }
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"{', '.join(QUICK)}: two turns")
    parser.add_argument("--only", default="", help="of the workloads, by name")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--out", default="", help="a JSON file")
    options = parser.parse_args()
    names = [name for name in options.only.split(",") if name] or (QUICK if options.quick else list(LOADS))
    found = measure(names, 2 if options.quick else options.turns)
    columns = ["", "seconds a round", "plain loop, 2 processes", "ratio", "turns' ratios"]
    columns += ["rank 0: exchange, s", "server, s", "sgemm, GFLOP/s", "of sgemm"]
    rows = [
        [name, f["seconds"], f["plain"], f["ratio"], f"{min(f['ratios']):.3g} to {max(f['ratios']):.3g}"]
        + [f[part] for part in ("exchange", "server", "sgemm_gflops", "of_sgemm")]
        for name, f in found.items()
    ]
    table(columns, rows)
    write(options.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
