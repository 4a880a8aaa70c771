"""Compare methods: tables of finished runs, or a matrix of runs in one start of the ranks.

``python -m amn_mpi.compare FOLDER ...``
``mpirun -n 3 python -m amn_mpi.compare NAME [--out DIR] [--scenarios A,B] [--methods A,B] [--seeds 0,1]
[--reference M] [--dry_run] [--key value ...]``

NAME is a comparison in configs/compare or a file like them. A cell that is finished is not run
again, so the same command goes on where it was stopped.
"""

from __future__ import annotations

from amn_mpi import early

if __name__ == "__main__":
    early.listen()

import difflib
import json
import os
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from amn_mpi import main, signals
from amn_mpi.comm import Communicator
from amn_mpi.errors import ConfigError, UserError

if TYPE_CHECKING:
    from amn_mpi.matrix import Cell, Matrix
    from amn_mpi.scores import Score

LISTS = ("scenarios", "methods", "seeds")
NOT_FOR_MATRICES = (
    *("--seed", "--progress", "--method.name", "--config", "--baselines"),
    *("--resume", "--faults.survive"),
)
HELP = (__doc__ or "").strip()


@dataclass(frozen=True)
class Request:
    """What a command line asks for."""

    names: list[str]
    out: str
    reference: str
    chosen: dict[str, list[str]]
    words: list[str]
    dry: bool


def parse(argv: Sequence[str]) -> Request:
    """Raises ConfigError in one line."""
    names: list[str] = []
    given: dict[str, str] = {}
    words: list[str] = []
    rest = list(argv)
    dry = "--dry_run" in rest
    while rest:
        word = rest.pop(0)
        if word == "--dry_run":
            continue
        if not word.startswith("--"):
            names.append(word)
            continue
        option, equals, value = word.partition("=")
        near = difflib.get_close_matches(option[2:], LISTS, n=1, cutoff=0.8)
        if near and option[2:] not in (*LISTS, "seed"):
            raise ConfigError(f"{option}: unknown; did you mean --{near[0]}?")
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{option}: a value is missing after it")
            value = rest.pop(0)
        if option[2:] in (*LISTS, "out", "reference"):
            given[option[2:]] = value
        elif option in NOT_FOR_MATRICES:
            raise ConfigError(
                f"{option}: is not for comparisons; valid are --scenarios, --methods, --seeds, --out, "
                "--reference, --dry_run and the keys of a run"
            )
        else:
            words += [option, value]
    if not names:
        raise ConfigError("compare what? give folders of runs, or a comparison; see --help")
    chosen = {kind: [v for v in given.get(kind, "").split(",") if v] for kind in LISTS}
    return Request(names, given.get("out", ""), given.get("reference", ""), chosen, words, dry)


def work(comm: Communicator, argv: Sequence[str]) -> None:
    """Rank 0 plans; all ranks run cell after cell; rank 0 writes the tables."""
    plan = _plan(argv) if comm.is_server else None
    ranks = comm.share(0 if plan is None else plan.ranks())
    if not comm.keep(ranks or comm.size):
        return
    if ranks:
        with signals.held():  # torch
            from amn_mpi import job
        if plan is not None:
            plan.check(comm)
    todo = iter(plan.todo if plan is not None else [])
    while ranks:
        cell = next(todo, None)
        config = comm.share(None if cell is None else cell.config)
        if config is None:
            break
        comm.configure(config.comm.wait, config.comm.timeout)
        folder = plan.open(cell) if plan is not None and cell is not None else None
        fed = comm.share(main.prepare(config) if comm.is_server else None)
        try:
            found = job.cell(config, comm, fed, folder)
        except ConfigError as error:
            raise ConfigError(f"{cell.folder}: {error}" if cell else str(error)) from None
        if plan is not None and cell is not None and folder is not None:
            plan.close(cell, folder, found)
    if plan is not None:
        from amn_mpi.progress import reader_may_leave

        with reader_may_leave():
            plan.report()


def _plan(argv: Sequence[str]) -> Plan | None:
    """What is to be run; None where everything is said already."""
    if "--help" in argv or "-h" in argv:
        print(HELP, flush=True)
        return None
    from amn_mpi import matrix

    request = parse(argv)
    folders = [name for name in request.names if Path(name).is_dir() and not matrix.known(name)]
    if len(folders) == len(request.names):
        of_matrix = [f"--{kind}" for kind in LISTS if request.chosen[kind]] + request.words[:1]
        if of_matrix:
            raise ConfigError(f"{of_matrix[0]}: is not for folders; valid are --reference and --out")
        compare_folders(folders, request)
        return None
    if len(request.names) > 1:
        strange = next(name for name in request.names if name not in folders)
        raise ConfigError(f"{strange}: give either folders that hold runs, or one comparison")
    found = matrix.read(request.names[0], request.chosen, ["--progress", "off", *request.words])
    _check_reference(request, list(found.trials))
    every = {"seeds": [str(seed) for seed in dict.fromkeys((*found.seeds, *(c.seed for c in found.cells)))]}
    whole = matrix.read(request.names[0], every, ["--progress", "off", *request.words])
    plan = Plan(found, whole, Path(request.out or f"runs/{found.path.stem}"), request)
    if request.dry:
        plan.show()
        return None
    plan.lock()
    return plan


def _check_reference(request: Request, labels: list[str]) -> None:
    if request.reference and request.reference not in labels:
        valid = ", ".join(dict.fromkeys(labels))
        raise ConfigError(f"--reference {request.reference}: has not run; valid are {valid}")


def compare_folders(folders: Sequence[str], request: Request) -> None:
    """Tables of all finished runs in and below some folders."""
    paths = sorted({path for name in folders for path in Path(name).rglob("result.json")})
    if not paths:
        raise UserError(f"{', '.join(folders)}: no finished run (result.json) in or below it")
    scores = [_score(path) for path in paths]
    scores = [replace(s, label=f"{s.label}-{s.trial:02d}") if s.trial >= 0 else s for s in scores]
    _same_data(scores, paths)
    _check_reference(request, [score.label for score in scores])
    known: dict[tuple[str, str, int], Path] = {}
    for score, path in zip(scores, paths):
        other = known.setdefault((score.scenario, score.label, score.seed), path)
        if other != path:
            raise UserError(
                f"{other.parent} and {path.parent} are both {score.label} on {score.scenario} with seed "
                f"{score.seed}; give one of them"
            )
    _tables(scores, scores, request.reference or "amn", Path(request.out) if request.out else None)


def _same_data(scores: list[Score], paths: list[Path]) -> None:
    """Runs of one scenario are compared as pairs: their data, rounds and cohorts have to be the same."""
    from amn_mpi import cli

    first: dict[str, tuple[Path, dict[str, Any]]] = {}
    for score, path in zip(scores, paths):
        flat = cli.layer(_result(path)["config"], "")
        kept = {k: v for k, v in flat.items() if k in ("rounds", "cohort") or k.startswith("data.")}
        kept |= {"model.name": str(flat.get("model.name")).removesuffix("_bn")}
        kept |= {"model.hidden": flat.get("model.hidden")}
        kept = {k: v for k, v in kept.items() if k not in ("data.root", "data.cache")}
        other, then = first.setdefault(score.scenario, (path, kept))
        for key in kept:
            if kept[key] != then.get(key, kept[key]):
                raise UserError(
                    f"{other.parent} and {path.parent} are both {score.scenario}, but {key} = {then[key]} "
                    f"there and {kept[key]} here; give runs on the same data"
                )


class Plan:
    """Rank 0's side of a matrix: which cells are left, their folders, and the tables."""

    def __init__(self, found: Matrix, whole: Matrix, out: Path, request: Request) -> None:
        self.matrix, self.whole, self.out, self.request = found, whole, out, request
        self.todo = [cell for cell in found.cells if not self._finished(cell)]
        self._done, self._started = 0, time.monotonic()

    def ranks(self) -> int:
        """More ranks than the smallest run can use would idle; 0 if nothing is left to run."""
        return min((cell.config.data.clients + 1 for cell in self.todo), default=0)

    def lock(self) -> None:
        """One comparison at a time writes to a folder."""
        from amn_mpi.runfolder import lock

        try:
            self.out.mkdir(parents=True, exist_ok=True)
            self._lock = lock(self.out)
        except OSError as error:
            raise UserError(f"out = {self.out}: cannot be written: {error.strerror}") from None
        print(f"{len(self.matrix.cells)} runs, {len(self.todo)} to do, in {self.out}", flush=True)

    def check(self, comm: Communicator) -> None:
        """Before hours are spent: every method with every scenario's data, memory, idle ranks.

        Raises:
            ConfigError: a method cannot work with the model or the local training; names the run.
        """
        from amn_mpi import budget, data

        firsts = {(cell.scenario, cell.label, cell.trial): cell for cell in reversed(self.todo)}
        feds: dict[Any, Any] = {}
        told: dict[str, None] = {}
        for cell in reversed(firsts.values()):
            if cell.config.data not in feds:
                feds[cell.config.data] = data.describe(cell.config.data, cell.config.seed)
            fed = feds[cell.config.data]
            try:
                budget.check(cell.config, fed)
            except ConfigError as error:
                raise ConfigError(f"{cell.folder}: {error}") from None
            told.update((f"{cell.folder}: {line}", None) for line in budget.warnings(cell.config, fed, comm))
        most = max(cell.config.data.clients for cell in self.todo)
        if comm.size == self.ranks() < most + 1:
            told[f"ranks beyond {comm.size} stay idle: the smallest run has {comm.size - 1} clients"] = None
        if self.matrix.untuned:
            told[f"no tuned values for {', '.join(self.matrix.untuned)}: the defaults are used"] = None
        for line in told:
            print(f"amn_mpi: warning: {line}", file=sys.stderr, flush=True)

    def show(self) -> None:
        """What there is to run."""
        from amn_mpi.progress import table

        waiting = {cell.folder for cell in self.todo}
        rows = [[c.folder, "to do" if c.folder in waiting else "done"] for c in self.matrix.cells]
        table(f"{self.matrix.path}: {len(rows)} runs in {self.out}", ["run", ""], rows)

    def open(self, cell: Cell) -> Any:
        """The cell's folder; a run that was stopped goes on where its newest checkpoint was made."""
        from amn_mpi.runfolder import RunFolder

        return RunFolder(str(self.out / cell.folder), replace(cell.config, resume="auto"))

    def close(self, cell: Cell, folder: Any, found: dict[str, Any]) -> None:
        """Keep a finished cell, and say how it went."""
        place = {"scenario": cell.scenario, "label": cell.label, "seed": cell.seed, "trial": cell.trial}
        found.pop("peak_memory_mb", None)  # the process's peak, so the largest run's until now
        folder.finish({**found, "cell": place})
        shutil.rmtree(folder.checkpoints, ignore_errors=True)
        self._done += 1
        spent = time.monotonic() - self._started
        left = spent / self._done * (len(self.todo) - self._done)
        score = found.get("diverged") or f"{found['mean_last5']:.2f} (best {found['best_accuracy']:.2f})"
        print(f"[{self._done}/{len(self.todo)}] {cell.folder}: {score}, {left / 60:.0f} min left", flush=True)

    def report(self) -> None:
        """Shows what was asked for; the files hold all that is finished, by earlier commands too."""
        scores = self._scores(self.whole)
        if self.matrix.tunes:
            self._choose(scores)
            return
        reference = self.request.reference or self.matrix.reference
        _tables(scores, self._scores(self.matrix), reference, self.out)

    def _scores(self, found: Matrix) -> list[Score]:
        """Of the finished cells; what was run with other keys is left out."""
        from amn_mpi import matrix

        paths = [(cell, self.out / cell.folder / "result.json") for cell in found.cells]
        there = [(cell, path) for cell, path in paths if path.exists()]
        return [_score(p) for cell, p in there if not matrix.difference(cell.config, _result(p)["config"])]

    def _choose(self, scores: list[Score]) -> None:
        import yaml

        from amn_mpi import tables
        from amn_mpi.scores import best_trials

        best = best_trials(scores)
        chosen = {label: self.whole.trials[label][trial] for label, trial in best.items()}
        _write(self.out / "scores.csv", tables.long_csv(scores))
        head = f"# Chosen by {self.matrix.path.name} on validation data, {len(scores)} runs.\n"
        _write(self.out / "tuned.yaml", head + yaml.safe_dump({"methods": chosen}, sort_keys=False))
        for table in tables.trials(scores, {label: self.whole.trials[label] for label in best}):
            tables.show(table)
        print(f"chosen values in {self.out}/tuned.yaml", flush=True)

    def _finished(self, cell: Cell) -> bool:
        from amn_mpi import matrix

        path = self.out / cell.folder / "result.json"
        if not path.exists():
            return False
        differs = matrix.difference(cell.config, _result(path)["config"])
        if differs:
            raise UserError(
                f"{path.parent}: was run with {differs}; delete it to run it again, or give another --out"
            )
        return True


def _result(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text())
        if not isinstance(found["config"], dict):
            raise TypeError("config is no tree")
        return found
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: not the result of a run: {type(error).__name__} {error}") from None


def _score(path: Path) -> Score:
    from amn_mpi import methods
    from amn_mpi.scores import of_result

    found = _result(path)
    try:
        methods.get(found["method"])
        place = found.get("cell", {})
        return of_result(found, place.get("scenario", ""), place.get("label", ""), place.get("trial", -1))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: not the result of a run: {type(error).__name__} {error}") from None


def _tables(scores: list[Score], shown: list[Score], reference: str, out: Path | None) -> None:
    """Leave tables of ``scores`` in a folder, where there is one, and show those of ``shown``."""
    from amn_mpi import tables
    from amn_mpi.scores import Board

    found = tables.tables(Board(scores, reference))
    if out is not None:  # first of all: the terminal may be gone
        _write(out / "tables.md", "\n".join(map(tables.markdown, found)))
        _write(out / "tables.tex", "\n".join(map(tables.latex, found)))
        _write(out / "scores.csv", tables.long_csv(scores))
    for table in tables.tables(Board(shown, reference)):
        tables.show(table)
    if out is not None:
        print(f"tables in {out}/tables.md, tables.tex and scores.csv", flush=True)


def _write(path: Path, text: str) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}")
        temporary.write_text(text)
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None


if __name__ == "__main__":
    main.main(sys.argv[1:], work)
