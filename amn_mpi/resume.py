"""Which checkpoint a run goes on from, and whether it may. Rank 0 only; imports no torch."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from amn_mpi import checkpoint, methods, plugin
from amn_mpi.config import Config, all_keys, differences, within
from amn_mpi.errors import ConfigError, UserError

# What may differ without a question: how long, where and how a run is carried out. Device and
# engine are judged by what they lead to.
FREE = (
    "rounds",
    "out",
    "resume",
    "baselines",
    "progress",
    "device",
    "engine",
    "comm",
    "checkpoint",
    "faults",
    "logging",
    "server",
    "server_gb",
    "data.root",
    "data.cache",
)
# What nothing can go on with; the other data keys may lead to the same data under another name.
FIXED = ("seed", "data.clients", "model", "method.name")


def find(config: Config, folder: Path) -> Path | None:
    """The checkpoint that ``config.resume`` asks for, intact and in agreement; None: start afresh.

    Args:
        folder: where this run's checkpoints are, and will be.

    Raises:
        UserError: there are checkpoints and none is good, or the one that is asked for is not.
        ConfigError: the configuration differs from the checkpoint's.
    """
    if config.resume == "never":
        return None
    found = newest(folder) if config.resume == "auto" else asked_for(config.resume, folder)
    if found is not None:
        with checkpoint.Reader(found) as reader:
            about, history = reader.text("about"), reader.text("history")
        agree(config, found, about["config"], about["round"])
        _agree_on_files(config, found, about.get("files", {}))
        _agree_on_end(config.rounds, history["rounds"], found)
    return found


def newest(folder: Path) -> Path | None:
    """The newest intact checkpoint of a folder; says which newer ones are damaged.

    They are set aside: by its number one of them would count as the newest for ever.
    """
    damaged: list[tuple[Path, str]] = []
    for path, reason in checkpoint.good(folder):
        if not reason:
            for other, why in damaged:
                warn(f"{other} is damaged ({why}); {path.name} is used")
                with contextlib.suppress(OSError):
                    other.rename(other.with_name(f"damaged-{other.name}"))
            return path
        damaged.append((path, reason))
    if damaged:
        told = "; ".join(f"{path.name}: {why}" for path, why in damaged)
        raise UserError(f"{folder}: no checkpoint is intact ({told}); delete them to start afresh")
    return None


def asked_for(name: str, folder: Path) -> Path:
    """A checkpoint by its path."""
    path = Path(name)
    if not path.is_file():
        raise ConfigError(f"resume = {name}: no such file; valid are never, auto, or a checkpoint's path")
    try:
        made = checkpoint.verify(path)
    except checkpoint.Damaged as reason:
        raise UserError(f"{path}: is damaged: {reason}") from None
    later = [p for p in checkpoint.listed(folder) if checkpoint.round_of(p) > made.round]
    if later:
        raise UserError(
            f"{folder}: holds {later[0].name}, which is newer than {path.name}: delete what is newer, "
            "or choose another out"
        )
    return path


def other_version(path: Path, saved: dict[str, Any], options: type) -> str:
    """What to say of a method's saved options where ``options`` lacks some of them; "" where it has all."""
    gone = [f"method.{name}" for name in saved if f"method.{name}" not in all_keys(options)]
    if not gone:
        return ""
    return f"{path}: was made by another version of {saved['name']}, which had {', '.join(gone)}"


def agree(config: Config, path: Path, saved: dict[str, Any], round: int) -> None:
    """Refuse to go on with another configuration than the one that was saved after ``round``."""
    if saved["method"]["name"] == config.method.name:
        told = other_version(path, saved["method"], type(config.method))
        if told:
            raise ConfigError(f"{told}; it cannot be gone on from: choose another out")
    accepted = methods.listed(config.checkpoint.accept)
    free = [*FREE, *(name for name in accepted if not within(name, FIXED))]
    for name, (then, now) in differences(config, saved, free).items():
        told = f"{name} = {now}: {path} was made with {then}; give --{name} {then}"
        if within(name, FIXED):
            raise ConfigError(f"{told}, or choose another out")
        more = ",".join([*accepted, name])
        raise ConfigError(f"{told}, or --checkpoint.accept {more} to go on with {now}")
    if round > config.rounds:
        raise ConfigError(
            f"rounds = {config.rounds}: {path} is after round {round} already; valid is no less"
        )


def _agree_on_files(config: Config, path: Path, saved: dict[str, int]) -> None:
    """Refuse a user's own model or method whose file is no longer what the checkpoint was made with."""
    accepted = methods.listed(config.checkpoint.accept)
    for key, now in plugin.checksums(config).items():
        if saved.get(key, now) != now and key not in accepted:
            name = config.model.name if key == "model.name" else config.method.name
            more = ",".join([*accepted, key])
            raise ConfigError(
                f"{key} = {name}: the file has changed since {path} was made; --checkpoint.accept {more} "
                "goes on with it as it is now"
            )


def _agree_on_end(rounds: int, rows: list[dict[str, Any]], path: Path) -> None:
    """Refuse an end before which some of the last five rounds have passed without their evaluation."""
    missing = [row["round"] for row in rows if row["round"] > rounds - 5 and "models" not in row]
    if missing:
        raise ConfigError(
            f"rounds = {rounds}: round {missing[-1]} was not evaluated on the way to {path}, and the last "
            f"five have to be; valid is >= {missing[-1] + 5}"
        )


def warn(line: str) -> None:
    print(f"amn_mpi: warning: {line}", file=sys.stderr, flush=True)
