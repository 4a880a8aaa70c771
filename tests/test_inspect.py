"""``python -m amn_mpi.inspect``: what it shows, what it finds damaged, what it costs."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import plain
import pytest
import yaml
from running import REPOSITORY, environment

from amn_mpi import checkpoint, health, inspect

KEYS = ("--rounds", 3, "--data.clients", 5, "--local.epochs", 1, "--checkpoint.every", 1, "--progress", "off")
NEWEST, EARLIER = "checkpoints/round-000003.h5", "checkpoints/round-000002.h5"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("inspect")
    words = (*KEYS, "--device", "cpu", "--baselines", "fedavg", "--data.cache", folder / "cache")
    plain.here(*words, "--out", folder / "run")
    return folder / "run"


@pytest.fixture
def copied(finished: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "run"))


def lines(text: str) -> dict[str, str]:
    """First word -> the rest, of the first line that begins with it."""
    words = [line.split(None, 1) for line in text.splitlines() if line.strip()]
    return {pair[0]: " ".join(" ".join(pair[1:]).split()) for pair in reversed(words)}


def look(capsys: pytest.CaptureFixture, *words: object) -> tuple[int, str, str]:
    status = inspect.main(list(map(str, words)))
    return status, *capsys.readouterr()


def flip(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 16
    path.write_bytes(data)


# ---- what is shown


def test_a_checkpoint(finished: Path, capsys: pytest.CaptureFixture) -> None:
    status, out, err = look(capsys, finished / NEWEST)
    result = json.loads((finished / "result.json").read_text())
    shown = lines(out)
    assert (status, err) == (0, "")
    assert out.startswith(f"{finished / NEWEST}: checkpoint, sound\n")
    assert shown["round"] == "3 of 3" and shown["method"] == "amn, seed 0" and shown["clients"] == "5"
    assert shown["data"] == "digits, labels dirichlet 0.5, sizes equal, concept permute"
    assert shown["parameters"] == "4,810 (mlp, 4 tensors)" and shown["engine"] == "cpu-compiled"
    assert shown["size"] == f"{(finished / NEWEST).stat().st_size:,} bytes"
    assert shown["accuracy"].startswith(f"{result['mean_accuracy']:.2f} % after round 3")
    assert shown["starts"] == "1 rank after round 0"
    assert f"torch {result['versions']['torch']}" in shown["versions"]
    assert shown["client/model"].split() == ["5", "x", "4810", "float32", "96,200", "ok", "none"]
    assert shown["server/meta"].split() == ["2", "x", "2", "float32", "16", "ok", "none"]
    assert shown["server/judged"].split() == ["5", "bool", "5", "ok", "-"]


def test_models(finished: Path, capsys: pytest.CaptureFixture) -> None:
    status, out, _ = look(capsys, finished / "models.h5")
    shown = lines(out)
    with h5py.File(finished / "models.h5") as file:
        norms = np.linalg.norm(file["models"][()].astype(float), axis=1)
    assert status == 0 and ": models, sound\n" in out
    assert (shown["clients"], shown["round"]) == ("5", "3 of 3")
    assert shown["classes"] == "10: " + ", ".join(map(str, range(10)))
    assert shown["input"] == "1 x 8 x 8, as x * 0.166223 + -0.811968"
    told = [float(text.split()[1]) for text in shown["norms"].removesuffix(" over the clients").split(", ")]
    assert told == pytest.approx([norms.min(), norms.mean(), norms.max()], rel=1e-3)


def test_a_run_folder(finished: Path, capsys: pytest.CaptureFixture) -> None:
    status, out, _ = look(capsys, finished)
    shown = lines(out)
    assert status == 0 and out.startswith(f"{finished / NEWEST}: checkpoint, sound\n")
    others = [EARLIER, "models.h5", *(f"checkpoints/fedavg/round-00000{k}.h5" for k in (2, 3))]
    assert all(shown[name].endswith(" ok") for name in others)
    assert NEWEST not in shown


def test_the_folder_of_the_checkpoints(finished: Path, capsys: pytest.CaptureFixture) -> None:
    status, out, _ = look(capsys, finished / "checkpoints" / "fedavg")
    assert status == 0 and "checkpoints/fedavg/round-000003.h5: checkpoint, sound" in out


def write(folder: Path, values: np.ndarray, history: dict | None = None, left: object = None) -> Path:
    """A checkpoint of round 7 with one state of two clients."""
    config = yaml.safe_load((REPOSITORY / "configs" / "default.yaml").read_text())
    about = {"config": {"seed": 1, "rounds": 9, **config}, "layout": {"size": 3, "tensors": []}}
    about |= {"engine": "cpu-torch", "versions": {}, "round": 7, "open": left}
    history = history or {"rounds": [], "starts": []}
    with checkpoint.Writer(folder, 7, about, history, {}, {"model": (values.shape, values.dtype)}) as writer:
        writer.put(values)
    return folder / checkpoint.file_name(7)


def test_nan_and_inf_are_counted_and_placed(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    values = np.ones((4, 3), np.float32)
    values[1, 0], values[3] = np.nan, np.inf
    status, out, _ = look(capsys, write(tmp_path, values))
    assert status == 0 and "\n  client/model: NaN or Inf at client 1, 3\n" in out
    assert "1 NaN, 3 Inf" in out


def test_what_history_tells(tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    rows = [
        {"round": 1, "mean_accuracy": 50.0, "worst10": 9.0, "diverged": [3]},
        {"round": 2, "diverged": [1]},
    ]
    starts = [{"after_round": 0, "ranks": 3}, {"after_round": 1, "ranks": 1}]
    path = write(tmp_path, np.ones((2, 3)), {"rounds": rows, "starts": starts}, left={"figures": {}})
    shown = lines(look(capsys, path)[1])
    assert shown["accuracy"] == "50.00 % after round 1, worst tenth 9.00 %"
    assert shown["starts"] == "3 ranks after round 0, 1 rank after round 1"
    assert shown["diverged"] == "client 1, 3" and shown["left"] == "open the evaluation of round 7"


# ---- what differs


def test_differences_to_everything(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    same = [finished / name for name in (EARLIER, "config.yaml", "models.h5", "")]
    for other in same:
        status, out, _ = look(capsys, finished / NEWEST, other)
        assert status == 0 and "the same configuration as" in out, other
    _, out, _ = look(capsys, finished / "models.h5", finished / "checkpoints" / "fedavg")
    shown = lines(out)
    assert shown["method.name"].split() == ["amn", "fedavg"] and shown["method.tau"].split() == ["8.0", "-"]
    (tmp_path / "own.yaml").write_text("local: {lr: 1}\nrounds: 3\n")
    shown = lines(look(capsys, finished / NEWEST, tmp_path / "own.yaml")[1])
    assert shown["local.lr"].split() == ["0.05", "1.0"] and shown["out"].split()[1] == '""'
    assert "rounds" not in shown and shown["data.clients"].split() == ["5", "32"]


def test_other_is_damaged_or_wrong(copied: Path, capsys: pytest.CaptureFixture) -> None:
    flip(copied / EARLIER, -5)
    status, out, err = look(capsys, copied / NEWEST, copied / EARLIER)
    assert (status, err) == (1, "") and "another checksum" in out and "differences" not in out
    (copied / "wrong.yaml").write_text("locl: {lr: 1}\n")
    status, _, err = look(capsys, copied / NEWEST, copied / "wrong.yaml")
    assert status == 2 and "unknown key" in err


# ---- damage


@pytest.mark.parametrize("name", [NEWEST, "models.h5"])
def test_damage_anywhere(
    copied: Path, name: str, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bytes flipped all over the file, and cut short: said, without HDF5 and without a traceback."""
    path, whole = copied / name, (copied / name).read_bytes()
    block = checkpoint.index(path, health.kind_of(path)[0]).block
    used = whole[:block].rstrip()
    monkeypatch.setattr(h5py, "File", None)
    draw = np.random.default_rng(0)
    for at in [*draw.integers(0, len(used), 20), *draw.integers(block, len(whole), 40)]:
        path.write_bytes(whole)
        flip(path, int(at))
        status, out, err = look(capsys, path)
        assert (status, err) == (1, "") and "\n  damaged: " in out, at
    for length in [0, 1, *draw.integers(1, len(whole), 10)]:
        path.write_bytes(whole[:length])
        status, out, err = look(capsys, path)
        assert (status, err) == (1, "") and "\n  damaged: " in out, length
    path.write_bytes(bytes(len(whole)))  # what a file system may leave after a power cut
    assert look(capsys, path)[0] == 1


def test_which_data_set_is_damaged(copied: Path, capsys: pytest.CaptureFixture) -> None:
    path = copied / NEWEST
    flip(path, checkpoint.index(path).data["client/model"][0].offset + 100)
    status, out, _ = look(capsys, copied)
    shown = lines(out)
    assert status == 1 and "damaged: client/model: another checksum" in out
    assert shown["client/model"].split() == ["-", "-", "96,200", "damaged", "-"]
    assert shown["client/hybrid"].split() == ["-", "-", "96,200", "ok", "-"]
    assert shown[EARLIER].endswith(" ok")


def test_an_older_checkpoint_is_damaged(copied: Path, capsys: pytest.CaptureFixture) -> None:
    flip(copied / "checkpoints" / "fedavg" / "round-000002.h5", -1)
    status, out, _ = look(capsys, copied)
    assert status == 1 and f"{NEWEST}: checkpoint, sound" in out
    assert "damaged: " in lines(out)["checkpoints/fedavg/round-000002.h5"]


# ---- what cannot be inspected


def test_not_ours(finished: Path, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    with h5py.File(tmp_path / "own.h5", "w") as file:
        file["x"] = np.ones(3)
    (tmp_path / "empty").mkdir()
    for path, told in (
        (finished / "config.yaml", "is neither a checkpoint nor a models.h5"),
        (finished / "none.h5", "cannot be read: No such file"),
        (tmp_path / "own.h5", "is HDF5 without the first line"),
        (tmp_path / "empty", "holds no checkpoints"),
    ):
        status, out, err = look(capsys, path)
        assert (status, out) == (2, "") and str(path) in err and told in err and err.count("\n") == 1
    for words in ((), ("a", "b", "c"), ("--all",)):
        status, out, err = look(capsys, *words)
        assert (status, out) == (2, "") and "valid is FILE [OTHER]" in err


def test_another_version(
    tmp_path: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(checkpoint, "FORMAT", 2)
        path = write(tmp_path, np.ones((2, 3)))
    status, out, err = look(capsys, path)
    assert (status, out) == (2, "") and "is in format 2" in err


def test_help_and_a_reader_who_leaves(finished: Path) -> None:
    command = f"{sys.executable} -m amn_mpi.inspect"
    done = subprocess.run([*command.split(), "--help"], capture_output=True, text=True, env=environment())
    assert done.returncode == 0 and "FILE [OTHER]" in done.stdout
    shell = f"set -o pipefail; {command} {finished} | head -1"
    done = subprocess.run(["bash", "-c", shell], capture_output=True, text=True, env=environment())
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.count("\n") == 1


# ---- what it costs


def test_memory_of_a_large_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 64 MB, 512 MB in all; and neither torch nor MPI is imported."""
    sparse = checkpoint.Writer._write
    monkeypatch.setattr(
        checkpoint.Writer,
        "_write",
        lambda self, at, data: sparse(self, at, data) if any(data[:999]) else None,
    )
    clients, size, piece = 8, 2**24, np.zeros(2**21, np.float32)
    path = write(tmp_path, np.ones((2, 3)))
    with checkpoint.Reader(path) as reader:
        about = reader.text("about")
    shape = {"model": ((clients, size), piece.dtype)}
    with checkpoint.Writer(tmp_path, 8, about, {"rounds": [], "starts": []}, {}, shape) as writer:
        for _ in range(clients * size // piece.size):
            writer.put(piece)
    script = (
        "import sys; from amn_mpi import inspect; status = inspect.main(sys.argv[1:])\n"
        "assert not {'torch', 'mpi4py'} & set(sys.modules)\n"
        "print(*(line for line in open('/proc/self/status') if 'VmHWM' in line)); sys.exit(status)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "round-000008.h5"), str(path)],
        capture_output=True,
        text=True,
        env=environment(),
    )
    assert done.returncode == 0, done.stderr
    assert "536,870,912" in done.stdout
    assert int(lines(done.stdout)["VmHWM:"].split()[0]) < 200_000  # kB; half of it are the libraries


def test_models_of_a_large_row_have_exact_norms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(health, "PIECE", 64)
    values = np.random.default_rng(0).normal(size=(3, 50)).astype(np.float32)
    with h5py.File(tmp_path / "models.h5", "w") as file:
        file["models"] = values
        norms = health._values("models", file["models"], tmp_path / "models.h5")["norms"]
    assert norms == pytest.approx(np.linalg.norm(values.astype(float), axis=1), rel=1e-12)
