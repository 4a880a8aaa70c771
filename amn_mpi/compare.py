"""Compare methods: tables of finished runs, or a matrix of runs in one start of the ranks.

``python -m amn_mpi.compare FOLDER ...``
``mpirun -n 3 python -m amn_mpi.compare NAME [--out DIR] [--scenarios A,B] [--methods A,B] [--seeds 0,1]
[--reference M] [--known FILE.csv] [--dry_run] [--key value ...]``

NAME is a comparison in configs/compare or a file like them. A cell that is finished is not run
again, so the same command goes on where it was stopped. Nor is one that FILE.csv knows, the scores.csv of an
earlier comparison (``none``: nothing is known). ``--logging.report true`` also writes report.html.
"""

from __future__ import annotations

from amn_mpi import early

if __name__ == "__main__":
    early.listen()

import difflib
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from amn_mpi import main, signals
from amn_mpi.comm import Communicator
from amn_mpi.errors import ConfigError
from amn_mpi.finished import check_reference, compare_folders

if TYPE_CHECKING:
    from amn_mpi.matrix import Matrix
    from amn_mpi.plan import Plan

LISTS = ("scenarios", "methods", "seeds")
TEXTS = ("out", "reference", "known")
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
    known: str
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
        if option[2:] in (*LISTS, *TEXTS):
            given[option[2:]] = value
        elif option in NOT_FOR_MATRICES:
            raise ConfigError(
                f"{option}: is not for comparisons; valid are --scenarios, --methods, --seeds, --out, "
                "--reference, --known, --dry_run and the keys of a run"
            )
        else:
            words += [option, value]
    if not names:
        raise ConfigError("compare what? give folders of runs, or a comparison; see --help")
    chosen = {kind: [v for v in given.get(kind, "").split(",") if v] for kind in LISTS}
    out, reference, known = (given.get(name, "") for name in TEXTS)
    return Request(names, out, reference, known, chosen, words, dry)


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
        with folder or nullcontext():
            fed = comm.share(main.prepare(config) if comm.is_server else None)
            try:
                found = job.cell(config, comm, fed, folder)
            except ConfigError as error:
                raise ConfigError(f"{cell.folder}: {error}" if cell else str(error)) from None
            if plan is not None and cell is not None and folder is not None:
                plan.close(cell, folder, found)
    if plan is not None:
        plan.report()
        plan.picture()


def _plan(argv: Sequence[str]) -> Plan | None:
    """What is to be run; None where everything is said already."""
    if "--help" in argv or "-h" in argv:
        print(HELP, flush=True)
        return None
    from amn_mpi import matrix
    from amn_mpi.plan import Plan

    request = parse(argv)
    folders = [name for name in request.names if Path(name).is_dir() and not matrix.known(name)]
    if len(folders) == len(request.names):
        of_matrix = [f"--{kind}" for kind in LISTS if request.chosen[kind]]
        of_matrix += ["--known"] * bool(request.known) + request.words[:1]
        if of_matrix:
            raise ConfigError(f"{of_matrix[0]}: is not for folders; valid are --reference and --out")
        compare_folders(folders, request.reference, request.out)
        return None
    if len(request.names) > 1:
        strange = next(name for name in request.names if name not in folders)
        raise ConfigError(f"{strange}: give either folders that hold runs, or one comparison")
    found = matrix.read(request.names[0], request.chosen, ["--progress", "off", *request.words])
    check_reference(request.reference, list(found.trials))
    out = Path(request.out or f"runs/{found.path.stem}")
    seeds = dict.fromkeys((*found.seeds, *(cell.seed for cell in found.cells), *_seeds(out)))
    every = {"seeds": [str(seed) for seed in seeds]}
    whole = matrix.read(request.names[0], every, ["--progress", "off", *request.words])
    plan = Plan(found, whole, out, request.reference, _table(request.known, found))
    if request.dry:
        plan.show()
        return None
    plan.lock()
    return plan


def _seeds(out: Path) -> list[int]:
    """Those of the runs that a folder holds: earlier commands may have asked for others than the file has."""
    names = {path.parent.name for path in out.glob("*/*/seed*/result.json")}
    return sorted(int(name[4:]) for name in names if name[4:].isascii() and name[4:].isdigit())


def _table(asked_for: str, found: Matrix) -> Path | None:
    """The table of known runs: of the command line, else of the file, where it need not be there yet."""
    if asked_for == "none" or not (asked_for or found.known):
        return None
    path = Path(asked_for or found.known)
    if path.is_file():
        return path
    if asked_for:
        raise ConfigError(f"--known {path}: no such file; valid are the scores.csv of a comparison, and none")
    print(f"{found.path}: known = {path}: there is no such file yet: nothing is known", flush=True)
    return None


if __name__ == "__main__":
    main.main(sys.argv[1:], work)
