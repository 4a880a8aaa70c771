"""Which checkpoint a run goes on from, and whether it may. Rank 0 only; imports no torch."""

from __future__ import annotations

import sys
from pathlib import Path

from amn_mpi import checkpoint
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
        agree(config, found)
    return found


def newest(folder: Path) -> Path | None:
    """The newest intact checkpoint of a folder; says which newer ones are damaged."""
    damaged: list[tuple[Path, str]] = []
    for path, reason in checkpoint.good(folder):
        if not reason:
            for other, why in damaged:
                warn(f"{other} is damaged ({why}); {path.name} is used")
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


def agree(config: Config, path: Path) -> None:
    """Refuse to go on with another configuration than the checkpoint's."""
    with checkpoint.Reader(path) as reader:
        about = reader.text("about")
    accepted = [name.strip() for name in config.checkpoint.accept.split(",") if name.strip()]
    for name, (then, now) in differences(config, about["config"], (*FREE, *accepted)).items():
        raise ConfigError(
            f"{name} = {now}: {path} was made with {then}; give --{name} {then}, or "
            f"--checkpoint.accept {','.join([*accepted, name])} to go on with {now}"
        )
    if about["round"] > config.rounds:
        raise ConfigError(
            f"rounds = {config.rounds}: {path} is after round {about['round']} already; valid is no less"
        )


def warn(line: str) -> None:
    print(f"amn_mpi: warning: {line}", file=sys.stderr, flush=True)
