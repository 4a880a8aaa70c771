"""Output that cannot be written costs no run: full disks, readers who leave, closed streams."""

from __future__ import annotations

import io
import subprocess
import sys
from pathlib import Path

import pytest
from running import environment, result

from amn_mpi import streams

RUN = "-m amn_mpi.main --data.clients 4 --local.epochs 1 --evaluate.every 1"


class Full(io.StringIO):
    """Fails as long as ``room`` is False."""

    room = False

    def write(self, text: str) -> int:
        if not self.room:
            raise OSError(28, "No space left on device")
        return super().write(text)


def shell(line: str, folder: Path) -> subprocess.CompletedProcess[str]:
    line = f"set -o pipefail; cd {folder}; {line.replace('PYTHON', sys.executable)}"
    env = {**environment(), "AMN_CACHE": str(folder / "cache")}
    return subprocess.run(["bash", "-c", line], capture_output=True, text=True, env=env, timeout=120)


def test_what_cannot_be_written_is_lost_and_no_more(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Full()
    monkeypatch.setattr(sys, "stdout", full)
    monkeypatch.setattr(sys, "stderr", None)
    with streams.harmless_here():
        print("lost", flush=True)
        print("lost, too", file=sys.stderr, flush=True)
        full.room = True
        print("there is room again", flush=True)
        assert not sys.stdout.isatty()
    assert full.getvalue() == "there is room again\n"
    assert isinstance(sys.stdout, streams.Harmless), "it has failed: what it holds may fail again at exit"
    assert sys.stderr is None


def test_a_sign_that_cannot_be_shown_is_a_question_mark() -> None:
    raw = io.BytesIO()
    stream = streams.Harmless(io.TextIOWrapper(raw, encoding="ascii"))
    print("90.1 ± 0.7", file=stream, flush=True)
    assert raw.getvalue() == b"90.1 ? 0.7\n" and not stream.failed


def test_a_sound_stream_is_given_back(capsys: pytest.CaptureFixture[str]) -> None:
    before = sys.stdout, sys.stderr
    with streams.harmless_here():
        print("as ever")
        with streams.harmless_here():
            print("inside", file=sys.stderr)
    assert (sys.stdout, sys.stderr) == before
    assert capsys.readouterr() == ("as ever\n", "inside\n")


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("| head -1", 1),  # the pipe breaks at the second line, in the midst of training
        (">&-", 0),
        (">/dev/full 2>&1", 0),
    ],
)
def test_a_run_is_finished(tmp_path: Path, line: str, told: int) -> None:
    done = shell(f"PYTHON {RUN} --rounds 30 --out out {line}", tmp_path)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", told)
    assert result(tmp_path / "out")["rounds"] == 30


@pytest.mark.parametrize("program", ["main", "compare", "join", "inspect", "report", "data"])
def test_help_may_be_cut_short(tmp_path: Path, program: str) -> None:
    done = shell(f"PYTHON -m amn_mpi.{program} --help | head -c 10", tmp_path)
    assert (done.returncode, done.stderr, len(done.stdout)) == (0, "", 10)


def test_a_dry_run_may_be_cut_short(tmp_path: Path) -> None:
    done = shell("PYTHON -m amn_mpi.compare anchor --dry_run | head -1", tmp_path)
    assert (done.returncode, done.stderr, done.stdout.count("\n")) == (0, "", 1)
