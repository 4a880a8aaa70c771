"""The prepared data of one federation: an HDF5 file whose rows lie sorted by client.

Data sets are contiguous and uncompressed, so that a rank can read its clients' rows at byte
offsets without h5py. A file is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi import hdf5
from amn_mpi.data import concept
from amn_mpi.data.federation import Federation, Plan
from amn_mpi.errors import UserError

if TYPE_CHECKING:
    import h5py

# Raise it with every change to the layout or to who gets which samples.
FORMAT = 4
INDEX = ("start", "train", "test", "train_counts", "label_group", "concept_group")
BLOCK = 4096


def write(path: Path, plan: Plan, x: np.ndarray) -> None:
    """Write the cache file for ``plan`` out of the raw samples ``x``.

    Raises ``UserError`` when the folder cannot be written or is full, and leaves nothing behind.
    Two runs may write the same file at once: each renames its own, equal one.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with _replacing(path) as temporary:
            _write_file(temporary, plan, x)
    except OSError as error:
        reason = error.strerror or error
        need = plan.y.nbytes + len(plan.y) * x[:1].nbytes
        raise UserError(
            f"data.cache = {path.parent}: cannot write the prepared data "
            f"({need / 1e6:.1f} MB): {reason}; set data.cache or $AMN_CACHE to a "
            "folder with space that you may write to"
        ) from None


@contextmanager
def _replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside ``path``; renamed to it on success, removed on any failure."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    try:
        yield temporary
        hdf5.sync(temporary)
        os.replace(temporary, path)
        hdf5.sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _write_file(path: Path, plan: Plan, x: np.ndarray) -> None:
    image = hdf5.lay_out(lambda file, image: _fill(file, image, plan, x))
    with open(path, "xb") as file:
        for offset, piece in image.pieces():
            file.seek(offset)
            file.write(piece)
        file.seek(image.places["x"].offset)
        for block in _blocks(plan, x):
            file.write(block.data)


def _blocks(plan: Plan, x: np.ndarray) -> Iterator[np.ndarray]:
    """The samples as they lie in the file, so many at a time."""
    for begin in range(0, len(plan.order), BLOCK):
        rows = slice(begin, begin + BLOCK)
        block = np.ascontiguousarray(x[plan.order[rows]])
        yield concept.rotate(block, plan.group[rows], plan.turns) if plan.turns > 1 else block


def _fill(file: h5py.File, image: hdf5.Image, plan: Plan, x: np.ndarray) -> None:
    """All but the values of the samples."""
    import h5py

    federation = plan.federation
    for key in INDEX:
        file[f"index/{key}"] = getattr(federation, key)
    file["class_names"] = np.array(federation.class_names, h5py.string_dtype())
    file["client_names"] = np.array(federation.client_names, h5py.string_dtype())
    for key in ("name", "scale", "shift"):
        file.attrs[key] = getattr(federation, key)
    file.attrs["format"] = FORMAT
    file.attrs["check"] = _check(federation, plan.y)
    file.attrs["content"] = _content(plan, x)
    file["y"] = plan.y
    image.reserve(file, "x", (len(plan.y), *x.shape[1:]), x.dtype)


def _check(federation: Federation, y: np.ndarray) -> int:
    """Checksum of labels and index: small, and damage to them would go unseen."""
    value = zlib.crc32(y.tobytes())
    for key in INDEX:
        value = zlib.crc32(getattr(federation, key).astype("<i8").tobytes(), value)
    return value


def _content(plan: Plan, x: np.ndarray) -> int:
    """Checksum of all samples and labels: tells whether a run goes on with the data it began with."""
    value = zlib.crc32(plan.y.data)
    for block in _blocks(plan, x):
        value = zlib.crc32(block.data, value)
    return value


def read(path: Path) -> Federation | None:
    """The federation in a cache file, or None if there is none that is whole."""
    import h5py

    if not path.is_file():
        return None
    try:
        with h5py.File(path, "r") as file:
            return _federation(path, file)
    except (OSError, RuntimeError, KeyError, ValueError, TypeError, AttributeError):
        return None


def _federation(path: Path, file: h5py.File) -> Federation | None:
    x, y = file["x"], file["y"]
    federation = Federation(
        name=str(file.attrs["name"]),
        path=str(path),
        x_offset=x.id.get_offset(),
        y_offset=y.id.get_offset(),
        x_dtype=x.dtype.str,
        shape=tuple(x.shape[1:]),
        class_names=file["class_names"].asstr()[...].tolist(),
        client_names=file["client_names"].asstr()[...].tolist(),
        scale=float(file.attrs["scale"]),
        shift=float(file.attrs["shift"]),
        content=int(file.attrs["content"]),
        **{key: file[f"index/{key}"][...] for key in INDEX},
    )
    rows = int(federation.start[-1])
    end = max(federation.x_offset + x.size * x.dtype.itemsize, federation.y_offset + y.nbytes)
    sound = (
        file.attrs["format"] == FORMAT
        and len(x) == len(y) == rows
        and y.dtype == np.int32
        and path.stat().st_size >= end
        and file.attrs["check"] == _check(federation, y[...])
    )
    return federation if sound else None
