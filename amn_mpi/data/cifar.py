"""CIFAR-10 and CIFAR-100 in their binary layout (Krizhevsky 2009).

A record is one label byte (CIFAR-100: a coarse one, then a fine one, which is used) and 3,072
pixel bytes: red, green and blue planes of 32 x 32. https://www.cs.toronto.edu/~kriz/cifar.html
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi.data.find import Wanted, find
from amn_mpi.data.raw import Raw
from amn_mpi.errors import UserError

if TYPE_CHECKING:
    from amn_mpi.config import Data

PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Layout:
    """One of the two: its files, the bytes of labels in a record, the names of its classes."""

    wanted: Wanted
    label_bytes: int
    names_file: str
    names: tuple[str, ...]


def _wanted(files: tuple[str, ...], folder: str, other: str, archive: str, names: str) -> Wanted:
    return Wanted(
        {file: (file,) for file in files},
        (folder, f"{other}/{folder}", other),
        f"get {archive} from https://www.cs.toronto.edu/~kriz/cifar.html and unpack it",
        optional=(names,),
    )


LAYOUTS = {
    "cifar10": Layout(
        _wanted(
            (*(f"data_batch_{i}.bin" for i in range(1, 6)), "test_batch.bin"),
            "cifar-10-batches-bin",
            "cifar10",
            "cifar-10-binary.tar.gz",
            "batches.meta.txt",
        ),
        1,
        "batches.meta.txt",
        ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"),
    ),
    "cifar100": Layout(
        _wanted(
            ("train.bin", "test.bin"),
            "cifar-100-binary",
            "cifar100",
            "cifar-100-binary.tar.gz",
            "fine_label_names.txt",
        ),
        2,
        "fine_label_names.txt",
        tuple(map(str, range(100))),
    ),
}


def locate(data: Data) -> dict[str, Path]:
    return find(data, LAYOUTS[data.name].wanted)


def read(data: Data, files: dict[str, Path]) -> Raw:
    """Pool all files; x is (n, 3, 32, 32) uint8."""
    layout = LAYOUTS[data.name]
    paths = [files[name] for name in layout.wanted.files]
    rows = [_rows(path, layout) for path in paths]
    x = np.empty((sum(rows), 3, 32, 32), np.uint8)
    y = np.empty(sum(rows), np.int64)
    for path, end, count in zip(paths, np.cumsum(rows), rows):
        _fill(path, layout, x[end - count : end], y[end - count : end])
    return Raw(x, y, _names(layout, files.get(layout.names_file)))


def _rows(path: Path, layout: Layout) -> int:
    size, record = path.stat().st_size, layout.label_bytes + PIXELS
    if size == 0 or size % record:
        raise UserError(f"{path}: expected a multiple of {record} bytes (one record), found {size}")
    return size // record


def _fill(path: Path, layout: Layout, x: np.ndarray, y: np.ndarray) -> None:
    """Read one file into its part of the pool."""
    try:
        records = np.fromfile(path, np.uint8).reshape(len(y), layout.label_bytes + PIXELS)
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    y[:] = records[:, layout.label_bytes - 1]
    bad = np.flatnonzero(y >= len(layout.names))
    if len(bad):
        raise UserError(
            f"{path}: record {bad[0]} has label {y[bad[0]]}, expected 0 to {len(layout.names) - 1}"
        )
    x[:] = records[:, layout.label_bytes :].reshape(x.shape)


def _names(layout: Layout, path: Path | None) -> list[str]:
    if path is None:
        return list(layout.names)
    try:
        names = [line.strip() for line in path.read_text().splitlines() if line.strip()]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: expected class names, one a line ({error})") from None
    if len(names) != len(layout.names):
        raise UserError(f"{path}: expected {len(layout.names)} class names, found {len(names)}")
    return names
