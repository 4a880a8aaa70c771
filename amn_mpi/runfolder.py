"""The folder of a run: lock, metrics.jsonl, checkpoints, models.h5, result.json.

``result.json`` appears in one step when everything else is written: a folder without it holds an
unfinished run.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import time
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from amn_mpi import checkpoint, hdf5, plugin, resume
from amn_mpi.callbacks import Callbacks
from amn_mpi.config import Config
from amn_mpi.errors import UserError
from amn_mpi.methods import listed
from amn_mpi.params import ParameterLayout

if TYPE_CHECKING:
    import h5py

MODELS, BLOCK = "amn_mpi models", 512
HELD = ("metrics.jsonl", "result.json", "models.h5", "checkpoints")


def default_folder(config: Config) -> str:
    """``runs/<time>-<method>-<data>``, made here; a number is added where it is taken already.

    Raises:
        UserError: the current folder cannot be written.
    """
    data = Path(config.data.name).stem
    name = f"runs/{time.strftime('%Y%m%d-%H%M%S')}-{plugin.short(config.method.name)}-{data}"
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
        resume.warn(f"out = {path}: cannot be locked ({error.strerror}); nothing keeps a second run out")
        return file
    if _is_there(file):
        return file
    file.close()  # a run that ended has removed it since it was opened: the next one makes its own
    return lock(path)


def _is_there(file: IO[str]) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), os.stat(file.name))
    except FileNotFoundError:
        return False


class RunFolder:
    """Made and locked by rank 0 before anything is computed.

    The lock is the operating system's (flock): it goes with the process, however that ends.

    Attributes:
        checkpoints: where they are; each baseline has a folder of its own in it.
        saved: the checkpoint that the run goes on from, None if it starts afresh.
        finished: a sentence where the run is finished already, else empty.
        callbacks: who is told of the run, ready before anything is computed.

    Raises:
        UserError: the folder cannot be written, is in use, or holds a run that is not to be resumed.
    """

    def __init__(self, path: str, config: Config, made: bool = False) -> None:
        self.path = Path(path)
        self.checkpoints = self.path / "checkpoints"
        self.saved: Path | None = None
        self.finished = ""
        self._made, self._started = made or not self.path.exists(), False
        self._lines: list[str] = []
        self._good = 0
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.path)
        except OSError as error:
            raise UserError(f"out = {path}: cannot be written: {error.strerror}") from None
        try:
            self.callbacks = Callbacks(config.logging)
            self._look(config)
        except BaseException:
            self.leave()
            raise

    def _look(self, config: Config) -> None:
        there = [name for name in HELD if (self.path / name).exists()]
        if there and (
            config.resume == "never" or (config.resume != "auto" and not self._holds(config.resume))
        ):
            raise UserError(
                f"out = {self.path}: holds a run already ({', '.join(there)}); "
                "--resume auto goes on with it, or choose another folder"
            )
        self.finished = self._finished(config)
        if self.finished:
            return
        self.saved = resume.find(config, self.checkpoints)
        if self.saved is None and (self.path / "result.json").exists():
            raise UserError(
                f"out = {self.path}: holds a finished run and no checkpoints to go on from; "
                "choose another folder"
            )

    def _holds(self, path: str) -> bool:
        return Path(path).resolve().parent == self.checkpoints.resolve()

    def _finished(self, config: Config) -> str:
        """What to say where nothing is left to do; "" where something is."""
        path = self.path / "result.json"
        if config.resume != "auto" or not path.exists():
            return ""
        try:
            done = json.loads(path.read_text())
            left = set(listed(config.baselines)) - set(done["baselines"])
            if done["rounds"] != config.rounds or left:
                return ""
            told = f"mean accuracy {done['mean_accuracy']:.2f} %, models_sha256 {done['models_sha256']}"
            resume.agree(config, path, done["config"], done["rounds"])
        except (ValueError, KeyError, TypeError, AttributeError):
            return ""  # not a result of ours; it is set aside
        return f"{self.path}: finished already: {done['rounds']} rounds, {told}; a larger --rounds extends it"

    def result(self) -> dict[str, Any]:
        """What a finished run has left."""
        return json.loads((self.path / "result.json").read_text())

    def start(self, config: Config) -> None:
        """Write the resolved configuration; an earlier result is set aside."""
        import yaml

        self._started = True
        earlier = self.path / "result.json"
        if earlier.exists():
            with self._guard("result.json"):
                os.replace(earlier, self._aside())
        self._write("config.yaml", yaml.safe_dump(config.as_dict(), sort_keys=False))

    def _aside(self) -> Path:
        """result-000040.json for the result of 40 rounds, or the first such name that is free."""
        with contextlib.suppress(ValueError, KeyError, TypeError):
            rounds = int(json.loads((self.path / "result.json").read_text())["rounds"])
            stem = f"result-{rounds:06d}"
            names = [f"{stem}.json", *(f"{stem}-{k}.json" for k in range(2, 1000))]
            return next(self.path / name for name in names if not (self.path / name).exists())
        return self.path / "result-unreadable.json"

    def begin(self, rows: Iterable[dict[str, Any]]) -> None:
        """Metrics that hold these rounds, each once, and nothing else."""
        text = "".join(json.dumps(row) + "\n" for row in rows)
        temporary = self.path / ".metrics.jsonl"
        with self._guard("metrics.jsonl"):
            temporary.write_text(text)
            os.replace(temporary, self.path / "metrics.jsonl")
        self._good = len(text.encode())

    def __enter__(self) -> RunFolder:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is not None:
            if self._started:
                self.callbacks.failed(" ".join(str(error).split()))
            self.leave()

    def leave(self) -> None:
        """Give it back. A run that could not start leaves nothing behind: the next may use this folder."""
        self._give_back()
        if self._made and not self._started:
            with contextlib.suppress(OSError):  # somebody has put something there
                self.path.rmdir()

    def add(self, row: dict[str, Any]) -> None:
        """Append one line to metrics.jsonl; on a full disk it waits for the next one."""
        self._lines.append(json.dumps(row) + "\n")
        try:
            self._append()
        except OSError as error:
            if len(self._lines) == 1:
                resume.warn(f"{self.path}/metrics.jsonl: {_reason(error)}; the run goes on, the lines wait")

    def _append(self) -> None:
        """What waits goes to metrics.jsonl, all or nothing."""
        data = "".join(self._lines).encode()
        with open(self.path / "metrics.jsonl", "r+b", buffering=0) as file:
            file.seek(self._good)
            whole = file.write(data) == len(data)
            file.truncate(None if whole else self._good)
        if not whole:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._good += len(data)
        self._lines = []

    def finish(self, result: dict[str, Any]) -> None:
        """Write result.json whole or not at all, and give the folder back."""
        if self._lines:
            with self._guard("metrics.jsonl"):
                self._append()
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
        rounds: int,
    ) -> str:
        """models.h5 from (client, row) in any order; returns the SHA-256 of all rows in order.

        It has a first line as a checkpoint has.

        Raises:
            UserError: the file cannot be written (a full disk); nothing half-written stays.
        """
        image = hdf5.lay_out(lambda file, image: _models(file, image, layout, clients, about), BLOCK)
        offset, rest = image.places["models"].offset, 0
        final, temporary = self.path / "models.h5", self.path / ".models.h5"
        try:
            with open(temporary, "wb+") as file:
                for at, piece in image.pieces(BLOCK):
                    rest = zlib.crc32(piece, rest)
                    file.seek(at)
                    file.write(piece)
                for client, row in rows:
                    file.seek(offset + client * 4 * layout.size)
                    file.write(row.astype("<f4", copy=False).data)
                digest, checksum = _digest(file, offset, clients, 4 * layout.size)
                file.seek(0)
                file.write(checkpoint.first_line(MODELS, rounds, image, BLOCK, {"models": checksum}, rest))
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            raise UserError(f"{final}: cannot be written: {_reason(error)}") from None
        return digest

    def _give_back(self) -> None:
        if self._lock.closed:  # the lock that is there now may be the next run's
            return
        (self.path / ".lock").unlink(missing_ok=True)
        self._lock.close()

    def _write(self, name: str, text: str) -> None:
        with self._guard(name), open(self.path / name, "w") as file:
            file.write(text)

    def _guard(self, name: str) -> _Guard:
        return _Guard(self.path / name)


def _models(
    file: h5py.File, image: hdf5.Image, layout: ParameterLayout, clients: int, about: dict[str, Any]
) -> None:
    """What models.h5 holds; its rows come later."""
    for name, value in {**about, "layout": json.dumps(layout.as_dict())}.items():
        file.attrs[name] = value
    file["clients"] = clients
    image.reserve(file, "models", (clients, layout.size), "<f4")


def _digest(file: IO[bytes], offset: int, rows: int, nbytes: int) -> tuple[str, int]:
    """(SHA-256, CRC-32) of what was written from ``offset`` on."""
    digest, checksum = hashlib.sha256(), 0
    file.seek(offset)
    for _ in range(rows):
        row = file.read(nbytes)
        digest.update(row)
        checksum = zlib.crc32(row, checksum)
    return digest.hexdigest(), checksum


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
