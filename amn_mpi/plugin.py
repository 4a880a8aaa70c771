"""Models and methods out of a user's own file, named ``FILE.py:NAME``. Imports no torch.

A file is read and run once a process; relative paths are relative to the current folder. What it
imports from beside itself is found, too.
"""

from __future__ import annotations

import copyreg
import dataclasses
import importlib.abc
import importlib.util
import sys
import traceback
import typing
import zlib
from collections.abc import Mapping
from functools import cache
from numbers import Real
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, NoReturn

from amn_mpi.errors import ConfigError, Interrupted, Stopped

if TYPE_CHECKING:
    from amn_mpi.config import Config
    from amn_mpi.methods.base import Method

FORM = "FILE.py:NAME"
_loaded: dict[str, dict[str, None]] = {}  # configuration key -> the names that were looked up for it


def is_file(name: object) -> bool:
    """Whether a name has the form ``FILE.py:NAME``; nothing is read."""
    path, _, what = str(name).rpartition(":")
    return path.endswith(".py") and what.isidentifier()


def short(name: str) -> str:
    """For labels and folders: ``some/own.py:Mine`` is ``own-Mine``; other names stay as they are."""
    path, _, what = name.rpartition(":")
    return f"{Path(path).stem}-{what}" if is_file(name) else name


def checksum(name: str, key: str) -> int:
    """CRC-32 of the file as this process has read it.

    Raises:
        ConfigError: it cannot be read; the line begins with ``key``.
    """
    return zlib.crc32(_source(name, key))


def checksums(config: Config) -> dict[str, int]:
    """By key, of the files that a configuration names."""
    return checksums_of({"model.name": config.model.name, "method.name": config.method.name})


def checksums_of(names: Mapping[str, str]) -> dict[str, int]:
    """By key, of those names that are files."""
    return {key: checksum(name, key) for key, name in names.items() if is_file(name)}


def load(name: str, key: str) -> Any:
    """What NAME is in FILE.py.

    Args:
        key: the configuration key that names it, for messages.

    Raises:
        ConfigError: one line: no such file, it fails on import, or has no such name.
    """
    module = _module(name, key)
    what = name.rpartition(":")[2]
    if not hasattr(module, what):
        own = [n for n, v in vars(module).items() if _own(v, module) and n[0] != "_"]
        raise ConfigError(f"{key} = {name}: the file has no {what}; it has {', '.join(own) or 'no function'}")
    return getattr(module, what)


def method(name: str, key: str = "method.name") -> type[Method]:
    """A class of methods, with options that the command line can read.

    Raises:
        ConfigError: as ``load``, and where it is no subclass of ``Method`` or its options are not in order.
    """
    from amn_mpi.methods.base import Method, Wire

    found = load(name, key)
    if not isinstance(found, type) or not issubclass(found, Method):
        raise ConfigError(f"{key} = {name}: is no subclass of amn_mpi.methods.base.Method")
    if not found.models or isinstance(found.models, str):
        has = f"models = {found.models!r}" if found.models else "no models"
        raise ConfigError(f"{key} = {name}: has {has}; valid is a tuple of names, the client's own first")
    if not hasattr(found, "wire"):
        raise ConfigError(f"{key} = {name}: says nothing of what it moves; give it wire = Wire(...)")
    if not isinstance(found.wire, Wire) and not hasattr(found.wire, "__get__"):  # nor a property
        raise ConfigError(f"{key} = {name}: has wire = {found.wire!r}; valid is Wire(...)")
    for what in ("fresh", "scratch", "kept"):
        if not isinstance(getattr(found, what), Real) and not hasattr(getattr(found, what), "__get__"):
            raise ConfigError(f"{key} = {name}: has {what} = {getattr(found, what)!r}; valid is a number")
    _check_options(getattr(found, "Options", None), f"{key} = {name}")
    if found.local_update is Method.local_update:
        raise ConfigError(f"{key} = {name}: has no local_update, the client's turn")
    if not found.Options.__module__.startswith("amn_mpi."):
        # Other ranks know the class only once they have read the file, and what it imports from beside it.
        copyreg.pickle(found.Options, lambda options: (_remade, (name, _values(options))))
    return found


def told(error: BaseException, path: str) -> str:
    """An exception out of a user's file in one line, with the last line of the file that led to it."""
    lines = [f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == path]
    if isinstance(error, SyntaxError) and error.filename == path:
        lines.append(error.lineno)
    what = error.msg if isinstance(error, SyntaxError) else " ".join(str(error).split())
    return f"{f'line {lines[-1]}: ' if lines else ''}{type(error).__name__}: {what}"


def culprit(error: BaseException) -> str:
    """The user's file that an exception came out of, and where, in one line; else empty.

    A network's is whatever passes through its lines; a method's only what they raise themselves, for what it
    hands to the runtime may go wrong far from there.
    """
    frames = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    for key, among in (("model.name", frames), ("method.name", frames[-1:])):
        for name in _loaded.get(key, ()):
            if path_of(name) in among:
                return f"{key} = {name}: {told(error, path_of(name))}"
    return ""


def path_of(name: str) -> str:
    """The absolute path in ``FILE.py:NAME``."""
    return str(Path(name.rpartition(":")[0]).expanduser().absolute())


# ---- inside


class _Text(importlib.abc.ExecutionLoader):
    """A module of text that is in memory: what runs is what the checksum is of, and no cache is written."""

    def __init__(self, path: str, text: bytes) -> None:
        self._path, self._text = path, text

    def get_filename(self, fullname: str) -> str:
        return self._path

    def get_source(self, fullname: str) -> str:
        return importlib.util.decode_source(self._text)

    def is_package(self, fullname: str) -> bool:
        return False


def _source(name: str, key: str) -> bytes:
    try:
        return _read(path_of(name))
    except OSError as error:
        raise ConfigError(f"{key} = {name}: cannot read {path_of(name)}: {error.strerror}") from None


@cache
def _read(path: str) -> bytes:
    return Path(path).read_bytes()


def _module(name: str, key: str) -> ModuleType:
    path, text = path_of(name), _source(name, key)
    _loaded.setdefault(key, {})[name] = None
    unique = f"amn_mpi_own_{zlib.crc32(path.encode()):08x}_{Path(path).stem}"
    if unique in sys.modules:
        return sys.modules[unique]
    loader = _Text(path, text)
    spec = importlib.util.spec_from_file_location(unique, path, loader=loader)
    if spec is None:
        raise ConfigError(f"{key} = {name}: is no Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[unique] = module  # dataclasses look their module up
    if str(Path(path).parent) not in sys.path:
        sys.path.append(str(Path(path).parent))
    try:
        loader.exec_module(module)
    except (Stopped, Interrupted, MemoryError):
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        del sys.modules[unique]
        raise ConfigError(f"{key} = {name}: the file fails on import: {told(error, path)}") from None
    return module


def _own(value: Any, module: ModuleType) -> bool:
    """Whether it is a function or class of that file; a method's options are not what anybody names."""
    mine = callable(value) and getattr(value, "__module__", "") == module.__name__
    return mine and not dataclasses.is_dataclass(value)


def _check_options(options: Any, where: str) -> None:
    """Raises ConfigError unless it is a frozen dataclass of plain values, ``name`` first."""
    from amn_mpi.config import keys

    form = "valid is a frozen dataclass whose first field is name: str, each field with a default"

    def refuse(why: str) -> NoReturn:
        raise ConfigError(f"{where}: its Options {why}; {form}")

    if options is None:
        refuse("are missing")
    if not isinstance(options, type) or not dataclasses.is_dataclass(options):
        refuse("are no dataclass")
    if not options.__dataclass_params__.frozen:  # type: ignore[attr-defined]
        refuse("are not frozen")
    fields = dataclasses.fields(options)
    if not fields or fields[0].name != "name":
        refuse(f"begin with {fields[0].name if fields else 'nothing'}")
    try:
        hints = typing.get_type_hints(options)
    except (NameError, TypeError) as error:
        refuse(f"have a type that is not known ({error})")
    for field in fields:
        if hints[field.name] not in (int, float, str, bool) and not _literal(hints[field.name]):
            refuse(f"have {field.name} of a type other than int, float, str, bool or Literal")
        if field.default is dataclasses.MISSING:
            refuse(f"have {field.name} without a default")
    for key in keys(options, "method."):
        if not key.accepts(key.default):
            refuse(f"have {key.name} = {key.default}, but valid is {key.valid()}")


def _literal(hint: Any) -> bool:
    return typing.get_origin(hint) is typing.Literal


def _values(options: Any) -> dict[str, Any]:
    return {field.name: getattr(options, field.name) for field in dataclasses.fields(options)}


def _remade(name: str, values: dict[str, Any]) -> Any:
    return method(name).Options(**values)
