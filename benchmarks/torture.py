"""Kill a run again and again, and see that nothing is lost: ``python benchmarks/torture.py --count 40``

A run of the digits with a checkpoint after every round. Time and again SIGKILL hits a rank or the
launcher, while ranks start, at any moment of a round, or in the middle of a checkpoint's write; then
``--resume auto`` goes on with a number of ranks drawn anew. In the end models and metrics have to be
those of a run that nobody touched. A line a kill; exit status 1 if anything differs.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path[:0] = [
    str(Path(__file__).resolve().parent.parent / "tests"),
    str(Path(__file__).resolve().parent.parent),
]
from running import end, ranks_of, result, start  # noqa: E402

from amn_mpi import checkpoint, snapshots  # noqa: E402

KEYS = ("--data.clients", 5, "--local.epochs", 1, "--model.hidden", 128, "--progress", "off")
A_KILL = 6  # rounds there have to be for each; a start makes about two before it is killed
PATIENCE = 120.0  # seconds in which something has to happen, whatever else the machine does
SURVIVAL = 10.0  # seconds that the others may live on
TIMES = ("seconds", "turn_seconds")


class Different(Exception):
    """Something is not as in the run that nobody touched."""


@dataclass
class Torture:
    """One run under fire.

    Attributes:
        folder: its run folder and the prepared data. most: ranks.
        round_seconds: what a round takes, roughly.
        began, at: when the last start was; round of the newest checkpoint.
        writes: kills that left a file half-written.
        survival: the longest that a rank lived on after a kill, in seconds.
    """

    folder: Path
    rounds: int
    draw: random.Random
    most: int
    round_seconds: float = 0.05
    began: float = 0.0
    kills: int = 0
    writes: int = 0
    survival: float = 0.0
    at: int = 0
    victims: dict[str, int] = field(default_factory=dict)

    @property
    def out(self) -> Path:
        return self.folder / "out"

    @property
    def checkpoints(self) -> Path:
        return self.out / "checkpoints"

    # ---- starting

    def start(self, ranks: int, launched: bool = True) -> subprocess.Popen[str]:
        words = (
            *KEYS,
            "--rounds",
            self.rounds,
            "--checkpoint.every",
            1,
            "--resume",
            "auto",
            "--out",
            self.out,
        )
        return start(*words, ranks=ranks if launched else 0, env={"AMN_CACHE": self.folder / "cache"})

    def strike(self) -> str:
        """Start, kill, look; what happened, in words."""
        ranks, self.began = self.draw.randint(1, self.most), time.time()
        process = self.start(ranks, launched := ranks > 1 or self.draw.random() < 0.5)
        moment = self.draw.choices(("starting", "round", "write"), (1, 4, 6))[0]
        if moment == "starting":
            when = self.while_starting(process)
            pids = self.pids(process, ranks, launched)
        else:
            pids = self.when_all_are_there(process, ranks, launched)
            when = self.wait_for_round(process) if moment == "round" else self.wait_for_write(process)
        victim = self.draw.choice([*pids])
        if process.poll() is None:
            os.kill(pids[victim], signal.SIGKILL)
        lived = self.wait_for_death(process, pids)
        self.kills += 1
        who = victim.split()[0]
        self.victims[who] = self.victims.get(who, 0) + 1
        return f"{victim} of {ranks}, {when}; {self.look()}; the last rank died {lived:.2f} s later"

    def half_written(self) -> int:
        """Round of the checkpoint that is being written by this start, 0 if none is."""
        for path in self.checkpoints.glob(".round-*.tmp"):
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime > self.began:
                    return int(path.name[7:13])
        return 0

    # ---- moments

    def while_starting(self, process: subprocess.Popen[str]) -> str:
        seconds = self.draw.uniform(0, 3)
        with contextlib.suppress(TimeoutError):
            self.until(lambda: False, process, seconds)
        return f"{seconds:.1f} s after its start"

    def wait_for_round(self, process: subprocess.Popen[str]) -> str:
        """Any moment of the rounds after the first few checkpoints of this start."""
        after = newest(self.checkpoints) + self.draw.randint(1, 4)
        self.until(lambda: newest(self.checkpoints) >= after, process)
        delay = self.draw.uniform(0, 2 * self.round_seconds)
        time.sleep(delay)
        return f"{1000 * delay:.0f} ms after checkpoint {after}"

    def wait_for_write(self, process: subprocess.Popen[str]) -> str:
        """Soon after one of the next checkpoints has been begun."""
        after = newest(self.checkpoints) + self.draw.randint(0, 3)
        self.until(lambda: self.half_written() > after, process)
        delay = self.draw.uniform(0, 0.004)
        time.sleep(delay)
        return f"{1000 * delay:.1f} ms into a write"

    def until(
        self, happened: Callable[[], bool], process: subprocess.Popen[str], most: float = PATIENCE
    ) -> None:
        """Raises Different where the run ends by itself, TimeoutError where nothing happens."""
        stop = time.monotonic() + most
        while not happened():
            if process.poll() is not None:
                out, err = process.communicate()
                raise Different(f"the run ended by itself with status {process.returncode}:\n{out}{err}")
            if time.monotonic() > stop:
                raise TimeoutError(f"nothing happened within {most:g} s")
            time.sleep(0.0005)

    # ---- killing

    def when_all_are_there(
        self, process: subprocess.Popen[str], ranks: int, launched: bool
    ) -> dict[str, int]:
        there = ranks + launched
        self.until(lambda: len(self.pids(process, ranks, launched)) == there, process)
        return self.pids(process, ranks, launched)

    @staticmethod
    def pids(process: subprocess.Popen[str], ranks: int, launched: bool) -> dict[str, int]:
        """Whom to kill, by name; only the launcher where not all ranks are there yet."""
        if not launched:
            return {"rank 0": process.pid}
        found = {"launcher": process.pid}
        with contextlib.suppress(AssertionError):
            found |= {f"rank {rank}": pid for rank, pid in enumerate(ranks_of(process, ranks))}
        return found

    def wait_for_death(self, process: subprocess.Popen[str], pids: dict[str, int]) -> float:
        begun = time.monotonic()
        while alive(pids.values()):
            if time.monotonic() - begun > SURVIVAL:
                left = alive(pids.values())
                for pid in left:
                    os.kill(pid, signal.SIGKILL)
                raise Different(f"{len(left)} processes outlive a kill by {SURVIVAL:g} s")
            process.poll()
            time.sleep(0.01)
        lived = time.monotonic() - begun
        self.survival = max(self.survival, lived)
        end(process, SURVIVAL)
        return lived

    def look(self) -> str:
        """After a kill: every checkpoint is whole, and there is no step back."""
        half = self.half_written()
        self.writes += bool(half)
        for path, reason in checkpoint.good(self.checkpoints):
            if reason:
                raise Different(f"{path.name} is damaged: {reason}")
        now = newest(self.checkpoints)
        if now < self.at:
            raise Different(f"back at round {now} after round {self.at}")
        self.at = now
        return f"goes on after round {now}" + (f", {half} is half-written" if half else "")


def newest(folder: Path) -> int:
    """Round of the newest checkpoint, 0 if there is none."""
    return max(map(checkpoint.round_of, checkpoint.listed(folder)), default=0)


def alive(pids: Iterable[int]) -> list[int]:
    return [pid for pid in pids if _state(pid) not in "ZX"]


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "X"


def account(out: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on how it was carried out."""
    found = result(out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = {k: found[k] for k in ("models_sha256", "per_client", "models", "mean_last5", "best_round")}
    pictures = sorted((out / snapshots.FOLDER).glob("*"))
    kept["attention"] = {path.name: zlib.crc32(path.read_bytes()) for path in pictures}
    return {**kept, "metrics": [{k: v for k, v in row.items() if k not in TIMES} for row in rows]}


def compare(torture: Torture, plain: Path) -> None:
    """Raises Different."""
    then, now = account(plain), account(torture.out)
    for name, value in then.items():
        if now[name] != value:
            raise Different(f"{name} differs: {first_difference(value, now[name])}")
    there = {path.name for path in torture.out.rglob("*")}
    last = {checkpoint.file_name(torture.rounds - k) for k in (0, 1)}
    left = {"checkpoints", "config.yaml", "metrics.jsonl", "models.h5", "result.json", snapshots.FOLDER}
    strange = there ^ {*left, *last, *then["attention"]}
    if strange:
        raise Different(f"files left, or missing: {', '.join(sorted(strange))}")


def first_difference(then: Any, now: Any) -> str:
    if isinstance(then, list) and isinstance(now, list):
        pairs = [(a, b) for a, b in zip(then, now) if a != b]
        return f"{pairs[0][0]}, now {pairs[0][1]}" if pairs else f"{len(then)} entries, now {len(now)}"
    return f"{then}, now {now}"


def finished(process: subprocess.Popen[str]) -> None:
    done = end(process, 600)
    if done.returncode or done.stderr:
        raise Different(f"status {done.returncode}: {done.stderr}")


def run(folder: Path, count: int, seed: int, most: int) -> Torture:
    """Raises Different as soon as something is not as it should be."""
    rounds = A_KILL * count
    plain = Torture(folder / "plain", rounds, random.Random(seed), most)
    begun = time.monotonic()
    finished(plain.start(min(2, most)))
    found = result(plain.out)
    took = time.monotonic() - begun
    say(f"{rounds} rounds that nobody touches: {took:.0f} s, models_sha256 {found['models_sha256']}")
    torture = Torture(folder / "torture", rounds, random.Random(seed), most, found["round_seconds"])
    for number in range(1, count + 1):
        say(f"{number:3}. {torture.strike()}")
    finished(torture.start(torture.draw.randint(1, most)))
    compare(torture, plain.out)
    return torture


def say(line: str) -> None:
    print(line, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--count", type=int, default=40, help="kills")
    parser.add_argument("--seed", type=int, default=0, help="decides who is killed when")
    parser.add_argument("--ranks-up-to", type=int, default=5, help="most ranks of a start")
    given = parser.parse_args()
    folder, begun = Path(tempfile.mkdtemp(prefix="torture-")), time.monotonic()
    try:
        done = run(folder, given.count, given.seed, given.ranks_up_to)
    except (Different, TimeoutError) as difference:
        say(f"DIFFERENT: {difference}\n(seed {given.seed}; everything is in {folder})")
        return 1
    shutil.rmtree(folder)
    who = ", ".join(f"{name} {times}" for name, times in sorted(done.victims.items()))
    say(
        f"{done.kills} kills ({who}), {done.writes} in the middle of a write; no process lived on for more "
        f"than {done.survival:.2f} s; models and metrics are those of the run that nobody touched; "
        f"{time.monotonic() - begun:.0f} s in all"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
