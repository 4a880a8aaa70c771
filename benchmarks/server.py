"""AMN's server step on rank 0 against the number of clients: ``python benchmarks/server.py``

    python benchmarks/server.py [--only mlp] [--turns 7] [--quick] [--out FILE]

mix: hybrids for everybody. aggregate: inner products of gradients and models, the meta step, the new models.
attention: what the metrics get each round. sketch: of one model, which its client's rank makes. Beside
them, in the same turns, the two products of matrices of the same arithmetic as one call of sgemm each:
(N, N) by (N, P), and (N, P) by (P, N). One thread, medians of thread CPU seconds. Writes Markdown, and
JSON to FILE.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from arithmetic import sgemm as sgemm_rate  # noqa: E402
from report import table, write  # noqa: E402

from amn_mpi import methods, models  # noqa: E402
from amn_mpi.config import Local, Model  # noqa: E402
from amn_mpi.heap import zeros  # noqa: E402
from amn_mpi.methods.base import Arrived, Setting  # noqa: E402
from amn_mpi.params import ParameterLayout, vector_of  # noqa: E402

CASES = {"mlp": (32, 100, 300, 1000), "cnn": (32, 100)}
NAMES = ("mix", "aggregate", "attention", "sketch", "sgemm", "sgemm again")


def measure(name: str, clients: int, turns: int) -> dict[str, Any]:
    """Medians over turns of one case."""
    module = models.build(Model(name), (1, 28, 28), 10, 0)  # type: ignore[arg-type]
    layout, initial = ParameterLayout.of(module), vector_of(module)
    setting = Setting(layout, np.full(clients, 60), 0, Local())
    method = methods.get("amn")(methods.options("amn")(drift=0.0), setting)
    server, everyone = method.init(initial), np.arange(clients)
    draw = torch.Generator().manual_seed(0)
    every = initial + 0.01 * torch.randn(clients, layout.size, generator=draw)
    for client, vector in enumerate(every):
        method.mirror(server, "models", client, vector)
    rows = zeros(clients, 2, layout.size)
    rows[:, 0] = every
    rows[:, 1] = 0.01 * torch.randn(clients, layout.size, generator=draw)
    figures = {figure: np.ones(clients) for figure in method.wire.figures}
    features = torch.randn(clients, method.features, generator=draw)
    arrived = Arrived(everyone, rows, torch.empty(0), figures, features, np.ones(clients))
    hybrids, scratch = zeros(clients, 1, layout.size), torch.empty(layout.size)
    weights, inner = torch.rand(clients, clients), torch.empty(clients, clients)

    def sgemm() -> None:
        torch.mm(weights, every, out=hybrids[:, 0])
        torch.mm(rows[:, 1], every.T, out=inner)

    seconds = np.empty((turns, len(NAMES)))
    for turn in range(-1, turns):  # the first warms up, and has all clients seen
        late, marks = 100 + turn, [time.thread_time()]
        method.personalise(server, late, everyone, hybrids)
        marks.append(time.thread_time())
        method.aggregate(server, late, everyone, arrived)
        marks.append(time.thread_time())
        method.attention(server)
        marks.append(time.thread_time())
        method._sketch(initial, scratch)
        for _ in range(2):
            marks.append(time.thread_time())
            sgemm()
        marks.append(time.thread_time())
        seconds[turn] = np.diff(marks)
    median = np.median(seconds, 0)
    found = dict(zip(NAMES, map(float, median)))
    flops = 4.0 * clients**2 * layout.size
    best = min(median[4:])
    found.update(gflops=flops / median[:2].sum() / 1e9, ratio=float(median[:2].sum() / best))
    return {**found, "sgemm_gflops": sgemm_rate()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", default="", help="mlp or cnn")
    parser.add_argument("--turns", type=int, default=7)
    parser.add_argument("--quick", action="store_true", help="three turns, up to 300 clients")
    parser.add_argument("--out", default="", help="a JSON file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, Any] = {}
    for name, sizes in CASES.items():
        for clients in sizes if options.only in ("", name) else ():
            if not options.quick or clients * (10 if name == "cnn" else 1) <= 320:
                found[f"{name}, {clients} clients"] = measure(
                    name, clients, 3 if options.quick else options.turns
                )
    columns = ["model", "mix, ms", "aggregate, ms", "attention, ms", "sketch, ms", "sgemm, ms"]
    columns += ["mix + aggregate / sgemm", "GFLOP/s"]
    table(
        columns,
        [
            [what, *(1e3 * c[name] for name in NAMES[:5]), c["ratio"], c["gflops"]]
            for what, c in found.items()
        ],
    )
    write(options.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
