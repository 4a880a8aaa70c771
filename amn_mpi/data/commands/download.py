"""One file over HTTP: in pieces, on from where it was cut off, and only whole under its name."""

from __future__ import annotations

import hashlib
import http.client
import os
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path
from typing import Any

from amn_mpi.errors import UserError

PIECE, TRIES, SILENCE = 2**20, 5, 30.0  # bytes at a time; vain connections; seconds without a byte
BROKEN = (http.client.HTTPException, ConnectionError, TimeoutError)


def download(url: str, path: Path, md5: str) -> None:
    """``url`` -> ``path``; until it is whole it is ``path`` with ``.part`` behind its name.

    Raises:
        UserError: there is no network, the server refuses, it is not what ``md5`` says (then nothing
            is kept), or the disk takes no more (what came stays, for the next time).
    """
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _complete(url, part)
        found = md5_of(part)
        if found != md5:
            part.unlink()
            raise UserError(f"{url}: is not the file that was published: MD5 {found}, not {md5}; not kept")
        os.replace(part, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error})") from None


def md5_of(path: Path) -> str:
    """Piece by piece: archives are larger than one wants to hold."""
    total = hashlib.md5(usedforsecurity=False)
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            total.update(piece)
    return total.hexdigest()


def _complete(url: str, part: Path) -> None:
    """Ask for what is missing, again where the connection breaks; a try that brings bytes does not count."""
    tries = 0
    while tries < TRIES:
        before = _size(part)
        if _once(url, part):
            return
        tries = 0 if _size(part) > before else tries + 1
    host = urllib.parse.urlsplit(url).netloc
    raise UserError(
        f"{url}: the connection to {host} broke {TRIES} times in a row; what came ({_size(part):,} bytes) is "
        "kept, the same command goes on there"
    )


def _once(url: str, part: Path) -> bool:
    """One connection: whether the file is whole now."""
    start = _size(part)
    try:
        with _ask(url, start) as answer:
            if start and answer.status != http.client.PARTIAL_CONTENT:
                start = 0  # a server without ranges sends it from the beginning
            return _append(answer, part, start)
    except urllib.error.HTTPError as error:
        if error.code == http.client.REQUESTED_RANGE_NOT_SATISFIABLE:
            return True  # there is no more of it; the checksum tells whether it is right
        raise UserError(f"{url}: the server says {error.code} {error.reason}") from None
    except urllib.error.URLError as error:
        raise _unreachable(url, error.reason) from None
    except ValueError:
        raise UserError(f"{url}: is no address; valid is http:// or https:// and a server's name") from None
    except BROKEN:
        return False


def _ask(url: str, start: int) -> Any:
    if urllib.parse.urlsplit(url).scheme not in ("http", "https"):
        raise ValueError(url)
    headers = {"User-Agent": "amn_mpi", **({"Range": f"bytes={start}-"} if start else {})}
    return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=SILENCE)


def _append(answer: Any, part: Path, start: int) -> bool:
    """Write what comes behind the first ``start`` bytes: whether it was all that was promised."""
    promised, came = int(answer.headers.get("Content-Length") or -1), 0
    with part.open("ab") as file:
        file.truncate(start)
        while piece := _piece(answer):
            file.write(piece)
            came += len(piece)
    return came == promised or (promised < 0 and came > 0)


def _piece(answer: Any) -> bytes:
    """The next bytes; none where the connection has ended, however it did."""
    try:
        return bytes(answer.read1(PIECE))
    except BROKEN:
        return b""


def _unreachable(url: str, reason: object) -> UserError:
    host = urllib.parse.urlsplit(url).netloc
    return UserError(
        f"{url}: cannot reach {host} ({getattr(reason, 'strerror', None) or reason}): is there a network? "
        "fetch where there is one and copy the folder, or name another mirror with --from URL"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
