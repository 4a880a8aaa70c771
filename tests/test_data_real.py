"""The real data sets, where this machine has them."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from amn_mpi.config import Data
from amn_mpi.data import describe, load_clients, prepare
from amn_mpi.data.readers import reader

FASHION = Path("/usr/share/datasets/fashion-mnist")


def _has_cifar() -> bool:
    folder = Path(os.environ.get("AMN_DATA", "/nowhere"))
    return any(folder.glob("**/cifar-10-batches-bin/test_batch.bin"))


def _balance(name: str) -> tuple[list[int], np.ndarray, list[str]]:
    data = Data(name=name)
    source = reader(data)
    raw = source.read(data, source.locate(data))
    return np.bincount(raw.y).tolist(), raw.x, raw.class_names


@pytest.mark.skipif(not FASHION.is_dir(), reason="apt-get install dataset-fashion-mnist")
def test_fashion_mnist(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AMN_DATA", raising=False)
    counts, x, names = _balance("fashion_mnist")
    assert counts == [7000] * 10 and x.shape == (70000, 1, 28, 28)
    # Published: the first training image is an ankle boot; mean pixel of the training set 0.2860.
    assert names[9] == "Ankle boot"
    assert x[:60000].mean() / 255 == pytest.approx(0.2860, abs=1e-4)
    found = prepare(Data(name="fashion_mnist", clients=100, cache=str(tmp_path)), 0)
    assert found.start[-1] == 70000
    client = load_clients(found, [42])[0]
    assert client.x_train.shape == (525, 1, 28, 28)
    assert client.x_train.min() == pytest.approx(-0.2860 / 0.3530)


@pytest.mark.skipif(not _has_cifar(), reason="no cifar-10-batches-bin in $AMN_DATA")
def test_cifar10() -> None:
    counts, x, names = _balance("cifar10")
    assert counts == [6000] * 10 and x.shape == (60000, 3, 32, 32)
    assert names[0] == "airplane" and names[9] == "truck"
    # Published channel means 0.4914, 0.4822, 0.4465 (of the training images).
    means = x.mean(axis=(0, 2, 3)) / 255
    assert means == pytest.approx([0.4914, 0.4822, 0.4465], abs=0.003)
    found = describe(Data(name="cifar10", clients=100), 0)
    assert abs(x.mean() * found.scale + found.shift) < 0.01
    assert x[::10].std() * found.scale == pytest.approx(1, abs=0.01)
    assert found.train.tolist() == [450] * 100
