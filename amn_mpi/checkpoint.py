"""One checkpoint: an HDF5 file that appears whole or not at all, and that tells whether it is intact.

Its first kilobytes, which HDF5 leaves to us, hold one line of JSON: format, round, and for every
large data set its place and CRC-32; another CRC-32 is over everything else. So a damaged file is
found out by plain reads, before HDF5 sees it. The rest is an ordinary HDF5 file:

    /about     JSON: config, parameter layout, versions, ...
    /history   JSON: the figures of every round until then
    /server/*  the method's state on rank 0
    /client/*  its state for each client, (N, ...)
"""

from __future__ import annotations

import contextlib
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

import numpy as np

from amn_mpi import hdf5
from amn_mpi.errors import UserError

if TYPE_CHECKING:
    import h5py

KIND, FORMAT = "amn_mpi checkpoint", 1
SMALL = 4096  # bytes; data sets from this size on have a checksum of their own
PIECE = 2**23
REST = "its figures or HDF5's own structures"
Shape = tuple[tuple[int, ...], np.dtype]


class Damaged(Exception):
    """A file that is not what was written; the message says where."""


# ---- writing


class Writer:
    """Writes one checkpoint beside its final name; ``with`` it, or nothing stays.

    ``put`` takes the clients' state, data set after data set in the order of ``client``, each in
    pieces of any size. Leaving the ``with`` without an error makes the file appear. ``tick`` is
    called now and then.

    Raises:
        OSError: it cannot be written; what was there before is untouched.
    """

    def __init__(
        self,
        folder: Path,
        round: int,
        about: Mapping[str, Any],
        history: Mapping[str, Any],
        server: Mapping[str, np.ndarray],
        client: Mapping[str, Shape],
        tick: Callable[[], None] = lambda: None,
    ) -> None:
        self._tick = tick
        self.path = folder / file_name(round)
        self._temporary = folder / f".{self.path.name}.tmp"
        self._server = {f"server/{k}": np.asarray(v, order="C") for k, v in server.items()}
        shapes: dict[str, Shape] = {k: (v.shape, v.dtype) for k, v in self._server.items()}
        shapes |= {f"client/{name}": shape for name, shape in client.items()}
        texts = {"about": _json(about), "history": _json(history)}
        block = 512
        while block < 256 + sum(len(name) + 64 for name in shapes):
            block *= 2
        self._image = hdf5.lay_out(lambda file, image: self._fill(file, image, texts, shapes), block)
        self._block, self._round = block, round
        self._sums = dict.fromkeys(self._image.places, 0)
        self._written = dict.fromkeys(self._image.places, 0)
        self._waiting = [name for name in self._image.places if name.startswith("client/")]

    def _fill(
        self, file: h5py.File, image: hdf5.Image, texts: dict[str, bytes], shapes: dict[str, Shape]
    ) -> None:
        file.attrs["kind"], file.attrs["format"] = KIND, FORMAT
        for name, text in texts.items():
            file[name] = np.bytes_(text)
        for name, (shape, dtype) in shapes.items():
            if dtype.itemsize * int(np.prod(shape, dtype=np.int64)) >= SMALL or name.startswith("client/"):
                image.reserve(file, name, shape, dtype)
            else:
                file[name] = self._server[name]

    def __enter__(self) -> Writer:
        self._temporary.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(self._temporary, "wb", buffering=0)  # noqa: SIM115
        try:
            for name in self._image.places:
                if name in self._server:
                    self._append(name, self._server[name])
        except BaseException:
            self.__exit__(OSError, None, None)
            raise
        return self

    def put(self, piece: np.ndarray) -> None:
        """The next bytes of the clients' state; a piece does not reach into the next data set."""
        if not piece.size:
            return
        while self._written[self._waiting[0]] == self._image.places[self._waiting[0]].nbytes:
            self._waiting.pop(0)
        self._append(self._waiting[0], piece)

    def _append(self, name: str, array: np.ndarray) -> None:
        data = memoryview(array.reshape(-1).view(np.uint8).data)
        for start in range(0, len(data), PIECE):
            piece = data[start : start + PIECE]
            self._sums[name] = zlib.crc32(piece, self._sums[name])
            self._write(self._image.places[name].offset + self._written[name], piece)
            self._written[name] += len(piece)
            self._tick()

    def _write(self, offset: int, data: bytes | memoryview) -> None:
        file = self._file.fileno()
        while len(data):
            done = os.pwrite(file, data, offset)
            data, offset = data[done:], offset + done
        # Off to the disk and out of memory: nobody reads it, and fresh pages cost more than the copy.
        os.posix_fadvise(file, 0, offset, os.POSIX_FADV_DONTNEED)

    def _head(self) -> bytes:
        """What is not reserved goes to the file; then the line that vouches for all of it."""
        rest = 0
        for offset, piece in self._image.pieces(self._block):
            self._write(offset, piece)
            rest = zlib.crc32(piece, rest)
        return first_line(KIND, self._round, self._image, self._block, self._sums, rest)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if kind is None:
                short = [k for k, place in self._image.places.items() if self._written[k] != place.nbytes]
                if short:
                    raise RuntimeError(f"checkpoint without all of {short}")
                self._write(0, self._head())
                os.ftruncate(self._file.fileno(), self._image.size)
                os.fsync(self._file.fileno())
                self._file.close()
                os.replace(self._temporary, self.path)
                hdf5.sync(self.path.parent)
        finally:
            self._file.close()
            self._temporary.unlink(missing_ok=True)


def first_line(
    kind: str, round: int, image: hdf5.Image, block: int, sums: Mapping[str, int], rest: int
) -> bytes:
    """What vouches for a file: ``sums`` for its reserved data sets by name, ``rest`` for all between."""
    data = [[name, *place, sums[name]] for name, place in image.places.items()]
    line = _json({"kind": kind, "format": FORMAT, "round": round, "size": image.size,
                  "block": block, "data": data, "rest": rest})  # fmt: skip
    return (b"%s\n%08x\n" % (line, zlib.crc32(line))).ljust(block, b" ")


def _json(thing: Any) -> bytes:
    """JSON gives every float back to the last bit."""
    return json.dumps(thing).encode()


# ---- reading


@dataclass(frozen=True)
class Index:
    """The first line of a checkpoint."""

    format: int
    round: int
    size: int
    block: int
    data: dict[str, tuple[hdf5.Place, int]]
    rest: int


def index(path: Path, kind: str = KIND) -> Index:
    """Read the first line of a checkpoint, or of another file that has one.

    Raises:
        Damaged: the file is not a whole checkpoint. UserError: it cannot be read, or its format
            is that of another version.
    """
    try:
        with open(path, "rb") as file:
            line, checksum = file.readline(2**24), file.readline(16)
            size = os.fstat(file.fileno()).st_size
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    if not line:
        raise Damaged("the file is empty")
    if checksum != b"%08x\n" % zlib.crc32(line[:-1]):
        raise Damaged("its first line is not that of a checkpoint")
    try:
        found = _parse(path, json.loads(line), kind)
    except (ValueError, KeyError, TypeError, AttributeError):
        raise Damaged("its first line is not that of a checkpoint") from None
    if size != found.size:
        raise Damaged(f"{size:,} bytes of {found.size:,} are there")
    return found


def _parse(path: Path, head: Any, kind: str) -> Index:
    """What the first line says; ValueError and its like where it says nonsense."""
    if head["kind"] != kind:
        raise UserError(f"{path}: holds {head['kind']}, not {kind}")
    if head["format"] != FORMAT:
        raise UserError(
            f"{path}: is in format {head['format']} of {kind}; this version of amn_mpi reads format {FORMAT}"
        )
    data = {name: (hdf5.Place(offset, nbytes), crc) for name, offset, nbytes, crc in head["data"]}
    found = Index(head["format"], head["round"], head["size"], head["block"], data, head["rest"])
    numbers = [found.round, found.block, found.rest, found.size]
    numbers += [number for place, checksum in data.values() for number in (*place, checksum)]
    inside = all(found.block <= place.offset <= place.stop <= found.size for place, _ in data.values())
    if not inside or any(type(number) is not int or number < 0 for number in numbers):
        raise ValueError
    return found


def verify(path: Path) -> Index:
    """Read a whole checkpoint and compare all checksums.

    Raises:
        Damaged, UserError: as ``index``, and ``Damaged`` where a checksum differs.
    """
    found = index(path)
    for name, same in checked(path, found):
        if not same:
            raise Damaged(f"{name} {'have' if name == REST else 'has'} another checksum")
    return found


def checked(path: Path, found: Index) -> Iterator[tuple[str, bool]]:
    """Read a file from end to end: (data set, whether its checksum is right), at last ``REST``.

    Raises:
        Damaged: it cannot be read to its end.
    """
    try:
        with open(path, "rb", buffering=0) as file:
            for name, (place, checksum) in found.data.items():
                yield name, _sum(file.fileno(), [place]) == checksum
            yield REST, _sum(file.fileno(), _between(found)) == found.rest
    except OSError as error:
        raise Damaged(f"cannot be read: {error.strerror}") from None


def _between(found: Index) -> Iterator[hdf5.Place]:
    """What belongs to no large data set."""
    start = found.block
    for place in [*sorted(place for place, _ in found.data.values()), hdf5.Place(found.size, 0)]:
        yield hdf5.Place(start, place.offset - start)
        start = place.stop


def _sum(handle: int, places: Iterable[hdf5.Place]) -> int:
    checksum = 0
    for place in places:
        for start in range(place.offset, place.stop, PIECE):
            checksum = zlib.crc32(os.pread(handle, min(PIECE, place.stop - start), start), checksum)
    return checksum


class Reader:
    """A verified checkpoint; ``with`` it. Rows are read one at a time."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> Reader:
        import h5py

        self._file = h5py.File(self.path, "r", locking=False)  # it never changes, and may be another's
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def text(self, name: str) -> dict[str, Any]:
        """``about`` or ``history``."""
        return json.loads(bytes(self._file[name][()]))

    def shapes(self, kind: str) -> dict[str, Shape]:
        """Shape and type of all that is in ``server`` or ``client``, by name."""
        group = self._file.get(kind, {})
        return {name: (data.shape, data.dtype) for name, data in group.items()}

    def server(self) -> dict[str, np.ndarray]:
        return {name: np.asarray(data[()]) for name, data in self._file.get("server", {}).items()}

    def row(self, name: str, client: int) -> np.ndarray:
        return np.asarray(self._file[f"client/{name}"][client])


# ---- a folder of them


def file_name(round: int) -> str:
    return f"round-{round:06d}.h5"


def round_of(path: Path) -> int:
    """What ``file_name`` says; -1 where it is the name of something else."""
    number = path.stem[len("round-") :]
    return int(number) if number.isdecimal() else -1


def listed(folder: Path) -> list[Path]:
    """Checkpoints in a folder, the newest first."""
    return sorted((p for p in folder.glob("round-*.h5") if round_of(p) >= 0), key=round_of, reverse=True)


def good(folder: Path) -> Iterator[tuple[Path, str]]:
    """(path, "") of intact checkpoints from the newest on, and (path, reason) of damaged ones.

    Raises:
        UserError: one is of another version.
    """
    for path in listed(folder):
        try:
            verify(path)
        except Damaged as reason:
            yield path, str(reason)
        else:
            yield path, ""


def prune(folder: Path, keep: int) -> None:
    """Delete all but the ``keep`` newest."""
    for path in listed(folder)[keep:]:
        path.unlink(missing_ok=True)


def tidy(folder: Path) -> None:
    """Delete what a killed run has left half-written."""
    for path in folder.glob(".round-*.tmp"):
        with contextlib.suppress(OSError):  # of a disk that is read-only now; the first write will tell
            path.unlink()
