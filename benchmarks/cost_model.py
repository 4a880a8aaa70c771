"""A cost model of a round, fitted on runs of this machine and held against runs it has not seen.

    python benchmarks/cost_model.py [--ranks 2,3,5,9,17,33] [--data FILE] [--out FILE] [--quick]

Runs AMN and FedAvg with mlps of two widths and 32 or 128 clients on each number of ranks, and a third width
with 96 clients that the fit does not see. A case is the median of 15 rounds without evaluation; rank 0
multiplies matrices before and after it, and where the two times are more than a tenth apart the case is
repeated, up to three times. Where the slowest of the middle 11 took more than twice the fastest, the case
counts neither for the fit nor for the check, and is marked as unsteady. --data FILE: measurements are added
to it, and all in it are used; with ``--ranks ""`` nothing is measured. Prints Markdown tables.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from cost_terms import NAMES, Setup, extrapolation, fit, terms  # noqa: E402
from report import table, write  # noqa: E402

CASES = [
    (method, clients, hidden) for clients in (32, 128) for hidden in (64, 256) for method in ("amn", "fedavg")
]
HELD_OUT = [("amn", 96, 128), ("fedavg", 96, 128)]
ROUNDS, LIMIT = 21, 0.2


def series(comm: Any, argv: Sequence[str]) -> None:
    """All cases on this many ranks; rank 0 prints a line of JSON for each."""
    import torch

    from amn_mpi import config, data, methods
    from amn_mpi.clock import Clock
    from amn_mpi.session import Session, train

    a, c = torch.randn(768, 768), torch.empty(768, 768)

    def baseline() -> float:
        times = []
        for _ in range(5 if comm.is_server else 0):
            began = time.thread_time()
            torch.mm(a, a, out=c)
            times.append(time.thread_time() - began)
        return comm.share(statistics.median(times) if times else None)

    torch.set_num_threads(1)
    for name, clients, hidden in CASES + HELD_OUT:
        options = methods.options(name)(**({"common_rounds": 1, "drift": 0.0} if name == "amn" else {}))
        what = config.Config(
            rounds=ROUNDS,
            method=options,
            progress="off",
            data=config.Data(
                name=f"{argv[0]}/pool.npz", cache=argv[0], clients=clients, labels="iid", concept="none",
                train_per_client=60, test_per_client=10,
            ),
            model=config.Model(hidden=hidden),
            local=config.Local(epochs=1, lr=0.01),
            evaluate=config.Evaluate(every=1000),
            checkpoint=config.Checkpoint(minutes=0),
        )  # fmt: skip
        fed = comm.share(data.prepare(what.data, 0) if comm.is_server else None)
        ready = Session(what, comm, fed).meet()
        for _ in range(3):
            before, cpu = baseline(), time.process_time()
            _, recorder = train(ready, what, Clock(comm, time.monotonic()), None)
            cpus, after = comm.collect(time.process_time() - cpu), baseline()
            if abs(after - before) < 0.1 * before:
                break
        if recorder is not None:
            seconds = recorder.seconds[1:-5]
            case = {"method": name, "clients": clients, "hidden": hidden, "ranks": comm.size}
            found = {"seconds": statistics.median(seconds), "rounds": seconds, "cpu": sum(cpus) / ROUNDS}
            print(json.dumps({**case, **found, "baselines": [before, after]}), flush=True)


def measure(ranks: str) -> list[dict[str, Any]]:
    from loads import Load, pool

    with tempfile.TemporaryDirectory() as folder:
        x, y = pool(Load("mlp", 128, 60, 10))
        np.savez(f"{folder}/pool.npz", x=x, y=y)
        launcher = [str(Path(sys.executable).parent / "mpirun"), "-n", ranks]
        command = [*launcher, sys.executable, __file__, "--inside", folder]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


def steady(case: dict[str, Any]) -> bool:
    """Without the two fastest and the two slowest rounds: one stall does not make a case unsteady."""
    middle = sorted(case["rounds"])[2:-2]
    return middle[-1] < 2 * middle[0]


def setup(case: dict[str, Any]) -> Setup:
    names = [field.name for field in dataclasses.fields(Setup)]
    return Setup(**{name: case[name] for name in names if name in case})


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", default="2,3,5,9,17,33")
    parser.add_argument("--data", default="", help="a JSON file of measurements to add to")
    parser.add_argument("--out", default="", help="a JSON file; NAME_data.json: what was measured")
    parser.add_argument("--quick", action="store_true", help="on 2 and 3 ranks")
    parser.add_argument("--inside", default="", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.inside:
        from amn_mpi.main import main as on_every_rank

        on_every_rank([options.inside], series)
    out = Path(options.out)
    path = Path(options.data or out.with_name(f"{out.stem}_data.json"))
    cases = json.loads(path.read_text()) if options.data and path.exists() else []
    for ranks in ("2,3" if options.quick else options.ranks).split(","):
        if ranks:
            new = measure(ranks)
            cases = [case for case in cases if case["ranks"] != int(ranks)] + new
            if options.data or options.out:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text("[\n" + ",\n".join(json.dumps(case) for case in cases) + "\n]\n")
    cores = len(os.sched_getaffinity(0))
    known = {(name, clients, hidden) for name, clients, hidden in CASES}
    seen = [c for c in cases if (c["method"], c["clients"], c["hidden"]) in known and steady(c)]
    rows = np.array([terms(setup(case), cores) for case in seen])
    found = fit(rows, np.array([case["seconds"] for case in seen]))
    table(["term", "costs"], [(name, f"{value:.3g} s") for name, value in zip(NAMES, found)])
    shown, worst = [], 0.0
    for case in cases:
        told, new = (
            float(terms(setup(case), cores) @ found),
            (case["method"], case["clients"], case["hidden"]) not in known,
        )
        error = told / case["seconds"] - 1
        worst = max(worst, abs(error)) if new and steady(case) else worst
        marks = ["held out"] * new + ["unsteady"] * (not steady(case))
        what = [case["method"], case["clients"], case["hidden"], case["ranks"], 1e3 * case["seconds"]]
        shown.append([*what, 1e3 * case["cpu"], 1e3 * told, f"{100 * error:+.0f} %", ", ".join(marks)])
    columns = [
        "method",
        "clients",
        "hidden",
        "ranks",
        "ms a round",
        "CPU ms a round",
        "model, ms",
        "error",
        "",
    ]
    table(columns, shown)
    verdict = f"{'over' if worst > LIMIT else 'within'} the limit of {100 * LIMIT:.0f} %"
    print(f"largest error at a held-out point: {100 * worst:.0f} %, {verdict}\n")
    far = extrapolation(found)
    table(list(far[0]), [list(row.values()) for row in far])
    write(options.out, {"coefficients": dict(zip(NAMES, found.tolist())), "held_out": worst, "far": far})
    return 0


if __name__ == "__main__":
    sys.exit(main())
