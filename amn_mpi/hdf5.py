"""HDF5 files that are laid out in memory and filled by plain writes.

On a disk that fills up (or a quota) a plain write is an ordinary OSError, while HDF5 itself fails
once more when it closes the file and takes the process down with a segmentation fault. And what is
large need never be in memory twice.
"""

from __future__ import annotations

import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import h5py


class Place(NamedTuple):
    """Where the values of a data set lie in the file."""

    offset: int
    nbytes: int

    @property
    def stop(self) -> int:
        return self.offset + self.nbytes


class Image(io.RawIOBase):
    """A file of which only the written bytes are kept; the rest is zero.

    Attributes:
        places: data sets that were reserved, by name, in the order of the file.
    """

    def __init__(self) -> None:
        self.places: dict[str, Place] = {}
        self._pieces: list[tuple[int, bytes]] = []
        self._at = self.size = 0

    def reserve(self, file: h5py.File, name: str, shape: Sequence[int], dtype: Any) -> None:
        """Add a contiguous data set whose values are written later, at its place (an empty one has none)."""
        import h5py

        early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
        early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
        made = file.create_dataset(name, tuple(shape), dtype, dcpl=early)
        if made.size:
            self.places[name] = Place(made.id.get_offset(), made.id.get_storage_size())

    def pieces(self, start: int = 0) -> Iterator[tuple[int, bytes]]:
        """(offset, bytes) of everything from ``start`` on that is not reserved."""
        for place in [*sorted(self.places.values()), Place(self.size, 0)]:
            if place.offset > start:
                self.seek(start)
                yield start, self.read(place.offset - start) or b""
            start = place.stop

    # ---- what h5py asks of a file

    def readable(self) -> bool:
        return True

    def writable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        self._at = (0, self._at, self.size)[whence] + offset
        return self._at

    def truncate(self, size: int | None = None) -> int:
        self.size = self._at if size is None else size
        return self.size

    def write(self, data: Any) -> int:
        piece = bytes(data)
        self._pieces.append((self._at, piece))
        self._at += len(piece)
        self.size = max(self.size, self._at)
        return len(piece)

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer).cast("B")
        view[:] = bytes(len(view))
        first, last = self._at, self._at + len(view)
        for start, piece in self._pieces:  # later ones lie on top
            a, b = max(first, start), min(last, start + len(piece))
            if a < b:
                view[a - first : b - first] = piece[a - start : b - start]
        self._at = last
        return len(view)


def lay_out(fill: Callable[[h5py.File, Image], None], block: int = 0) -> Image:
    """An HDF5 file as an image: ``fill`` adds attributes, small data sets, and reserves large ones.

    Args:
        block: bytes at the file's beginning that HDF5 leaves to us (0, or a power of 2 from 512 on).
    """
    import h5py

    image = Image()
    with h5py.File(image, "w", userblock_size=block) as file:
        fill(file, image)
    return image


def sync(path: Path) -> None:
    """Have a file, or the names in a folder, on the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
