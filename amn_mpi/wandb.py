"""A run as Weights & Biases shows it, kept in RUN/wandb until somebody uploads it: ``wandb sync``.

Offline unless $WANDB_MODE says otherwise: no account, no network. Their client runs a process of its own
beside rank 0, which keeps the newest lines in memory; so every start, and every loss of that process,
begins a new folder under the same id and writes all rounds again. The newest folder is always whole.
"""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amn_mpi.callbacks import Callback
from amn_mpi.config import leaves
from amn_mpi.errors import Stopped
from amn_mpi.tensorboard import drawn, scalars

if TYPE_CHECKING:
    import numpy as np

OWN = ("CACHE_DIR", "CONFIG_DIR", "DATA_DIR")  # else in $HOME, which compute nodes may lack
QUIET: dict[str, Any] = {
    "silent": True,
    "init_timeout": 30.0,
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_save_requirements": False,
}


class WandB(Callback):
    """Tells Weights & Biases of rounds, some attention matrices, the configuration and how the run ended."""

    def begin(self, config: dict[str, Any], folder: Path, facts: dict[str, Any]) -> int:
        self._folder, self._layers = folder, facts["layers"]
        self._best = 0.0
        size = {name: facts[name] for name in ("ranks", "clients", "parameters")}
        self._config = {**config, "run": size}
        (folder / "wandb").mkdir(exist_ok=True)
        self._id = _identity(folder / "wandb" / "id")
        self._open()
        return 0 if self._run.offline else int(facts["done"])

    def round(self, row: dict[str, Any], attention: np.ndarray | None) -> None:
        try:
            self._log(row)
        except Stopped:
            raise
        except Exception:  # the process beside this one is gone: their classes for that are private
            self._again()  # metrics.jsonl has this round already

    def end(self, result: dict[str, Any]) -> None:
        numbers = {f"result/{name}": value for name, value in leaves(result).items() if _number(value)}
        self._finish({**numbers, "ended": "finished"}, 0)

    def failed(self, reason: str) -> None:
        self._finish({"ended": reason}, 1)

    def close(self) -> None:
        if not self._shared:
            _dismiss()  # Python's own end never comes here

    def _open(self) -> None:
        """Begin a folder; in the earlier ones is nothing that does not come again."""
        import wandb

        self._shared = wandb.run is not None  # somebody's own, in a script
        mode: Any = os.environ.get("WANDB_MODE") or "offline"
        target = self._folder / "wandb"
        earlier = list(target.glob(f"offline-run-*-{self._id}*"))  # a second one of the same second: ID-1
        with _variables({f"WANDB_{name}": str(target / "cache") for name in OWN}):
            self._run = wandb.init(
                id=self._id,
                dir=self._folder,
                project=os.environ.get("WANDB_PROJECT") or "amn_mpi",
                name=os.environ.get("WANDB_NAME") or self._folder.resolve().name,
                config=self._config,
                mode=mode,
                resume=None if mode == "offline" else "allow",
                reinit="create_new",
                settings=wandb.Settings(**QUIET),
            )
        for path in earlier:
            if path.name not in Path(self._run.dir).parts:
                shutil.rmtree(path, ignore_errors=True)

    def _again(self) -> None:
        """Start another process in place of one that a signal to all of a job's processes has ended.

        Raises what goes wrong a second time.
        """
        _dismiss()
        self._best = 0.0
        self._open()
        for line in (self._folder / "metrics.jsonl").read_text().splitlines():
            self._log(json.loads(line))

    def _log(self, row: dict[str, Any]) -> None:
        if row["round"] < self._run.step:
            return  # the server has it, from before a resume
        told: dict[str, Any] = dict(scalars(row, self._layers))
        if "mean_accuracy" in row:
            self._best = max(self._best, row["mean_accuracy"])
            told["accuracy/best"] = self._best
        if picture := self._picture(row["round"]):
            told["attention"] = picture
        self._run.log({"round": row["round"], **told}, step=row["round"])

    def _picture(self, round: int) -> Any:
        """Of the attention, in the rounds of which it is kept (``logging.attention``)."""
        from amn_mpi.snapshots import FOLDER

        path = self._folder / FOLDER / f"{round:05d}.npy"
        if not path.exists():
            return None
        import numpy as np
        import wandb

        return wandb.Image(drawn(np.load(path), self._layers))

    def _finish(self, summary: dict[str, Any], status: int) -> None:
        try:
            self._run.summary.update(summary)
            self._run.finish(exit_code=status)
        except Stopped:
            raise
        except Exception:
            self._again()
            self._run.summary.update(summary)
            self._run.finish(exit_code=status)


def _dismiss() -> None:
    """End the process beside this one, if it lives."""
    import wandb

    try:
        wandb.teardown()
    except Stopped:
        raise
    except Exception:  # it does not
        return


def _identity(path: Path) -> str:
    """The run's name on a server, drawn once for a folder: a resumed run goes on under it."""
    if not path.exists():
        path.write_text(secrets.token_hex(4) + "\n")
    return path.read_text().strip()


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


@contextmanager
def _variables(wanted: Mapping[str, str]) -> Iterator[None]:
    """Variables of the environment for a while, but for those that the user has set."""
    mine = {name: value for name, value in wanted.items() if name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)
