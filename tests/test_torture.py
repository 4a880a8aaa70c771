"""The short form of ``benchmarks/torture.py``: nothing is lost, whoever is killed when."""

from __future__ import annotations

import re

from running import REPOSITORY, end, launcher, start


def test_nothing_is_lost_in_three_kills() -> None:
    launcher()  # skips where there is none
    words = ("--count", 3, "--seed", 4, "--ranks-up-to", 3)
    done = end(start(*words, script=REPOSITORY / "benchmarks" / "torture.py"), 150)
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    kills = re.findall(
        r"^ +[0-9]+\. (?:launcher|rank [0-2]) of [1-3], .* goes on after round ", done.stdout, re.M
    )
    assert len(kills) == 3
    assert "3 kills (" in done.stdout and "are those of the run that nobody touched" in done.stdout
