"""PFLlib's folder: ``train/0.npz``, ``test/0.npz``, ... and ``config.json``.

Each file holds ``data``: a dict {"x": array, "y": array} inside an object array, which NumPy stores as
a pickle. A pickle can run any program, so it is read with an unpickler that builds arrays and nothing
else. https://github.com/TsingZ0/PFLlib
"""

from __future__ import annotations

import json
import pickle
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy

from amn_mpi.data.holdings import Part, pooled
from amn_mpi.data.raw import Raw
from amn_mpi.errors import UserError

# What a pickled array consists of: numpy 1 and 2 have it under different names.
ARRAYS = {
    *(
        (f"numpy.{core}.multiarray", name)
        for core in ("core", "_core")
        for name in ("_reconstruct", "scalar")
    ),
    *((f"numpy.{core}.numeric", "_frombuffer") for core in ("core", "_core")),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
}
BROKEN = (
    OSError,
    ValueError,
    KeyError,
    EOFError,
    TypeError,
    AttributeError,
    IndexError,
    MemoryError,
    OverflowError,
    zipfile.BadZipFile,
    zlib.error,
    pickle.UnpicklingError,
    RuntimeError,
)
MOST = 2**16  # classes: every client has a count of each


class Forbidden(Exception):
    """The name of something in a pickle that is no part of an array."""


class ArraysOnly(pickle.Unpickler):
    """Builds NumPy arrays, numbers, strings, lists and dicts; anything else is refused unmade."""

    def find_class(self, module: str, name: str) -> Any:
        """Raises ``Forbidden``."""
        if (module, name) not in ARRAYS:
            raise Forbidden(f"{module}.{name}")
        return super().find_class(module.replace("numpy.core.", "numpy._core."), name)


def read(files: dict[str, Path]) -> Raw:
    """Raises ``UserError`` that names the file."""
    config = _config(files.get("config.json"))
    halves = {half: [n for n in files if n.startswith(f"{half}/")] for half in ("train", "test")}
    clients = [name.partition("/")[2] for name in halves["train"]]
    for half, other in (("train", "test"), ("test", "train")):
        for name in halves[half]:
            if name.replace(half, other, 1) not in files:
                raise UserError(f"{files[name]}: there is no {name.replace(half, other, 1)} beside it")
    count = config.get("num_clients", len(clients))
    if count != len(clients):
        raise UserError(
            f"{files['config.json']}: num_clients = {count}, but train/ holds {len(clients)} clients' files"
        )
    parts = [_part(files[f"{half}/{name}"], name, half == "test") for half in halves for name in clients]
    return pooled(
        [part for part in parts if part.y.size or not part.test], True, config.get("num_classes", 0)
    )


def _config(path: Path | None) -> dict[str, int]:
    """The whole numbers in config.json; without the file nothing is known beforehand."""
    if path is None:
        return {}
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as JSON ({' '.join(str(error).split())})") from None
    if not isinstance(found, dict):
        raise UserError(f"{path}: holds {type(found).__name__}, expected num_clients, num_classes, ...")
    numbers = {key: value for key, value in found.items() if type(value) is int}
    classes = numbers.get("num_classes", 1)
    if not 1 <= classes <= MOST:
        raise UserError(f"{path}: num_classes = {classes}; valid is 1 to {MOST}")
    return numbers


def _part(path: Path, client: str, test: bool) -> Part:
    try:
        held = _content(path)
    except Forbidden as error:
        raise UserError(
            f"{path}: its pickle asks for {error}; only NumPy arrays and dicts are read from such files"
        ) from None
    except BROKEN as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"{path}: cannot be read as PFLlib's npz ({reason})") from None
    if not isinstance(held, dict) or not {"x", "y"} <= set(held):
        found = ", ".join(map(str, held)) if isinstance(held, dict) else type(held).__name__
        raise UserError(f"{path}: data holds {found or 'nothing'}, expected a dict with x and y")
    for key in ("x", "y"):
        if not isinstance(held[key], np.ndarray) or held[key].dtype.hasobject:
            raise UserError(f"{path}: {key} is no array of numbers")
    return Part(client, str(path), held["x"], held["y"], test)


def _content(path: Path) -> object:
    """What the file's object array ``data`` holds."""
    with zipfile.ZipFile(path) as archive, archive.open("data.npy") as file:
        version = npy.read_magic(file)
        header = npy.read_array_header_1_0 if version == (1, 0) else npy.read_array_header_2_0
        shape, _, dtype = header(file)
        if shape != () or not dtype.hasobject:
            raise ValueError(f"data has shape {shape} and type {dtype}, expected one dict")
        array = ArraysOnly(file).load()
        file.read()  # to the end, where the checksum is compared
    return array.item()
