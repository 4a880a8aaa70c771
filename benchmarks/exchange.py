"""The messages of a round, without anything else: ``python benchmarks/exchange.py``

    python benchmarks/exchange.py [--ranks 3,33] [--clients 32] [--repeats 15] [--quick] [--out FILE]

Rows of 32 clients scattered and gathered, a vector broadcast, and its mean summed in 64-bit fixed point,
with the parameters of the mlp and the CNN. Counted is from the call on rank 0 until the last rank returns,
which the ranks of one machine can tell; in front of each call all ranks meet. Beside each, in the same turn,
rank 0 copies as many bytes. The rate of sgemm is taken before the ranks start. Writes Markdown, and JSON to
FILE.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

SIZES = {"mlp": 50_890, "cnn": 582_026}


def on_every_rank(clients: int, repeats: int) -> None:
    """Run under mpirun; rank 0 prints medians as JSON."""
    from amn_mpi.comm import Communicator

    comm = Communicator()
    found: dict[str, Any] = {}
    for model, size in SIZES.items():
        for kind, (call, nbytes) in calls(comm, clients, size).items():
            source = np.ones(nbytes, np.uint8) if comm.is_server else np.ones(1, np.uint8)
            into = np.empty_like(source)
            began, ended, copied = np.empty(repeats), np.empty(repeats), np.empty(repeats)
            for turn in range(-2, repeats):  # the first two warm up
                comm.share(None)
                began[turn] = time.monotonic()
                call()
                ended[turn] = copy = time.monotonic()
                into[:] = source
                copied[turn] = time.monotonic() - copy
            ends = np.array(comm.collect(ended.tolist()))
            if comm.is_server:
                seconds, copies = np.median(ends.max(0) - began), np.median(copied)
                spread = np.quantile(ends.max(0) - began, [0.25, 0.75]).tolist()
                found[f"{model} {kind}"] = {
                    "bytes": nbytes,
                    "seconds": float(seconds),
                    "quartiles": spread,
                    "memcpy": float(copies),
                }
    if comm.is_server:
        print(json.dumps(found), flush=True)
    comm.close(comm.meet())


def calls(comm: Any, clients: int, size: int) -> dict[str, tuple[Callable[[], object], int]]:
    """Each collective with buffers that are made once, and the bytes that go through rank 0."""
    counts = np.bincount(np.arange(clients) * comm.owners // clients, minlength=comm.owners)
    own = 0 if comm.owner is None else int(counts[comm.owner])
    rows = np.ones((clients if comm.is_server else own, 1, size), np.float32)
    all_rows, others = rows if comm.is_server else None, comm.size - 1
    own_rows = np.ones((own, 1, size), np.float32)
    vector, fixed = np.ones(size, np.float32), np.ones(size, np.int64)
    return {
        "scatter": (lambda: comm.scatter_rows(all_rows, counts, own_rows), 4 * clients * size),
        "gather": (lambda: comm.gather_rows(own_rows, counts, all_rows), 4 * clients * size),
        "broadcast": (lambda: comm.broadcast(vector), 4 * size * others),
        "sum": (lambda: comm.sum_exact(fixed), 8 * size * others),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", default="3,33")
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="five repeats")
    parser.add_argument("--out", default="", help="a JSON file")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    repeats = 5 if options.quick else options.repeats
    if options.inside:
        on_every_rank(options.clients, options.repeats)
        return 0
    from arithmetic import sgemm
    from report import table, write

    found: dict[str, Any] = {}
    rates: dict[str, float] = {}
    for ranks in options.ranks.split(","):
        rates[f"{ranks} ranks"] = sgemm()
        launcher = [str(Path(sys.executable).parent / "mpirun"), "-n", ranks]
        words = ["--inside", "--clients", str(options.clients), "--repeats", str(repeats)]
        done = subprocess.run(
            [*launcher, sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True
        )
        found[f"{ranks} ranks"] = json.loads(done.stdout)
    rows = [
        [ranks, what, c["bytes"] / 1e6, 1e3 * c["seconds"], c["bytes"] / c["seconds"] / 1e9]
        + [1e3 * c["memcpy"], c["seconds"] / c["memcpy"]]
        for ranks, each in found.items()
        for what, c in each.items()
    ]
    table(["ranks", "collective", "MB", "ms until all have it", "GB/s", "memcpy, ms", "ratio"], rows)
    write(options.out, {**found, "sgemm_gflops": rates})
    return 0


if __name__ == "__main__":
    sys.exit(main())
