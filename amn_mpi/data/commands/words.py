"""What the data commands take beside their options: nothing more, or a configuration."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from amn_mpi.errors import ConfigError

if TYPE_CHECKING:
    from amn_mpi.config import Config


def no_more(others: Sequence[str], valid: str) -> None:
    """Refuse words that a command does not know."""
    if others:
        raise ConfigError(f"{others[0]}: not an option here; valid is {valid}")


def config_of(command: str, words: Sequence[str]) -> Config:
    """The configuration that ``CONFIG [--key value ...]`` asks for.

    Raises:
        ConfigError: there is no CONFIG, or something is wrong with it.
    """
    from amn_mpi import cli

    if not words or words[0].startswith("--"):
        raise ConfigError(f"{command} what? valid is {command} CONFIG [--key value ...]; see --help")
    for word in words[1:]:
        if word.startswith("--") and word.partition("=")[0][2:] in cli.SWITCHES:
            raise ConfigError(f"{word}: is for runs; valid here are --key value; see --help")
    return cli.parse(["--config", *words])[0]
