"""Rank 0's account of a run while it goes on."""

from __future__ import annotations

from typing import Any

import numpy as np

from amn_mpi import metrics, plugin
from amn_mpi.data import Federation
from amn_mpi.progress import Progress
from amn_mpi.resume import warn
from amn_mpi.rounds import Outcome, Run
from amn_mpi.runfolder import RunFolder
from amn_mpi.snapshots import Snapshots


class Recorder:
    """One line of metrics a round, and what the result is made of."""

    def __init__(self, fed: Federation, run: Run, folder: RunFolder | None, progress: Progress) -> None:
        self.fed, self.run, self.folder, self.progress = fed, run, folder, progress
        self.tested = fed.test
        self.rounds: list[dict[str, Any]] = []
        self.seconds: list[float] = []
        self.starts: list[dict[str, int]] = []
        self.snapshots = None if folder is None else Snapshots(folder.path, run.config)
        self.correct = np.zeros((fed.clients, len(run.method.models)), np.int64)

    def begin(self, history: dict[str, Any] | None) -> None:
        """Go on with the account of a checkpoint, or begin one."""
        if history is not None:
            self.rounds, self.seconds, self.starts = (history[k] for k in ("rounds", "seconds", "starts"))
            self.correct = np.array(history["correct"], np.int64)
        self.starts.append({"after_round": self.run.done, "ranks": self.run.comm.size})
        self.progress.begin(self.run.done, self.rounds, self.run.clock.snapshot())
        if self.folder is not None and self.snapshots is not None:
            self.folder.start(self.run.config)
            self.snapshots.begin(self.run.done)
            rows = [self._line(row, s) for row, s in zip(self.rounds, self.seconds)]
            self.folder.begin(rows)
            self.folder.callbacks.begin(self.run.config.as_dict(), self.folder.path, self._facts(), rows)

    def _facts(self) -> dict[str, Any]:
        """What callbacks are told of a run besides its configuration."""
        run, fed, layout = self.run, self.fed, self.run.method.setting.layout
        return {
            "done": run.done,
            "rounds": run.config.rounds,
            "ranks": run.comm.size,
            "clients": fed.clients,
            "parameters": layout.size,
            "layers": [group.name for group in layout.groups],
            "models": list(run.method.models),
            "headline": run.method.headline,
            "groups": {
                "concept": np.asarray(fed.concept_group).tolist(),
                "label": np.asarray(fed.label_group).tolist(),
            },
        }

    def history(self) -> dict[str, Any]:
        """The account so far, as plain values, for a checkpoint."""
        return {
            "rounds": self.rounds,
            "seconds": self.seconds,
            "starts": self.starts,
            "correct": self.correct.tolist(),
        }

    def __call__(self, outcome: Outcome) -> None:
        """Record one finished round."""
        self.seconds.append(outcome.seconds)
        row: dict[str, Any] = {"round": outcome.round, "clients": len(outcome.cohort)}
        if outcome.correct is not None:
            self.correct = outcome.correct
            row.update(self._scores(outcome.correct))
        row.update(outcome.figures)
        if outcome.dropped:
            row["diverged"] = sorted(outcome.dropped)
            self._warn(outcome)
        attention = self.run.method.attention(self.run.server)
        row.update(self._attention(outcome.round, attention))
        self.rounds.append(row)
        if self.folder is not None:
            self.folder.add(self._line(row, outcome.seconds))
            self.folder.callbacks.round(self._line(row, outcome.seconds), attention)
        label, phases = plugin.short(self.run.config.method.name), self.run.clock.snapshot()
        self.progress.show(label, row, outcome.seconds, phases)

    @property
    def diverged(self) -> dict[int, int]:
        """How often each client's training left the numbers; the others are not in it."""
        found = [client for row in self.rounds for client in row.get("diverged", ())]
        return {client: found.count(client) for client in sorted(set(found))}

    @staticmethod
    def _line(row: dict[str, Any], seconds: float) -> dict[str, Any]:
        return {**row, "seconds": round(seconds, 4)}

    def _warn(self, outcome: Outcome) -> None:
        """Of each client once; the metrics have all."""
        name, known = plugin.short(self.run.config.method.name), self.diverged
        for client, reason in outcome.dropped.items():
            if client not in known:
                told = f"{name}, round {outcome.round}: client {client} diverged: {reason}"
                warn(f"{told}; it sits the round out")

    def scores(self) -> dict[str, Any]:
        """Figures over clients and rounds: of the configured model, and of each under ``models``."""
        names = self.run.method.models
        each = {name: self._model_scores(k, name) for k, name in enumerate(names)}
        return {**each[self.run.method.headline], "models": each}

    def _model_scores(self, k: int, name: str) -> dict[str, Any]:
        """The last round's summary, the mean of the last five rounds, and the best round."""
        scored = [row for row in self.rounds if "models" in row]
        means = [row["models"][name]["mean_accuracy"] for row in scored]
        best = int(np.argmax(means))
        return {
            **metrics.summary(self.correct[:, k], self.tested),
            "mean_last5": round(float(np.mean(means[-5:])), 6),
            "best_round": scored[best]["round"],
            "best_accuracy": means[best],
        }

    def _scores(self, correct: np.ndarray) -> dict[str, Any]:
        names = self.run.method.models
        each = {n: metrics.summary(correct[:, k], self.tested) for k, n in enumerate(names)}
        short = {n: {"mean_accuracy": s["mean_accuracy"], "worst10": s["worst10"]} for n, s in each.items()}
        headline = each[self.run.method.headline]
        return {**{k: headline[k] for k in ("mean_accuracy", "worst10", "std", "deciles")}, "models": short}

    def _attention(self, round: int, attention: np.ndarray | None) -> dict[str, Any]:
        """How wide it is, and its share inside the hidden groups, which the method never sees."""
        fed = self.fed
        if attention is None:
            return {}
        if self.snapshots is not None:
            self.snapshots.add(round, attention)
        groups = {"concept": np.asarray(fed.concept_group), "label": np.asarray(fed.label_group)}
        inside = {
            f"inside_{name}_groups": metrics.inside_groups(attention, group)
            for name, group in groups.items()
            if len(np.unique(group)) > 1
        }
        return {"effective_neighbours": metrics.effective_neighbours(attention), **inside}
