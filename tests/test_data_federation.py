"""The prepared file: what lies in it and what each client reads from it."""

from __future__ import annotations

import pickle
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
from test_data_helpers import forget_folders, settings, write_marked

from amn_mpi.data import Federation, cache, describe, load_clients, prepare
from amn_mpi.errors import ConfigError

ROOT = Path(__file__).parents[1]


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_folders(monkeypatch)


@pytest.fixture
def marked(tmp_path: Path) -> Path:
    return write_marked(tmp_path)


def number(x: np.ndarray) -> np.ndarray:
    """The number of each marked image as loaded, (n, 1, 4, 4) in -1..1."""
    pixels = np.rint((x[:, 0, 0, :2] + 1) * 127.5).astype(int)
    return pixels[:, 0] * 256 + pixels[:, 1]


def test_clients_get_their_own_rows(marked: Path) -> None:
    found = prepare(settings(marked), 0)
    source = np.load(marked)
    seen = []
    for i, client in enumerate(load_clients(found, range(6))):
        assert client.x_train.shape == (found.train[i], 1, 4, 4)
        assert client.x_test.shape == (found.test[i], 1, 4, 4)
        for x, y in ((client.x_train, client.y_train), (client.x_test, client.y_test)):
            numbers = number(x)
            assert x.dtype == np.float32 and x.flags["C_CONTIGUOUS"] and y.dtype == np.int64
            assert np.allclose(x[:, 0], source["x"][numbers] * (2 / 255) - 1, atol=1e-6)
            assert np.array_equal(y, source["y"][numbers])
            seen += numbers.tolist()
        assert np.bincount(client.y_train, minlength=6).tolist() == found.train_counts[i].tolist()
    assert len(seen) == len(set(seen)) == 600


def test_one_client_is_read_alone(marked: Path) -> None:
    found = prepare(settings(marked), 0)
    all_of_them = load_clients(found, range(6))
    some = load_clients(found, np.array([4, 1]))
    assert np.array_equal(some[0].x_train, all_of_them[4].x_train)
    assert np.array_equal(some[1].y_test, all_of_them[1].y_test)


def test_rotated_groups(marked: Path) -> None:
    plain = prepare(settings(marked), 0)
    turned = prepare(settings(marked, concept="rotate", concept_groups=4), 0)
    assert sorted(set(turned.concept_group)) == [0, 1, 2, 3]
    for i, (a, b) in enumerate(zip(load_clients(plain, range(6)), load_clients(turned, range(6)))):
        top = a.x_train[:, 0, 0, :]  # top row, left to right
        left_up = b.x_train[:, 0, ::-1, 0]  # after one turn to the left: left column, upwards
        expected = [b.x_train[:, 0, 0, :], left_up, b.x_train[:, 0, 3, ::-1], b.x_train[:, 0, :, 3]][
            turned.concept_group[i]
        ]
        assert np.array_equal(top, expected)
        assert np.array_equal(a.y_train, b.y_train)


def test_permuted_groups(marked: Path) -> None:
    plain = prepare(settings(marked), 0)
    other = prepare(settings(marked, concept="permute", concept_groups=3), 0)
    meaning: dict[tuple[int, int], set[int]] = {}
    for i, (a, b) in enumerate(zip(load_clients(plain, range(6)), load_clients(other, range(6)))):
        assert np.array_equal(a.x_train, b.x_train)
        counts = np.bincount(b.y_train, minlength=6)
        assert counts.tolist() == other.train_counts[i].tolist()
        old, new = np.r_[a.y_train, a.y_test], np.r_[b.y_train, b.y_test]
        for y, z in zip(old, new):
            meaning.setdefault((int(other.concept_group[i]), int(y)), set()).add(int(z))
    assert all(len(z) == 1 for z in meaning.values())
    assert all(z == {y} for (group, y), z in meaning.items() if group == 0)
    for y in range(6):
        seen = [min(z) for (_, other_y), z in meaning.items() if other_y == y]
        assert len(seen) == len(set(seen))


def test_float_samples_of_any_shape(tmp_path: Path) -> None:
    x = np.random.default_rng(1).normal(size=(100, 7)).astype(np.float32)
    with h5py.File(tmp_path / "f.h5", "w") as file:
        file["x"], file["y"] = x, np.arange(100) % 4
    found = prepare(settings(tmp_path / "f.h5", clients=3), 0)
    rows = np.concatenate([np.r_[c.x_train, c.x_test] for c in load_clients(found, range(3))])
    assert found.shape == (7,) and rows.shape == (99, 7)
    assert {r.tobytes() for r in rows} <= {r.tobytes() for r in x}


def test_the_file_is_plain_hdf5(marked: Path) -> None:
    found = prepare(settings(marked), 0)
    with h5py.File(found.path) as file:
        assert file["x"].chunks is None and file["x"].compression is None
        assert file["x"].shape == (600, 1, 4, 4) and file["x"].dtype == np.uint8
        first = load_clients(found, [0])[0]
        assert np.array_equal(file["y"][: found.train[0]], first.y_train)


def test_rows_beyond_one_block(marked: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = Path(prepare(settings(marked, concept="rotate"), 0).path).read_bytes()
    monkeypatch.setattr(cache, "BLOCK", 7)
    again = prepare(settings(marked, concept="rotate", cache=str(marked.parent / "b")), 0)
    assert Path(again.path).read_bytes() == whole


def test_describe_agrees_with_prepare(marked: Path) -> None:
    keys = {"concept": "permute", "labels": "groups", "sizes": "lognormal"}
    a, b = describe(settings(marked, **keys), 7), prepare(settings(marked, **keys), 7)
    for key in ("start", "train", "test", "train_counts", "label_group", "concept_group"):
        assert np.array_equal(getattr(a, key), getattr(b, key))
    assert (a.name, a.shape, a.class_names, a.scale, a.x_dtype, a.classes, a.clients) == (
        b.name,
        b.shape,
        b.class_names,
        b.scale,
        b.x_dtype,
        b.classes,
        b.clients,
    )
    with pytest.raises(ValueError, match="prepare"):
        load_clients(a, [0])


def test_a_federation_can_be_sent(marked: Path) -> None:
    found = prepare(settings(marked), 0)
    sent = pickle.loads(pickle.dumps(found))
    assert isinstance(sent, Federation)
    assert np.array_equal(load_clients(sent, [3])[0].x_test, load_clients(found, [3])[0].x_test)


def test_rotation_of_vectors_is_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "v.npz", x=np.zeros((200, 5), np.float32), y=np.arange(200) % 3)
    with pytest.raises(ConfigError, match="data.concept = rotate"):
        prepare(settings(tmp_path / "v.npz", concept="rotate"), 0)
    assert not (tmp_path / "cache").exists()


def test_workers_need_neither_h5py_nor_torch(marked: Path) -> None:
    found = prepare(settings(marked), 0)
    code = (
        "import pickle, sys; from amn_mpi.data import load_clients\n"
        "found = pickle.load(sys.stdin.buffer)\n"
        "print(len(load_clients(found, [0])[0].y_train))\n"
        "print([m for m in ('h5py', 'torch', 'mpi4py') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], input=pickle.dumps(found), cwd=ROOT, capture_output=True, check=True
    )
    assert done.stdout.decode().split("\n")[:2] == [str(found.train[0]), "[]"]
