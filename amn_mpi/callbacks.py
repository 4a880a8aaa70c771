"""Who else is told of a run while it goes on: TensorBoard and the like, or a class of one's own.

All of it on rank 0. A callback that raises is switched off with one warning; the run goes on.
"""

from __future__ import annotations

import copy
import importlib
import importlib.util
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amn_mpi import plugin
from amn_mpi.errors import ConfigError, Stopped
from amn_mpi.methods import listed
from amn_mpi.resume import warn

if TYPE_CHECKING:
    import numpy as np

    from amn_mpi.config import Logging

# Those that come with the package, imported when asked for, and the pip package that each needs.
CALLBACKS = {"tensorboard": "amn_mpi.tensorboard:TensorBoard", "wandb": "amn_mpi.wandb:WandB"}
NEEDS = {"tensorboard": "tensorboard", "wandb": "wandb"}


class Callback:
    """What a run tells; override what is of interest. Made without arguments, before training."""

    def begin(self, config: dict[str, Any], folder: Path, facts: dict[str, Any]) -> int:
        """Before the first round of this start.

        Args:
            config: the whole configuration, nested. folder: the run folder.
            facts: ``done`` (rounds finished before this start, 0 unless it resumes), ``rounds``, ``ranks``,
                ``clients``, ``parameters``, ``layers`` (names), ``models`` (names), ``headline`` (the
                client's own among them), ``groups`` (concept and label group of each client).

        Returns:
            The last round that is known here already: those after it, up to ``done``, are handed over
            again, without attention.
        """
        return int(facts["done"])

    def round(self, row: dict[str, Any], attention: np.ndarray | None) -> None:
        """After every round.

        Args:
            row: its line of metrics.jsonl; accuracies in percent where it was evaluated, ``seconds``.
            attention: who listens to whom, (layers, clients, clients), the first 1 where all layers have the
                same; None for a method without one.
        """

    def end(self, result: dict[str, Any]) -> None:
        """All is done; the content of result.json."""

    def failed(self, reason: str) -> None:
        """The run ends early: by a signal (it may be resumed) or an error."""

    def close(self) -> None:
        """The last call, after ``end`` or ``failed``."""


class Callbacks:
    """Those that a configuration asks for; what one raises costs only itself.

    Raises:
        ConfigError: one cannot be had.
    """

    def __init__(self, logging: Logging) -> None:
        names = list(dict.fromkeys([*["tensorboard"] * logging.tensorboard, *listed(logging.callbacks)]))
        self._each = {name: _make(name, logging) for name in names}

    def begin(
        self, config: dict[str, Any], folder: Path, facts: dict[str, Any], rows: list[dict[str, Any]]
    ) -> None:
        """Args: rows: those of the rounds before this start."""
        for name in list(self._each):
            known = self._tell(name, "begin", config, folder, facts)
            for row in rows if isinstance(known, int) else ():
                if row["round"] > known:
                    self._tell(name, "round", row, None)

    def round(self, row: dict[str, Any], attention: np.ndarray | None) -> None:
        for name in list(self._each):
            self._tell(name, "round", row, attention)

    def end(self, result: dict[str, Any]) -> None:
        self._leave("end", result)

    def failed(self, reason: str) -> None:
        self._leave("failed", reason)

    def _leave(self, what: str, told: Any) -> None:
        for name in list(self._each):
            self._tell(name, what, told)
            self._tell(name, "close")
        self._each = {}

    def _tell(self, name: str, what: str, *told: Any) -> Any:
        if name not in self._each:
            return None
        try:
            # Copies: what a callback does to them must not change the run, or what the next one is told.
            return getattr(self._each[name], what)(*copy.deepcopy(told))
        except Stopped:
            raise
        except (Exception, SystemExit, KeyboardInterrupt) as error:
            del self._each[name]
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            warn(f"callback {name}: {what} raised {reason}; it is switched off, the run goes on")
            return None


def _make(name: str, logging: Logging) -> Any:
    """One callback by its name in CALLBACKS, or as FILE.py:NAME."""
    own = name == "tensorboard" and logging.tensorboard
    given = "logging.tensorboard = true" if own else f"logging.callbacks = {logging.callbacks}"
    if name in CALLBACKS:
        needs = NEEDS[name]
        if importlib.util.find_spec(needs) is None:
            raise ConfigError(f"{given}: needs the package {needs}: pip install '.[{name}]'")
        module, _, attribute = CALLBACKS[name].partition(":")
        return getattr(importlib.import_module(module), attribute)()
    if not plugin.is_file(name):
        raise ConfigError(f"{given}: {name} is unknown; valid are {', '.join(CALLBACKS)}, or {plugin.FORM}")
    return _from_file(name)


def _from_file(name: str) -> Any:
    """Make an object of a class in a Python file."""
    found = plugin.load(name, "logging.callbacks")
    if not isinstance(found, type) or not issubclass(found, Callback):
        raise ConfigError(f"logging.callbacks = {name}: is no subclass of amn_mpi.callbacks.Callback")
    try:
        return found()
    except Stopped:
        raise
    except (Exception, SystemExit, KeyboardInterrupt) as error:
        why = plugin.told(error, plugin.path_of(name))
        raise ConfigError(f"logging.callbacks = {name}: cannot be made: {why}") from None
