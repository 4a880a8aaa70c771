"""``python -m amn_mpi.join``: newcomers from a checkpoint get what the run itself would have given them."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from ready import SCRIPTS, call
from running import environment, launcher, one_line, options, result

from amn_mpi import checkpoint, config, data, health, inspect, join, report, trained
from amn_mpi.data import Federation
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.finished import compare_folders
from amn_mpi.rng import generator

SMALL = {"rounds": 6, "data__clients": 8, "data__unseen": 0.25, "local__epochs": 1, "progress": "off"}
SERVED = ("amn", "fedavg_ft", "pfedhn")
REFUSED = {
    "fedrep": "refused 1: {run}/checkpoints/fedrep/round-000006.h5: method.name = fedrep has no model for",
    "older": "refused 1: {old}/checkpoints/round-000004.h5: was written by an older version of amn_mpi",
    "another": "refused 1: {folder}/another/round-000006.h5: was made by another version of amn, which had "
    "method.meta_lr; it cannot serve newcomers here",
    "unheard": "refused 1: {folder}/unheard/round-000006.h5: was made by method.name = unheard; "
    "valid are amn",
    "changed": "refused 2: method.name = {file}:Mine: the file has changed since {folder}/changed",
    "taken": "refused 1: --out {folder}/amn: holds result.json, models.h5 already; choose another folder",
    "layout": "refused 1: {folder}/layout/round-000006.h5: was made with another model",
    "infinite": "refused 1: newcomer far: the training left the numbers (NaN or Inf)",
}


def export(folder: Path, federation: Federation) -> None:
    """The samples of clients that were held back, as they have them: pixels, and labels as they see them."""
    pixels = dataclasses.replace(federation, scale=1.0, shift=0.0)
    clients = data.load_clients(pixels, range(federation.clients))
    sizes = [(len(c.y_train), len(c.y_test)) for c in clients]
    np.savez(
        folder / "late.npz",
        x=np.concatenate([part for c in clients for part in (c.x_train, c.x_test)]).astype(np.uint8),
        y=np.concatenate([part for c in clients for part in (c.y_train, c.y_test)]),
        client=np.repeat(np.arange(len(clients)), [sum(size) for size in sizes]),
        test=np.concatenate([np.repeat([False, True], size) for size in sizes]),
    )
    first = clients[0]
    np.savez(folder / "one.npz", x=first.x_train.astype(np.uint8), y=first.y_train)


def launch(folder: Path, lines: list[list[object]], ranks: int) -> str:
    """Standard output of ``scripts/joins.py``, on ranks that stand ready."""
    path = folder / "lines.json"
    path.write_text(json.dumps([list(map(str, line)) for line in lines]))
    env = {"AMN_CACHE": folder / "cache"}
    done = call(SCRIPTS / "joins.py", path, ranks=ranks, env=env, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


def state(folder: Path) -> dict[str, tuple[str, int]]:
    """Content and time of change of all files, and the folders."""
    return {
        str(path.relative_to(folder)): (
            hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "",
            path.stat().st_mtime_ns,
        )
        for path in sorted(folder.rglob("*"))
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with newcomers and baselines on one rank, in ``run``; what they need, beside it."""
    folder = tmp_path_factory.mktemp("join")
    own = config.Data(clients=8, unseen=0.25, cache=str(folder / "cache"))
    late = data.prepare(own, 0).newcomers
    assert late is not None
    export(folder, late)
    (folder / "mine.py").write_text(
        "import os, signal\nfrom amn_mpi.methods.fedavg import FedAvg\n\n\nclass Mine(FedAvg):\n"
        "    def receive(self, server, models):\n"
        "        if 'DIES' in os.environ:\n            os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    far = {"x": np.zeros((4, 2), np.float32), "y": np.arange(4) % 2, "x_test": np.ones((1, 2), np.float32)}
    np.savez(folder / "numbers.npz", x=generator(0, "test").random((40, 2)), y=np.arange(40) % 2)
    np.savez(folder / "far.npz", **{**far, "x": far["x"] + 1e30, "y_test": np.array([1])})
    launch(folder, run_lines(folder), 1)
    return folder


def run_lines(folder: Path) -> list[list[object]]:
    line = ["main", *options(**SMALL, baselines="fedavg_ft,pfedhn,fedrep", checkpoint__every=4)]
    mine = ["main", *options(**{**SMALL, "rounds": 1}, method__name=f"{folder}/mine.py:Mine")]
    numbers = {"data__name": folder / "numbers.npz", "data__clients": 2, "rounds": 1, "progress": "off"}
    cheap = {"data__min_samples": 2, "method__name": "fedavg", "model__name": "linear"}
    return [
        [*line, "--out", folder / "run"],
        [*mine, "--out", folder / "own"],
        ["main", *options(**numbers, **cheap, out=folder / "numbers")],
    ]


@pytest.fixture(scope="module")
def joined(folder: Path) -> str:
    """All that is served, or refused, on one rank; what it printed. The run's files are as they were."""
    checkpoints, late = folder / "run" / "checkpoints", folder / "late.npz"
    shutil.copytree(
        folder / "run", folder / "old", ignore=shutil.ignore_patterns("round-000006.h5", "result*")
    )
    (folder / "old" / "checkpoints" / "round-000004.h5").unlink()
    newest = checkpoints / "round-000006.h5"
    with checkpoint.Reader(newest) as reader:
        about = reader.text("about")
    layout, was = {**about["layout"], "size": 1}, about["config"]
    unheard = {**was, "method": {"name": "unheard"}}
    was = {**was, "method": {**was["method"], "meta_lr": 0.2}}
    again = [*options(**SMALL, baselines="fedavg_ft", checkpoint__every=4), "--resume", "auto"]
    before = state(folder / "run")
    shown = launch(
        folder,
        [
            ["join", folder / "run", "--data", late, "--out", folder / "amn"],
            ["join", folder / "run", "--data", late, "--out", folder / "again"],
            ["join", checkpoints / "fedavg_ft", "--data", late, "--out", folder / "fedavg_ft"],
            ["join", checkpoints / "pfedhn" / newest.name, "--data", late, "--out", folder / "pfedhn"],
            ["join", folder / "own", "--data", folder / "one.npz", "--epochs", 0, "--out", folder / "mine"],
            ["join", newest, "--data", folder / "one.npz", "--epochs", 3, "--first_epochs", 2],
            ["join", checkpoints / "fedrep", "--data", late],
            ["join", folder / "run", "--data", late, "--out", folder / "amn"],
            ["edit", checkpoints / "round-000004.h5", folder / "old" / "checkpoints", '{"federation": null}'],
            ["join", folder / "old", "--data", late],
            ["main", *again, "--out", folder / "old"],
            ["join", folder / "old", "--data", late, "--out", folder / "resumed"],
            ["edit", newest, folder / "layout", json.dumps({"layout": layout})],
            ["join", folder / "layout", "--data", late],
            ["edit", newest, folder / "another", json.dumps({"config": was})],
            ["join", folder / "another", "--data", late],
            ["edit", newest, folder / "unheard", json.dumps({"config": unheard})],
            ["join", folder / "unheard", "--data", late],
            ["edit", folder / "own" / "checkpoints" / "round-000001.h5", folder / "changed"]
            + ['{"files": {"method.name": 1}}'],
            ["join", folder / "changed", "--data", late],
            ["join", folder / "numbers", "--data", folder / "far.npz", "--out", folder / "far"],
        ],
        1,
    )
    assert state(folder / "run") == before, "the run's files were touched"
    return shown


def models(path: Path) -> np.ndarray:
    with h5py.File(path, "r") as file:
        return np.asarray(file["models"])


@pytest.mark.parametrize("name", SERVED)
def test_what_the_run_gave(folder: Path, joined: str, name: str) -> None:
    """Scores, attention and every bit of the models, from the run's last checkpoint and exported samples."""
    of_run = result(folder / "run")
    given = of_run["newcomers"] if name == "amn" else of_run["baselines"][name]["newcomers"]
    found = result(folder / name)
    given.pop("inside_concept_groups", None)  # no file tells the hidden group
    assert found["newcomers"] == given
    kept = models(folder / name / "models.h5")
    assert kept.shape == (2, of_run["parameters"]) and np.isfinite(kept).all()
    assert np.array_equal(kept, np.load(folder / f"{name}.npy"))
    assert found["models_sha256"] == hashlib.sha256(kept.tobytes()).hexdigest()


def test_the_same_command_twice(folder: Path, joined: str) -> None:
    for file in ("models.h5", "result.json"):
        assert (folder / "amn" / file).read_bytes() == (folder / "again" / file).read_bytes()


def test_what_the_result_says(folder: Path, joined: str) -> None:
    """Each newcomer's counts make the scores; whom it listens to are the largest of its mean attention."""
    found = result(folder / "amn")
    assert (found["round"], found["method"], found["seed"]) == (6, "amn", 0)
    assert found["served_from"] == str(folder / "run" / "checkpoints" / "round-000006.h5")
    with np.load(folder / "late.npz") as late:
        for number, each in enumerate(found["each"]):
            mine, attention = late["client"] == number, np.array(found["newcomers"]["attention"][number])
            assert each["test"] == late["test"][mine].sum() and each["train"] == (~late["test"][mine]).sum()
            listed = dict(map(tuple, each["listens_to"]))
            best = np.sort(attention)[::-1][:5]
            np.testing.assert_allclose(list(listed.values()), best[best >= 0.005], atol=1e-4)
            assert all(attention[client] == pytest.approx(w, abs=1e-4) for client, w in listed.items())
    percent = [100 * each["correct"]["local"]["5"] / each["test"] for each in found["each"]]
    assert found["newcomers"]["scores"]["local"]["5"]["mean_accuracy"] == pytest.approx(np.mean(percent))
    assert "newcomer 1 listens most to clients" in joined and "fitted *" in joined
    assert found["left"] == {}


def test_chosen_epochs(folder: Path, joined: str) -> None:
    """After none of them the first model is what counts; after 2 and 3, as the command said."""
    own = result(folder / "mine")
    assert list(own["newcomers"]["scores"]["finetuned"]) == ["0"] and own["each"][0]["name"] == "one"
    (table,) = [part for part in joined.split("test accuracy, %\n") if "+0: after 2 epochs from" in part]
    assert table.split()[:6] == ["model", "handed", "out", "+0", "+1", "+3"]


def test_its_models_are_inspected(folder: Path, joined: str, capsys: pytest.CaptureFixture[str]) -> None:
    found = health.examine(folder / "amn" / "models.h5")
    assert not found.damage and found.config["method"]["name"] == "amn"
    assert [part.shape for part in found.parts] == [(2, result(folder / "run")["parameters"])]
    # Of eight clients six have trained and two came later.
    for path, clients in (("amn/models.h5", 2), ("run/models.h5", 6), ("run/checkpoints/round-000006.h5", 6)):
        assert inspect.main([str(folder / path)]) == 0
        assert re.search(rf"^  clients +{clients}$", capsys.readouterr().out, re.M)


@pytest.mark.parametrize("case", REFUSED)
def test_refused(folder: Path, joined: str, case: str) -> None:
    line = REFUSED[case].format(
        run=folder / "run", old=folder / "old", file=folder / "mine.py", folder=folder
    )
    assert sum(told.startswith(line) for told in joined.splitlines()) == 1, joined
    assert not (folder / "far").exists()  # nothing was served, nothing stays


def test_an_older_checkpoint_goes_on(folder: Path, joined: str) -> None:
    """One without what newcomers need: the run ends bit for bit as it did, and has a newer one then."""
    assert result(folder / "old")["models_sha256"] == result(folder / "run")["models_sha256"]
    ours, theirs = (models(folder / name / "models.h5") for name in ("resumed", "amn"))
    assert np.array_equal(ours, theirs)


def test_on_several_ranks_and_from_sharded_models(folder: Path, joined: str) -> None:
    """More ranks than newcomers; models that were trained in columns over the ranks."""
    late = ["--data", folder / "late.npz"]
    launch(
        folder,
        [
            ["join", folder / "run", *late, "--out", folder / "five"],
            ["main", *options(**SMALL, server="sharded", out=folder / "sharded")],
            ["join", folder / "sharded", *late, "--out", folder / "columns"],
        ],
        5,
    )
    for name in ("five", "columns"):
        assert np.array_equal(models(folder / name / "models.h5"), models(folder / "amn" / "models.h5"))
        assert result(folder / name)["newcomers"] == result(folder / "amn")["newcomers"]
        left = result(folder / name)["left"]
        assert set(left) == {"parameters", "counts"}  # first models, and those that are kept
        assert left["parameters"] == 2 * models(folder / "five" / "models.h5").nbytes
    assert not list((folder / "cache").glob("newcomers*"))


def test_compare_passes_them_over(folder: Path, joined: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError, match="no finished run"):
        compare_folders([str(folder / "amn")], "", "")
    compare_folders([str(folder / "amn"), str(folder / "run")], "", "")
    assert "diverged" not in capsys.readouterr().out


# ---- which checkpoint


def checkpoints(folder: Path, rounds: list[int]) -> list[Path]:
    for round in rounds:
        with checkpoint.Writer(folder, round, {"round": round}, {}, {"w": np.arange(9000.0)}, {}):
            pass
    return [folder / checkpoint.file_name(round) for round in rounds]


def damage(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def test_the_newest_intact_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first, second, third = checkpoints(tmp_path / "checkpoints", [1, 2, 10])
    damage(third)
    before = state(tmp_path)
    with trained.opened(str(tmp_path)) as reader:
        pass
    assert reader.path == second and state(tmp_path) == before
    assert "damaged, and so not used: round-000010.h5" in capsys.readouterr().err
    damage(second)
    damage(first)
    with pytest.raises(
        UserError, match=r"no checkpoint is intact \(round-000010.h5: .*; round-000002.h5: .*; "
    ):
        trained.opened(str(tmp_path))
    with pytest.raises(UserError, match=r"round-000001.h5: is damaged: .* another checksum"):
        trained.opened(str(first))


def test_a_run_goes_on_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is found is deleted as it is read, and a newer one is there; once it is open, it may go."""
    (first,) = checkpoints(tmp_path, [1])
    verify = checkpoint.verify

    def slow(path: Path) -> checkpoint.Index:
        found = verify(path)
        if path == first:
            checkpoints(tmp_path, [2])
            first.unlink()
        return found

    monkeypatch.setattr(checkpoint, "verify", slow)
    reader = trained.opened(str(tmp_path))
    assert reader.path.name == "round-000002.h5"
    reader.path.unlink()
    assert reader.server()["w"][-1] == 8999
    reader.__exit__()


def test_what_is_no_checkpoint(tmp_path: Path) -> None:
    (whole,) = checkpoints(tmp_path / "checkpoints", [3])
    cut = tmp_path / "round-000003.h5"
    cut.write_bytes(whole.read_bytes()[:5000])
    with pytest.raises(UserError, match=r"is damaged: 5,000 bytes of \d+,\d+ are there"):
        trained.opened(str(cut))
    (tmp_path / "empty").mkdir()
    with pytest.raises(
        UserError, match=r"empty: holds no checkpoint; a run writes one every checkpoint.minutes"
    ):
        trained.opened(str(tmp_path / "empty"))
    with pytest.raises(
        ConfigError, match=r"gone: there is no such file; valid is a checkpoint, or the folder"
    ):
        trained.opened(str(tmp_path / "gone"))
    np.savez(tmp_path / "mine.npz", x=np.zeros(3))
    with pytest.raises(UserError, match=r"mine.npz: is neither a checkpoint nor a models.h5"):
        trained.opened(str(tmp_path / "mine.npz"))


def test_models_are_no_checkpoint(folder: Path) -> None:
    with pytest.raises(
        UserError, match=r"models.h5: holds the models of clients, not what the server has learnt"
    ):
        trained.opened(str(folder / "run" / "models.h5"))


def test_before_the_first_round(folder: Path, tmp_path: Path) -> None:
    (path,) = checkpoints(tmp_path, [0])
    with trained.opened(str(path)) as reader, pytest.raises(UserError, match="older version"):
        trained.of(reader, ())
    about = {"round": 0, "federation": {}}
    with checkpoint.Writer(tmp_path, 0, about, {}, {}, {}):
        pass
    with (
        trained.opened(str(path)) as reader,
        pytest.raises(UserError, match="is from before the first round"),
    ):
        trained.of(reader, ())


# ---- the command line

LINES = {
    "": "give one checkpoint; valid is CHECKPOINT --data FILE",
    "A B --data C": "give one checkpoint; valid is",
    "A": "--data is missing; valid is CHECKPOINT --data FILE",
    "A --data": "--data: a value is missing after it",
    "A --date B": "--date: unknown; valid is CHECKPOINT --data FILE [--out DIR]",
    "A --data B --epochs -1": "--epochs -1: valid is a whole number >= 0",
    "A --data B --epochs=many": "--epochs many: valid is a whole number >= 0",
    "A --data B --first_epochs 0": "--first_epochs 0: valid is a whole number >= 1",
}


@pytest.mark.parametrize("line", LINES)
def test_wrong_words(line: str) -> None:
    with pytest.raises(ConfigError) as refused:
        join.parse(line.split())
    assert str(refused.value).startswith(LINES[line])


def test_words() -> None:
    found = join.parse(["--data=b", "a", "--epochs", "2", "--device", "cpu"])
    assert found == join.Request("a", "b", "", 2, 1, ("--device", "cpu"))


def test_as_a_user_starts_it(folder: Path) -> None:
    def program(*words: object) -> subprocess.CompletedProcess[str]:
        line = [sys.executable, "-m", "amn_mpi.join", *map(str, words)]
        return subprocess.run(line, capture_output=True, text=True, env=environment(), timeout=60)

    shown = program("--help")
    assert shown.returncode == 0 and "--first_epochs" in shown.stdout
    wrong = program(folder / "run", "--data", folder / "one.npz", "--device", "gpu")
    assert wrong.returncode == 2 and "device = gpu: valid is one of auto, cpu, cuda" in one_line(wrong.stderr)
    gone = program(folder / "run" / "models.h5", "--data", folder / "one.npz")
    assert gone.returncode == 1 and "holds the models of clients" in one_line(gone.stderr)


def test_who_is_killed_leaves_no_samples_behind(folder: Path) -> None:
    """Their file goes when every rank has read its part."""
    cache = folder / "few"
    line = [
        launcher(),
        "-n",
        "3",
        sys.executable,
        "-m",
        "amn_mpi.join",
        folder / "own",
        "--data",
        folder / "late.npz",
    ]
    env = environment({"AMN_CACHE": cache, "DIES": 1})
    done = subprocess.run(list(map(str, line)), capture_output=True, text=True, env=env, timeout=60)
    assert done.returncode == 9 and "rank 0 on" in one_line(done.stderr)
    assert list(cache.iterdir()) == []


def test_no_report_of_newcomers(folder: Path, joined: str) -> None:
    with pytest.raises(UserError, match=r"amn: holds newcomers of .*round-000006.h5, and no run"):
        report.write(folder / "amn")
