"""Whether a checkpoint or a models.h5 is sound. Read piece by piece: nothing large is ever held.

HDF5 sees a file only when its checksums are right. No torch, no MPI.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from amn_mpi import checkpoint
from amn_mpi.checkpoint import KIND, PIECE, Damaged, Index
from amn_mpi.errors import UserError
from amn_mpi.runfolder import MODELS

if TYPE_CHECKING:
    import h5py

SIGNATURE = b"\x89HDF\r\n\x1a\n"


@dataclass(frozen=True)
class Part:
    """One data set.

    Attributes:
        nan, inf: how many values are; 0 in what holds no floats.
        rows: which rows have them, where there is one for each client.
        norms: of the rows, for models.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int
    nan: int = 0
    inf: int = 0
    rows: tuple[int, ...] = ()
    norms: tuple[float, ...] = ()


@dataclass(frozen=True)
class Examined:
    """What was found out about a file.

    Attributes:
        kind: ``checkpoint.KIND`` or ``runfolder.MODELS``.
        damage: what is wrong, in words; empty for a sound file.
        index: its first line, if that is sound.
        parts, about, history: what it holds and says of itself; empty where it is damaged.
    """

    path: Path
    kind: str
    size: int
    damage: list[str]
    index: Index | None = None
    parts: list[Part] = field(default_factory=list)
    about: dict[str, Any] = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        return self.about["config"]


def examine(path: Path, values: bool = True) -> Examined:
    """Read a file to its end.

    Args:
        values: look for NaN and Inf, and take norms.

    Raises:
        UserError: there is no such file, or it is none of ours.
    """
    kind, size = kind_of(path)
    try:
        index = checkpoint.index(path, kind)
        damage = [f"{name}: another checksum" for name, same in checkpoint.checked(path, index) if not same]
    except Damaged as reason:
        return Examined(path, kind, size, [str(reason)])
    if damage:
        return Examined(path, kind, size, damage, index)
    return _opened(path, kind, size, index, values)


def kind_of(path: Path) -> tuple[str, int]:
    """What a file is, or was before it was damaged, and its size.

    Raises:
        UserError: it cannot be read, or was never one of ours.
    """
    try:
        with open(path, "rb") as file:
            start, size = file.read(64), path.stat().st_size
            for kind in (KIND, MODELS):
                if start.startswith(b'{"kind": "%s"' % kind.encode()):
                    return kind, size
            behind = any(_signature(file, 2**k) for k in range(9, 25))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if start.startswith(SIGNATURE):
        raise UserError(f"{path}: is HDF5 without the first line of our checkpoints and models.h5")
    named = path.name == "models.h5" or path in checkpoint.listed(path.parent)
    if size and not behind and not named:
        raise UserError(f"{path}: is neither a checkpoint nor a models.h5")
    return (MODELS if path.name.startswith("models") else KIND), size


def _signature(file: IO[bytes], offset: int) -> bool:
    file.seek(offset)
    return file.read(len(SIGNATURE)) == SIGNATURE


def _opened(path: Path, kind: str, size: int, index: Index, values: bool) -> Examined:
    """What HDF5 tells of an intact file."""
    import h5py

    with h5py.File(path, "r") as file:
        about, history = _texts(file, kind)
        parts = [_part(name, data, path, values) for name, data in _data_sets(file)]
    return Examined(path, kind, size, [], index, parts, about, history)


def _texts(file: h5py.File, kind: str) -> tuple[dict[str, Any], dict[str, Any]]:
    if kind == KIND:
        return json.loads(bytes(file["about"][()])), json.loads(bytes(file["history"][()]))
    about = dict(file.attrs)
    return {**about, **{k: json.loads(about[k]) for k in ("config", "layout", "class_names")}}, {}


def _data_sets(file: h5py.File) -> list[tuple[str, h5py.Dataset]]:
    """All but the texts, by name."""
    import h5py

    found: list[tuple[str, h5py.Dataset]] = []
    file.visititems(lambda name, item: found.append((name, item)) if isinstance(item, h5py.Dataset) else None)
    return [(name, item) for name, item in found if name not in ("about", "history", "clients")]


def _part(name: str, data: h5py.Dataset, path: Path, values: bool) -> Part:
    found = _values(name, data, path) if values and data.dtype.kind == "f" else {}
    return Part(name, tuple(map(int, data.shape)), str(data.dtype), int(data.nbytes), **found)


def _values(name: str, data: h5py.Dataset, path: Path) -> dict[str, Any]:
    """NaN and Inf of a data set of floats; by rows where these are clients, with norms for models."""
    by_client = name == "models" or name.startswith("client/")
    nan = inf = 0
    rows: list[int] = []
    norms: list[float] = []
    for number, row in enumerate(_rows(data, path, len(data) if by_client else 1)):
        square, odd = 0.0, 0
        for piece in row:
            wrong = piece.size - int(np.count_nonzero(np.isfinite(piece)))
            if wrong:
                missing = int(np.count_nonzero(np.isnan(piece)))
                nan, inf, odd = nan + missing, inf + wrong - missing, odd + wrong
            if name == "models":
                square += float(np.square(piece, dtype=np.float64).sum())
        rows += [number] if odd and by_client else []
        norms += [math.sqrt(square)] if name == "models" else []
    return {"nan": nan, "inf": inf, "rows": tuple(rows), "norms": tuple(norms)}


def _rows(data: h5py.Dataset, path: Path, count: int) -> Iterator[Iterator[np.ndarray]]:
    """The values in ``count`` equal rows, each in pieces; straight from the file where they lie in one."""
    offset = data.id.get_offset()
    if offset is None:
        yield from (iter([row]) for row in np.asarray(data[()]).reshape(count, -1))
        return
    length = data.nbytes // max(1, count)
    with open(path, "rb", buffering=0) as file:
        for start in range(offset, offset + count * length, max(1, length)):
            yield _pieces(file, start, length, data.dtype)


def _pieces(file: IO[bytes], start: int, length: int, dtype: np.dtype) -> Iterator[np.ndarray]:
    for at in range(start, start + length, PIECE):
        file.seek(at)
        yield np.frombuffer(file.read(min(PIECE, start + length - at)), dtype)
