"""A user's own arrays in HDF5 or npz, good and bad."""

from __future__ import annotations

from pathlib import Path

import h5py
import numpy as np
import pytest
from test_data_helpers import RNG, forget_folders, read, refused


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_folders(monkeypatch)


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


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((6, 4, 5), (6, 1, 4, 5)),
        ((6, 4, 5, 1), (6, 1, 4, 5)),
        ((6, 3, 4, 5), (6, 3, 4, 5)),
        ((6, 7, 4, 5), (6, 7, 4, 5)),
        ((6, 1, 4, 3), (6, 1, 4, 3)),
    ],
)
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
    "wide integer x": (
        {"x": np.array([[0], [1], [-(2**24) - 1]]), "y": GOOD_Y},
        "int64 and the value -16777217; valid are whole numbers up to 16777216",
    ),
    "no numbers": ({"x": np.zeros((3, 2), bool), "y": GOOD_Y}, "bool, expected uint8 images"),
    "flat bytes": ({"x": np.zeros((3, 2), np.uint8), "y": GOOD_Y}, "(3, 2)"),
    "flat floats": ({"x": np.zeros(3), "y": GOOD_Y}, "(3,)"),
    "names": (
        {"x": GOOD_X, "y": np.array([0, 3, 3]), "class_names": np.array(["a", "b"])},
        "has 2 entries, expected at least 4",
    ),
    "a name twice": (
        {"x": GOOD_X, "y": np.array([0, 2, 2]), "class_names": np.array(["a", "b", "a"])},
        "class_names has a for two labels",
    ),
    "no labels": ({"x": GOOD_X, "y": np.zeros(0)}, "y is empty"),
}


@pytest.mark.parametrize("case", BAD_ARRAYS)
def test_bad_arrays(tmp_path: Path, array_path: Path, case: str) -> None:
    arrays, expected = BAD_ARRAYS[case]
    line = refused(tmp_path, save(array_path, **arrays))
    assert expected in line and str(array_path) in line


def test_pickled_labels_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    np.savez(path, x=GOOD_X, y=np.array([0, "a", None], dtype=object))
    line = refused(tmp_path, path)
    assert "cannot be read as npz (y holds Python objects; save texts as y.astype(str))" in line


def test_file_that_is_no_array_file(tmp_path: Path, array_path: Path) -> None:
    array_path.write_bytes(b"plain text, not an archive of arrays")
    assert "cannot be read as" in refused(tmp_path, array_path)


def test_cut_array_file(tmp_path: Path, array_path: Path) -> None:
    save(array_path, x=np.zeros((300, 20), np.float32), y=np.arange(300))
    array_path.write_bytes(array_path.read_bytes()[:-2000])
    assert "cannot be read as" in refused(tmp_path, array_path)


def test_one_array_under_the_name_of_an_archive(tmp_path: Path) -> None:
    np.save(tmp_path / "a.npy", GOOD_X)
    path = (tmp_path / "a.npy").rename(tmp_path / "a.npz")
    assert "single array" in refused(tmp_path, path)


def test_encrypted_archive(tmp_path: Path) -> None:
    path = save(tmp_path / "a.npz", x=GOOD_X, y=GOOD_Y)
    held = bytearray(path.read_bytes())
    for mark, flags in ((b"PK\3\4", 6), (b"PK\1\2", 8)):  # of each file, and in the table of contents
        at = held.find(mark)
        while at >= 0:
            held[at + flags] |= 1
            at = held.find(mark, at + 4)
    path.write_bytes(held)
    assert "encrypted" in refused(tmp_path, path)


def test_hdf5_with_a_damaged_table_of_contents(tmp_path: Path) -> None:
    path = save(tmp_path / "a.h5", x=GOOD_X, y=GOOD_Y)
    path.write_bytes(path.read_bytes().replace(b"TREE", b"TREF").replace(b"HEAP", b"HEAQ"))
    assert "cannot be read as h5" in refused(tmp_path, path)


def test_array_file_that_is_not_there(tmp_path: Path) -> None:
    assert "there is no such file" in refused(tmp_path, tmp_path / "a.npz")
