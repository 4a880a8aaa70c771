"""The workloads whose rounds are timed, and their images.

W1: FedAvg, 32 clients x 600 images, the 582,026-parameter CNN, batch 10, one local epoch; W1b: batch 50.
W2: FedAvg, 200 clients x 60 images, mlp 784-64-10, batch 10. AMN on W1: the clients and the model of W1.
"""

from __future__ import annotations

import gzip
from dataclasses import dataclass
from pathlib import Path

import numpy as np

IDX = Path("/usr/share/datasets/fashion-mnist")  # where Debian's package puts it


@dataclass(frozen=True)
class Load:
    """One workload. ``peers``: those with the same samples, model and batch share a plain loop."""

    model: str
    clients: int
    samples: int
    batch: int
    method: str = "fedavg"
    ranks: int = 3
    precision: str = "fp32"

    @property
    def peers(self) -> tuple[str, int, int, int]:
        return (self.model, self.clients, self.samples, self.batch)


LOADS = {
    "W1": Load("cnn", 32, 600, 10),
    "W1 in bf16": Load("cnn", 32, 600, 10, precision="bf16"),
    "AMN on W1": Load("cnn", 32, 600, 10, "amn"),
    "W1b": Load("cnn", 32, 600, 50),
    "W1b in bf16": Load("cnn", 32, 600, 50, precision="bf16"),
    "W2": Load("mlp", 200, 60, 10),
    "W1 on 33 ranks": Load("cnn", 32, 600, 10, ranks=33),
    "AMN on 33 ranks": Load("cnn", 32, 600, 10, "amn", ranks=33),
}
QUICK = ("W1", "AMN on W1", "W1b", "W2")
TESTS = 10  # test images a client; nothing is evaluated


def pool(load: Load) -> tuple[np.ndarray, np.ndarray]:
    """Fashion-MNIST where it is installed, else blots that a network can learn, (n, 28, 28) and (n,)."""
    count = load.clients * (load.samples + TESTS)
    if IDX.is_dir():
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
