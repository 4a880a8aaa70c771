"""A user's own data: an HDF5 (.h5, .hdf5) or NumPy (.npz) file with arrays ``x`` and ``y``.

``x``: n rows; uint8 images (n, h, w), (n, h, w, c) with c 1 or 3, or (n, c, h, w); or floats or whole
numbers of any shape, such as tokens (n, length). ``y``: n integers from 0 up. Optional: ``class_names``,
one string for each label; ``client``, the owner of each sample (n integers or strings), which makes the
clients the data's own; and with it ``test``, n booleans, the samples kept for its owner's test.
"""

from __future__ import annotations

import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi.data.raw import PIXEL_SCALE, PIXEL_SHIFT, Raw
from amn_mpi.errors import UserError

if TYPE_CHECKING:
    from amn_mpi.config import Data

SUFFIXES = (".h5", ".hdf5", ".npz")
KEYS = ("x", "y", "class_names", "client", "test")
NUMBERS = ("int8", "int16", "int32")
# What NumPy, zipfile and HDF5 raise for damaged files; the last one where they are encrypted, too.
BROKEN = (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error, RuntimeError)
WIDE = 2**24  # float32 holds whole numbers up to it; beyond are row numbers, not tokens or measurements


def locate(data: Data) -> dict[str, Path]:
    path = Path(data.name).expanduser()
    if not path.is_file():
        raise UserError(f"data.name = {data.name}: there is no such file")
    return {"file": path}


def read(data: Data, files: dict[str, Path]) -> Raw:
    """Raises ``UserError`` naming the file and the array that cannot be used."""
    return raw_of(files["file"], load(files["file"], KEYS))


def raw_of(path: Path, arrays: dict[str, np.ndarray | None]) -> Raw:
    """What the arrays of a file hold. Raises as ``read``."""
    x, y = arrays.get("x"), arrays.get("y")
    if x is None or y is None:
        raise UserError(
            f"{path}: has no array {'x' if x is None else 'y'}; expected x and y, "
            f"found {', '.join(sorted(arrays)) or 'nothing'}"
        )
    check_labels(path, x, y)
    labels, names = _names(path, y, arrays.get("class_names"))
    values, scale, shift = samples(path, x)
    return _owned(path, Raw(values, labels, names, scale, shift), arrays)


def has_clients(path: Path) -> bool:
    """Whether a file says who owns each sample; False, too, where it cannot be read."""
    try:
        return "client" in load(path, ())
    except UserError:
        return False


def samples(path: Path | str, x: np.ndarray) -> tuple[np.ndarray, float, float]:
    """Images or numbers as a ``Raw`` holds them, and the scale and shift that go with them.

    Args:
        path: where they are from, for the message of the ``UserError``.
    """
    if x.dtype == np.uint8:
        return _channels_first(path, x), PIXEL_SCALE, PIXEL_SHIFT
    return _floats(path, x), 1.0, 0.0


def _owned(path: Path, raw: Raw, arrays: dict[str, np.ndarray | None]) -> Raw:
    """``raw`` with its clients, where the file has any."""
    client, test, n = arrays.get("client"), arrays.get("test"), len(raw.y)
    if client is None:
        if test is None:
            return raw
        raise UserError(
            f"{path}: has test, but no client; test says which of a client's samples are its test"
        )
    if client.shape != (n,) or client.dtype.kind not in "iuUS":
        raise UserError(
            f"{path}: client has shape {client.shape} and type {client.dtype}, expected "
            f"({n},) integers or strings"
        )
    if test is not None and (test.shape != (n,) or test.dtype != bool):
        raise UserError(f"{path}: test has shape {test.shape} and type {test.dtype}, expected ({n},) bool")
    names, owner = np.unique(client, return_inverse=True)
    told = tuple(v.decode(errors="replace") if isinstance(v, bytes) else str(v) for v in names.tolist())
    return replace(raw, client=owner.astype(np.int64), test=test, client_names=told)


def load(path: Path, keys: Sequence[str]) -> dict[str, np.ndarray | None]:
    """The arrays wanted, and None for whatever else the file holds. Raises ``UserError``."""
    loader = _load_npz if path.suffix == ".npz" else _load_hdf5
    try:
        return loader(path, keys)
    except BROKEN as error:
        reason = " ".join(str(error).split())
        raise UserError(f"{path}: cannot be read as {path.suffix[1:]} ({reason})") from None


def _load_npz(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray | None]:
    loaded = np.load(path, allow_pickle=False)
    if isinstance(loaded, np.ndarray):
        raise ValueError("it is a single array, a .npy file; write it with np.savez(file, x=..., y=...)")
    with loaded as file:
        return {key: _array(file, key) if key in wanted else None for key in file.files}


def _array(file: np.lib.npyio.NpzFile, key: str) -> np.ndarray:
    try:
        return file[key]
    except ValueError as error:
        if "Object arrays" not in str(error):
            raise
        raise ValueError(f"{key} holds Python objects; save texts as {key}.astype(str)") from None


def _load_hdf5(path: Path, wanted: Sequence[str]) -> dict[str, np.ndarray | None]:
    import h5py

    with h5py.File(path, "r") as file:
        return {key: _dataset(file[key]) if key in wanted else None for key in file}


def _dataset(item: object) -> np.ndarray | None:
    """A data set's values; None for a group of that name."""
    import h5py

    if not isinstance(item, h5py.Dataset):
        return None
    if h5py.check_string_dtype(item.dtype):
        return np.asarray(item.asstr()[...], dtype=np.str_)
    return np.asarray(item[...])


def check_labels(path: Path | str, x: np.ndarray, y: np.ndarray) -> None:
    """Raises ``UserError`` unless y is (n,) integers from 0 up and x has n samples."""
    if y.size == 0:
        raise UserError(f"{path}: y is empty")
    if y.ndim != 1 or not np.issubdtype(y.dtype, np.integer):
        raise UserError(f"{path}: y has shape {y.shape} and type {y.dtype}, expected (n,) integers")
    if x.ndim == 0 or len(x) != len(y):
        raise UserError(f"{path}: x has shape {x.shape}, expected {len(y)} rows, as many as y")
    if 0 in x.shape:
        raise UserError(f"{path}: x has shape {x.shape}: its samples are empty")
    if y.min() < 0:
        raise UserError(f"{path}: y has the label {y.min()}, expected 0 or more")


def _channels_first(path: Path | str, x: np.ndarray) -> np.ndarray:
    """(n, c, h, w) from any of the three image shapes; a view."""
    if x.ndim == 3:
        return x[:, None]
    if x.ndim != 4:
        raise UserError(
            f"{path}: x is uint8 of shape {x.shape}, expected images (n, h, w), (n, h, w, c) or (n, c, h, w)"
        )
    if x.shape[3] in (1, 3) and x.shape[1] not in (1, 3):
        return x.transpose(0, 3, 1, 2)
    return x


def _floats(path: Path | str, x: np.ndarray) -> np.ndarray:
    """Finite float32; checked after the conversion, which can overflow."""
    if not np.issubdtype(x.dtype, np.floating) and not np.issubdtype(x.dtype, np.integer):
        raise UserError(f"{path}: x has type {x.dtype}, expected uint8 images, floats or whole numbers")
    if x.ndim < 2:
        raise UserError(f"{path}: x has shape {x.shape}, expected (n, features) or more")
    if np.issubdtype(x.dtype, np.integer) and x.dtype.name not in NUMBERS:
        _check_wide(path, x)
    with np.errstate(over="ignore"):
        x = x.astype(np.float32, copy=False)
    finite = np.isfinite(x).reshape(len(x), -1).all(axis=1)
    if not finite.all():
        raise UserError(
            f"{path}: x has values that are NaN or infinite in {(~finite).sum()} of "
            f"{len(x)} rows, first in row {finite.argmin()}"
        )
    return x


def _check_wide(path: Path | str, x: np.ndarray) -> None:
    for value in (x.min(), x.max()):
        if abs(int(value)) > WIDE:
            raise UserError(
                f"{path}: x has type {x.dtype} and the value {value}; valid are whole numbers up to {WIDE}, "
                "which float32 holds exactly, or floats"
            )


def _names(path: Path, y: np.ndarray, given: np.ndarray | None) -> tuple[np.ndarray, list[str]]:
    """Labels 0..C-1 without gaps, and the name of each: as given, else the number in the file."""
    values, labels = np.unique(y, return_inverse=True)
    if given is None:
        return labels.astype(np.int64), [str(v) for v in values]
    names = [n.decode(errors="replace") if isinstance(n, bytes) else str(n) for n in given.ravel().tolist()]
    if len(names) <= values[-1]:
        raise UserError(
            f"{path}: class_names has {len(names)} entries, expected at least "
            f"{values[-1] + 1}, since y goes up to {values[-1]}"
        )
    used = [names[v] for v in values]
    twice = [name for name, count in Counter(used).items() if count > 1]
    if twice:
        raise UserError(f"{path}: class_names has {twice[0]} for two labels, expected another name for each")
    return labels.astype(np.int64), used
