"""What finished runs amount to: means over seeds, ranks, paired differences. Pure, and without torch."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from amn_mpi import methods, plugin

# Student's t, two-sided 95 %, for 1 to 30 degrees of freedom.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179, 2.160, 2.145,
       2.131, 2.120, 2.110, 2.101, 2.093, 2.086, 2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048,
       2.045, 2.042)  # fmt: skip
FIGURES = ("mean_last5", "best_accuracy", "worst10")


@dataclass(frozen=True)
class Score:
    """One finished run.

    Attributes:
        figures: percent by name, see ``FIGURES``; NaN where the run diverged.
        seconds: median of a round.
        sent: bytes by all ranks, without those of checkpoints, which go by the clock.
        trained: seconds in which clients train, summed over the ranks; NaN if unknown.
        ranks: 0 where the run diverged. version: of this package, "" if unknown.
        digest: of its configuration, see ``amn_mpi/digest.py``; "" if unknown.
        curve: round -> mean accuracy, percent.
        apart: see ``why_apart``.
    """

    scenario: str
    label: str
    seed: int
    method: str
    figures: dict[str, float]
    seconds: float = math.nan
    sent: int = 0
    trial: int = -1
    trained: float = math.nan
    ranks: int = 0
    version: str = ""
    digest: str = ""
    curve: dict[int, float] = field(default_factory=dict)
    apart: str = ""


def why_apart(method: str, options: Mapping[str, Any]) -> str:
    """Why tables list a method apart with such options, "" if they do not."""
    # A user's own file need not be there any more, and tables run no code.
    return "" if plugin.is_file(method) else methods.get(method).apart(options)


def of_result(result: dict[str, Any], scenario: str = "", label: str = "", trial: int = -1) -> Score:
    """The score in the content of a result.json."""
    figures = {name: float(result.get(name, math.nan)) for name in FIGURES}
    sent, ranks = result.get("bytes_sent", {}), int(result.get("ranks", 0))
    return Score(
        scenario or scenario_of(result),
        label or plugin.short(result["method"]),
        int(result["seed"]),
        result["method"],
        figures,
        float(result.get("round_seconds", math.nan)),
        sum(int(size) for kind, size in sent.items() if kind != "checkpoint"),
        trial,
        float(result.get("seconds", {}).get("mean", {}).get("train", math.nan)) * ranks,
        ranks,
        str(result.get("versions", {}).get("amn_mpi", "")),
        apart=why_apart(result["method"], result["config"]["method"]),
    )


def scenario_of(result: dict[str, Any]) -> str:
    """A name for the data, the model and the rounds of a run that belongs to no matrix."""
    data, model = result["config"]["data"], result["config"]["model"]
    labels = {
        "iid": "iid",
        "dirichlet": f"Dirichlet {data['alpha']:g}",
        "classes": f"{data['classes_per_client']} classes",
        "groups": f"{data['label_groups']} label groups",
        "own": "clients of its own",
    }[data["labels"]]
    sizes = f", log-normal {data['sigma']:g}" if data["sizes"] == "lognormal" else ""
    concept = f", {data['concept']} {data['concept_groups']}" if data["concept"] != "none" else ""
    part = f", validation {data['validation']:g}" if data.get("validation") else ""
    clients, rounds = result["config"]["data"]["clients"], result["config"]["rounds"]
    name = plugin.short(model["name"]).removesuffix("_bn")
    return f"{data['name']}, {labels}{sizes}{concept}, {name}, {clients} clients, {rounds} rounds{part}"


@dataclass(frozen=True)
class Summary:
    """One figure of one method in one scenario (or averaged over scenarios) over seeds.

    Attributes:
        mean: of the runs that did not diverge; NaN where there is none. std: theirs, of the sample.
        seeds: all of them. diverged: how many of these diverged, in one of the scenarios at least.
    """

    mean: float
    std: float
    seeds: int
    diverged: int = 0

    @property
    def ranked(self) -> float:
        """The mean as it is ranked: NaN where a run diverged, for the mean of the others would flatter."""
        return math.nan if self.diverged else self.mean


@dataclass(frozen=True)
class Difference:
    """Mean of paired differences to the reference.

    Attributes:
        half: half width of its 95 % interval.
        seeds: that both have. diverged: how many of these diverged on one side, and do not count.
    """

    mean: float
    half: float
    seeds: int = 0
    diverged: int = 0


class Board:
    """All scores of a comparison, looked up by (scenario, label, seed)."""

    def __init__(self, scores: Iterable[Score], reference: str) -> None:
        found = list(scores)
        self.scenarios = _unique(s.scenario for s in found)
        self.labels = _unique(s.label for s in found)
        self.reference = reference if reference in self.labels else self.labels[0]
        self.method = {s.label: s.method for s in found}
        self._apart = {s.label: s.apart for s in found if s.apart}
        self._at = {(s.scenario, s.label, s.seed): s for s in found}

    def aside(self, label: str) -> str:
        """Why a method is listed apart, "" if it is not."""
        return self._apart.get(label, "")

    def ranked(self) -> list[str]:
        return [label for label in self.labels if not self.aside(label)]

    def values(self, figure: str, scenario: str, label: str) -> dict[int, float]:
        """Percent by seed."""
        return {
            seed: score.figures[figure]
            for (where, who, seed), score in self._at.items()
            if (where, who) == (scenario, label)
        }

    def averaged(self, figure: str, label: str) -> dict[int, float]:
        """Percent by seed, the mean over scenarios, for the seeds that all have; NaN if one diverged."""
        each = [self.values(figure, scenario, label) for scenario in self.scenarios]
        seeds = set.intersection(*(set(values) for values in each))
        return {seed: float(np.mean([values[seed] for values in each])) for seed in sorted(seeds)}

    def summary(self, values: dict[int, float]) -> Summary:
        """Mean and (sample) standard deviation over seeds; NaN where there is none."""
        numbers = [value for value in values.values() if not math.isnan(value)]
        mean = float(np.mean(numbers)) if numbers else math.nan
        std = float(np.std(numbers, ddof=1)) if len(numbers) > 1 else math.nan
        return Summary(mean, std, len(values), len(values) - len(numbers))

    def difference(self, values: dict[int, float], reference: dict[int, float]) -> Difference:
        """Over the seeds that both have."""
        every = [values[seed] - reference[seed] for seed in values if seed in reference]
        pairs = [pair for pair in every if not math.isnan(pair)]
        mean = float(np.mean(pairs)) if pairs else math.nan
        return Difference(mean, half_width(pairs), len(every), len(every) - len(pairs))

    def seeds(self, scenario: str) -> int:
        """How many seeds a scenario has, whichever method has run with them."""
        return len({seed for where, _, seed in self._at if where == scenario})

    def even(self, figure: str) -> list[str]:
        """Scenarios in which all ranked methods have run with all seeds."""
        return [
            name for name in self.scenarios
            if all(len(self.values(figure, name, who)) == self.seeds(name) for who in self.ranked())
        ]  # fmt: skip

    def ranks(self, figure: str) -> dict[str, float]:
        """Mean rank over the ``even`` scenarios; 1 is best, who diverged once is last."""
        total: dict[str, list[float]] = {label: [] for label in self.ranked()}
        for scenario in self.even(figure):
            means = {label: self.summary(self.values(figure, scenario, label)).ranked for label in total}
            for label, rank in ranks(means).items():
                total[label].append(rank)
        return {label: float(np.mean(found)) if found else math.nan for label, found in total.items()}


def ranks(means: dict[str, float]) -> dict[str, float]:
    """Rank by name, 1 for the highest; equal values share the mean of their ranks, NaN is last."""
    known = {name: -math.inf if math.isnan(value) else value for name, value in means.items()}
    return {
        name: 1 + sum(v > value for v in known.values()) + (sum(v == value for v in known.values()) - 1) / 2
        for name, value in known.items()
    }


def half_width(numbers: Sequence[float]) -> float:
    """Half of the 95 % interval of the mean, by Student's t; NaN for a single number."""
    count = len(numbers)
    if count < 2:
        return math.nan
    return t95(count - 1) * float(np.std(numbers, ddof=1)) / math.sqrt(count)


def t95(freedom: int) -> float:
    """Student's t, two-sided 95 %; above the table's 30 by its expansion in 1/freedom (to 0.001)."""
    if freedom <= len(T95):
        return T95[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def best_trials(scores: Iterable[Score]) -> dict[str, int]:
    """Each label's trial with the highest mean over scenarios and seeds; a diverged one counts as 0."""
    by_label = itertools.groupby(sorted(scores, key=lambda s: (s.label, s.trial)), key=lambda s: s.label)
    best = {}
    for label, found in by_label:
        trials: dict[int, list[float]] = {}
        for score in found:
            trials.setdefault(score.trial, []).append(np.nan_to_num(score.figures["mean_last5"]))
        best[label] = max(trials, key=lambda trial: (np.mean(trials[trial]), -trial))
    return best


def _unique(names: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(names))
