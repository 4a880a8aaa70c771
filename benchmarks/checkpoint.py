"""What a checkpoint costs: rounds in which one is written against those beside them in the same run.

    python benchmarks/checkpoint.py [--ranks 3] [--clients 32] [--samples 600] [--rounds 25]

The CNN of 582,026 parameters on Fashion-MNIST, AMN, one local epoch, no evaluation but that of the last
five rounds, which do not count; every second round is saved. Prints the medians and their ratio.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--ranks", type=int, default=3)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--samples", type=int, default=600)
    parser.add_argument("--rounds", type=int, default=25)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out"
        train(asked, out)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        size = max(path.stat().st_size for path in (out / "checkpoints").iterdir())
        phases = json.loads((out / "result.json").read_text())["seconds"]["rank0"]
    seconds = {row["round"]: row["seconds"] for row in rows[2:-5]}  # the first ones warm up
    written = [s for t, s in seconds.items() if t % 2]  # round t carries what is saved after t - 1
    bare = [s for t, s in seconds.items() if not t % 2]
    ratio = statistics.median(written) / statistics.median(bare)
    what = f"{asked.clients} clients, {asked.ranks} ranks, {len(seconds)} rounds"
    print(f"{what}, checkpoints of {size / 1e6:.0f} MB")
    print(f"  a round with one {statistics.median(written):.3f} s, without {statistics.median(bare):.3f} s")
    print(f"  ratio {ratio:.3f}; rank 0 spent {phases['checkpoint'] / (asked.rounds // 2 + 1):.2f} s on each")
    if asked.ranks == 1:
        print("  one rank writes between the rounds: its cost is not in them, but in the second figure")


def train(asked: argparse.Namespace, out: Path) -> None:
    words = ["--config", "fashion_mnist", "--model.name", "cnn", "--data.clients", asked.clients]
    words += ["--data.train_per_client", asked.samples, "--data.test_per_client", 10, "--local.epochs", 1]
    words += ["--rounds", asked.rounds, "--evaluate.every", asked.rounds, "--progress", "off"]
    words += ["--method.drift", 0]
    words += ["--checkpoint.every", 2, "--checkpoint.minutes", 0, "--out", out, "--data.cache", out.parent]
    launcher = [Path(sys.executable).parent / "mpirun", "-n", asked.ranks] if asked.ranks > 1 else []
    command = [*launcher, sys.executable, "-m", "amn_mpi.main", *words]
    subprocess.run(list(map(str, command)), check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
