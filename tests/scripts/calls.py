"""Call after call of amn_mpi.train, most of which cannot be. Argument: a folder for what each rank hears."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import amn_mpi
from amn_mpi.callbacks import Callback

folder = Path(sys.argv[1])
SMALL = {"data": {"clients": 2}, "local.epochs": 1, "rounds": 2, "progress": "off"}  # one rank is idle


class Blocker(Callback):
    """Puts a folder where result.json's temporary file is to be."""

    def begin(self, config: dict[str, Any], folder: Path, facts: dict[str, Any]) -> int:
        (folder / ".result.json").mkdir()
        return 0


def main() -> None:
    wrong: list[dict[str, Any]] = [
        {"rounds": 0},
        {"local.lrr": 1},
        {"data.name": "nowhere.h5"},
        {"out": folder / "good-1"},
        {"device": "cuda"},
        {"local.lr": 1e20, "data.concept": "none"},
        {"logging.callbacks": f"{__file__}:Blocker", "out": folder / "blocked"},
    ]
    amn_mpi.train(SMALL, {"out": folder / "good-1"})
    errors = []
    for number, layer in enumerate(wrong):
        try:
            amn_mpi.train(SMALL, {"out": folder / f"bad-{number}"}, layer)
        except amn_mpi.UserError as error:
            errors.append((type(error).__name__, str(error)))
    good = amn_mpi.train(SMALL, {"out": folder / "good-2", "data.clients": 3})
    again = amn_mpi.train(SMALL, {"out": folder / "good-2", "data.clients": 3, "resume": "auto"})
    own = amn_mpi.train(SMALL, {"out": folder / "own", "data.name": folder / "own.npz", "data.clients": 9})
    rank = int(os.environ.get("PMI_RANK", 0))
    heard = {"errors": errors, "sha": good.get("models_sha256"), "again": again.get("models_sha256")}
    heard["own"] = own.get("config", {}).get("data")
    (folder / f"heard-{rank}.json").write_text(json.dumps(heard))


if __name__ == "__main__":
    main()
