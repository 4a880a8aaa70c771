"""A comparison as a matrix of runs: methods x scenarios x seeds, read from one YAML file. Pure.

```
seeds: [0, 1, 2]
config: [fashion_mnist]             # configs that every run starts from, by name or path
keys: {rounds: 40, ...}             # keys of every run, on top of them
scenarios:
  label_skew: {data: {...}}         # keys of each scenario
methods:
  ditto: {method: {lam: 0.5}}       # keys of each method; the label is its name unless it says one
tuned: quick_tuned.yaml             # a file with more `methods`, which come first
known: ../../docs/results/quick.csv # scores.csv of finished runs, which are not run again
```
A file for tuning has ``grid`` in place of ``methods``: for each label the values of some keys, whose
combinations are its trials, or a list of such tables; and ``trials``, the number that every method gets.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from amn_mpi import cli, methods
from amn_mpi.config import Config, all_keys, differences, nested
from amn_mpi.errors import ConfigError

KEYS = ("seeds", "config", "keys", "scenarios", "methods", "tuned", "known", "grid", "trials", "reference")
SEED = all_keys(methods.options(methods.DEFAULT))["seed"]
OWN = ("seed", "out", "baselines")
EVERY = "the command line's keys hold for all methods of a comparison; an option of one goes into its file"
# What may differ between a finished cell and the file: how and where it runs.
FREE = (
    "out",
    "progress",
    "threads",
    "device",
    "engine",
    "engine_clients",
    "comm",
    "data.root",
    "data.cache",
    "checkpoint",
    "resume",
    "faults",
    "logging",
)


@dataclass(frozen=True)
class Cell:
    """One run of the matrix.

    ``label``: the method as the file calls it. ``trial``: its number in a grid, else -1.
    """

    scenario: str
    label: str
    seed: int
    trial: int
    config: Config

    @property
    def folder(self) -> str:
        return place(self.scenario, self.label, self.trial, self.seed)


def place(scenario: str, label: str, trial: int, seed: int) -> str:
    """The folder of a cell."""
    return f"{scenario}/{labelled(label, trial)}/seed{seed}"


def labelled(label: str, trial: int) -> str:
    """A label with its trial's number, where it has trials."""
    return label if trial < 0 else f"{label}-{trial:02d}"


@dataclass(frozen=True)
class Matrix:
    """All cells, scenario by scenario and seed by seed; ``trials``: each label's keys, for tuning many.

    ``untuned``: labels without tuned values. ``seeds``: the file's, whatever was asked for.
    ``known``: the table of finished runs that the file names, "" if it names none.
    """

    path: Path
    cells: list[Cell]
    reference: str
    trials: dict[str, list[dict]]
    tunes: bool
    untuned: list[str]
    seeds: list[int]
    known: str


def find(name: str) -> Path:
    """A comparison's file by path, or by name in configs/compare.

    Raises:
        ConfigError: there is none; the line lists the names.
    """
    if Path(name).is_file():
        return Path(name)
    folders = [folder / "compare" for folder in cli.config_folders()]
    known = sorted({p.stem for folder in folders for p in folder.glob("*.yaml")})
    for folder in folders:
        if (folder / f"{name}.yaml").is_file():
            return folder / f"{name}.yaml"
    raise ConfigError(
        f"{name}: neither a folder with runs nor a comparison; comparisons by name are {', '.join(known)}"
    )


def known(name: str) -> bool:
    """Whether it is the name of a comparison that comes with the package."""
    return any((folder / "compare" / f"{name}.yaml").is_file() for folder in cli.config_folders())


def read(name: str, chosen: dict[str, list[str]], words: Sequence[str]) -> Matrix:
    """The matrix that a file describes.

    Args:
        chosen: ``scenarios``, ``methods`` and ``seeds`` to which it is cut down; all where missing.
        words: ``--key value`` that hold for every run.

    Raises:
        ConfigError: a key, a name or a value is not valid; the line names the file.
    """
    path = find(name)
    tree = cli.load(path)
    unknown = set(tree) - set(KEYS)
    if unknown:
        raise ConfigError(f"{path}: {sorted(unknown)[0]}: unknown key; valid are {', '.join(KEYS)}")
    labels = (
        _trials(tree, path)
        if "grid" in tree
        else {label: [keys] for label, keys in _table(tree, "methods", path).items()}
    )
    scenarios = _table(tree, "scenarios", path)
    seeds = tree.get("seeds", [0])
    if not isinstance(seeds, list) or not seeds or not all(type(seed) is int for seed in seeds):
        raise ConfigError(f"{path}: seeds = {seeds}: valid is a list of whole numbers")
    places = _pick("scenarios", list(scenarios), chosen, path)
    who = _pick("methods", list(labels), chosen, path)
    asked = _pick("seeds", list(map(str, seeds)), chosen, path, free=True)
    draws = list(dict.fromkeys(map(int, asked)))
    for seed in (*seeds, *draws):
        if not SEED.accepts(seed):
            raise ConfigError(f"{path}: seed {seed}: valid is {SEED.valid()}")
    configs, keys = tree.get("config") or [], tree.get("keys") or {}
    if not isinstance(configs, list) or not all(isinstance(config, str) for config in configs):
        raise ConfigError(f"{path}: config = {configs}: valid is a list of names or paths")
    if not isinstance(keys, dict):
        raise ConfigError(f"{path}: keys = {keys}: valid is a table of keys")
    reference = tree.get("reference", methods.DEFAULT)
    if "reference" in tree and reference not in list(labels):
        raise ConfigError(f"{path}: reference = {reference}: valid are {', '.join(labels)}")
    common = [*map(cli.read, configs), cli.layer(keys, f"{path}, keys")]
    here = {name: cli.layer(scenarios[name], f"{path}, scenario {name}") for name in places}
    tuned = _tuned(tree, path)
    resolved = {
        (scenario, label): [
            _resolve(path, label, [*common, here[scenario]], tuned.get(label, {}), own, words)
            for own in labels[label]
        ]
        for scenario in places
        for label in who
    }
    if "grid" in tree:
        _check_tuning(path, resolved)
    cells = [
        Cell(scenario, label, seed, number if "grid" in tree else -1, dataclasses.replace(config, seed=seed))
        for scenario, seed, label in itertools.product(places, draws, who)
        for number, config in enumerate(resolved[scenario, label])
    ]
    trials = {label: labels[label] for label in who}
    untuned = [label for label in who if label not in tuned] if "tuned" in tree else []
    return Matrix(path, cells, reference, trials, "grid" in tree, untuned, seeds, _known(tree, path))


def _check_tuning(path: Path, resolved: dict[tuple[str, str], list[Config]]) -> None:
    """Nothing is chosen by test samples, and a trial twice is none more."""
    for (scenario, label), trials in resolved.items():
        if not all(config.data.validation for config in trials):
            raise ConfigError(f"{path}, {scenario}: data.validation = 0: a tuning needs a part to judge by")
        for k, config in enumerate(trials):
            if config in trials[:k]:
                same = trials.index(config)
                raise ConfigError(f"{path}: grid: {label}: trials {same} and {k} are the same ({scenario})")


def _resolve(
    path: Path, label: str, layers: list[dict], tuned: dict, keys: dict, words: Sequence[str]
) -> Config:
    """One method in one scenario, with seed 0; its own keys go on top of those that were tuned."""
    own = cli.layer(keys, f"{path}, method {label}")
    name = {"method.name": label, **tuned, **own}["method.name"]
    named = [{**layer, "method.name": name} for layer in (tuned, own) if layer]
    for layer in (*layers, *named):
        for key in OWN if layer in named else (*OWN, "method.name"):
            if key in layer and "" in layer and ", " in layer[""]:
                raise ConfigError(f"{layer['']}: {key}: a comparison sets it itself")
    if not methods.known(name):
        said = "" if name == label else f" {name}"
        raise ConfigError(f"{path}: methods: {label}: no method{said}; valid are {methods.VALID}")
    try:
        return cli.resolve([*layers, *named], ["--seed", "0", *words])
    except ConfigError as error:
        if any(layer[""] in str(error) for layer in (*layers, *named)):
            raise
        hint = f"; {EVERY}" if "(command line); it belongs to method.name" in str(error) else ""
        raise ConfigError(f"{path}, {label}: {error}{hint}") from None


def difference(config: Config, done: dict[str, Any]) -> str:
    """What a finished run's configuration says otherwise, as "key = then, now value"; "" if nothing."""
    for key, (then, now) in differences(config, done, FREE).items():
        return f"{key} = {then}, now {now}"
    return ""


def _tuned(tree: dict[str, Any], path: Path) -> dict[str, dict[str, Any]]:
    """The layer of each label in the file of tuned values; none if the comparison has no such file."""
    if "tuned" not in tree:
        return {}
    tuned_path = path.parent / str(tree["tuned"])
    if not tuned_path.is_file():
        raise ConfigError(f"{path}: tuned = {tree['tuned']}: no such file beside it")
    found = _table(cli.load(tuned_path), "methods", tuned_path)
    return {label: cli.layer(keys, f"{tuned_path}, method {label}") for label, keys in found.items()}


def _known(tree: dict[str, Any], path: Path) -> str:
    name = tree.get("known") or ""
    if not isinstance(name, str):
        raise ConfigError(
            f"{path}: known = {name}: valid is the path of a scores.csv, from this file's folder"
        )
    return os.path.normpath(path.parent / name) if name else ""


def _trials(tree: dict[str, Any], path: Path) -> dict[str, list[dict]]:
    """Each label's trials: all combinations of its keys' values; every label has equally many."""
    budget = tree.get("trials")
    if type(budget) is not int or budget < 1:
        raise ConfigError(f"{path}: trials = {budget}: valid is a whole number >= 1")
    if "methods" in tree:
        raise ConfigError(f"{path}: methods: beside grid, which takes its place; give one of them")
    found = {}
    for label, axes in _table(tree, "grid", path).items():
        found[label] = [
            one for some in ([axes] if isinstance(axes, dict) else axes) for one in _combinations(some)
        ]
        if len(found[label]) != budget:
            raise ConfigError(
                f"{path}: grid: {label} has {len(found[label])} trials; every method gets trials = {budget}"
            )
    return found


def _combinations(axes: dict[str, Any]) -> list[dict]:
    flat = {key: value for key, value in cli.layer(axes, "").items() if key}
    lists = [value if isinstance(value, list) else [value] for value in flat.values()]
    return [nested(dict(zip(flat, values))) for values in itertools.product(*lists)]


def _table(tree: dict[str, Any], name: str, path: Path) -> dict[str, dict]:
    """A section of {name: keys}; an empty entry counts as one without keys."""
    section = tree.get(name)
    if not isinstance(section, dict) or not section:
        raise ConfigError(f"{path}: {name}: missing; valid is a table of names, each with its keys")
    for label, keys in section.items():
        text = str(label)
        if "/" in text or text.startswith(".") or not text.strip() or not text.isprintable():
            raise ConfigError(f"{path}: {name}: {text!r}: cannot be the name of a folder")
        listed = name == "grid" and isinstance(keys, list) and all(isinstance(k, dict) for k in keys)
        if keys is not None and not isinstance(keys, dict) and not listed:
            raise ConfigError(f"{path}: {name}: {label} = {keys}: valid is a table of keys")
    return {str(label): keys or {} for label, keys in section.items()}


def _pick(
    kind: str, known: list[str], chosen: dict[str, list[str]], path: Path, free: bool = False
) -> list[str]:
    """Those asked for, in the file's order; ``free``: others are valid too (seeds)."""
    asked = chosen.get(kind)
    if not asked:
        return known
    for name in asked:
        if name not in known and not (free and name.isascii() and name.isdigit()):
            raise ConfigError(f"--{kind} {name}: not in {path}; valid are {', '.join(known)}")
    return asked if free else [name for name in known if name in asked]
