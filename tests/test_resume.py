"""A run that is stopped, killed, refused or out of space, and goes on as if nothing had been.

For every method ``test_every_method.py`` shows it.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import plain
import pytest
import ready
from plain import here
from running import REPOSITORY, end, one_line, ranks_of, result, start, wait_for
from test_killed_rank import nothing_left

from amn_mpi import checkpoint, cli, resume
from amn_mpi.checkpoint import Reader
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.methods import amn
from amn_mpi.runfolder import RunFolder, lock

SLOW = REPOSITORY / "tests" / "scripts" / "slow.py"
ROUNDS = 12  # five common ones, then attention and meta steps
KEYS = ("--data.clients", 5, "--local.epochs", 1, "--model.hidden", 16, "--progress", "off")
RUN = (*KEYS, "--checkpoint.every", 4, "--checkpoint.keep", 3)
AUTO = (*RUN, "--rounds", ROUNDS, "--resume", "auto")
BASELINES = ("--baselines", "local,fedavg_ft")


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {"AMN_CACHE": tmp_path_factory.mktemp("resume") / "cache"}


@pytest.fixture(autouse=True)
def same_cache(cache: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMN_CACHE", str(cache["AMN_CACHE"]))


def refused(*args: object, kind: type[UserError] = UserError) -> str:
    """The line with which a run refuses to start; nothing is changed in its folder."""
    words = list(map(str, args))
    out = Path(words[words.index("--out") + 1])
    before = listing(out)
    with pytest.raises(UserError) as caught:
        here(*args)
    assert "\n" not in str(caught.value) and caught.value.status == kind.status
    assert listing(out) == before
    return str(caught.value)


def listing(folder: Path) -> dict[str, int]:
    return {str(p.relative_to(folder)): p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}


def has(line: str, *words: object) -> None:
    assert [word for word in words if str(word) not in line] == [], line


def account(out: Path) -> dict[str, Any]:
    """All of a finished run that must not depend on how it was carried out."""
    found = result(out)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = {k: found[k] for k in ("models_sha256", "per_client", "models", "mean_last5", "best_round")}
    baselines = {name: {**s, "round_seconds": 0} for name, s in found["baselines"].items()}
    metrics = [{**row, "seconds": 0, "turn_seconds": 0} for row in rows]
    newest = checkpoint.listed(out / "checkpoints")[0]
    with Reader(newest) as reader:
        history = reader.text("history")
    assert [row["round"] for row in history["rounds"]] == [row["round"] for row in rows]
    return {**kept, "baselines": baselines, "metrics": metrics, "correct": history["correct"]}


def is_tidy(out: Path) -> None:
    """No temporary file and no lock is left."""
    assert [path.name for path in out.rglob("*") if path.name.startswith(".") or path.suffix == ".tmp"] == []


def no_baselines(found: dict[str, Any]) -> dict[str, Any]:
    return {**found, "baselines": {}}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory: pytest.TempPathFactory, cache: dict[str, Path]) -> Path:
    """The folder of a run of ROUNDS rounds and two baselines that nobody touched."""
    out = tmp_path_factory.mktemp("unbroken") / "out"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("AMN_CACHE", str(cache["AMN_CACHE"]))
        here(*RUN, "--rounds", ROUNDS, *BASELINES, "--out", out)
    is_tidy(out)
    return out


@pytest.fixture
def stopped(unbroken: Path, tmp_path: Path) -> Path:
    """A folder as a run that was killed after its third checkpoint leaves it."""
    shutil.copytree(unbroken, tmp_path / "out")
    (tmp_path / "out" / "result.json").unlink()
    return tmp_path / "out"


def checkpoints(out: Path) -> list[str]:
    return [path.name for path in checkpoint.listed(out / "checkpoints")]


def spoil(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(-2000, os.SEEK_END)
        file.write(b"spoilt")


def slow(*args: object, ranks: int = 0, **seconds: object) -> subprocess.Popen[str]:
    """A run in processes of its own that is slow enough to hit it where one wants."""
    return start(*args, ranks=ranks, script=SLOW, env={"AMN_CACHE": os.environ["AMN_CACHE"], **seconds})


def stop(process: subprocess.Popen[str], number: signal.Signals, pid: int) -> str:
    """Signal one process of a run; all have to end with status 75 and one line."""
    begun = time.monotonic()
    os.kill(pid, number)
    done = end(process, 30)
    assert time.monotonic() - begun < 10
    line = one_line(done.stderr)
    assert done.returncode == 75, line
    has(line, f"amn_mpi: stopped by {number.name}; after round ")
    return line


# ---- when


def test_minutes_decide_as_well(tmp_path: Path) -> None:
    what = (*KEYS, "--rounds", 3, "--checkpoint.keep", 9)
    for minutes, written in ((1e-9, [3, 2, 1]), (0, [3]), (10, [3])):
        here(*what, "--checkpoint.minutes", minutes, "--out", tmp_path / str(minutes))
        assert checkpoints(tmp_path / str(minutes)) == [checkpoint.file_name(number) for number in written]


# ---- stopped


def test_stopped_on_4_3_and_2_ranks_and_finished_on_1(
    unbroken: Path, tmp_path: Path, cache: dict[str, Path]
) -> None:
    """On a worker, on rank 0, on the launcher, each in mid-round, with each of the three signals."""
    out, lines, left_on = tmp_path / "out", 2, []
    for ranks, whom, number in ((4, 3, signal.SIGUSR1), (3, 0, signal.SIGTERM), (2, -1, signal.SIGINT)):
        process = slow(*AUTO, "--checkpoint.every", 0, "--out", out, ranks=ranks, TRAIN=0.15)
        wait_for(out / "metrics.jsonl", lines, process)
        time.sleep(0.1)
        line = stop(process, number, ranks_of(process, ranks)[whom] if whom >= 0 else process.pid)
        done = int(re.findall(f"after round ([0-9]+) of {ROUNDS}", line)[0])
        assert checkpoints(out)[0] == checkpoint.file_name(done)
        has(line, f"--resume auto goes on from {out}/checkpoints/round-0000")
        assert not (out / "result.json").exists()
        is_tidy(out)
        nothing_left(cache["AMN_CACHE"].parent, 2.0)
        left_on.append({"after_round": done, "ranks": ranks})
        lines = done + 2
    assert done < ROUNDS
    here(*AUTO, *BASELINES, "--out", out)
    assert account(out) == account(unbroken)
    starts = result(out)["starts"]
    assert [each["ranks"] for each in starts] == [4, 3, 2, 1]
    assert [each["after_round"] for each in starts] == [0, *(each["after_round"] for each in left_on)]
    is_tidy(out)


def test_stopped_twice_in_one_evaluation(unbroken: Path, tmp_path: Path) -> None:
    """The round counts, its evaluation is made up for; also where a second stop cuts that off, too."""
    out, mark = tmp_path / "out", tmp_path / "mark"
    process = slow(*AUTO, "--out", out, ranks=3, CORRECT=0.15, MARK=mark)
    wait_for(out / "metrics.jsonl", 2, process)
    mark.unlink()
    wait_for(mark, 0, process)
    has(stop(process, signal.SIGTERM, ranks_of(process, 3)[1]), "after round 3 of")
    mark.unlink()
    again = slow(*AUTO, "--out", out, ranks=2, CORRECT=0.15, MARK=mark)
    wait_for(mark, 0, again)
    has(stop(again, signal.SIGUSR1, again.pid), "after round 3 of")
    assert len((out / "metrics.jsonl").read_text().splitlines()) == 2
    with Reader(out / "checkpoints" / "round-000003.h5") as reader:
        assert reader.text("about")["open"] is not None
    here(*AUTO, *BASELINES, "--out", out)
    assert account(out) == account(unbroken)


def wait_for_start(out: Path, process: subprocess.Popen[str]) -> None:
    """Until a run that goes on has begun to train: it writes its configuration, then its metrics anew."""
    before = (out / "metrics.jsonl").stat().st_ino if (out / "metrics.jsonl").exists() else 0
    until = time.monotonic() + 40
    while time.monotonic() < until and process.poll() is None:
        if (out / "metrics.jsonl").exists() and (out / "metrics.jsonl").stat().st_ino != before:
            return
        time.sleep(0.02)
    pytest.fail(f"does not start: {end(process, 10)}")


def test_stopped_inside_one_very_long_epoch_by_an_idle_rank(tmp_path: Path) -> None:
    """Nothing is done yet, and even that goes on: rank 3 has no client and only waits for the end."""
    out = tmp_path / "out"
    what = ("--data.clients", 2, "--local.epochs", 100000, "--progress", "off", "--out", out)
    process = start(*what, ranks=4, env={"AMN_CACHE": os.environ["AMN_CACHE"]})
    wait_for_start(out, process)
    time.sleep(0.5)
    os.kill(ranks_of(process, 4)[3], signal.SIGUSR1)
    begun = time.monotonic()
    done = end(process, 30)
    assert time.monotonic() - begun < 10
    assert done.returncode == 75
    idle, line = done.stderr.splitlines()
    has(idle, "1 stay idle")
    has(line, "stopped by SIGUSR1; after round 0 of 40", "--resume auto")
    assert checkpoints(out) == ["round-000000.h5"]


def test_a_second_interrupt_ends_at_once(tmp_path: Path) -> None:
    """The first one waits for the end of a step that does not come."""
    process = slow(*AUTO, "--out", tmp_path / "out", TRAIN="stuck", MARK=tmp_path / "mark")
    wait_for(tmp_path / "mark", 0, process)
    process.send_signal(signal.SIGINT)
    time.sleep(1)
    assert process.poll() is None
    process.send_signal(signal.SIGINT)
    done = end(process, 5)
    assert done.returncode == 75
    has(one_line(done.stderr), "stopped by SIGINT; the run is unfinished")


# ---- killed


def test_killed_while_a_baseline_trains(unbroken: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    process = slow(*AUTO, *BASELINES, "--checkpoint.every", 1, "--out", out, ranks=2, TRAIN=0.05)
    there = out / "checkpoints" / "local" / checkpoint.file_name(4)
    until = time.monotonic() + 60
    while not there.exists() and time.monotonic() < until and process.poll() is None:
        time.sleep(0.01)
    os.kill(ranks_of(process, 2)[1], signal.SIGKILL)
    assert end(process, 20).returncode != 0
    assert checkpoints(out)[0] == checkpoint.file_name(ROUNDS) and not (out / "result.json").exists()
    assert not (out / "checkpoints" / "fedavg_ft").exists()
    (out / "checkpoints" / "local" / ".round-000099.h5.tmp").write_text("half-written")
    here(*AUTO, *BASELINES, "--out", out)
    assert account(out) == account(unbroken)
    is_tidy(out)


# ---- finished


def test_a_finished_run(unbroken: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same again is nothing to do; more rounds are what an unbroken run of so many gives."""
    out = tmp_path / "out"
    here(*AUTO, "--rounds", 7, "--out", out)
    before = listing(out)
    capsys.readouterr()
    here(*AUTO, "--rounds", 7, "--out", out)
    said = capsys.readouterr()
    has(said.out, f"{out}: finished already: 7 rounds", result(out)["models_sha256"], "--rounds extends it")
    assert said.err == "" and listing(out) == before
    earlier = (out / "result.json").read_text()
    here(*AUTO, "--out", out)
    assert account(out) == no_baselines(account(unbroken))
    assert (out / "result-000007.json").read_text() == earlier
    here(*AUTO, *BASELINES, "--out", out)  # only the baselines are left
    assert account(out) == account(unbroken)
    assert [p.name for p in sorted(out.glob("result-*"))] == ["result-000007.json", "result-000012.json"]
    is_tidy(out)


def test_a_finished_run_without_its_checkpoints(
    stopped: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Somebody has made room: it is finished all the same, but cannot be extended."""
    shutil.copy(unbroken / "result.json", stopped)
    shutil.rmtree(stopped / "checkpoints")
    here(*AUTO, "--out", stopped)
    assert "finished already" in capsys.readouterr().out
    line = refused(*AUTO, "--rounds", 13, "--out", stopped)
    has(line, f"out = {stopped}", "a finished run and no checkpoints", "another folder")
    line = refused(*AUTO, "--local.lr", 0.1, "--out", stopped, kind=ConfigError)
    has(line, "local.lr = 0.1", f"{stopped}/result.json was made with 0.05")


# ---- resume as a key


def test_never_names_auto(stopped: Path, tmp_path: Path) -> None:
    for spoil in (lambda: None, lambda: shutil.rmtree(stopped / "checkpoints")):
        spoil()
        line = refused(*RUN, "--out", stopped)
        has(line, f"out = {stopped}: holds a run already", "metrics.jsonl", "--resume auto goes on")


def test_a_path_goes_on_in_another_folder(unbroken: Path, tmp_path: Path) -> None:
    """Also from a copy under another name."""
    shutil.copy(unbroken / "checkpoints" / "round-000008.h5", tmp_path / "mine.h5")
    what = (*RUN, "--rounds", ROUNDS, *BASELINES, "--resume", tmp_path / "mine.h5")
    here(*what, "--out", tmp_path / "new")
    assert account(tmp_path / "new") == account(unbroken)
    assert checkpoints(tmp_path / "new") == ["round-000012.h5"]
    line = refused(*what, "--out", tmp_path / "new")
    has(line, "holds a run already")


def test_a_path_in_the_same_folder(stopped: Path, unbroken: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused while there are newer ones; by whatever name the folder goes, it keeps the older ones."""
    what = (*RUN, "--rounds", ROUNDS, *BASELINES)
    older = stopped / "checkpoints" / "round-000008.h5"
    line = refused(*what, "--resume", older, "--out", stopped)
    has(line, "holds round-000012.h5, which is newer than round-000008.h5", "choose another out")
    (stopped / "checkpoints" / "round-000012.h5").unlink()
    monkeypatch.chdir(stopped)
    here(*what, "--resume", "./checkpoints/round-000008.h5", "--out", stopped)
    assert account(stopped) == account(unbroken)
    assert checkpoints(stopped) == ["round-000012.h5", "round-000008.h5", "round-000004.h5"]


STRANGE_PATHS = [
    ("nowhere.h5", ConfigError, "no such file"),
    ("", ConfigError, "no such file"),
    ("empty.h5", UserError, "is damaged: the file is empty"),
    ("models.h5", UserError, "holds amn_mpi models, not amn_mpi checkpoint"),
    ("metrics.jsonl", UserError, "is damaged: its first line"),
]


@pytest.mark.parametrize("name, kind, words", STRANGE_PATHS)
def test_a_path_that_is_no_checkpoint(
    stopped: Path, tmp_path: Path, name: str, kind: type[UserError], words: str
) -> None:
    (stopped / "empty.h5").write_text("")
    has(refused(*RUN, "--resume", stopped / name, "--out", tmp_path / "new", kind=kind), name, words)
    assert not (tmp_path / "new").exists()


# ---- another configuration

DIFFERENT = [
    ("local.lr", 0.1, 0.05),
    ("local.epochs", 2, 1),
    ("method.tau", 4.0, 8.0),
    ("cohort", 0.5, 1.0),
    ("evaluate.every", 3, 1),
    ("data.alpha", 0.7, 0.5),
    ("threads", 2, 1),
]


@pytest.mark.parametrize("key, now, then", DIFFERENT)
def test_another_value_is_refused_until_accepted(stopped: Path, key: str, now: object, then: object) -> None:
    what = (*AUTO, "--out", stopped, f"--{key}", now)
    line = refused(*what, kind=ConfigError)
    has(line, f"{key} = {now}", f"was made with {then};", f"--{key} {then}", f"--checkpoint.accept {key}")
    has(refused(*what, "--checkpoint.accept", "local.momentum", kind=ConfigError), f"local.momentum,{key}")
    config = cli.parse(list(map(str, (*what, "--checkpoint.accept", key))))[0]
    folder = RunFolder(str(stopped), config)
    assert folder.saved == stopped / "checkpoints" / "round-000012.h5"
    folder.leave()


FIXED = [
    ("seed", 1, 0),
    ("data.clients", 6, 5),
    ("model.hidden", 17, 16),
    ("model.name", "linear", "mlp"),
    ("method.name", "fedavg", "amn"),
]


@pytest.mark.parametrize("key, now, then", FIXED)
def test_what_cannot_be_accepted(stopped: Path, key: str, now: object, then: object) -> None:
    for accept in ((), ("--checkpoint.accept", key)):
        line = refused(*AUTO, "--out", stopped, f"--{key}", now, *accept, kind=ConfigError)
        has(line, f"{key} = {now}", f"was made with {then};", f"give --{key} {then}, or choose another out")
        assert "checkpoint.accept" not in line


def test_another_version_of_the_method_is_named(stopped: Path) -> None:
    """Options that are gone cannot be given, nor accepted: one line says so, not what to give."""
    config = cli.parse(list(map(str, (*AUTO, "--out", stopped, "--method.tau", 4.0))))[0]
    saved = config.as_dict()
    saved["method"] |= {"meta_lr": 0.2, "tau": 8.0}
    with pytest.raises(ConfigError) as caught:
        resume.agree(config, stopped / "it.h5", saved, 8)
    assert str(caught.value) == (
        f"{stopped}/it.h5: was made by another version of amn, which had method.meta_lr; "
        "it cannot be gone on from: choose another out"
    )
    saved["method"]["name"] = "local"
    with pytest.raises(ConfigError, match="method.name = amn: .*it.h5 was made with local; give"):
        resume.agree(config, stopped / "it.h5", saved, 8)


def test_what_is_accepted_is_used(stopped: Path, unbroken: Path) -> None:
    """From the second checkpoint on with another step size; other data stay refused all the same."""
    (stopped / "checkpoints" / "round-000012.h5").unlink()
    line = refused(*AUTO, "--out", stopped, "--data.alpha", 0.7, "--checkpoint.accept", "data.alpha")
    has(line, "round-000008.h5: was made with other data")
    here(*AUTO, "--out", stopped, "--local.lr", 0.2, "--checkpoint.accept", "local.lr")
    now, then = account(stopped), account(unbroken)
    assert now["metrics"][:8] == then["metrics"][:8] and now["models_sha256"] != then["models_sha256"]


def test_less_rounds(stopped: Path, tmp_path: Path) -> None:
    """An end that is past, or one whose last five rounds were not all evaluated."""
    has(refused(*AUTO, "--rounds", 11, "--out", stopped, kind=ConfigError), "after round 12 already")
    out = tmp_path / "rare"
    here(*KEYS, "--rounds", 8, "--evaluate.every", 5, "--checkpoint.every", 2, "--out", out)
    for path in (out / "result.json", out / "checkpoints" / "round-000008.h5"):
        path.unlink()
    shutil.copy(out / "checkpoints" / "round-000006.h5", tmp_path)
    rare = (*KEYS, "--evaluate.every", 5, "--resume", "auto", "--out", out)
    for rounds in (6, 7):  # 3 is not evaluated, and 2 neither
        has(
            refused(*rare, "--rounds", rounds, kind=ConfigError), "round 3 was not evaluated", "valid is >= 8"
        )
    here(*rare, "--rounds", 9)
    assert result(out)["rounds"] == 9 and len(result(out)["models"]) == 3


def test_samples_changed_under_the_same_name(tmp_path: Path) -> None:
    """One pixel: neither name nor labels tell."""
    path = plain.write_blobs(tmp_path)
    what = ("--data.name", path, "--data.clients", 3, "--model.name", "linear", "--data.concept", "none")
    what += ("--progress", "off", "--out", tmp_path / "out", "--resume", "auto")
    here(*what, "--rounds", 2)
    raw = dict(np.load(path))
    raw["x"][7, 2] += 0.5
    np.savez(path, **raw)
    has(refused(*what, "--rounds", 3), "round-000002.h5: was made with other data", "cannot be continued")


def test_state_of_another_version_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """AMN's server once kept the initial model."""
    init, what = amn.AMN.init, (*AUTO, "--checkpoint.every", 1, "--out", tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(amn.AMN, "init", lambda self, initial: {**init(self, initial), "reference": initial})
        here(*what, "--rounds", 2)
    line = refused(*what, "--rounds", 3)
    has(line, "round-000002.h5: holds other server state", "amn keeps (reference)", "this version")


def test_an_accepted_option_brings_state_and_takes_it_away(tmp_path: Path) -> None:
    """Drifts begin at 0, so that nothing is corrected in the first round that goes on with them."""
    what = (*AUTO[:-4], "--checkpoint.every", 1, "--checkpoint.keep", 9, "--resume", "auto")
    at_first = tmp_path / "at first"
    here(*what, "--rounds", 2, "--method.drift", 0, "--out", at_first)
    has(
        refused(*what, "--rounds", 3, "--out", at_first, kind=ConfigError), "--checkpoint.accept method.drift"
    )
    found = {}
    for drift in (0.0, 0.8):
        out = shutil.copytree(at_first, tmp_path / str(drift))
        for rounds in (3, 4):
            what_now = (*what, "--checkpoint.accept", "method.drift", "--method.drift", drift, "--out", out)
            here(*what_now, "--rounds", rounds)
            path = out / "checkpoints" / f"round-{rounds:06d}.h5"
            with h5py.File(path) as file:
                assert ("drift" in file["client"]) == (drift > 0)
                found[drift, rounds] = file["client/model"][()]
    assert np.array_equal(found[0.0, 3], found[0.8, 3])
    assert not np.array_equal(found[0.0, 4], found[0.8, 4])
    with_drift = tmp_path / "0.8"
    here(
        *what, "--rounds", 5, "--checkpoint.accept", "method.drift", "--method.drift", 0, "--out", with_drift
    )
    with h5py.File(with_drift / "checkpoints" / "round-000005.h5") as file:
        assert set(file["client"]) == {"model", "hybrid"}


# ---- damaged


def test_the_newest_is_damaged(stopped: Path, unbroken: Path, capsys: pytest.CaptureFixture[str]) -> None:
    newest, older = (stopped / "checkpoints" / f"round-{number}.h5" for number in ("000012", "000008"))
    spoil(newest)
    spoil(older)
    here(*AUTO, *BASELINES, "--out", stopped)
    warnings = capsys.readouterr().err.splitlines()
    assert len(warnings) == 2
    for line, path in zip(warnings, (newest, older)):
        has(line, f"amn_mpi: warning: {path} is damaged", "has another checksum", "round-000004.h5 is used")
    assert account(stopped) == account(unbroken)
    assert [reason for _, reason in checkpoint.good(stopped / "checkpoints")] == ["", "", ""]


def test_the_only_good_one_is_never_deleted(stopped: Path) -> None:
    """A run goes on from the one before two damaged ones and is stopped before it has come as far."""
    for number in ("000012", "000008"):
        spoil(stopped / "checkpoints" / f"round-{number}.h5")
    process = slow(*AUTO, "--checkpoint.keep", 1, "--checkpoint.every", 0, "--out", stopped, TRAIN=0.2)
    wait_for_start(stopped, process)
    time.sleep(1.3)
    process.send_signal(signal.SIGTERM)
    done = end(process, 20)
    assert done.returncode == 75 and len(done.stderr.splitlines()) == 3, done.stderr
    found = list(checkpoint.good(stopped / "checkpoints"))
    assert len(found) == 1 and found[0][1] == ""


def every_one(stopped: Path, harm: Callable[[Path], None]) -> str:
    for path in checkpoint.listed(stopped / "checkpoints"):
        harm(path)
    return refused(*AUTO, "--out", stopped)


def test_all_are_damaged(stopped: Path) -> None:
    line = every_one(stopped, spoil)
    has(line, "no checkpoint is intact (round-000012.h5: ", "; round-000004.h5: ", "delete them to start")


def test_another_versions_checkpoints(stopped: Path) -> None:
    def harm(path: Path) -> None:
        line = path.read_bytes().split(b"\n")[0].replace(b'"format": 1', b'"format": 2')
        with open(path, "r+b") as file:
            file.write(b"%s\n%08x\n" % (line, checkpoint.zlib.crc32(line)))

    has(every_one(stopped, harm), "round-000012.h5: is in format 2", "reads format 1")


# ---- disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system of its own over a folder: ``disk(path, "size=1m")``."""
    mounted: list[Path] = []

    def mount(path: Path, options: str) -> Path:
        path.mkdir(exist_ok=True)
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "tmpfs", str(path)], capture_output=True, text=True
        )
        if done.returncode:
            pytest.skip(f"cannot mount a file system here: {done.stderr.strip()}")
        mounted.append(path)
        return path

    yield mount
    for path in mounted[::-1]:
        subprocess.run(["umount", "--lazy", str(path)], check=True)


def fill(path: Path) -> None:
    """All the room that is left goes to one file."""
    with open(path, "wb", buffering=0) as file, pytest.raises(OSError):
        while True:
            file.write(bytes(4096))


def test_a_read_only_disk(tmp_path: Path, disk: Callable[..., Path]) -> None:
    line = refused(*AUTO, "--out", disk(tmp_path / "disk", "ro") / "out")
    has(line, f"out = {tmp_path}/disk/out", "cannot be written", "Read-only file system")


def test_a_disk_that_is_full_at_once(tmp_path: Path, disk: Callable[..., Path]) -> None:
    fill(disk(tmp_path / "disk", "size=1m") / "full")
    with pytest.raises(UserError) as caught:
        here(*AUTO, "--out", tmp_path / "disk" / "out")
    has(str(caught.value), f"{tmp_path}/disk/out/", "cannot be written", "No space left on device")


def test_a_disk_that_fills_up_in_mid_run(
    unbroken: Path, tmp_path: Path, disk: Callable[..., Path], capsys: pytest.CaptureFixture[str]
) -> None:
    """The run goes on with warnings and says at its stop, and at its end, what it could not write."""
    out = disk(tmp_path / "disk", "size=1m") / "out"
    what = (*AUTO, "--checkpoint.every", 1, "--checkpoint.keep", 1, "--out", out)
    process = slow(*what, ranks=2, TRAIN=0.1)
    wait_for(out / "metrics.jsonl", 2, process)
    fill(tmp_path / "disk" / "full")
    time.sleep(2.5)
    process.send_signal(signal.SIGTERM)
    done = end(process, 20)
    assert done.returncode == 75, done.stderr
    *warnings, last = done.stderr.splitlines()
    kept = checkpoints(out)
    assert len(kept) == 1 and len(warnings) >= 2
    for line in warnings:
        has(line, "warning", "No space left on device", "the run goes on")
    assert any(f"{kept[0]} stays the newest" in line for line in warnings)
    has(last, "stopped by SIGTERM", "its checkpoint could not be written (No space left on device)")
    assert verified(out) == kept
    fill(tmp_path / "disk" / "more")  # what was half-written meanwhile has gone
    with pytest.raises(UserError, match="cannot be written: No space left on device"):
        here(*what)
    assert verified(out) == kept and not (out / "result.json").exists()
    for name in ("full", "more"):
        (tmp_path / "disk" / name).unlink()
    capsys.readouterr()
    here(*what)
    assert account(out) == no_baselines(account(unbroken))
    assert capsys.readouterr().err == ""
    is_tidy(out)


def verified(out: Path) -> list[str]:
    """Names of the checkpoints, all of them intact, and nothing half-written beside them."""
    assert list((out / "checkpoints").glob(".*")) == []
    return [path.name for path, reason in checkpoint.good(out / "checkpoints") if not reason]


def test_checkpoints_that_cannot_be_written_any_more(
    unbroken: Path, tmp_path: Path, disk: Callable[..., Path]
) -> None:
    """Read-only from the middle of the run on: it finishes, and its end says so."""
    out = tmp_path / "out"
    process = slow(*AUTO, "--checkpoint.every", 1, "--out", out, TRAIN=0.1)
    wait_for(out / "metrics.jsonl", 2, process)
    disk(out / "checkpoints", "ro")
    done = end(process, 60)
    assert done.returncode == 0, done.stderr
    failed, warnings = result(out)["checkpoints"]["failed"], done.stderr.splitlines()
    assert failed == len(warnings) >= 2
    assert all("no checkpoint after round" in line for line in warnings)
    has(warnings[-1], f"after round {ROUNDS}: Read-only file system; there is none yet, the run goes on")
    has(done.stdout, f"{failed} checkpoints could not be written")
    assert result(out)["models_sha256"] == result(unbroken)["models_sha256"]


def test_metrics_that_wait_for_room(tmp_path: Path, disk: Callable[..., Path]) -> None:
    """They come when there is room again, whole; and a run does not end without them."""
    out = disk(tmp_path / "disk", "size=1m") / "out"
    config = cli.parse(list(map(str, (*RUN, "--out", out))))[0]
    folder = RunFolder(str(out), config)
    folder.begin([])
    rows: list[dict[str, Any]] = [{"round": number, "text": "x" * 3000} for number in range(6)]
    folder.add(rows[0])
    fill(out / "full")
    for row in rows[1:5]:
        folder.add(row)
    written = (out / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line) for line in written] == rows[: len(written)] and len(written) < 5
    with pytest.raises(UserError, match="metrics.jsonl: cannot be written: No space left"):
        folder.finish({})
    (out / "full").unlink()
    folder.finish({})
    assert [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()] == rows[:5]
    is_tidy(out)


# ---- one run a folder


def test_a_lock_that_is_removed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its holder ends between our open and our flock: the file that we then hold is no lock."""
    from amn_mpi import runfolder

    real, used = runfolder.fcntl.flock, [0]

    def flock(file: Any, how: int) -> None:
        used[0] += 1
        if used[0] == 1:
            (tmp_path / ".lock").unlink()
        real(file, how)

    monkeypatch.setattr(runfolder.fcntl, "flock", flock)
    held = lock(tmp_path)
    assert used == [2]
    with pytest.raises(UserError, match="another run is writing there now"):
        lock(tmp_path)
    held.close()


# ---- comparisons

MATRIX = """
seeds: [0]
keys:
  rounds: 30
  data: {clients: 4, train_per_client: 16, test_per_client: 8, concept: none, cache: CACHE}
  model: {name: linear}
  local: {steps: 2}
scenarios: {iid: {data: {labels: iid}}}
reference: fedavg
methods: {fedavg: {}, ditto: {}}
"""


def test_a_cell_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    """In the second of two cells, on three ranks and then on one; the table is that of an unbroken one."""
    (tmp_path / "my.yaml").write_text(MATRIX.replace("CACHE", str(tmp_path / "cache")))
    what = (tmp_path / "my.yaml", "--rounds", 600)
    twice = start("amn_mpi.compare", *what, "--out", tmp_path / "twice", ranks=3, script="-m")
    first, second = (tmp_path / "twice" / "iid" / name / "seed0" for name in ("fedavg", "ditto"))
    wait_for(second / "metrics.jsonl", 20, twice)
    twice.terminate()
    stopped = end(twice, 20)
    assert stopped.returncode == 75, stopped.stderr
    has(one_line(stopped.stderr), "stopped by SIGTERM; after round ", " of 600")
    assert (first / "result.json").exists() and not (second / "result.json").exists()
    assert len(checkpoints(second)) == 1 and not (first / "checkpoints").exists()
    for out in ("once", "twice"):
        done = ready.compare(*what, "--out", tmp_path / out, ranks=1)
        assert (done.returncode, done.stderr) == (0, "")
    starts = result(second)["starts"]
    assert [each["ranks"] for each in starts] == [3, 1] and 20 <= starts[1]["after_round"] < 600
    assert list(tmp_path.glob("*/iid/*/seed0/checkpoints")) == []
    assert (tmp_path / "twice" / "tables.md").read_text() == (tmp_path / "once" / "tables.md").read_text()
    for name in ("fedavg", "ditto"):
        a, b = (result(tmp_path / out / "iid" / name / "seed0") for out in ("once", "twice"))
        assert a["per_client"] == b["per_client"] and a["models"] == b["models"]
