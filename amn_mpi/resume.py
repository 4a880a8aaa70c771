"""Which checkpoint a run goes on from, and whether it may. Rank 0 only; imports no torch."""

from __future__ import annotations

import contextlib
import sys
from pathlib import Path
from typing import Any

from amn_mpi import checkpoint, methods
from amn_mpi.config import Config, differences
from amn_mpi.errors import ConfigError, UserError

# What may differ without a question: how long, where and how a run is carried out. The device is
# judged by the engine that it leads to.
FREE = (
    "rounds",
    "out",
    "resume",
    "baselines",
    "progress",
    "device",
    "comm",
    "checkpoint",
    "faults",
    "data.root",
    "data.cache",
)


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
            about = reader.text("about")
        agree(config, found, about["config"], about["round"])
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
    later = [p for p in checkpoint.listed(folder) if int(p.stem[6:]) > made.round]
    if later:
        raise UserError(
            f"{folder}: holds {later[0].name}, which is newer than {path.name}: delete what is newer, "
            "or choose another out"
        )
    return path


def agree(config: Config, path: Path, saved: dict[str, Any], round: int) -> None:
    """Refuse to go on with another configuration than the one that was saved after ``round``."""
    accepted = methods.listed(config.checkpoint.accept)
    for name, (then, now) in differences(config, saved, (*FREE, *accepted)).items():
        raise ConfigError(
            f"{name} = {now}: {path} was made with {then}; give --{name} {then}, or "
            f"--checkpoint.accept {','.join([*accepted, name])} to go on with {now}"
        )
    if round > config.rounds:
        raise ConfigError(
            f"rounds = {config.rounds}: {path} is after round {round} already; valid is no less"
        )


def warn(line: str) -> None:
    print(f"amn_mpi: warning: {line}", file=sys.stderr, flush=True)
