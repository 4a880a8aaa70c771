"""How many clients data has by itself: known before it is prepared, for ranks without one are let go.

Only reading the data tells. So the number is kept beside the prepared data for the next run, and what
was read for it is kept for the preparation that follows.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import secrets
import sys
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from amn_mpi.data import arrays, natural
from amn_mpi.data.cache_place import folder, identity, stem
from amn_mpi.data.raw import Raw
from amn_mpi.data.readers import READERS, Reader, reader

if TYPE_CHECKING:
    from amn_mpi.config import Data

IDLE = "data.labels, alpha, sizes, concept, train_per_client and test_per_client do not apply"
_read: dict[str, Raw] = {}


def resolved(data: Data) -> Data:
    """``data`` with the number of clients that will take part; says on stderr where it is the data's own.

    Data without clients of its own comes back as it is. Rank 0 only.

    Raises:
        UserError: the data cannot be read, or no client has enough samples.
    """
    if data.name in READERS:
        return data
    source = reader(data)
    files = source.locate(data)
    if not Path(data.name).expanduser().is_dir() and not arrays.has_clients(files["file"]):
        return data
    everyone, enough = _known(data, files) or _counted(source, data, files)
    if enough < everyone:
        _say(
            "warning",
            f"{data.name}: {everyone - enough} of {everyone} clients are left out: fewer than "
            f"{data.min_samples} training samples (data.min_samples), or none for the test",
        )
    if enough > data.clients:
        who = f"{data.clients} take part, chosen by the seed; {IDLE}"
    else:
        who = f"all take part; {IDLE.replace('data.', 'data.clients, ', 1)}"
    _say("note", f"{data.name} has {enough} client{'s' * (enough != 1)} of its own: {who}")
    return replace(natural.applied(data), clients=min(enough, data.clients))


def read(source: Reader, data: Data, files: dict[str, Path]) -> Raw:
    """The data, once more only where ``resolved`` has not just read it."""
    kept = _read.pop(_state(data, files), None)
    return source.read(data, files) if kept is None else kept


def forget() -> None:
    """Give back the memory of what ``resolved`` has read."""
    _read.clear()


def remember(raw: Raw, data: Data, files: dict[str, Path]) -> None:
    """Keep the numbers for the next run; without them it reads the data again."""
    if raw.client is None:
        return
    path = _place(data, files)
    temporary = path.with_name(f"{path.name}.{os.getpid()}.{secrets.token_hex(4)}.tmp")
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps([len(raw.client_names), len(natural.usable(raw, data))]))
        os.replace(temporary, path)


def _counted(source: Reader, data: Data, files: dict[str, Path]) -> tuple[int, int]:
    """All clients, and those with enough samples."""
    forget()
    raw = source.read(data, files)
    enough = len(natural.usable(raw, data))
    _read[_state(data, files)] = raw
    return len(raw.client_names), enough


def _known(data: Data, files: dict[str, Path]) -> tuple[int, int] | None:
    """What an earlier run has found; None where there is nothing that can be used."""
    try:
        everyone, enough = json.loads(_place(data, files).read_text())
    except (OSError, ValueError, TypeError):
        return None
    sound = type(everyone) is int and type(enough) is int and 0 < enough <= everyone
    return (everyone, enough) if sound else None


def _place(data: Data, files: dict[str, Path]) -> Path:
    return folder(data) / f"{stem(data)}-{_state(data, files)}.clients"


def _state(data: Data, files: dict[str, Path]) -> str:
    """Hash of the files' state and of what decides who has enough samples."""
    content = [data.min_samples, data.test_fraction, [identity(path) for path in files.values()]]
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:24]


def _say(kind: str, line: str) -> None:
    print(f"amn_mpi: {kind}: {line}", file=sys.stderr, flush=True)
