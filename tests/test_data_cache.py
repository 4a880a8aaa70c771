"""The prepared file: when it is used again, and that nothing half-done stays."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import zlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_data_helpers import forget_folders, listing, settings, write_marked

from amn_mpi import hdf5
from amn_mpi.config import Data
from amn_mpi.data import ClientData, cache, load_clients, prepare
from amn_mpi.data.federation import plan
from amn_mpi.data.raw import Raw
from amn_mpi.errors import UserError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_folders(monkeypatch)


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    return write_marked(tmp_path)


# When it is used again


def test_the_content_is_told_by_a_number(marked: Path) -> None:
    """A run that goes on has to know whether its data are still the same, whatever path and labels say."""
    before = prepare(settings(marked), 0)
    raw = dict(np.load(marked))
    np.savez(marked.with_name("copy.npz"), **raw)
    raw["x"] = raw["x"].copy()
    raw["x"].reshape(-1)[5] += 1
    np.savez(marked, **raw)
    after = prepare(settings(marked), 0)
    assert before.path != after.path and before.content != after.content
    assert np.array_equal(before.train_counts, after.train_counts)
    assert prepare(settings(marked.with_name("copy.npz")), 0).content == before.content


def test_a_second_run_uses_the_file(marked: Path) -> None:
    first = prepare(settings(marked), 0)
    before = os.stat(first.path)
    again = prepare(settings(marked), 0)
    after = os.stat(again.path)
    assert (before.st_ino, before.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert again.path == first.path and again.x_offset == first.x_offset


CHANGED = {
    "clients": 5,
    "train_per_client": 30,
    "test_per_client": 9,
    "test_fraction": 0.3,
    "min_samples": 11,
    "labels": "iid",
    "alpha": 0.7,
    "classes_per_client": 2,
    "label_groups": 3,
    "sizes": "lognormal",
    "sigma": 0.9,
    "concept": "permute",
    "concept_groups": 3,
    "split": "letters",
}


def test_every_key_of_the_section_is_tried() -> None:
    # validation and unseen are applied to what is in the cache
    assert set(CHANGED) | {"name", "root", "cache", "validation", "unseen"} == set(Data.__dataclass_fields__)


@pytest.mark.parametrize("key", CHANGED)
def test_another_value_gives_another_file(marked: Path, key: str) -> None:
    data = settings(marked)
    assert prepare(data, 0).path != prepare(replace(data, **{key: CHANGED[key]}), 0).path


def test_another_seed_or_a_changed_source_gives_another_file(marked: Path) -> None:
    data = settings(marked)
    paths = [prepare(data, 0).path, prepare(data, 1).path]
    os.utime(marked, ns=(1, 1))
    paths.append(prepare(data, 0).path)
    assert len(set(paths)) == 3


def test_where_the_file_goes(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(marked.parent / "home"))
    data = settings(marked, cache="")
    assert Path(prepare(data, 0).path).parent == marked.parent / "home/.cache/amn_mpi"
    monkeypatch.setenv("AMN_CACHE", str(marked.parent / "env"))
    assert Path(prepare(data, 0).path).parent == marked.parent / "env"
    assert Path(prepare(settings(marked), 0).path).parent == marked.parent / "cache"


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _other_format(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file.attrs["format"] = 0


def _changed_label(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        file["y"][3] = 77


def _no_index(path: Path) -> None:
    with h5py.File(path, "r+") as file:
        del file["index/train_counts"]


@pytest.mark.parametrize("harm", [_cut, _empty, _other_format, _changed_label, _no_index])
def test_a_damaged_file_is_written_again(marked: Path, harm: object) -> None:
    path = Path(prepare(settings(marked), 0).path)
    good = path.read_bytes()
    harm(path)
    assert path.read_bytes() != good
    assert prepare(settings(marked), 0).path == str(path)
    assert path.read_bytes() == good and listing(str(path.parent)) == [path.name]


def test_two_runs_that_start_together(marked: Path) -> None:
    code = (
        "import sys, time; from amn_mpi.config import Data; from amn_mpi.data import prepare\n"
        "print('ready', flush=True); sys.stdin.readline()\n"
        f"print(prepare(Data(name={str(marked)!r}, cache={str(marked.parent / 'c')!r},"
        " clients=6, concept='rotate'), 0).path)"
    )
    runs = [
        subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        for _ in range(2)
    ]
    for run in runs:
        assert run.stdout.readline() == "ready\n"
    for run in runs:
        run.stdin.write("go\n")
        run.stdin.flush()
    paths = [run.communicate(timeout=60)[0].strip() for run in runs]
    assert [run.returncode for run in runs] == [0, 0] and paths[0] == paths[1]
    assert listing(str(marked.parent / "c")) == [Path(paths[0]).name]
    alone = prepare(settings(marked, concept="rotate"), 0).path
    assert zlib.crc32(Path(alone).read_bytes()) == zlib.crc32(Path(paths[0]).read_bytes())


# When it cannot be written or read


def test_cache_folder_that_cannot_be_made(marked: Path) -> None:
    with pytest.raises(UserError, match="cannot write the prepared data .*Not a directory") as e:
        prepare(settings(marked, cache=str(marked / "inside")), 0)
    assert "data.cache" in str(e.value) and "\n" not in str(e.value)


@pytest.fixture
def small_disk(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """A real file system of so many kilobytes."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={request.param}k", "tmpfs", str(folder)]
    try:
        subprocess.run(mount, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"a small disk cannot be mounted here: {error}")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


# 4 kB: not even the file's head fits, over which HDF5 would crash; 64 kB: the rows do not fit.
@pytest.mark.parametrize("small_disk", [4, 64], indirect=True)
def test_full_disk(small_disk: Path, tmp_path: Path) -> None:
    """In a process of its own, to see that HDF5 does not complain again when Python ends."""
    np.savez(tmp_path / "big.npz", x=np.ones((2000, 16, 16), np.uint8), y=np.arange(2000) % 4)
    code = (
        "from amn_mpi.config import Data; from amn_mpi.data import prepare\n"
        "from amn_mpi.errors import UserError\n"
        f"data = Data(name={str(tmp_path / 'big.npz')!r}, cache={str(small_disk)!r})\n"
        "try: prepare(data, 0)\n"
        "except UserError as error: print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and done.stderr == ""
    assert done.stdout.count("\n") == 1 and "No space left on device" in done.stdout
    assert str(small_disk) in done.stdout and "data.cache" in done.stdout
    assert listing(str(small_disk)) == []


def test_the_file_is_laid_out_without_its_samples(marked: Path) -> None:
    """Or a large pool would be held in memory twice."""
    source = np.load(marked)
    raw = Raw(np.zeros((600, 1, 200, 200), np.uint8), source["y"], list("abcdef"))
    made = plan(raw, settings(marked), 0)
    image = hdf5.lay_out(lambda file, image: cache._fill(file, image, made, raw.x))
    assert sum(len(piece) for _, piece in image.pieces()) < 100_000
    assert image.places["x"].nbytes == raw.x[:1].nbytes * len(made.y)


def test_interrupt_leaves_nothing(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(cache.concept, "rotate", stop)
    with pytest.raises(KeyboardInterrupt):
        prepare(settings(marked, concept="rotate"), 0)
    assert listing(str(marked.parent / "cache")) == []


def test_failed_sync_leaves_nothing(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(UserError, match="Input/output error"):
        prepare(settings(marked), 0)
    assert listing(str(marked.parent / "cache")) == []


def test_a_rank_that_does_not_see_the_file(marked: Path) -> None:
    found = replace(prepare(settings(marked), 0), path="/not/here/c.h5")
    with pytest.raises(UserError, match="data.cache.*No such file.*all hosts see") as caught:
        load_clients(found, [0])
    assert "\n" not in str(caught.value)


def test_a_file_cut_after_it_was_prepared(marked: Path) -> None:
    found = prepare(settings(marked), 0)
    path = Path(found.path)
    path.write_bytes(path.read_bytes()[: found.x_offset + 20])
    with pytest.raises(UserError, match="ends early"):
        load_clients(found, [5])


def test_a_client_that_is_not_there(marked: Path) -> None:
    found = prepare(settings(marked), 0)
    for client in (6, -1):
        with pytest.raises(IndexError):
            load_clients(found, [client])
    assert isinstance(load_clients(found, [5])[0], ClientData)
