"""A trained network out of a checkpoint, for clients that come later.

The run may be finished, stopped or still going on: its files are only read, none is held or locked.
torch comes with a session, not before.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amn_mpi import checkpoint, methods, plugin
from amn_mpi.config import Config
from amn_mpi.data import Federation
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.resume import other_version, warn

if TYPE_CHECKING:
    from amn_mpi.methods.base import Method, State
    from amn_mpi.session import Session

TRIES = 5
# Where and how the run was carried out, and what it did besides: none of it is a newcomer's concern.
OWN_AFFAIRS = {"out": "", "resume": "never", "baselines": "", "server": "rank0", "progress": "auto"}
OWN_SECTIONS = ("checkpoint", "faults", "logging")


@dataclass(frozen=True)
class Trained:
    """What a checkpoint says of its run.

    Attributes:
        fed: the clients that trained, without their samples.
        about: all of it, as plain values.
    """

    path: Path
    config: Config
    fed: Federation
    about: dict[str, Any]

    @property
    def round(self) -> int:
        return int(self.about["round"])


def opened(name: str) -> checkpoint.Reader:
    """A verified checkpoint, open already: a run that goes on may delete it meanwhile.

    Args:
        name: a checkpoint, or a folder: its newest intact one.

    Raises:
        ConfigError, UserError: there is none, or it is damaged.
    """
    path = Path(name).expanduser()
    if path.is_dir():
        for _ in range(TRIES):
            with contextlib.suppress(FileNotFoundError):
                return checkpoint.Reader(_newest(path)).__enter__()
        raise UserError(
            f"{path}: its run deletes checkpoints faster than they are read; copy one, and give it"
        )
    if not path.is_file():
        raise ConfigError(f"{name}: there is no such file; valid is a checkpoint, or the folder of a run")
    _check_kind(path)
    try:
        checkpoint.verify(path)
        return checkpoint.Reader(path).__enter__()
    except checkpoint.Damaged as reason:
        raise UserError(f"{path}: is damaged: {reason}") from None
    except FileNotFoundError:
        raise UserError(f"{path}: its run has deleted it meanwhile; give the run's folder") from None


def _newest(folder: Path) -> Path:
    """The newest intact checkpoint. Raises FileNotFoundError where one has gone meanwhile."""
    inside = folder / "checkpoints"
    damaged: list[str] = []
    for path in checkpoint.listed(inside if inside.is_dir() else folder):
        try:
            checkpoint.verify(path)
        except (checkpoint.Damaged, UserError) as reason:
            if not path.exists():
                raise FileNotFoundError from None
            if isinstance(reason, UserError):
                raise
            damaged.append(f"{path.name}: {reason}")
        else:
            for told in damaged:
                warn(f"{folder}: damaged, and so not used: {told}")
            return path
    if damaged:
        raise UserError(f"{folder}: no checkpoint is intact ({'; '.join(damaged)})")
    raise UserError(
        f"{folder}: holds no checkpoint; a run writes one every checkpoint.minutes minutes or "
        "checkpoint.every rounds, and when it stops or ends"
    )


def _check_kind(path: Path) -> None:
    """Raises UserError for what was never a checkpoint."""
    from amn_mpi import health

    kind, _ = health.kind_of(path)
    if kind != checkpoint.KIND:
        raise UserError(
            f"{path}: holds the models of clients, not what the server has learnt; give the run's folder, or "
            "a file in its checkpoints/"
        )


def of(reader: checkpoint.Reader, words: Sequence[str]) -> Trained:
    """What an open checkpoint says.

    Args:
        words: ``--key value`` that replace keys of the run's.

    Raises:
        ConfigError, UserError: it lacks what newcomers need, or a user's own file has changed since.
    """
    from amn_mpi import cli

    path, about = reader.path, reader.text("about")
    if "federation" not in about:
        raise UserError(
            f"{path}: was written by an older version of amn_mpi, which did not keep the samples' shape and "
            "scale; go on with its run (--resume auto and more --rounds), and take its next checkpoint"
        )
    if about["round"] < 1:
        raise UserError(f"{path}: is from before the first round; there is nothing to serve newcomers from")
    _check_files(path, about)
    method = about["config"]["method"]
    if not methods.known(method["name"]):
        raise UserError(f"{path}: was made by method.name = {method['name']}; valid are {methods.VALID}")
    told = other_version(path, method, methods.options(method["name"]))
    if told:
        raise UserError(f"{told}; it cannot serve newcomers here")
    tree = {name: value for name, value in about["config"].items() if name not in OWN_SECTIONS}
    tree = {**tree, **OWN_AFFAIRS, "data": {**tree["data"], "root": "", "cache": ""}}
    config = cli.resolve([cli.layer(tree, str(path))], words)
    return Trained(path, config, Federation.of_facts(about["federation"]), about)


def _check_files(path: Path, about: dict[str, Any]) -> None:
    """Raises ConfigError where a user's own model or method is not the file that the run had."""
    names = {f"{section}.name": about["config"][section]["name"] for section in ("model", "method")}
    for key, now in plugin.checksums_of(names).items():
        if about["files"].get(key) != now:
            raise ConfigError(
                f"{key} = {names[key]}: the file has changed since {path} was made; valid is the file as it "
                "was then"
            )


def server_of(ready: Session, trained: Trained, reader: checkpoint.Reader | None) -> tuple[Method, State]:
    """The trained method and, on rank 0, which has the reader, its server's state.

    Raises:
        UserError: the model or the method is not what the checkpoint holds the state of.
    """
    from amn_mpi import keeper

    method = ready.method(trained.config)
    if reader is None:
        return method, {}
    now, path = ready.about(trained.config), trained.path
    if now["layout"] != trained.about["layout"]:
        raise UserError(f"{path}: was made with another model; it cannot serve newcomers here")
    server, start = method.init(ready.initial), method.keeps(ready.initial)
    shapes = {name: ((ready.fed.clients, *s), d) for name, (s, d) in keeper.shapes(start).items()}
    keeper.compare_state(reader, method, "client", shapes)
    keeper.compare_state(reader, method, "server", keeper.shapes(server))
    if now["engine"] == trained.about["engine"]:
        keeper.compare_versions(path, trained.about, now)
    else:
        warn(f"{path} was made with engine {trained.about['engine']}, now {now['engine']}: bits may differ")
    keeper.fill(method, server, reader, method.mirrors)
    return method, server
