"""Read the samples of a rank's own clients. Needs no h5py, so workers start fast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from amn_mpi.data.federation import Federation
from amn_mpi.errors import UserError


@dataclass(frozen=True, eq=False)
class ClientData:
    """One client's samples: x float32 (n, ...) as the model sees them, y int64 (n,)."""

    x_train: np.ndarray
    y_train: np.ndarray
    x_test: np.ndarray
    y_test: np.ndarray


def load_clients(federation: Federation, clients: Sequence[int]) -> list[ClientData]:
    """Read these clients' rows, and no others, from the cache file.

    Raises ``UserError`` when this host does not see the file or it has become shorter.
    """
    if not federation.path:
        raise ValueError("describe() wrote no samples; use prepare()")
    bad = [i for i in clients if not 0 <= i < federation.clients]
    if bad:
        raise IndexError(f"client {bad[0]} of {federation.clients}")
    try:
        with open(federation.path, "rb") as file:
            return [_client(file, federation, int(i)) for i in clients]
    except OSError as error:
        raise UserError(
            f"data.cache: {federation.path} cannot be read here ({error.strerror or error}); set "
            "data.cache or $AMN_CACHE to a folder on a file system that all hosts see"
        ) from None


def _client(file: BinaryIO, federation: Federation, client: int) -> ClientData:
    first = int(federation.start[client])
    n = int(federation.train[client])
    rows = n + int(federation.test[client])
    raw = _rows(
        file, federation, federation.x_offset, np.dtype(federation.x_dtype), federation.shape, first, rows
    )
    y = _rows(file, federation, federation.y_offset, np.dtype(np.int32), (), first, rows)
    x = raw.astype(np.float32)
    x *= np.float32(federation.scale)
    x += np.float32(federation.shift)
    labels = y.astype(np.int64)
    return ClientData(x[:n], labels[:n], x[n:], labels[n:])


def _rows(
    file: BinaryIO,
    federation: Federation,
    offset: int,
    dtype: np.dtype,
    shape: tuple[int, ...],
    first: int,
    rows: int,
) -> np.ndarray:
    """Rows ``first`` to ``first + rows`` of the data set that begins at ``offset``."""
    values = int(np.prod(shape, dtype=np.int64))
    file.seek(offset + first * values * dtype.itemsize)
    out = np.fromfile(file, dtype, rows * values)
    if out.size != rows * values:
        raise UserError(
            f"{federation.path}: ends early: rows {first} to {first + rows} are not "
            "all there; delete the file and run again"
        )
    return out.reshape(rows, *shape)
