"""IDX files, plain or gzipped: the format of MNIST and its relatives.

Layout (big-endian): two zero bytes, a type code (8: uint8), the number of dimensions, each
dimension as uint32, then the values. https://web.archive.org/web/2021/http://yann.lecun.com/exdb/mnist/
"""

from __future__ import annotations

import gzip
import math
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

import numpy as np

from amn_mpi.errors import UserError

GZIP_MAGIC = b"\x1f\x8b"
# Deflate cannot shrink data by more than this (zlib's technical notes), so a header that claims
# more is damaged; checked before memory for it is asked for.
DEFLATE_LIMIT = 1032


def read_pool(paths: Sequence[Path], ndim: int) -> tuple[np.ndarray, list[int]]:
    """Read files of ``ndim`` dimensions one behind the other into one uint8 array.

    Returns the array and the number of rows of each file. One array is filled in place, since a
    concatenation would need the memory twice. Raises ``UserError`` for a file that is not sound.
    """
    shapes = [_shape(path, ndim) for path in paths]
    for path, shape in zip(paths, shapes):
        if shape[1:] != shapes[0][1:]:
            raise UserError(
                f"{path}: images of {_times(shape[1:])} pixels, but {paths[0]} has {_times(shapes[0][1:])}"
            )
    rows = [shape[0] for shape in shapes]
    pool = np.empty((sum(rows), *shapes[0][1:]), np.uint8)
    ends = np.cumsum(rows)
    for path, end, count in zip(paths, ends, rows):
        _fill(path, ndim, pool[end - count : end])
    return pool, rows


@contextmanager
def _opened(path: Path) -> Iterator[gzip.GzipFile | BufferedReader]:
    """The bytes of a file, unpacked if it is gzipped; damage becomes one clear line."""
    try:
        with open(path, "rb") as plain:
            packed = plain.read(2) == GZIP_MAGIC
            plain.seek(0)
            yield gzip.GzipFile(fileobj=plain) if packed else plain
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise UserError(f"{path}: corrupt or cut gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def _shape(path: Path, ndim: int) -> tuple[int, ...]:
    """The dimensions in a file's header, checked."""
    with _opened(path) as file:
        head = file.read(4)
        if len(head) < 4 or head[:2] != b"\0\0":
            raise UserError(
                f"{path}: not an IDX file: it begins with bytes {head.hex(' ')}, expected 00 00 08 {ndim:02x}"
            )
        if head[2:] != bytes([8, ndim]):
            raise UserError(
                f"{path}: IDX type code {head[2]} with {head[3]} dimensions, expected "
                f"type code 8 (uint8) with {ndim}"
            )
        sizes = file.read(4 * ndim)
        if len(sizes) < 4 * ndim:
            raise UserError(
                f"{path}: ends within its header, expected {4 + 4 * ndim} bytes, found {4 + len(sizes)}"
            )
        shape = struct.unpack(f">{ndim}I", sizes)
        _check_length(path, shape, packed=isinstance(file, gzip.GzipFile))
    return shape


def _check_length(path: Path, shape: tuple[int, ...], packed: bool) -> None:
    if 0 in shape:
        raise UserError(f"{path}: its header says {_times(shape)} values: it is empty")
    expected = 4 + 4 * len(shape) + math.prod(shape)
    found = path.stat().st_size
    if not packed and found != expected:
        raise UserError(f"{path}: expected {expected} bytes for {_times(shape)} values, found {found}")
    if packed and found * DEFLATE_LIMIT < expected:
        raise UserError(
            f"{path}: expected {expected} bytes for {_times(shape)} values, found "
            f"{found} compressed bytes, which cannot hold them"
        )


def _fill(path: Path, ndim: int, out: np.ndarray) -> None:
    """Read a file's values into ``out``, which must fit them exactly."""
    with _opened(path) as file:
        file.read(4 + 4 * ndim)
        target = out.data.cast("B")
        got = 0
        while got < out.nbytes:
            count = file.readinto(target[got:])
            if not count:
                raise UserError(f"{path}: expected {out.nbytes} values, found {got}")
            got += count
        if file.read(1):
            raise UserError(f"{path}: expected {out.nbytes} values, found more bytes behind them")


def _times(shape: Sequence[int]) -> str:
    return " x ".join(map(str, shape))
