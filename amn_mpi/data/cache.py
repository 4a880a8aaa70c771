"""The prepared data of one federation: an HDF5 file whose rows lie sorted by client.

Data sets are contiguous and uncompressed, so that a rank can read its clients' rows at byte
offsets without h5py. A file is written under a temporary name and renamed when it is complete.
"""

from __future__ import annotations

import io
import os
import secrets
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from amn_mpi.data import concept
from amn_mpi.data.federation import Federation, Plan
from amn_mpi.errors import UserError

if TYPE_CHECKING:
    import h5py

# Raise it with every change to the layout or to who gets which samples.
FORMAT = 3
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
        _sync(temporary)
        os.replace(temporary, path)
        _sync(path.parent)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_file(path: Path, plan: Plan, x: np.ndarray) -> None:
    """HDF5 lays the file out in memory; plain writes bring it to the disk.

    On a disk that fills up (or a quota) a plain write is an ordinary OSError, while HDF5 itself
    fails again when it closes the file and takes the process down with a segmentation fault.
    """
    image, x_offset = _lay_out(plan, x)
    with open(path, "xb") as file:
        file.write(image.getbuffer())
        file.seek(x_offset)
        for block in _blocks(plan, x):
            file.write(block.data)


def _blocks(plan: Plan, x: np.ndarray) -> Iterator[np.ndarray]:
    """The samples as they lie in the file, so many at a time."""
    for begin in range(0, len(plan.order), BLOCK):
        rows = slice(begin, begin + BLOCK)
        block = np.ascontiguousarray(x[plan.order[rows]])
        yield concept.rotate(block, plan.group[rows], plan.turns) if plan.turns > 1 else block


def _lay_out(plan: Plan, x: np.ndarray) -> tuple[io.BytesIO, int]:
    """The file without its samples, and the byte offset where they belong.

    x comes last and gets its place (early allocation) but no values, so the image stays small;
    for that the root group must hold few members, or HDF5 adds a node to it behind x.
    """
    import h5py

    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    image = io.BytesIO()
    federation = plan.federation
    with h5py.File(image, "w") as file:
        for key in INDEX:
            file[f"index/{key}"] = getattr(federation, key)
        file["class_names"] = np.array(federation.class_names, h5py.string_dtype())
        for key in ("name", "scale", "shift"):
            file.attrs[key] = getattr(federation, key)
        file.attrs["format"] = FORMAT
        file.attrs["check"] = _check(federation, plan.y)
        file.attrs["content"] = _content(plan, x)
        file["y"] = plan.y
        file.create_dataset("x", (len(plan.y), *x.shape[1:]), x.dtype, dcpl=early)
        x_offset = file["x"].id.get_offset()
    return image, x_offset


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
