"""Ranks that stand ready for all test files that compare runs on several numbers of them. Holds no test.

A start of five ranks takes ten seconds of a core, most of them torch; what the tests then compare takes
less. So a process that runs tests starts three ranks, or five, once, when a test first asks for them.
What is about starts, ends, signals or standard output as a user sees it has its own start: ``running.run``.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest
from running import REPOSITORY, command, environment, kill

SCRIPTS = REPOSITORY / "tests" / "scripts"
READY: dict[int, Ranks] = {}


def run_each(
    lines: Sequence[Sequence[object]], folder: Path, ranks: int, timeout: float = 240.0
) -> subprocess.CompletedProcess[str]:
    """Runs of the program one after another on ranks that stand ready."""
    path = folder / "lines.json"
    path.write_text(json.dumps([list(map(str, line)) for line in lines]))
    return call(SCRIPTS / "many.py", path, ranks=ranks, timeout=timeout, env={"AMN_CACHE": folder / "cache"})


def compare(*words: object, ranks: int) -> subprocess.CompletedProcess[str]:
    """A comparison on ranks that stand ready."""
    return call(SCRIPTS / "comparison.py", *words, ranks=ranks, timeout=120)


def call(
    script: Path, *argv: object, ranks: int, timeout: float, env: Mapping[str, object] | None = None
) -> subprocess.CompletedProcess[str]:
    """A script's ``each(comm, argv)``; where it ends its ranks, the next one gets new ones.

    The script leaves what it patches as it was.
    """
    if ranks not in READY:
        READY[ranks] = Ranks(ranks)
    done = READY[ranks].call(script, argv, env or {}, timeout)
    if READY[ranks].process.poll() is not None:
        READY.pop(ranks).end()
    return done


class Ranks:
    """So many ranks under one launcher, and what they have printed so far."""

    def __init__(self, count: int) -> None:
        assert count, "a run without a launcher is not for these"
        self.count, self.jobs = count, 0
        self.folder = Path(tempfile.mkdtemp(prefix="amn-ready-"))
        self.streams = [self.folder / name for name in ("stdout", "stderr")]
        self.read = [0, 0]
        try:
            words = command(self.folder, os.getpid(), ranks=count, script=SCRIPTS / "ready.py")
        except BaseException:  # where there is no launcher, the test skips
            self.folder.rmdir()
            raise
        with open(self.streams[0], "w") as out, open(self.streams[1], "w") as err:
            self.process = subprocess.Popen(
                words, stdout=out, stderr=err, env=environment(), cwd=REPOSITORY, start_new_session=True
            )

    def call(
        self, script: Path, argv: Sequence[object], env: Mapping[str, object], timeout: float
    ) -> subprocess.CompletedProcess[str]:
        job = {"script": str(script), "argv": list(map(str, argv))}
        self.give({**job, "env": {name: str(value) for name, value in env.items()}})
        until, ended = time.monotonic() + timeout, f"ended {self.jobs - 1}\n"
        while self.process.poll() is None:
            out, err = self.printed()
            if out.count(ended) == err.count(ended) == self.count:
                self.read = [path.stat().st_size for path in self.streams]
                texts = (text.replace(ended, "") for text in (out, err))
                return subprocess.CompletedProcess(job["argv"], 0, *texts)
            if time.monotonic() > until:
                READY.pop(self.count).end()
                pytest.fail(f"no end within {timeout:g} s: {job}\n{out}\n{err}")
            time.sleep(0.02)
        return subprocess.CompletedProcess(job["argv"], self.process.returncode, *self.printed())

    def give(self, job: object) -> None:
        path = self.folder / f"{self.jobs}.json"
        path.with_suffix(".tmp").write_text(json.dumps(job))
        path.with_suffix(".tmp").rename(path)
        self.jobs += 1

    def printed(self) -> list[str]:
        """Since the last job."""
        return [path.read_bytes()[at:].decode(errors="replace") for path, at in zip(self.streams, self.read)]

    def end(self) -> None:
        self.give(None)
        try:
            self.process.wait(10)
        except subprocess.TimeoutExpired:
            kill(self.process)
            self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)


def end() -> None:
    for ranks in READY.values():
        ranks.end()
    READY.clear()
