"""From ``mpirun`` to the first step of training, by part: ``python benchmarks/startup.py``

    python benchmarks/startup.py [--ranks 3,33] [--repeats 3] [--quick] [--out FILE]

The default job, its data prepared anew each time; the run with the median total is shown. Then what
importing torch takes: in one process, in as many at a time as there are ranks, and its largest parts; and,
for comparison, as many processes forked from one that has imported it. Writes Markdown, and JSON to FILE.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent))

from report import table, write  # noqa: E402

# Torch's work as every rank does it; printed: what it took.
FORKS = """
import os, sys, time
import torch
began, children = time.monotonic(), []
for _ in range(int(sys.argv[1])):
    child = os.fork()
    if not child:
        torch.zeros(10).add_(1)
        os._exit(0)
    children.append(child)
for child in children:
    os.waitpid(child, 0)
print(time.monotonic() - began)
"""


def start(ranks: int) -> dict[str, dict[str, float]]:
    """Seconds by part of one start of the default job: rank 0, mean and maximum over the ranks."""
    with tempfile.TemporaryDirectory() as folder:
        words = ["--config", "default", "--rounds", "1", "--progress", "off"]
        words += ["--out", f"{folder}/out", "--data.cache", f"{folder}/cache"]
        launcher = [str(Path(sys.executable).parent / "mpirun"), "-n", str(ranks)]
        command = [*launcher, sys.executable, "-m", "amn_mpi.main", *words]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return json.loads((Path(folder) / "out" / "result.json").read_text())["start_seconds"]


def imports(count: int) -> dict[str, float]:
    """Wall and CPU seconds of ``count`` processes that import torch at one time, one thread each."""
    one = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    command = [sys.executable, "-c", "import torch, os; os._exit(0)"]
    started = [subprocess.Popen(command, env={**os.environ, **one}) for _ in range(count)]
    for process in started:
        process.wait()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {"wall": time.monotonic() - began, "cpu_each": cpu / count}


def parts_of_torch(least: float = 0.03) -> dict[str, float]:
    """Seconds of what ``torch/__init__.py`` imports first, each with all below it; and its own."""
    command = [sys.executable, "-X", "importtime", "-c", "import torch"]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    rows = re.findall(r"import time:\s+(\d+) \|\s+(\d+) \|( +)(\S+)", told)
    found, whole = {}, [row for row in rows if row[3] == "torch"][0]
    inside = len(whole[2]) + 2
    for _, seconds, indent, name in rows[: rows.index(whole)][::-1]:
        if len(indent) < inside:
            break
        if len(indent) == inside and int(seconds) / 1e6 > least:
            found[name] = int(seconds) / 1e6
    total = int(whole[1]) / 1e6
    return {"torch, all": total, **found, "smaller ones": total - sum(found.values())}


def forks(count: int) -> float:
    """Seconds for ``count`` processes forked from one that has imported torch."""
    command = [sys.executable, "-c", FORKS, str(count)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ranks", default="3,33")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--quick", action="store_true", help="one start of 3 ranks")
    parser.add_argument("--out", default="", help="a JSON file")
    options = parser.parse_args()
    sizes = [int(n) for n in ("3" if options.quick else options.ranks).split(",")]
    repeats = 1 if options.quick else options.repeats
    starts: dict[int, dict[str, Any]] = {}
    for ranks in sizes:
        found = sorted((start(ranks) for _ in range(repeats)), key=lambda each: each["max"]["total"])
        starts[ranks] = {**found[len(found) // 2], "totals": [each["max"]["total"] for each in found]}
    columns = [f"{ranks} ranks: {who}" for ranks in sizes for who in ("rank 0", "mean", "slowest")]
    parts = list(starts[sizes[0]]["max"])
    cells = {p: [starts[r][who][p] for r in sizes for who in ("rank0", "mean", "max")] for p in parts}
    table(["seconds", *columns], [[p, *(f"{v:.2f}" for v in row)] for p, row in cells.items()])
    many, alone = max(sizes), [imports(1) for _ in range(5)]
    torch: dict[str, Any] = {
        "alone": {name: statistics.median(each[name] for each in alone) for name in alone[0]},
        "together": imports(many),
        "forked": forks(many),
        "parts": parts_of_torch(),
    }
    one, each = torch["alone"], torch["together"]
    rows = [["1", one["wall"], one["cpu_each"]], [f"{many}", each["wall"], each["cpu_each"]]]
    rows.append([f"{many}, forked from one that has it", torch["forked"], ""])
    table(["processes that import torch", "wall seconds", "CPU seconds each"], rows)
    table(["import", "seconds"], list(torch["parts"].items()))
    write(options.out, {"starts": starts, "import_torch": torch})
    return 0


if __name__ == "__main__":
    sys.exit(main())
