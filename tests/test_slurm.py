"""The job scripts on a real Slurm: to the end, over a time limit, requeued, cancelled, as an array, on GPUs.

The cases wait more than they compute, so some run at a time; each test tells how one went.
"""

from __future__ import annotations

import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path

import plain
import pytest
import slurm
import yaml
from running import REPOSITORY, result, run

SMALL = {
    "data": {"clients": 4},
    "model": {"hidden": 8},
    "local": {"epochs": 1},
    "evaluate": {"every": 10**6},
    "comm": {"wait": "sleep"},
    "progress": "off",
}
COMPARISON = {
    "seeds": [0, 1],
    "keys": {**{k: v for k, v in SMALL.items() if k != "progress"}, "rounds": 2},
    "scenarios": {"one": {}},
    "reference": "ditto",
    "methods": {"ditto": {}, "local": {}},
}
LIMITS = 30  # seconds between two looks of slurmctld at time limits
# A case that has left models gives back the check of them, a run on one rank: it is to be in this process,
# where torch is there already, and in its main thread.
Case = Callable[[slurm.Cluster, Path], Callable[[], None] | None]
CASES: dict[str, Case] = {}


def case(function: Case) -> Case:
    CASES[function.__name__] = function
    return function


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[slurm.Cluster]:
    if why := slurm.missing():
        pytest.skip(why)
    with slurm.cluster(tmp_path_factory.mktemp("slurm") / "it") as here:
        here.env["AMN_CACHE"] = str(here.folder / "cache")
        yield here


@pytest.fixture(scope="module")
def under_way(
    cluster: slurm.Cluster, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[dict[str, Future[Callable[[], None] | None]]]:
    """The cases that were asked for."""
    names = [str(item.name) for item in request.session.items if item.path == request.path]
    names = [name for name in CASES if f"test_on_slurm[{name}]" in names]
    with ThreadPoolExecutor(4) as pool:
        yield {name: pool.submit(CASES[name], cluster, tmp_path_factory.mktemp(name)) for name in names}
        pool.shutdown(cancel_futures=True)


def config(folder: Path, rounds: int) -> Path:
    """A small run's configuration, written anew."""
    path = folder / "job.yaml"
    path.write_text(yaml.safe_dump({**SMALL, "rounds": rounds}))
    return path


def check_unbroken(cluster: slurm.Cluster, folder: Path, *outs: Path) -> None:
    """What jobs have left is what a run without Slurm and without a break leaves."""
    alone, cache = folder / "alone", cluster.env["AMN_CACHE"]
    plain.here("--config", folder / "job.yaml", "--out", alone, "--data.cache", cache)
    for out in outs:
        assert result(out)["models_sha256"] == result(alone)["models_sha256"]
        assert len((out / "metrics.jsonl").read_text().splitlines()) == result(alone)["rounds"]


# ---- jobs that go back into the queue


class Endless:
    """A job that trains until it is stopped; then its configuration gets an end."""

    def __init__(
        self, cluster: slurm.Cluster, folder: Path, options: str, *words: object, **env: str
    ) -> None:
        self.cluster, self.folder = cluster, folder
        path = config(folder, 30000)  # a quarter of an hour, should all else fail
        self.job = cluster.submit("jobs/train.sbatch", path, *words, cwd=folder, options=options, **env)
        self.out = folder / "runs" / f"train-{self.job.number}"

    def trains(self) -> None:
        metrics = self.out / "metrics.jsonl"
        self.job.until(lambda: metrics.exists() and metrics.read_text(), "its first round")

    def saved(self) -> int:
        """The newest checkpoint's round."""
        names = sorted(path.stem for path in (self.out / "checkpoints").glob("round-*.h5"))
        return int(names[-1][6:]) if names else 0

    def is_back(self) -> None:
        """Wait until it waits in the queue, with something to go on from."""
        self.job.until(lambda: self.saved() and self.job.state == "PENDING", "back with a checkpoint")

    def gets_an_end(self) -> int:
        rounds = self.saved() + 5
        config(self.folder, rounds)
        return rounds

    def finishes(self) -> Callable[[], None]:
        rounds = self.gets_an_end()
        self.job.ends("COMPLETED")
        assert "start 2 on" in self.job.log
        assert f"4 clients, {rounds} rounds, 2 ranks" in self.job.log
        return partial(check_unbroken, self.cluster, self.folder, self.out)


@case
def time_limit(cluster: slurm.Cluster, folder: Path) -> Callable[[], None]:
    """USR1 comes with the next look at time limits; the job begins 16 s ahead of one."""
    wait = int((LIMITS - 16 - (time.monotonic() - cluster.began)) % LIMITS)
    options = f"--nodes=2 --ntasks-per-node=1 --time=1 --signal=B:USR1@55 --begin=now+{wait}"
    run = Endless(cluster, folder, options)
    run.is_back()
    cluster.ask("scontrol", "update", f"JobId={run.job.number}", "TimeLimit=60")
    assert "SIGUSR1: the ranks are to write a checkpoint and stop" in run.job.log
    assert "end with status 75" in run.job.log and ": requeued" in run.job.log
    return run.finishes()


@case
def node_fails(cluster: slurm.Cluster, folder: Path) -> Callable[[], None]:
    """One node of two says nothing any more, so the ranks cannot agree on a last checkpoint."""
    run = Endless(cluster, folder, "--partition=frail --nodes=2 --ntasks-per-node=1", "--checkpoint.every", 3)
    run.job.until(run.saved, "its first checkpoint")
    assert run.job.facts["NodeList"] == "n[3-4]"
    cluster.freeze("n4")
    cluster.ask("scontrol", "update", "NodeName=n4", "State=DOWN", "Reason=test")
    run.is_back()
    check = run.finishes()
    assert "start 2 on n[3,5]" in run.job.log
    return check


@case
def requeued_by_hand(cluster: slurm.Cluster, folder: Path) -> Callable[[], None]:
    run = Endless(cluster, folder, "--nodes=1 --ntasks-per-node=2", AMN_LAUNCHER="mpirun")
    run.trains()
    cluster.ask("scontrol", "requeue", run.job.number)
    run.is_back()
    check = run.finishes()
    assert ": mpirun -n 2" in run.job.log
    assert run.job.facts["Restarts"] == "1", "the script has requeued what Slurm had requeued"
    return check


@case
def preempted(cluster: slurm.Cluster, folder: Path) -> Callable[[], None]:
    run = Endless(cluster, folder, "--partition=low --nodes=1 --ntasks-per-node=2")
    run.trains()
    cluster.ask("sbatch", "--partition=urgent", "--ntasks=16", "--wrap=sleep 1", cwd=folder)
    run.is_back()
    return run.finishes()


@case
def cancelled(cluster: slurm.Cluster, folder: Path) -> Callable[[], None]:
    """It does not come back by itself. Another job goes on with its folder."""
    run = Endless(cluster, folder, "--nodes=1 --ntasks-per-node=2")
    run.trains()
    cluster.ask("scancel", run.job.number)
    run.job.ends("CANCELLED")
    assert "cancelled, so not requeued" in run.job.log
    run.gets_an_end()
    words = (folder / "job.yaml", "--out", run.out)
    again = cluster.submit("jobs/train.sbatch", *words, cwd=folder, options="--nodes=1 --ntasks-per-node=2")
    again.ends("COMPLETED")
    assert run.job.state == "CANCELLED"
    return partial(check_unbroken, cluster, folder, run.out)


@case
def killed(cluster: slurm.Cluster, folder: Path) -> Callable[[], None]:
    """A start that could not tidy up, and an operator who sends the failed job back."""
    words = ("--checkpoint.every", 3)
    run = Endless(cluster, folder, "--nodes=1 --ntasks-per-node=2", *words)
    run.job.until(run.saved, "its first checkpoint")
    os.kill(cluster.rank(run.job.number, 1), signal.SIGKILL)
    run.job.ends("FAILED")
    assert "requeued" not in run.job.log
    cluster.ask("scontrol", "requeue", run.job.number)
    run.is_back()
    return run.finishes()


@case
def no_progress(cluster: slurm.Cluster, folder: Path) -> None:
    """A job that is stopped again and again before its first checkpoint is given up."""
    env = {"AMN_LAUNCHER": launcher(folder, "exit 75"), "AMN_REQUEUES": "1"}
    options = "--nodes=1 --ntasks-per-node=2"
    job = cluster.submit("jobs/train.sbatch", "default", cwd=folder, options=options, **env)
    job.ends("FAILED")
    assert job.facts["Restarts"] == "1" and job.facts["ExitCode"] == "75:0"
    assert "not requeued: 1 times it has brought no new checkpoint" in job.log


def launcher(folder: Path, script: str) -> str:
    """A stand-in for mpirun."""
    path = folder / "launcher"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    return str(path)


# ---- jobs that end


@case
def same_models(cluster: slurm.Cluster, folder: Path) -> Callable[[], None]:
    """Of jobs of both kinds, on two ranks and on three."""
    path = config(folder, 3)
    cpu = cluster.submit("jobs/train.sbatch", path, cwd=folder, options="--nodes=2 --ntasks-per-node=1")
    options = "--nodes=2 --gpus-per-node=1 --ntasks-per-node=2 --cpus-per-task=1"
    gpu = cluster.submit("jobs/train_gpu.sbatch", path, "--device", "cpu", cwd=folder, options=options)
    cpu.ends("COMPLETED")
    gpu.ends("COMPLETED")
    assert ": srun --mpi=pmi2" in cpu.log and ", 3 ranks," in gpu.log
    outs = [folder / "runs" / name for name in (f"train-{cpu.number}", f"train_gpu-{gpu.number}")]
    return partial(check_unbroken, cluster, folder, *outs)


@case
def wrong_config(cluster: slurm.Cluster, folder: Path) -> None:
    """srun kills the other ranks and tells of them, mpirun of the first."""
    for env, status in (({}, ("2:0", "137:0")), ({"AMN_LAUNCHER": "mpirun"}, ("2:0",))):
        options, words = "--nodes=1 --ntasks-per-node=2", ("default", "--rounds", -1)
        job = cluster.submit("jobs/train.sbatch", *words, cwd=folder, options=options, **env)
        job.ends("FAILED")
        assert job.facts["ExitCode"] in status and job.facts["Restarts"] == "0"
        assert "amn_mpi: rounds = -1" in job.log and "requeue" not in job.log


@case
def no_result(cluster: slurm.Cluster, folder: Path) -> None:
    """A job that leaves none has failed whatever its launcher says, unless it was asked for a text alone."""
    options, env = "--nodes=1 --ntasks-per-node=2", {"AMN_LAUNCHER": launcher(folder, "exit 0")}
    lost = cluster.submit("jobs/train.sbatch", "default", cwd=folder, options=options, **env)
    words = ("jobs/train.sbatch", "default", "--dry_run")
    dry = cluster.submit(*words, cwd=folder, options=options)
    lost.ends("FAILED")
    assert "there is no result in runs/train-" in lost.log and "requeue" not in lost.log
    dry.ends("COMPLETED")
    assert "resume: auto" in dry.log and "there is no result" not in dry.log


GPU_JOB = """#!/usr/bin/env bash
#SBATCH --nodes=2 --gpus-per-node=2 --ntasks-per-node=3 --output=gpu-%j.log
source jobs/launch.sh
amn_start
amn_run_gpus runs/gpu-$SLURM_JOB_ID python SCRIPT runs/gpu-$SLURM_JOB_ID
"""


@case
def gpus(cluster: slurm.Cluster, folder: Path) -> None:
    """Every GPU of every node has one worker, and rank 0, on the first node, has none."""
    script = GPU_JOB.replace("SCRIPT", str(REPOSITORY / "tests" / "scripts" / "devices.py"))
    (folder / "gpu.sbatch").write_text(script)
    for env in ({}, {"AMN_LAUNCHER": "mpirun"}):
        job = cluster.submit("gpu.sbatch", cwd=folder, **env)
        job.ends("COMPLETED")
        ranks = dict(re.findall(r"^(\d+) (n\d \S+)$", job.log, re.M))
        assert sorted(ranks, key=int) == ["0", "1", "2", "3", "4"], job.told()
        first, second = re.findall(r"start 1 on n\[(\d)-(\d)\]", job.log)[0]
        assert ranks.pop("0") == f"n{first} none"
        assert sorted(ranks.values()) == [f"n{n} cuda:{k}" for n in (first, second) for k in (0, 1)]


HEAP_JOB = """#!/usr/bin/env bash
#SBATCH --nodes=2 --ntasks=3 --output=heap-%j.log
source jobs/launch.sh
amn_start
srun --mpi=pmi2 --kill-on-bad-exit=1 python SCRIPT
"""


@case
def full_heap(cluster: slurm.Cluster, folder: Path) -> None:
    """MPICH publishes what follows a rank's address in memory, and Slurm's PMI cuts long lines."""
    script = HEAP_JOB.replace("SCRIPT", str(REPOSITORY / "tests" / "scripts" / "full_heap.py"))
    (folder / "heap.sbatch").write_text(script)
    job = cluster.submit("heap.sbatch", cwd=folder)
    job.ends("COMPLETED")
    assert "met: 0 1 2" in job.log


# ---- arrays


@case
def array(cluster: slurm.Cluster, folder: Path) -> None:
    """The first and the last pair of four, and their tables."""
    (folder / "both.yaml").write_text(yaml.safe_dump(COMPARISON))
    options = "--array=0,3%2 --nodes=1 --ntasks-per-node=1"
    job = cluster.submit("jobs/array.sbatch", "both.yaml", cwd=folder, options=options)
    for index in (0, 3):
        slurm.Job(cluster, f"{job.number}_{index}", folder).ends("COMPLETED")
    out = folder / "runs" / f"array-{job.number}"
    assert {path.name for path in out.iterdir()} == {"ditto-0", "local-1"}
    done = run("amn_mpi.compare", out, "--out", out, "--reference", "ditto", script="-m")
    assert done.returncode == 0, done.stderr
    rows = (out / "scores.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 and "ditto" in rows[1] and "local" in rows[2]


@case
def last_of_an_array(cluster: slurm.Cluster, folder: Path) -> None:
    """Its job number is the array's, and the others must not be requeued with it."""
    (folder / "both.yaml").write_text(yaml.safe_dump(COMPARISON))
    script = """for out; do :; done; mkdir -p $out
    case $SLURM_ARRAY_TASK_ID,$SLURM_RESTART_COUNT in
        1,) exit 75 ;;
        1,*) touch back ;;
        *) for _ in $(seq 300); do [ -f back ] && break; sleep 0.2; done ;;
    esac
    touch $out/result.json"""
    options, env = "--array=0-1 --nodes=1 --ntasks-per-node=2", {"AMN_LAUNCHER": launcher(folder, script)}
    job = cluster.submit("jobs/array.sbatch", "both.yaml", cwd=folder, options=options, **env)
    first, last = (slurm.Job(cluster, f"{job.number}_{index}", folder) for index in (0, 1))
    last.ends("COMPLETED")
    first.ends("COMPLETED")
    assert last.facts["JobId"] == job.number, "the last task's number is not the array's"
    assert (first.facts["Restarts"], last.facts["Restarts"]) == ("0", "1")


@pytest.mark.parametrize("name", CASES)
def test_on_slurm(name: str, under_way: dict[str, Future[Callable[[], None] | None]]) -> None:
    check = under_way[name].result()
    if check is not None:
        check()
