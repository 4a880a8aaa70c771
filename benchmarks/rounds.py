"""Seconds a round of whole runs, beside a plain PyTorch loop in the same run: ``make bench``

    python benchmarks/rounds.py [--quick] [--only W1,W2] [--out FILE]

W1: FedAvg, 32 clients x 600 images, the 582,026-parameter CNN, batch 10, one local epoch. W1b: batch 50. Both
also with ``precision: bf16``; the plain loop is in float32 always.
W2: 200 clients x 60, mlp 784-64-10, batch 10. All on 3 ranks (two train), and W1 on 33; against plain
PyTorch in two processes (``plain_loop.py``). AMN: the same as W1. The plain loop runs before and after ours;
where its two medians are more than a tenth apart, both are taken again. Writes Markdown, and JSON to FILE.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parent))

import plain_loop  # noqa: E402
from report import write  # noqa: E402

from amn_mpi.config import Model  # noqa: E402

IDX = Path("/usr/share/datasets/fashion-mnist")


@dataclass(frozen=True)
class Load:
    """One workload."""

    model: str
    clients: int
    samples: int
    batch: int
    method: str = "fedavg"
    ranks: int = 3
    precision: str = "fp32"


LOADS = {
    "W1": Load("cnn", 32, 600, 10),
    "W1b": Load("cnn", 32, 600, 50),
    "W1 in bf16": Load("cnn", 32, 600, 10, precision="bf16"),
    "W1b in bf16": Load("cnn", 32, 600, 50, precision="bf16"),
    "W2": Load("mlp", 200, 60, 10),
    "AMN on W1": Load("cnn", 32, 600, 10, "amn"),
    "W1 on 33 ranks": Load("cnn", 32, 600, 10, ranks=33),
    "AMN on 33 ranks": Load("cnn", 32, 600, 10, "amn", ranks=33),
}


@dataclass
class Figures:
    """Seconds: medians over rounds; exchange and server are rank 0's without its waits."""

    ours: float
    spread: tuple[float, float]
    plain: float
    plain_again: float
    exchange: float
    server: float

    @property
    def ratio(self) -> float:
        return 2 * self.ours / (self.plain + self.plain_again)


def pool(load: Load) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST where it is installed, else blots that a network can learn, (n, 28, 28) and (n,)."""
    count = load.clients * (load.samples + 10)
    if IDX.is_dir():
        import gzip

        parts = []
        for name, head in (("train-images-idx3-ubyte.gz", 16), ("train-labels-idx1-ubyte.gz", 8)):
            raw = gzip.decompress((IDX / name).read_bytes())
            parts.append(np.frombuffer(raw, np.uint8, offset=head))
        return parts[0].reshape(-1, 28, 28)[:count], parts[1][:count]
    draw = np.random.default_rng(0)
    y = draw.integers(0, 10, count).astype(np.uint8)
    x = draw.integers(0, 60, (count, 28, 28)).astype(np.uint8)
    for image, label in zip(x, y):
        image[2 * label : 2 * label + 6, 4:24] += 150
    return x, y


def ours(load: Load, x: np.ndarray, y: np.ndarray, count: int, folder: Path) -> tuple[list[float], dict]:
    """Seconds of each round but the first two, and the result; the last five evaluate and do not count."""
    np.savez(folder / "pool.npz", x=x, y=y)
    out = folder / "out"
    words = ["--data.name", folder / "pool.npz", "--data.labels", "iid", "--data.concept", "none"]
    words += ["--data.clients", load.clients, "--data.train_per_client", load.samples]
    words += ["--data.test_per_client", 10, "--model.name", load.model, "--model.hidden", 64]
    words += ["--local.epochs", 1, "--local.batch_size", load.batch, "--local.lr", 0.01]
    words += [
        "--precision",
        load.precision,
        "--method.name",
        load.method,
        "--rounds",
        count + 7,
        "--evaluate.every",
        count + 100,
    ]
    words += ["--checkpoint.minutes", 0, "--progress", "off", "--out", out, "--data.cache", folder]
    words += ["--method.common_rounds", 1] if load.method == "amn" else []
    launcher = [Path(sys.executable).parent / "mpirun", "-n", load.ranks]
    command = [*launcher, sys.executable, "-m", "amn_mpi.main", *words]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)
    rows = [json.loads(line)["seconds"] for line in (out / "metrics.jsonl").read_text().splitlines()]
    return rows[2:-5], json.loads((out / "result.json").read_text())


def plain(load: Load, x: np.ndarray, y: np.ndarray, count: int) -> float:
    n = load.clients * load.samples
    images = (
        torch.from_numpy(x[:n].copy()).float().view(load.clients, load.samples, 1, 28, 28) / 255 - 0.28
    ) / 0.35
    labels = torch.from_numpy(y[:n].copy()).long().view(load.clients, load.samples)
    seconds = plain_loop.rounds(Model(load.model, hidden=64), images, labels, load.batch, 0.01, count + 1)
    return statistics.median(seconds[1:])


def measure(load: Load, count: int, attempts: int) -> Figures:
    x, y = pool(load)
    for _ in range(attempts):
        with tempfile.TemporaryDirectory() as folder:
            before = plain(load, x, y, count)
            seconds, found = ours(load, x, y, count, Path(folder))
            after = plain(load, x, y, count)
        if abs(before - after) < 0.1 * before:
            break
        print(f"  the plain loop took {before:.3f}, then {after:.3f} s", file=sys.stderr)
    part = found["seconds"]["rank0"]
    rank0 = [part.get(name, 0.0) / found["rounds"] for name in ("exchange", "server")]
    return Figures(statistics.median(seconds), (min(seconds), max(seconds)), before, after, *rank0)


def sgemm() -> float:
    """GFLOP/s of one core."""
    torch.set_num_threads(1)
    a, b, c = torch.randn(768, 768), torch.randn(768, 768), torch.empty(768, 768)
    best = float("inf")
    for _ in range(40):
        began = time.perf_counter()
        torch.mm(a, b, out=c)
        best = min(best, time.perf_counter() - began)
    return 2 * 768**3 / best / 1e9


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--quick", action="store_true", help="three of them with a fifth of the samples, three rounds, once"
    )
    parser.add_argument("--only", default="", help="of the workloads, by name")
    parser.add_argument("--out", default="", help="a JSON file")
    options = parser.parse_args()
    usual = ["W1", "W2", "AMN on W1"] if options.quick else list(LOADS)
    chosen = [name for name in options.only.split(",") if name] or usual
    rate, figures = sgemm(), {}
    print(f"sgemm on one core: {rate:.1f} GFLOP/s\n")
    print("| | seconds a round | plain loop, 2 processes | ratio | rank 0: exchange, server |")
    print("|---|---|---|---|---|")
    for name in chosen:
        load = LOADS[name]
        if options.quick:
            load = Load(**{**asdict(load), "samples": max(60, load.samples // 5)})
        found = figures[name] = measure(load, *((3, 1) if options.quick else (5, 3)))
        shown = f"{found.ours:.3f} ({found.spread[0]:.3f} to {found.spread[1]:.3f})"
        plains, rank0 = ((found.plain, found.plain_again), (found.exchange, found.server))
        told = [", ".join(f"{seconds:.3f}" for seconds in pair) for pair in (plains, rank0)]
        print(f"| {name} | {shown} | {told[0]} | {found.ratio:.2f} | {told[1]} |", flush=True)
    if options.out:
        whole = {name: {**asdict(found), "ratio": found.ratio} for name, found in figures.items()}
        write(options.out, {"sgemm_gflops": rate, **whole})
    return 0


if __name__ == "__main__":
    sys.exit(main())
