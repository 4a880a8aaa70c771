"""``fetch``: download a data set into the folder in which its reader looks for it."""

from __future__ import annotations

import os
import tarfile
import zlib
from collections.abc import Sequence
from pathlib import Path

from amn_mpi.data.commands.download import download, md5_of
from amn_mpi.data.commands.sources import SOURCES, Source
from amn_mpi.data.commands.words import no_more
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.tool import options


def run(argv: Sequence[str]) -> None:
    """Fetch what is not there yet, and say how a run finds it."""
    given, others = options(argv, ("to", "from"))
    name = others[0] if others else ""
    if name not in SOURCES:
        raise ConfigError(f"fetch {name or 'what?'}: valid is one of {', '.join(SOURCES)}")
    no_more(others[1:], "fetch NAME [--to DIR] [--from URL]")
    to = Path(given.get("to") or os.environ.get("AMN_DATA") or "data").expanduser().absolute()
    source = SOURCES[name]
    base = given.get("from", source.base).rstrip("/")
    folder = to / source.folder
    if source.unpacked:
        _archive(source, base, to, folder)
    else:
        for file, md5 in source.sums.items():
            _file(f"{base}/{file}", folder / file, md5)
    print(f"{name} is in {folder}; runs find it with --data.root {to} or AMN_DATA={to}")


def _file(url: str, path: Path, md5: str) -> None:
    """Nothing is fetched again that is there and whole."""
    if path.is_file() and md5_of(path) == md5:
        print(f"  {path.name}: is there")
        return
    print(f"  {path.name}: from {url}", flush=True)
    download(url, path, md5)


def _archive(source: Source, base: str, to: Path, folder: Path) -> None:
    if all((folder / member).is_file() for member in source.unpacked):
        print(f"  {folder.name}: is there")
        return
    for file, md5 in source.sums.items():
        path = to / file
        _file(f"{base}/{file}", path, md5)
        _unpack(path, folder, source.unpacked)
        path.unlink()


def _unpack(archive: Path, folder: Path, members: tuple[str, ...]) -> None:
    """The wanted files and no others, each under its name when it is whole."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tarfile.open(archive) as packed:
            for member in members:
                _member(packed, f"{folder.name}/{member}", folder / member)
    except (tarfile.TarError, KeyError, zlib.error, EOFError) as error:
        raise UserError(f"{archive}: cannot be unpacked ({error})") from None
    except OSError as error:
        raise UserError(f"{folder}: cannot unpack {archive.name} there ({error.strerror or error})") from None


def _member(packed: tarfile.TarFile, name: str, path: Path) -> None:
    file = packed.extractfile(name)
    if file is None:
        raise tarfile.TarError(f"{name} is no file")
    part = path.with_name(path.name + ".part")
    with file, part.open("wb") as out:
        while piece := file.read(2**20):
            out.write(piece)
    os.replace(part, path)
