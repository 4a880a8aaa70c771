"""The folder of a run: lock, metrics.jsonl, models.h5, result.json.

``result.json`` appears in one step when everything else is written: a folder without it holds an
unfinished run.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import io
import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import IO, Any

import numpy as np

from amn_mpi.config import Config
from amn_mpi.errors import UserError
from amn_mpi.params import ParameterLayout

HELD = ("metrics.jsonl", "result.json", "models.h5")


def default_folder(config: Config) -> str:
    """``runs/<time>-<method>-<data>``, made here; a number is added where it is taken already.

    Raises:
        UserError: the current folder cannot be written.
    """
    data = Path(config.data.name).stem
    name = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{config.method.name}-{data}"
    path, number = Path(name), 1
    while True:
        try:
            path.mkdir(parents=True)
            return str(path)
        except FileExistsError:  # a job array starts many runs in one second
            number += 1
            path = Path(f"{name}-{number}")
        except OSError as error:
            raise UserError(f"out = {path}: cannot be written: {error.strerror}") from None


def lock(path: Path) -> IO[str]:
    """Hold a folder as long as the file returned is open (flock), however this process ends.

    Raises:
        UserError: another process holds it. OSError: the folder cannot be written.
    """
    file = open(path / ".lock", "w")  # noqa: SIM115
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UserError(f"out = {path}: another run is writing there now") from None
    except OSError as error:  # some cluster file systems know no locks
        print(
            f"amn_mpi: warning: out = {path}: cannot be locked ({error.strerror}); nothing keeps "
            "a second run out",
            file=sys.stderr,
            flush=True,
        )
    return file


class RunFolder:
    """Made and locked by rank 0 before anything is computed.

    The lock is the operating system's (flock): it goes with the process, however that ends.

    Raises:
        UserError: the folder cannot be written, holds a run, or is in use.
    """

    def __init__(self, path: str, made: bool = False) -> None:
        self.path = Path(path)
        self._made, self._started = made or not self.path.exists(), False
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path)
        except OSError as error:
            raise UserError(f"out = {path}: cannot be written: {error.strerror}") from None
        there = [name for name in HELD if (self.path / name).exists()]
        if there:
            self._give_back()
            raise UserError(f"out = {path}: holds a run already ({', '.join(there)}); choose another folder")

    def start(self, config: Config) -> None:
        """Write the resolved configuration and open the metrics."""
        import yaml

        self._started = True
        self._write("config.yaml", yaml.safe_dump(config.as_dict(), sort_keys=False))
        self._write("metrics.jsonl", "")

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        """A run that could not start leaves nothing behind: the next try may use this folder."""
        if error is None or self._started:
            return
        self._give_back()
        if self._made:
            with contextlib.suppress(OSError):  # somebody has put something there
                self.path.rmdir()

    def add(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl."""
        with self._guard("metrics.jsonl"), open(self.path / "metrics.jsonl", "a") as file:
            file.write(json.dumps(row) + "\n")

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json whole or not at all, and give the folder back."""
        temporary = self.path / ".result.json"
        with self._guard("result.json"):
            with open(temporary, "w") as file:
                file.write(json.dumps(result, indent=1) + "\n")
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, self.path / "result.json")
        self._give_back()

    def write_models(
        self,
        layout: ParameterLayout,
        clients: int,
        rows: Iterable[tuple[int, np.ndarray]],
        about: dict[str, Any],
    ) -> str:
        """models.h5 from (client, row) in any order; returns the SHA-256 of all rows in order.

        Raises:
            UserError: the file cannot be written (a full disk); nothing half-written stays.
        """
        image, offset = _lay_out(layout, clients, about)
        final, temporary = self.path / "models.h5", self.path / ".models.h5"
        try:
            with open(temporary, "wb+") as file:
                file.write(image)
                for client, row in rows:
                    file.seek(offset + client * 4 * layout.size)
                    file.write(row.astype("<f4", copy=False).data)
                file.flush()
                os.fsync(file.fileno())
                file.seek(offset)
                digest = hashlib.sha256()
                for _ in range(clients):
                    digest.update(file.read(4 * layout.size))
            os.replace(temporary, final)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"{final}: cannot be written: {_reason(error)}") from None
        return digest.hexdigest()

    def _give_back(self) -> None:
        (self.path / ".lock").unlink(missing_ok=True)
        self._lock.close()

    def _write(self, name: str, text: str) -> None:
        with self._guard(name), open(self.path / name, "w") as file:
            file.write(text)

    def _guard(self, name: str) -> _Guard:
        return _Guard(self.path / name)


def _lay_out(layout: ParameterLayout, clients: int, about: dict[str, Any]) -> tuple[bytes, int]:
    """models.h5 without its rows, and the byte offset where they belong.

    HDF5 lays the file out in memory and plain writes fill it: on a disk that runs full a plain
    write is an ordinary error, while HDF5 fails once more when it closes the file.
    """
    import h5py

    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    image = io.BytesIO()
    with h5py.File(image, "w") as file:
        for name, value in {**about, "layout": json.dumps(layout.as_dict())}.items():
            file.attrs[name] = value
        file["clients"] = clients  # a first member: HDF5 then has no need of space behind models
        models = file.create_dataset("models", (clients, layout.size), "<f4", dcpl=early)
        offset = models.id.get_offset()
    return image.getvalue()[:offset], offset


class _Guard:
    """Turns an OSError while writing into one line that names the file."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __enter__(self) -> None:
        return None

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, OSError):
            raise UserError(f"{self.path}: cannot be written: {_reason(error)}") from None


def _reason(error: OSError) -> str:
    """The system's words; HDF5 hides them in a longer text."""
    if error.errno:
        return os.strerror(error.errno)
    return " ".join(str(error).split())[:200]
