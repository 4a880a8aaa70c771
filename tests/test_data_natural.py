"""Data whose clients are its own: a file with owners, a folder of files, PFLlib's folder, LEAF's JSON."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from ready import run_each
from running import one_line, options, result, run
from test_data_helpers import forget_folders, refused

from amn_mpi.config import Data
from amn_mpi.data import ClientData, Federation, describe, load_clients, prepare, resolved
from amn_mpi.errors import ConfigError

# Samples of the five clients; every sample's first feature is its own number.
SIZES = (20, 40, 24, 60, 32)
Held = dict[int, tuple[np.ndarray, np.ndarray, np.ndarray]]


@pytest.fixture(autouse=True)
def no_surroundings(monkeypatch: pytest.MonkeyPatch) -> None:
    forget_folders(monkeypatch)


def held(features: int = 4, classes: int = 3) -> Held:
    """x, y and which samples are the test's (every fourth), for each client."""
    rng, first, found = np.random.default_rng(3), 0, {}
    for client, n in enumerate(SIZES):
        y = (np.arange(n) + client) % classes
        x = rng.normal(size=(n, features)).astype(np.float32) * 0.5 + 2 * np.eye(classes, features)[y]
        x = x.astype(np.float32)
        x[:, 0] = first + np.arange(n)
        found[client] = (x, y, np.arange(n) % 4 == 0)
        first += n
    return found


def owned(path: Path, own: Held, names: list[Any], split: bool) -> Path:
    """One file with owners, its rows mixed."""
    order = np.random.default_rng(1).permutation(sum(SIZES))
    arrays = {
        "x": np.concatenate([x for x, _, _ in own.values()])[order],
        "y": np.concatenate([y for _, y, _ in own.values()])[order],
        "client": np.repeat(names, SIZES)[order],
    }
    if split:
        arrays["test"] = np.concatenate([t for _, _, t in own.values()])[order]
    if path.suffix == ".npz":
        np.savez(path, **arrays)
        return path
    with h5py.File(path, "w") as file:
        for key, value in arrays.items():
            file[key] = value.astype(h5py.string_dtype()) if value.dtype.kind == "U" else value
    return path


def client_files(root: Path, own: Held, suffix: str = ".npz") -> Path:
    root.mkdir()
    for client, (x, y, t) in own.items():
        arrays = {"x": x[~t], "y": y[~t], "x_test": x[t], "y_test": y[t]}
        # 8, 9, 10, ...: the order of the numbers is not that of the letters.
        if suffix == ".npz":
            np.savez(root / f"site{client + 8}.npz", **arrays)
        else:
            with h5py.File(root / f"site{client + 8}.h5", "w") as file:
                file.update(arrays)
    return root


def pfllib(root: Path, own: Held, **config: object) -> Path:
    """As PFLlib's dataset scripts write it."""
    for half in ("train", "test"):
        (root / half).mkdir(parents=True)
        for client, (x, y, t) in own.items():
            part = t if half == "test" else ~t
            with open(root / half / f"{client}.npz", "wb") as file:
                np.savez_compressed(file, data={"x": x[part], "y": y[part]})
    about = {"num_clients": len(own), "num_classes": 3, "non_iid": True, "partition": "dir", "alpha": 0.1}
    (root / "config.json").write_text(json.dumps({**about, **config}))
    return root


def leaf_tree(own: Held, part: Callable[[np.ndarray], np.ndarray], users: list[int]) -> dict[str, Any]:
    return {
        "users": [f"f{u:04d}" for u in users],
        "num_samples": [int(part(own[u][2]).sum()) for u in users],
        "user_data": {
            f"f{u:04d}": {
                "x": own[u][0][part(own[u][2])].tolist(),
                "y": own[u][1][part(own[u][2])].tolist(),
            }
            for u in users
        },
    }


def leaf(root: Path, own: Held) -> Path:
    """Train and test halves, each in two files, as LEAF writes them."""
    for half, part in (("train", np.invert), ("test", np.array)):
        (root / half).mkdir(parents=True)
        for k, users in enumerate(([0, 1], [2, 3, 4])):
            path = root / half / f"all_data_{k}_niid_0_keep_0_{half}_9.json"
            path.write_text(json.dumps(leaf_tree(own, part, users)))
    return root


FORMATS: dict[str, Callable[[Path, Held], Path]] = {
    "npz": lambda p, own: owned(p / "a.npz", own, [3, 5, 7, 100, 2000], True),
    "h5": lambda p, own: owned(p / "a.h5", own, ["ann", "bob", "cy", "di", "ed"], True),
    "files": lambda p, own: client_files(p / "sites", own),
    "h5 files": lambda p, own: client_files(p / "sites", own, ".h5"),
    "pfllib": lambda p, own: pfllib(p / "mnist", own),
    "leaf": lambda p, own: leaf(p / "femnist", own),
}


NAMES = {
    "npz": ["3", "5", "7", "100", "2000"],
    "h5": ["ann", "bob", "cy", "di", "ed"],
    "files": ["site8", "site9", "site10", "site11", "site12"],
    "h5 files": ["site8", "site9", "site10", "site11", "site12"],
    "pfllib": list("01234"),
    "leaf": ["f0000", "f0001", "f0002", "f0003", "f0004"],
}


def wanted(path: Path, **keys: object) -> Data:
    return Data(**{"name": str(path), "cache": str(path.parent / "cache"), "clients": 99, **keys})


def loaded(data: Data, seed: int = 0) -> tuple[Federation, list[ClientData]]:
    fed = prepare(data, seed)
    return fed, load_clients(fed, range(fed.clients))


def rows(x: np.ndarray, y: np.ndarray) -> set[bytes]:
    return {a.tobytes() + bytes([b]) for a, b in zip(x, y)}


@pytest.mark.parametrize("kind", FORMATS)
def test_every_client_gets_its_own_samples(tmp_path: Path, kind: str) -> None:
    own = held()
    fed, clients = loaded(wanted(FORMATS[kind](tmp_path, own)))
    assert fed.clients == 5 and fed.classes == 3 and fed.shape == (4,)
    for client, (x, y, t) in enumerate(own.values()):
        found = clients[client]
        assert len(found.y_train) == (~t).sum() and len(found.y_test) == t.sum()
        assert rows(found.x_train, found.y_train) == rows(x[~t], y[~t])
        assert rows(found.x_test, found.y_test) == rows(x[t], y[t])
        assert fed.train_counts[client].tolist() == [int((y[~t] == c).sum()) for c in range(3)]
    assert not fed.label_group.any() and not fed.concept_group.any()
    assert fed.client_names == NAMES[kind] and fed.named == (kind != "pfllib")
    assert fed.called(3) == {"npz": "3 100", "pfllib": "3"}.get(kind, f"3 {NAMES[kind][3]}")


def test_names_go_with_the_clients_that_are_left(tmp_path: Path) -> None:
    """Of five clients four take part, and two of these come later; the numbers begin anew."""
    path = owned(tmp_path / "a.npz", held(), ["ann", "bob", "cy", "di", "ed"], True)
    of_size = dict(zip(SIZES, ["ann", "bob", "cy", "di", "ed"]))
    for fed in (
        prepare(wanted(path, clients=4, unseen=0.5), 0),
        describe(wanted(path, clients=4, unseen=0.5), 0),
    ):
        assert fed.newcomers is not None and (fed.clients, fed.newcomers.clients) == (2, 2)
        for part in (fed, fed.newcomers):
            assert part.client_names == [of_size[n] for n in (part.train + part.test).tolist()]
    assert prepare(Data(cache=str(tmp_path / "cache")), 0).client_names == []


def test_without_a_split_each_client_is_split_by_class(tmp_path: Path) -> None:
    own = held()
    path = owned(tmp_path / "a.npz", own, [0, 1, 2, 3, 4], False)
    fed, clients = loaded(wanted(path))
    for (x, y, _), found in zip(own.values(), clients):
        assert len(found.y_test) == len(y) // 4
        assert rows(found.x_train, found.y_train) | rows(found.x_test, found.y_test) == rows(x, y)
        for c in range(3):
            assert abs((found.y_test == c).sum() - (y == c).sum() / 4) < 1
    other = loaded(wanted(path), seed=1)[1]
    assert not np.array_equal(other[0].x_test, clients[0].x_test)


def test_so_many_clients_are_chosen_by_the_seed(tmp_path: Path) -> None:
    path = owned(tmp_path / "a.npz", held(), [0, 1, 2, 3, 4], True)
    chosen = {
        tuple((f.train + f.test).tolist()) for f in (prepare(wanted(path, clients=3), s) for s in range(6))
    }
    assert len(chosen) > 1
    for sizes in chosen:  # in the data's order
        places = [SIZES.index(n) for n in sizes]
        assert len(places) == 3 and places == sorted(places)


def test_the_number_of_clients_is_known_beforehand(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = pfllib(tmp_path / "mnist", held())
    data = wanted(path, min_samples=20)  # 15 and 18 for training are too few
    found = resolved(data)
    assert (found.clients, found.labels, found.sizes, found.concept) == (3, "own", "own", "none")
    said = capsys.readouterr().err.splitlines()
    assert "2 of 5 clients are left out" in said[0] and "20" in said[0]
    assert f"{path} has 3 clients of its own: all take part; data.clients, labels" in said[1]
    fed = prepare(found, 0)
    assert fed.train.tolist() == [30, 45, 24]
    (path / "train" / "0.npz").touch()  # another state of the files: what was kept does not count
    assert resolved(data) == found == resolved(found)
    assert resolved(replace(data, clients=2)).clients == 2
    assert "2 take part, chosen by the seed" in capsys.readouterr().err
    pool = tmp_path / "pool.npz"
    np.savez(pool, x=np.zeros((40, 2)), y=np.arange(40) % 2)
    assert resolved(wanted(pool)) == wanted(pool) and resolved(Data()) == Data()
    assert capsys.readouterr().err == ""


def test_the_number_is_kept_for_the_next_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = leaf(tmp_path / "femnist", held())
    before = resolved(wanted(path))
    prepare(before, 0)
    monkeypatch.setattr("amn_mpi.data.folder.read", lambda *_: pytest.fail("the data was read again"))
    assert resolved(wanted(path)) == before


def test_any_file_of_a_folder_that_changes_makes_the_data_anew(tmp_path: Path) -> None:
    own = held()
    path = client_files(tmp_path / "sites", own)
    first = prepare(wanted(path), 0)
    assert prepare(wanted(path), 0).path == first.path
    x, y, _ = own[4]
    np.savez(path / "site12.npz", x=x, y=y, x_test=x[:1], y_test=y[:1])
    assert prepare(wanted(path), 0).train.tolist() == [15, 30, 18, 45, 32]


def test_femnist_is_images(tmp_path: Path) -> None:
    own = held(features=784)
    own = {k: (np.abs(x) / np.abs(x).max(), y, t) for k, (x, y, t) in own.items()}
    fed, clients = loaded(wanted(leaf(tmp_path / "femnist", own)))
    assert fed.shape == (1, 28, 28)
    x, _, t = own[2]
    expected = {a.astype(np.float32).tobytes() for a in x[~t]}
    assert {a.tobytes() for a in clients[2].x_train} == expected


@pytest.mark.parametrize("kind", ["int8", "int16", "int32"])
def test_tables_of_small_integers_become_floats(tmp_path: Path, kind: str) -> None:
    x = np.arange(-60, 60).reshape(40, 3).astype(kind)
    np.savez(tmp_path / "a.npz", x=x, y=np.arange(40) % 2, client=np.arange(40) // 20)
    fed, clients = loaded(wanted(tmp_path / "a.npz"))
    assert fed.x_dtype == "<f4" and fed.shape == (3,)
    assert sorted(np.r_[clients[0].x_train, clients[0].x_test].ravel()) == list(range(-60, 0))


class Evil:
    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[Callable, tuple]:
        return os.system, (self.command,)


def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path: Path) -> None:
    path = pfllib(tmp_path / "mnist", held())
    evil = {"x": Evil(f"touch {tmp_path / 'ran'}"), "y": np.arange(3)}
    np.savez_compressed(path / "train" / "1.npz", data=evil)
    line = refused(tmp_path, path)
    assert str(path / "train" / "1.npz") in line and f"{os.name}.system" in line
    assert not (tmp_path / "ran").exists()
    with np.load(path / "train" / "1.npz", allow_pickle=True) as file:
        file["data"]  # what it would have done
    assert (tmp_path / "ran").exists()


def changed(own: Held, client: int, **new: np.ndarray) -> Held:
    x, y, t = own[client]
    return {**own, client: (new.get("x", x), new.get("y", y), t)}


def with_nan(x: np.ndarray) -> np.ndarray:
    x = x.copy()
    x[5, 1] = np.nan
    return x


Y1 = held()[1][1]
BAD = {
    "NaN": ("x", with_nan(held()[1][0]), "NaN or infinite in 1 of"),
    "negative": ("y", np.where(np.arange(40) == 7, -2, Y1), "label -2"),
    "fractions": ("y", Y1 + 0.5, "float64"),
    "shape": ("x", np.zeros((40, 9), np.float32), "(9,)"),
}


@pytest.mark.parametrize("kind", ["files", "pfllib", "leaf"])
@pytest.mark.parametrize("case", BAD)
def test_bad_values_name_the_client(tmp_path: Path, kind: str, case: str) -> None:
    key, value, expected = BAD[case]
    line = refused(tmp_path, FORMATS[kind](tmp_path, changed(held(), 1, **{key: value})))
    assert expected in line and {"files": "site9.npz", "pfllib": "1.npz", "leaf": "user f0001"}[kind] in line


def test_bad_folders_of_pfllib(tmp_path: Path) -> None:
    def told(name: str, spoil: Callable[[Path], object], **config: object) -> str:
        path = pfllib(tmp_path / name, held(), **config)
        spoil(path)
        return refused(tmp_path, path)

    def nothing(path: Path) -> None:
        return None

    def cut(path: Path) -> None:
        (path / "train" / "2.npz").write_bytes((path / "train" / "2.npz").read_bytes()[:-60])

    def save(path: Path, name: str, data: object) -> None:
        np.savez_compressed(path / name, data=data)

    assert "num_clients = 7, but train/ holds 5" in told("a", nothing, num_clients=7)
    # The test has rows 0, 4, ...: the training labels begin 1, 2, 0.
    assert "label 2 in row 1, expected 0 to 1" in told("b", nothing, num_classes=2)
    assert "train/2.npz: cannot be read as PFLlib" in told("c", cut)
    assert "there is no test/3.npz" in told("d", lambda p: (p / "test" / "3.npz").unlink())
    assert "there is no train/3.npz" in told("e", lambda p: (p / "train" / "3.npz").unlink())
    assert "cannot be read as JSON" in told("f", lambda p: (p / "config.json").write_text("{"))
    assert "test/*.npz is missing" in told("g", lambda p: [f.unlink() for f in (p / "test").iterdir()])
    assert "data holds x" in told("h", lambda p: save(p, "train/0.npz", {"x": np.zeros(3)}))
    assert "expected one dict" in told("i", lambda p: save(p, "train/0.npz", np.zeros(3)))
    words = {"x": np.array([["a"], None], object), "y": np.zeros(2, np.int64)}
    assert "x is no array of numbers" in told("j", lambda p: save(p, "train/0.npz", words))
    empty = {"x": np.zeros((0, 4), np.float32), "y": np.zeros(0, np.int64)}
    assert "train/4.npz: y is empty" in told("k", lambda p: save(p, "train/4.npz", empty))
    scalar = {"x": np.zeros((1, 4), np.float32), "y": np.array(1)}
    assert "test/4.npz: y has shape ()" in told("l", lambda p: save(p, "test/4.npz", scalar))
    for name, classes in (("m", -1), ("n", 10**12)):
        assert f"num_classes = {classes}; valid is 1 to 65536" in told(name, nothing, num_classes=classes)


def test_bad_leaf(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = leaf(tmp_path / "leaf", held())
    path = root / "train" / "all_data_0_niid_0_keep_0_train_9.json"
    good = path.read_text()

    def told(text: str) -> str:
        path.write_text(text)
        line = refused(tmp_path, root)
        assert str(path) in line
        return line

    def spoilt(**new: object) -> str:
        return json.dumps({**json.loads(good), **new})

    one = json.loads(good)["user_data"]["f0000"]
    assert "cannot be read as JSON" in told(good[:-30])
    assert "has no user_data" in told(spoilt(user_data=None))
    assert "user f0001: num_samples says 29, but y has 30" in told(spoilt(num_samples=[15, 29]))
    assert "one entry for each of the 2 users" in told(spoilt(num_samples=[15]))
    assert "f0001: user_data has no x and y" in told(spoilt(user_data={"f0000": one}))
    speech = {**json.loads(good)["user_data"], "f0000": {**one, "x": ["to be or not"] * 15}}
    assert "user f0000: x is text; valid are numbers" in told(spoilt(user_data=speech))
    ragged = {**speech, "f0000": {**one, "x": [[1.0, 2.0], *one["x"][1:]]}}
    assert "samples of different lengths" in told(spoilt(user_data=ragged))
    half = root / "test" / "all_data_0_niid_0_keep_0_test_9.json"
    tree = json.loads(half.read_text())
    user = {**tree["user_data"], "f0001": {**tree["user_data"]["f0001"], "y": 1}}
    path.write_text(good)
    sound = half.read_text()
    half.write_text(json.dumps({"users": tree["users"], "user_data": user}))
    assert "user f0001: y has shape ()" in refused(tmp_path, root)
    half.write_text(sound)
    path.write_text(spoilt(users=["f0001"], num_samples=[30]))
    assert prepare(wanted(root), 0).train.tolist() == [30, 18, 45, 24]
    assert "1 users are only in train/ or only in test/" in capsys.readouterr().err


def test_leaf_without_a_split(tmp_path: Path) -> None:
    root = tmp_path / "leaf"
    (root / "all_data").mkdir(parents=True)
    tree = leaf_tree(held(), lambda t: np.ones(len(t), bool), [0, 1, 2, 3, 4])
    (root / "all_data" / "all_data.json").write_text(json.dumps(tree))
    assert prepare(wanted(root), 0).test.tolist() == [n // 4 for n in SIZES]


def test_other_bad_inputs(tmp_path: Path) -> None:
    (tmp_path / "notes").mkdir()
    (tmp_path / "notes" / "a.txt").write_text("nothing")
    line = refused(tmp_path, tmp_path / "notes")
    assert all(word in line for word in ("*.npz", "PFLlib", "LEAF", "train/*.json"))
    own = held()
    sites = client_files(tmp_path / "sites", own)
    assert "none of its 5 clients has 50" in refused(tmp_path, sites, min_samples=50)
    np.savez(sites / "site9.npz", x=own[1][0], y=own[1][1])
    assert "site9.npz: has no x_test and y_test" in refused(tmp_path, sites)
    np.savez(sites / "site9.npz", x=own[1][0][:0], y=own[1][1][:0], x_test=own[1][0], y_test=own[1][1])
    assert "site9.npz: y is empty" in refused(tmp_path, sites)
    table = {"x": np.zeros((6, 2)), "y": np.arange(6)}
    for name, arrays, expected in (
        ("a", {"client": np.zeros(5, int)}, "client has shape (5,)"),
        ("b", {"client": np.zeros(6)}, "float64"),
        ("c", {"test": np.zeros(6, bool)}, "has test, but no client"),
        ("d", {"client": np.zeros(6, int), "test": np.zeros(6, int)}, "expected (6,) bool"),
    ):
        np.savez(tmp_path / f"{name}.npz", **table, **arrays)
        assert expected in refused(tmp_path, tmp_path / f"{name}.npz")
    with pytest.raises(ConfigError, match=r"data.labels = own: digits has no clients of its own"):
        prepare(Data(labels="own", cache=str(tmp_path / "none")), 0)


def test_runs_agree_over_ranks_and_go_on(tmp_path: Path) -> None:
    own = held()
    for x, _, _ in own.values():
        x[:, 0] = 0  # a number up to 175 is nothing to learn from
    path = pfllib(tmp_path / "mnist", own)
    keys = ("--data.name", path, "--local.lr", 0.2, "--progress", "off", "--checkpoint.every", 1)
    lines = [
        [*keys, *options(out=tmp_path / "{}-{}".format("{}", model), rounds=3, model__name=model)]
        for model in ("linear", "mlp")
    ]
    for ranks in (1, 3):
        done = run_each([[str(w).replace("{}", str(ranks)) for w in line] for line in lines], tmp_path, ranks)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("has 5 clients of its own: all take part") == 2
    for model in ("linear", "mlp"):
        one, three = (result(tmp_path / f"{n}-{model}") for n in (1, 3))
        assert one["models_sha256"] == three["models_sha256"] and one["clients"] == 5
        assert one["per_client"]["names"] == list("01234")
        assert one["config"]["data"]["clients"] == 5 and one["mean_accuracy"] > 80
    # The same command line goes on after more rounds are asked for; ranks are counted by the data's clients.
    few = pfllib(tmp_path / "few", {client: own[client] for client in range(3)})
    words = [*keys, "--out", tmp_path / "1-mlp", "--model.name", "mlp", "--resume", "auto", "--rounds", 4]
    more = run_each([words, [*words, "--data.name", few, "--out", tmp_path / "few-mlp"]], tmp_path, ranks=5)
    assert more.returncode == 0, more.stderr
    assert "5 ranks for 3 clients and the server: 1 stay idle" in more.stderr
    assert result(tmp_path / "1-mlp")["rounds"] == 4
    (path / "test" / "2.npz").unlink()
    failed = run("--data.name", path, "--out", tmp_path / "x", env={"AMN_CACHE": tmp_path / "cache"})
    assert failed.returncode == 1 and "there is no test/2.npz" in one_line(failed.stderr)
    assert not (tmp_path / "x").exists()


def test_a_comparison_over_own_clients_writes_its_tables(tmp_path: Path) -> None:
    """Its cells are told of the real number of clients, so what is finished is found again."""
    path = client_files(tmp_path / "sites", held())
    matrix, out = tmp_path / "sites.yaml", tmp_path / "out"
    keys = {"rounds": 2, "model": {"name": "linear"}, "data": {"name": str(path)}}
    tree = {"seeds": [0], "keys": keys, "scenarios": {"own": {}}, "methods": {"fedavg": {}, "local": {}}}
    matrix.write_text(json.dumps({**tree, "reference": "fedavg"}))
    for told in ("2 runs, 2 to do", "2 runs, 0 to do"):
        env = {"AMN_CACHE": tmp_path / "cache"}
        done = run("amn_mpi.compare", matrix, "--out", out, script="-m", env=env)
        assert done.returncode == 0, done.stderr
        assert told in done.stdout
        assert [row.split(",")[1] for row in (out / "scores.csv").read_text().splitlines()[1:]] == [
            "fedavg",
            "local",
        ]
