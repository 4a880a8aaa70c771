"""The communicator on real ranks."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import run

SCRIPTS = Path(__file__).with_name("scripts")


@pytest.mark.parametrize("ranks, wait", [(1, "sleep"), (2, "spin"), (3, "sleep"), (5, "sleep"), (5, "spin")])
def test_collectives(ranks: int, wait: str) -> None:
    """The ranks find each other, also where MPICH takes every one for alone on its host."""
    alone = {"MPIR_CVAR_NOLOCAL": 1} if ranks == 3 else {}
    done = run(wait, ranks=ranks, script=SCRIPTS / "collectives.py", env=alone)
    assert done.returncode == 0, done.stderr
    said = dict(line.split(": ", 1) for line in done.stdout.splitlines())
    assert said["bad"] == "[]"
    assert said["checked"] == "['broadcast', 'collect', 'gather', 'scatter', 'share', 'sum', 'swap', 'turns']"
    rows = sum(1 + 2 * (owner % 3) for owner in range(max(1, ranks - 1)))
    assert int(said["sent"]) == (rows * 14 * 4 if ranks > 1 else 0)
    assert said["places"] == str([(rank, ranks, True) for rank in range(ranks)])
    assert said["spins"] == str(wait == "spin")
    assert said["kept"] == str(min(ranks, 2))
    assert done.stderr == ""


def test_bells() -> None:
    """Who is rung wakes up, once for each ring; who is not sleeps on."""
    done = run(ranks=3, script=SCRIPTS / "bells.py")
    expected = (True, False), [None, [True, False], [False], None, True, None]
    assert done.stdout.strip() == " ".join(map(str, expected)), done.stderr


@pytest.mark.alone
def test_waiting_ranks_leave_the_cores_alone() -> None:
    """Four ranks wait 3 s for a fifth: spinning would cost 12 CPU seconds, a tenth is the limit."""
    done = run(ranks=5, script=SCRIPTS / "waiting.py")
    waited, cpu = map(float, done.stdout.split())
    assert waited > 2
    assert cpu < 1.2


def _free_memory_gb() -> float:
    lines = Path("/proc/meminfo").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("MemAvailable")) / 2**20


@pytest.mark.alone
@pytest.mark.skipif(_free_memory_gb() < 8, reason="needs 8 GB of free memory")
def test_more_elements_than_an_int_can_count() -> None:
    """2.4e9 one-byte elements in one gather and one scatter."""
    done = run(ranks=4, script=SCRIPTS / "large.py", timeout=180)
    assert done.stdout == "2,400,000,000 elements gathered and scattered\n", done.stderr
