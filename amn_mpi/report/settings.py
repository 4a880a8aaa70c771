"""The configurations of many runs, told apart: what all share, what a scenario says, what a method says."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from amn_mpi.scores import Score

OWN = ("seed", "out", "method.name", "data.root", "data.cache")  # a run's own, or told elsewhere
Flat = dict[str, Any]


@dataclass(frozen=True)
class Split:
    """``common``: {key: value}; the others: name -> "key = value, ..."."""

    common: dict[str, str]
    scenarios: dict[str, str]
    labels: dict[str, str]


def split(runs: Iterable[tuple[Score, Flat]]) -> Split:
    """Every key once: what differs within scenarios and within methods is common, with all its values."""
    each = [(score.scenario, score.label, config) for score, config in runs]
    keys = dict.fromkeys(key for _, _, config in each for key in config if key not in OWN)
    scenarios: dict[str, list[str]] = {scenario: [] for scenario, _, _ in each}
    labels: dict[str, list[str]] = {label: [] for _, label, _ in each}
    common: dict[str, str] = {}
    for key in keys:
        by_scenario = _by((scenario, config.get(key)) for scenario, _, config in each)
        by_label = _by((label, config[key]) for _, label, config in each if key in config)
        values = dict.fromkeys(str(config[key]) for _, _, config in each if key in config)
        if len(values) == 1 and all(key in config for _, _, config in each):
            common[key] = next(iter(values))
        elif not key.startswith("method.") and all(len(v) == 1 for v in by_scenario.values()):
            _add(scenarios, by_scenario, key)
        elif all(len(v) == 1 for v in by_label.values()):
            _add(labels, by_label, key)
        else:
            common[key] = " or ".join(values)
    return Split(common, _joined(scenarios), _joined(labels))


def _by(pairs: Iterable[tuple[str, Any]]) -> dict[str, list[str]]:
    """Name -> the different values, as text."""
    found: dict[str, dict[str, None]] = {}
    for name, value in pairs:
        found.setdefault(name, {})[str(value)] = None
    return {name: list(values) for name, values in found.items()}


def _add(told: dict[str, list[str]], values: dict[str, list[str]], key: str) -> None:
    for name, (value,) in values.items():
        told[name].append(f"{key} = {value}")


def _joined(told: dict[str, list[str]]) -> dict[str, str]:
    return {name: ", ".join(texts) for name, texts in told.items()}
