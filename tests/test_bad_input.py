"""What a person can get wrong, and what the machine can: one clear line, a status, no hang."""

from __future__ import annotations

import gzip
import io
import os
import shutil
import signal
import struct
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import numpy as np
import plain
import pytest
from running import end, one_line, result, run, start, wait_for

from amn_mpi.errors import UserError

SMALL = ("--data.clients", 4, "--local.epochs", 1, "--progress", "off")
SCRIPTS = Path(__file__).resolve().parent / "scripts"
ENDLESS = (*SMALL, "--rounds", 100000, "--evaluate.every", 1000000)


@pytest.fixture
def env(tmp_path: Path) -> dict[str, Path]:
    return {"AMN_CACHE": tmp_path / "cache"}


@pytest.fixture(autouse=True)
def same_cache(env: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """For runs in this process, too; and none of them finds a user's data."""
    monkeypatch.setenv("AMN_CACHE", str(env["AMN_CACHE"]))
    monkeypatch.delenv("AMN_DATA", raising=False)


def refused(tmp_path: Path, *args: object, status: int = 2) -> str:
    """The line with which a run refuses to start; it says nothing else, leaves no folder and no cache file.

    In this process; ``test_a_refusal_as_a_user_sees_it`` shows what becomes of such a line.
    """
    out, cache, said = tmp_path / "out", tmp_path / "cache", io.StringIO()
    with pytest.raises(UserError) as caught, redirect_stdout(said), redirect_stderr(said):
        plain.here(*args, "--out", out)
    line = str(caught.value)
    assert "\n" not in line and caught.value.status == status, line
    assert said.getvalue() == ""
    assert not out.exists()
    assert not list(cache.glob("*.tmp"))
    return line


def yaml_file(folder: Path, text: str) -> Path:
    (folder / "my.yaml").write_text(text)
    return folder / "my.yaml"


def has(line: str, *words: str) -> None:
    assert [word for word in words if word not in line] == [], line


# ---- keys and values


KEYS = [
    ("--nosuch 1", ("nosuch: unknown key", "command line", "seed, rounds")),
    ("--local.lrr 1", ("local.lrr", "did you mean local.lr?", "local.momentum")),
    ("--local.lr abc", ("local.lr = abc", "a number > 0")),
    ("--local.lr nan", ("local.lr = nan", "a number > 0")),
    ("--rounds 1.5", ("rounds = 1.5", "a whole number >= 1")),
    ("--rounds 0", ("rounds = 0", ">= 1")),
    ("--rounds --seed 1", ("--rounds", "a value is missing")),
    ("--data.name=", ("data.name = :", "valid are digits", "a folder of clients' files")),
    ("--data.alpha 0", ("data.alpha = 0", ">= 1e-06")),
    ("--cohort 1.5", ("cohort = 1.5", "<= 1")),
    ("--threads 1000000", ("threads = 1000000", "<= 1024")),
    ("--model.name vgg", ("model.name = vgg", "linear, mlp, cnn")),
    ("--method.name nosuch", ("method.name = nosuch", "amn, local, fedavg")),
    (
        "--method.name fedavg --method.tau 3",
        ("method.tau", "unknown key", "belongs to method.name = amn;", "valid are method.name"),
    ),
    (
        "--method.name fedprox --method.prior 1",
        ("method.prior", "unknown key", "belongs to method.name = amn or fedavg or fedavg_ft;"),
    ),
    (
        "--method.personal_epochs 3",
        ("method.personal_epochs: unknown key", "belongs to method.name = ditto", "valid are method.name"),
    ),
    ("--baselines local,nosuch", ("baselines = local,nosuch", "nosuch", "amn, local")),
    ("--config nosuch.yaml", ("--config nosuch.yaml", "no such file", "known by name", "default")),
    ("--data.name nosuch", ("data.name = nosuch", "digits, mnist")),
    ("rounds=3", ("rounds=3", "--key value")),
]

FILES = [
    ("nosuch: 1", ("nosuch: unknown key", "my.yaml", "seed, rounds")),
    ("local:\n  lrr: 1", ("local.lrr: unknown key", "my.yaml", "local.lr?")),
    ("local: {lr: {a: 1}}", ("local.lr.a: unknown key", "my.yaml")),
    ("local:\n  lr: abc", ("local.lr = abc", "a number > 0")),
    ("rounds:", ("rounds = null", "a whole number")),
    ("method: ditto", ("method: unknown key", "did you mean method.name?")),
    ("method:\n  name: [amn]", ("method.name = ['amn']", "amn, local")),
    ("method:\n  name: local\n  tau: 3", ("method.tau: unknown key", "my.yaml")),
    ("a: [1,\n b: {", ("my.yaml", "cannot be read as YAML", "line 2")),
    ("- 1", ("my.yaml", "holds list", "key: value")),
]


@pytest.mark.parametrize(("args", "words"), KEYS)
def test_keys_and_values_that_are_not_valid(tmp_path: Path, args: str, words: tuple[str, ...]) -> None:
    has(refused(tmp_path, *args.split()), *words)


@pytest.mark.parametrize(("text", "words"), FILES)
def test_yaml_that_is_not_valid(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    has(refused(tmp_path, "--config", yaml_file(tmp_path, text)), *words)


SEEN = [
    (0, ("--local.lrr", 1), 2, ("local.lrr", "did you mean local.lr?")),
    (3, ("--local.lrr", 1), 2, ("local.lrr", "did you mean local.lr?")),
    (3, ("--model.name", "cnn"), 2, ("model.name = cnn", "16x16", "(1, 8, 8)")),
    (0, ("--config", f"{'x' * 300}.yaml"), 1, ("x.yaml: File name too long",)),
    (0, ("--data.name", "my.npz"), 1, ("data.name = my.npz", "no such file")),
]


@pytest.mark.parametrize(("ranks", "args", "status", "words"), SEEN)
def test_a_refusal_as_a_user_sees_it(
    tmp_path: Path,
    env: dict[str, Path],
    ranks: int,
    args: tuple[object, ...],
    status: int,
    words: Sequence[str],
) -> None:
    """One line and a status, also on three ranks."""
    done = run(*args, "--out", tmp_path / "out", ranks=ranks, env=env)
    line = one_line(done.stderr)
    assert line.startswith("amn_mpi: ")
    has(line, *words)
    assert (done.returncode, done.stdout) == (status, "")
    assert not (tmp_path / "out").exists() and not list(tmp_path.glob("cache/*.tmp"))


# ---- data


def test_data_set_that_is_not_there(tmp_path: Path) -> None:
    root = tmp_path / "empty"
    root.mkdir()
    line = refused(tmp_path, "--data.name", "cifar10", "--data.root", root, status=1)
    has(line, "data.name = cifar10", "data_batch_1.bin", f"looked in: {root}", "data.root")
    has(refused(tmp_path, "--data.name", "my.npz", status=1), "data.name = my.npz", "no such file")


def write_mnist(root: Path, cut: int = 0) -> None:
    for part, count in (("train", 30), ("t10k", 10)):
        images = bytes([0, 0, 8, 3]) + struct.pack(">3I", count, 28, 28) + bytes(count * 784)
        labels = bytes([0, 0, 8, 1]) + struct.pack(">I", count) + bytes(k % 10 for k in range(count))
        whole = images[: len(images) - cut] if part == "train" else images
        (root / f"{part}-images-idx3-ubyte").write_bytes(whole)
        (root / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))


def test_idx_file_that_is_cut(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    root.mkdir()
    write_mnist(root, cut=100)
    line = refused(tmp_path, "--data.name", "mnist", "--data.root", root, status=1)
    has(line, "train-images-idx3-ubyte", "expected 23536 bytes", "found 23436")


def test_cifar_file_of_the_wrong_length(tmp_path: Path) -> None:
    root = tmp_path / "cifar-10-batches-bin"
    root.mkdir()
    for name in [*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin"]:
        (root / name).write_bytes(bytes(3073 * 4))
    (root / "data_batch_2.bin").write_bytes(bytes(3073 * 4 - 7))
    line = refused(tmp_path, "--data.name", "cifar10", "--data.root", tmp_path, status=1)
    has(line, "data_batch_2.bin", str(3073 * 4 - 7), "3073")


TOO_MUCH = [
    ("--data.labels classes --data.classes_per_client 11", ("classes_per_client = 11", "10 classes")),
    ("--data.clients 100000", ("data.clients = 100000", "1797 samples")),
    ("--data.train_per_client 5", ("data.train_per_client = 5", "data.min_samples = 10")),
    ("--model.name cnn", ("model.name = cnn", "16x16", "(1, 8, 8)", "linear, mlp")),
    (f"--model.hidden {10**18}", ("model.hidden = 1000000000000000000",)),
]


@pytest.mark.parametrize(("args", "words"), TOO_MUCH)
def test_more_than_the_data_can_give(tmp_path: Path, args: str, words: tuple[str, ...]) -> None:
    has(refused(tmp_path, *args.split()), *words)


# ---- folders and disks


def bound_by_modes() -> list[str]:
    """A command under which file modes bind root too (nothing for other users)."""
    if os.getuid() != 0:
        return []
    under = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all"]
    if not shutil.which("setpriv") or subprocess.run([*under, "true"], capture_output=True).returncode:
        pytest.skip("root may write everywhere, and setpriv cannot take that away here")
    return under


def test_folders_that_cannot_be_written(tmp_path: Path, env: dict[str, Path]) -> None:
    under = bound_by_modes()
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    done = run(*SMALL, "--out", closed / "run", env=env, under=under)
    assert done.returncode == 1
    has(one_line(done.stderr), f"out = {closed}/run", "cannot be written", "Permission denied")
    what = ("--out", tmp_path / "out", "--data.cache", closed / "cache")
    done = run(*SMALL, *what, env=env, under=under)
    assert done.returncode == 1
    has(one_line(done.stderr), f"data.cache = {closed}/cache", "Permission denied")
    assert list(closed.iterdir()) == []


def test_out_that_holds_a_run(tmp_path: Path) -> None:
    what = (*SMALL, "--rounds", 1, "--out", tmp_path / "out")
    plain.here(*what)
    before = sorted(p.name for p in (tmp_path / "out").iterdir())
    with pytest.raises(UserError) as again:
        plain.here(*what)
    assert again.value.status == 1
    has(str(again.value), f"out = {tmp_path}/out", "holds a run already", "result.json")
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == before


def test_a_run_that_did_not_start_does_not_block_its_folder(tmp_path: Path, env: dict[str, Path]) -> None:
    refused(tmp_path, "--data.name", "nosuch.npz", status=1)
    what = (*SMALL, "--rounds", 1, "--out", tmp_path / "out")
    done = run(*what, "--device", "cuda", ranks=3, env={**env, "CUDA_VISIBLE_DEVICES": ""})
    assert done.returncode == 2
    has(one_line(done.stderr), "device = cuda", "valid are auto, cpu")
    plain.here(*what)
    assert result(tmp_path / "out")["rounds"] == 1


def test_out_that_another_run_uses(tmp_path: Path, env: dict[str, Path]) -> None:
    what = (*ENDLESS, "--out", tmp_path / "out")
    first = start(*what, env=env)
    try:
        wait_for(tmp_path / "out" / "metrics.jsonl", 1, first)
        with pytest.raises(UserError) as second:
            plain.here(*what)
    finally:
        first.send_signal(signal.SIGTERM)
        ended = end(first, 10)
    assert second.value.status == 1
    has(str(second.value), f"out = {tmp_path}/out", "another run is writing there now")
    assert ended.returncode == 75


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a small file system: {mounted.stderr.strip()}")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


def test_disk_that_is_full_for_the_data(tmp_path: Path, tiny_disk: Path) -> None:
    x = np.random.default_rng(0).integers(0, 256, (2000, 32, 32), dtype=np.uint8)
    np.savez(tmp_path / "big.npz", x=x, y=np.arange(2000) % 10)
    what = ("--data.name", tmp_path / "big.npz", "--data.cache", tiny_disk / "cache")
    line = refused(tmp_path, *SMALL, *what, status=1)
    has(line, f"data.cache = {tiny_disk}/cache", "No space left on device", "2.1 MB")
    assert list((tiny_disk / "cache").iterdir()) == []


def test_disk_that_is_full_for_the_models(tmp_path: Path, tiny_disk: Path, env: dict[str, Path]) -> None:
    """100 clients of 30 kB each; the metrics still fit."""
    out = tiny_disk / "out"
    what = ("--data.clients", 100, "--model.hidden", 100, "--local.epochs", 1, "--rounds", 1)
    done = run(*what, "--progress", "off", "--out", out, env=env, ranks=3)
    assert done.returncode == 1
    warning, error = done.stderr.splitlines()
    has(warning, "warning", f"{out}/checkpoints", "round 1: No space left on device", "there is none yet")
    has(error, f"{out}/models.h5", "cannot be written", "No space left on device")
    is_left_by_a_full_disk(out)


def test_disk_that_is_full_for_the_models_of_one_rank(
    tiny_disk: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tiny_disk / "out"
    what = ("--data.clients", 100, "--model.hidden", 100, "--local.epochs", 1, "--rounds", 1)
    with pytest.raises(UserError) as caught:
        plain.here(*what, "--progress", "off", "--out", out)
    has(one_line(capsys.readouterr().err), "warning", f"{out}/checkpoints", "there is none yet")
    has(str(caught.value), f"{out}/models.h5", "cannot be written", "No space left on device")
    is_left_by_a_full_disk(out)


def is_left_by_a_full_disk(out: Path) -> None:
    """Nothing half-written."""
    assert {p.name for p in out.iterdir()} == {"config.yaml", "metrics.jsonl", "checkpoints", "attention"}
    assert list((out / "checkpoints").iterdir()) == []


def test_disk_that_is_full_for_the_metrics(tiny_disk: Path) -> None:
    with open(tiny_disk / "full", "wb", buffering=0) as file, pytest.raises(OSError):
        for _ in range(300):
            file.write(bytes(4096))
            os.fsync(file.fileno())
    with pytest.raises(UserError) as caught:
        plain.here(*SMALL, "--rounds", 1, "--out", tiny_disk / "out")
    assert caught.value.status == 1
    has(str(caught.value), f"{tiny_disk}/out/", "cannot be written", "No space left on device")


# ---- ranks


@pytest.mark.parametrize("variable", ["OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "SLURM_STEP_NUM_TASKS"])
def test_launcher_of_another_mpi(tmp_path: Path, variable: str) -> None:
    done = run(*SMALL, "--out", tmp_path / "out", env={variable: 4})
    assert done.returncode == 2
    has(one_line(done.stderr), "4 ranks", variable, "do not belong together", "Library: ")
    assert not (tmp_path / "out").exists()


def broken(tmp_path: Path, how: str, *args: object) -> tuple[subprocess.CompletedProcess[str], float]:
    """A run on three ranks whose rank 2 goes wrong in its first training; seconds it then takes."""
    mark = tmp_path / "mark"
    process = start(
        *SMALL, "--rounds", 3, "--out", tmp_path / "out", *args,
        ranks=3, script=SCRIPTS / "broken.py",
        env={"AMN_CACHE": tmp_path / "cache", "HOW": how, "MARK": mark},
    )  # fmt: skip
    done = end(process, 60)
    took = time.time() - mark.stat().st_mtime
    assert done.returncode != 0
    assert not (tmp_path / "out" / "result.json").exists()
    return done, took


def test_an_exception_on_one_rank_is_told_once_and_ends_all(tmp_path: Path) -> None:
    done, took = broken(tmp_path, "raise")
    assert done.returncode == 1
    assert took < 10
    assert done.stderr.count("Traceback (most recent call last)") == 1
    assert done.stderr.count("amn_mpi: error on rank 2 (") == 1
    assert done.stderr.rstrip().endswith("ZeroDivisionError: broken on purpose")


def test_no_memory_on_one_rank_is_one_line(tmp_path: Path) -> None:
    done, took = broken(tmp_path, "memory")
    assert took < 10
    has(one_line(done.stderr), "out of memory on rank 2 (", "--dry_run")


@pytest.mark.alone
def test_a_rank_that_hangs_is_named(tmp_path: Path) -> None:
    done, took = broken(tmp_path, "hang", "--comm.timeout", 5)
    assert took < 15
    has(one_line(done.stderr), "rank 2 hangs", "comm.timeout = 5")


# ---- questions


def test_help_has_one_line_per_key() -> None:
    from amn_mpi import methods
    from amn_mpi.config import all_keys

    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for key in all_keys(methods.options("amn")):
        assert sum(line.split()[:1] == [f"--{key}"] for line in done.stdout.splitlines()) == 1, key


def test_print_config_can_be_used_as_a_config(tmp_path: Path) -> None:
    what = ("--method.name", "fedavg", "--data.clients", 7, "--local.lr", 1e-4, "--data.concept", "none")
    first = run(*what, "--print_config")
    assert (first.returncode, first.stderr) == (0, "")
    second = run("--config", yaml_file(tmp_path, first.stdout), "--print_config")
    assert second.stdout == first.stdout
    has(first.stdout, "clients: 7", "concept: none", "name: fedavg")


@pytest.mark.parametrize("ranks", [0, 3])
def test_dry_run_writes_nothing(tmp_path: Path, ranks: int) -> None:
    work = tmp_path / "work"
    work.mkdir()
    env = {"AMN_CACHE": tmp_path / "cache", "HOME": tmp_path / "home"}
    done = run("--dry_run", "--data.clients", 6, ranks=ranks, env=env, cwd=work)
    assert (done.returncode, done.stderr) == (0, "")
    has(done.stdout, "clients: 6", "concept group", "digits: 6 clients", "4,810 parameters")
    assert list(tmp_path.rglob("*")) == [work]


def test_dry_run_refuses_what_a_run_would_refuse(tmp_path: Path) -> None:
    has(refused(tmp_path, "--dry_run", "--model.name", "cnn"), "model.name = cnn", "16x16")
