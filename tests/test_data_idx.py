"""MNIST's family: IDX files, plain and gzipped, and every way they can be bad."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
from test_data_helpers import RNG, forget_folders, idx, read, refused, write_mnist


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_folders(monkeypatch)


@pytest.mark.parametrize(("pack", "dot"), [(False, False), (True, False), (False, True), (True, True)])
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


def test_pixels_are_standardised_by_the_published_constants(tmp_path: Path) -> None:
    write_mnist(tmp_path)
    raw = read("mnist", tmp_path)
    assert raw.shift == pytest.approx(-0.1307 / 0.3081)
    assert 255 * raw.scale + raw.shift == pytest.approx((1 - 0.1307) / 0.3081)


@pytest.mark.parametrize("folder", ["FashionMNIST/raw", "fashion-mnist", "fashion_mnist", "."])
def test_fashion_mnist_in_its_usual_folders(
    tmp_path: Path, folder: str, monkeypatch: pytest.MonkeyPatch
) -> None:
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
    held = write_mnist(tmp_path / "gzip", True, prefix="emnist-balanced-", test="test", side=(3, 5))
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
    "short inside gzip": (
        gzip.compress(idx(np.zeros((30, 4, 4), np.uint8))[:-5]),
        "expected 480 values, found 475",
    ),
    "long inside gzip": (gzip.compress(idx(np.zeros((30, 4, 4), np.uint8)) + b"1"), "more bytes"),
    "cut gzip": (gzip.compress(RNG.bytes(500))[:-20], "not an IDX file"),
    "cut gzip of good data": (gzip.compress(idx(RNG.integers(0, 255, (30, 4, 4), np.uint8)))[:-9], "gzip"),
    "boast": (gzip.compress(b"\0\0\x08\x03" + struct.pack(">3I", 2**31, 2**10, 2**10)), "cannot hold"),
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
