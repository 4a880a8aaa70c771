"""What a run folder holds, checked: from result.json, or from metrics.jsonl alone if it is unfinished."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import read_array

from amn_mpi import snapshots
from amn_mpi.errors import UserError
from amn_mpi.finished import SERVED
from amn_mpi.resume import warn


@dataclass(frozen=True, eq=False)
class Found:
    """A run.

    Attributes:
        result: of result.json, empty for an unfinished run.
        rows: of metrics.jsonl, a round each.
        accuracy: (N,), percent, of the client's own model at the end; empty if unknown.
        counts: (N, C), training samples by class; empty if unknown.
        groups: name -> (N,), only those that tell clients apart.
        attention: round -> (L, N, N).
        unfinished: a sentence, empty for a finished run.
    """

    folder: Path
    config: dict[str, Any]
    result: dict[str, Any]
    rows: list[dict[str, Any]]
    accuracy: np.ndarray = field(default_factory=lambda: np.zeros(0))
    counts: np.ndarray = field(default_factory=lambda: np.zeros((0, 0)))
    groups: dict[str, np.ndarray] = field(default_factory=dict)
    attention: dict[int, np.ndarray] = field(default_factory=dict)
    unfinished: str = ""

    @property
    def evaluated(self) -> list[dict[str, Any]]:
        return [row for row in self.rows if "mean_accuracy" in row]

    def layer_names(self, layers: int) -> list[str]:
        """Of the model, where as many are known; else numbers, or one matrix for them all."""
        names = self.result.get("layers", [])
        if len(names) == layers:
            return list(map(str, names))
        return ["all layers"] if layers == 1 else [f"layer {k + 1}" for k in range(layers)]


def run(folder: Path) -> Found:
    """Read a run folder; says in a warning line what an unfinished run lacks.

    Raises:
        UserError: one line.
    """
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give the folder of a run")
    has_result = (folder / "result.json").exists()
    if not has_result and not (folder / "metrics.jsonl").exists():
        hint = "; it holds runs: give one of them" if any(folder.glob("*/result.json")) else ""
        raise UserError(f"{folder}: holds no run (neither result.json nor metrics.jsonl){hint}")
    try:
        return _finished(folder) if has_result else _unfinished(folder)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        name = "result.json" if has_result else "metrics.jsonl"
        reason = " ".join(str(error).split())
        raise UserError(f"{folder / name}: not that of a run: {type(error).__name__} {reason}") from None


def _finished(folder: Path) -> Found:
    result = json.loads(_text(folder / "result.json"))
    if "diverged" in result and "per_client" not in result:
        raise UserError(f"{folder}: nothing to report: {result['diverged']}")
    if SERVED in result:
        raise UserError(
            f"{folder}: holds newcomers of {result[SERVED]}, and no run; give the folder of a run"
        )
    each = result["per_client"]
    accuracy = np.asarray(each["accuracy"], float)
    clients, names = len(accuracy), ("concept_group", "label_group")
    groups = {name.removesuffix("_group"): np.asarray(each[name], int) for name in names}
    counts = np.asarray(each.get("train_counts", np.zeros((clients, 0))), float)
    for name, array in {**groups, "train_counts": counts}.items():
        if len(array) != clients or array.ndim != 1 + (name == "train_counts"):
            raise ValueError(
                f"per_client.{name} has shape {array.shape}, not one entry for each of {clients}"
            )
    if counts.shape[1] not in (0, len(result.get("class_names", ()))):
        raise ValueError(f"{len(result.get('class_names', ()))} class_names for {counts.shape[1]} classes")
    float(result["mean_accuracy"]), int(result["rounds"])
    return Found(
        folder,
        dict(result["config"]),
        result,
        metrics(folder / "metrics.jsonl"),
        accuracy,
        counts,
        {name: group for name, group in groups.items() if len(np.unique(group)) > 1},
        _attention(folder, clients),
    )


def _unfinished(folder: Path) -> Found:
    import yaml

    rows = metrics(folder / "metrics.jsonl")
    path, config = folder / "config.yaml", {}
    if path.exists():
        try:
            config = yaml.safe_load(_text(path))
        except yaml.YAMLError as error:
            raise UserError(f"{path}: not YAML: {' '.join(str(error).split())}") from None
        if not isinstance(config, dict):
            raise UserError(f"{path}: not the configuration of a run")
    done = int(rows[-1]["round"]) if rows else 0
    told = f"not finished: {done} of {config.get('rounds', 'unknown')} rounds"
    found = Found(folder, config, {}, rows, attention=_attention(folder, None), unfinished=told)
    if not found.evaluated:
        raise UserError(f"{folder}: nothing to report: {told}, and none is evaluated")
    warn(f"{folder}: {told}; the report holds what is there")
    return found


def local(folder: Path, other: Found) -> np.ndarray:
    """The clients' accuracies in a run of the method local, (N,).

    Raises:
        UserError: it is another method's, unfinished, or of other clients.
    """
    found = run(folder)
    if not found.result or not other.result:
        which = folder if not found.result else other.folder
        raise UserError(f"--local {folder}: {which} is not finished; clients are compared at the end")
    if found.result.get("method") != "local":
        raise UserError(f"--local {folder}: is a run of {found.result.get('method')}; valid is one of local")
    here, there = _clients_of(other), _clients_of(found)
    for key, value in here.items():
        if there.get(key) != value:
            raise UserError(
                f"--local {folder}: has other clients: {key} = {there.get(key)} there and {value} in "
                f"{other.folder}"
            )
    return found.accuracy


def _clients_of(found: Found) -> dict[str, Any]:
    """What decides who the clients are."""
    data = {f"data.{k}": v for k, v in found.config.get("data", {}).items() if k not in ("root", "cache")}
    return {"clients": len(found.accuracy), "seed": found.config.get("seed"), **data}


def metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a last one that was cut short does not count."""
    if not path.exists():
        return []
    lines, rows = _text(path).split("\n"), []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line) if line else None
            if row is not None:
                int(row["round"]), float(row.get("mean_accuracy", 0)), float(row.get("worst10", 0))
                rows.append(row)
        except (ValueError, TypeError, KeyError, AttributeError):
            if number < len(lines):
                raise UserError(f"{path}: line {number} is not that of a round") from None
    return rows


def _attention(folder: Path, clients: int | None) -> dict[int, np.ndarray]:
    """The snapshots that can be read; a damaged one is left out with a warning."""
    found: dict[int, np.ndarray] = {}
    for round, path in snapshots.kept(folder).items():
        try:
            with path.open("rb") as file:
                matrix = read_array(file, allow_pickle=False).astype(np.float32)
            shape = next(iter(found.values())).shape if found else (len(matrix), clients, clients)
            n = clients or matrix.shape[-1]
            square = matrix.ndim == 3 and matrix.size and matrix.shape[1:] == (n, n)
            if not square or (found and matrix.shape != shape):
                raise ValueError(f"has shape {matrix.shape}")
            if not np.isfinite(matrix).all():
                raise ValueError("holds numbers that are not finite")
            found[round] = matrix
        except (OSError, EOFError, ValueError, TypeError) as error:
            warn(f"{path}: left out: {' '.join(str(error).split())}")
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read: {error}") from None
