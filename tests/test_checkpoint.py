"""One checkpoint file: what goes in comes out, it is there whole or not at all, and damage is noticed."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

from amn_mpi import checkpoint
from amn_mpi.checkpoint import Damaged, Reader, Writer, good, prune, verify
from amn_mpi.errors import UserError

ABOUT = {"config": {"seed": 1, "name": "ümlaut\n", "nothing": None}, "round": 7, "open": None}
HISTORY = {"rounds": [{"round": 1, "x": 0.1 + 0.2}, {"round": 2, "x": 1e-310}], "seconds": [1 / 3]}
TYPES = ("<f4", "<f8", "<i8", "<i4", "<u1", "<u2", "?", "<i2")
Arrays = dict[str, np.ndarray]


@pytest.fixture(autouse=True)
def no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hundreds of files are written here, and none has to outlast a power cut."""
    monkeypatch.setattr(os, "fsync", lambda handle: None)


def draw(shape: tuple[int, ...], dtype: str, seed: int = 0) -> np.ndarray:
    values = np.random.default_rng(seed).integers(0, 2 if dtype == "?" else 100, shape)
    return np.asarray(values).astype(dtype)


def server_state() -> Arrays:
    """Every type, as a scalar, small, large enough for a checksum of its own, and empty."""
    shapes = {"scalar": (), "one": (1,), "small": (3, 5), "large": (40, 60), "none": (0,), "flat": (0, 7)}
    return {
        f"{name}_{np.dtype(dtype).name}": draw(shape, dtype, seed)
        for seed, (name, shape) in enumerate(shapes.items())
        for dtype in TYPES
    }


def client_state(clients: int = 6) -> Arrays:
    state = {f"own_{np.dtype(dtype).name}": draw((clients, 3, 11), dtype, 9) for dtype in TYPES}
    return state | {"alone": draw((clients,), "<f4", 1), "wide": draw((clients, 5000), "<f4", 2)}


def save(
    folder: Path,
    client: Arrays,
    server: Arrays | None = None,
    round: int = 7,
    pieces: Callable[[np.ndarray], Iterator[np.ndarray]] = lambda array: iter([array]),
) -> Path:
    shapes = {name: (array.shape, array.dtype) for name, array in client.items()}
    with Writer(folder, round, ABOUT, HISTORY, server or {}, shapes) as writer:
        for array in client.values():
            for piece in pieces(array):
                writer.put(piece)
    return writer.path


def small(folder: Path, round: int = 7) -> Path:
    """A file as small as they come, with one data set that has a checksum of its own."""
    return save(folder, {"own": draw((3, 4), "<f4")}, {"seen": draw((3,), "?")}, round)


def same(a: np.ndarray, b: np.ndarray) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ---- what goes in comes out


def test_every_type_and_shape_comes_back(tmp_path: Path) -> None:
    server, client = server_state(), client_state()
    path = save(tmp_path, client, server)
    assert path == tmp_path / "round-000007.h5"
    found = verify(path)
    assert (found.format, found.round, found.size) == (checkpoint.FORMAT, 7, path.stat().st_size)
    with Reader(path) as reader:
        assert reader.text("about") == ABOUT and reader.text("history") == HISTORY
        got = reader.server()
        assert set(got) == set(server)
        assert [name for name in server if not same(got[name], server[name])] == []
        assert reader.shapes("client") == {k: (v.shape, v.dtype) for k, v in client.items()}
        assert reader.shapes("server") == {k: (v.shape, v.dtype) for k, v in server.items()}
        rows = {name: np.stack([reader.row(name, k) for k in range(6)]) for name in client}
        assert [name for name in client if not same(rows[name], client[name])] == []


def test_it_is_an_ordinary_hdf5_file(tmp_path: Path) -> None:
    server, client = server_state(), client_state()
    with h5py.File(save(tmp_path, client, server), "r") as file:
        assert (file.attrs["kind"], file.attrs["format"]) == (checkpoint.KIND, checkpoint.FORMAT)
        assert json.loads(file["about"][()]) == ABOUT and json.loads(file["history"][()]) == HISTORY
        for kind, state in (("server", server), ("client", client)):
            assert [name for name in state if not same(np.asarray(file[kind][name]), state[name])] == []


def test_the_server_may_keep_nothing_and_so_may_the_clients(tmp_path: Path) -> None:
    for server, client in (({}, {"own": draw((2, 3), "<f4")}), ({"model": draw((3,), "<f4")}, {}), ({}, {})):
        path = save(tmp_path, client, server)
        verify(path)
        with Reader(path) as reader:
            assert set(reader.server()) == set(server) and set(reader.shapes("client")) == set(client)


def test_clients_whose_state_is_empty(tmp_path: Path) -> None:
    """Nothing to keep for some name, first, in between and last; with a piece of nothing, or none."""
    nothing = np.empty((4, 0), np.float32)
    client = {"a": nothing, "b": draw((4, 2), "<f4"), "c": nothing, "d": draw((4,), "<i8"), "e": nothing}
    for pieces in (lambda array: iter([array]), lambda array: iter([array] if array.size else [])):
        path = save(tmp_path, client, pieces=pieces)
        verify(path)
        with Reader(path) as reader:
            assert reader.shapes("client") == {k: (v.shape, v.dtype) for k, v in client.items()}
            assert all(same(reader.row(k, 3), v[3]) for k, v in client.items())


@pytest.mark.parametrize("size", [7, 1000, 10**6])
def test_pieces_of_any_size_are_put_in_order(tmp_path: Path, size: int) -> None:
    def pieces(array: np.ndarray) -> Iterator[np.ndarray]:
        flat = array.reshape(-1).view(np.uint8)
        return (flat[k : k + size] for k in range(0, flat.size, size))

    client = client_state(2)
    whole = save(tmp_path / "whole", client).read_bytes()
    assert save(tmp_path / "pieces", client, pieces=pieces).read_bytes() == whole


def test_arrays_in_any_order_of_memory(tmp_path: Path) -> None:
    server = {
        "turned": draw((60, 70), "<f8").T,
        "thin": draw((60, 70), "<f4")[:, ::2],
        "few": draw((2, 3), "<f4").T,
    }
    with Reader(save(tmp_path, {}, server)) as reader:
        assert [name for name, array in reader.server().items() if not same(array, server[name])] == []


def test_floats_come_back_to_the_last_bit(tmp_path: Path) -> None:
    values = np.array([np.nan, np.inf, -0.0, 1e-40, np.pi], np.float32)
    own = np.stack([values, values[::-1]])
    with Reader(save(tmp_path, {"own": own}, {"model": values})) as reader:
        assert same(reader.server()["model"], values) and same(reader.row("own", 1), own[1])


# ---- whole or not at all


def test_what_is_not_all_there_does_not_appear(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="without all of .*client/own"):
        save(tmp_path, {"own": draw((2, 3), "<f4")}, pieces=lambda array: iter([array[:1]]))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt(), ValueError()])
@pytest.mark.parametrize("call", ["pwrite", "fsync", "ftruncate", "replace"])
def test_an_error_in_mid_write_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, error: BaseException
) -> None:
    """Each system call fails in turn, at its first, second, ... use."""
    before = small(tmp_path).read_bytes()
    client = {"own": draw((3, 5000), "<f4", 5)}
    real, failed = getattr(os, call), 0
    for after in range(20):
        used = [0]

        def fails(*args: Any, used: list[int] = used, after: int = after) -> Any:
            used[0] += 1
            if used[0] == after + 1:
                raise error
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fails)
            try:
                save(tmp_path, client, {"model": draw((3000,), "<f4")})
            except type(error):
                failed += 1
            else:
                break
        left = [path.name for path in tmp_path.iterdir()]
        assert left == ["round-000007.h5"], f"{call} number {after + 1}"
        committed = call == "fsync" and after == 1  # of the folder: the file is in its place already
        assert (tmp_path / left[0]).read_bytes() == before or committed
        verify(tmp_path / left[0])
    assert failed >= 1 and used[0] <= failed + 1


def test_an_error_of_the_one_who_writes(tmp_path: Path) -> None:
    before = small(tmp_path).read_bytes()
    with (
        pytest.raises(ZeroDivisionError),
        Writer(tmp_path, 7, {}, {}, {}, {"a": ((4,), np.dtype("f4"))}) as writer,
    ):
        writer.put(draw((2,), "<f4"))
        raise ZeroDivisionError
    assert [path.name for path in tmp_path.iterdir()] == ["round-000007.h5"]
    assert (tmp_path / "round-000007.h5").read_bytes() == before


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        small(tmp_path / "file" / "checkpoints")


# ---- damage


@pytest.fixture
def no_h5py(monkeypatch: pytest.MonkeyPatch) -> None:
    """HDF5 must not see a file that is not verified: it crashes on some. What is in memory it may see."""
    real = h5py.File

    def opened(name: object, *args: Any, **kwargs: Any) -> h5py.File:
        assert not isinstance(name, (str, Path)), f"h5py has opened {name}"
        return real(name, *args, **kwargs)

    monkeypatch.setattr(h5py, "File", opened)


def is_noticed(path: Path) -> bool:
    """Damage is noticed where ``verify`` raises one of what it declares; anything else is a failure."""
    try:
        verify(path)
    except (Damaged, UserError) as reason:
        assert "\n" not in str(reason) and str(reason)
        return True
    return False


def content(path: Path) -> dict[str, Any]:
    with Reader(path) as reader:
        kinds = {kind: reader.shapes(kind) for kind in ("server", "client")}
        rows = {k: [reader.row(k, i).tobytes() for i in range(s[0][0])] for k, s in kinds["client"].items()}
        server = {k: v.tobytes() for k, v in reader.server().items()}
        return {
            "texts": [reader.text("about"), reader.text("history")],
            **kinds,
            "rows": rows,
            "values": server,
        }


def test_a_byte_changed_anywhere_is_noticed_or_changes_nothing(tmp_path: Path) -> None:
    """Every byte of a small file, in one of eight ways in turn; what goes unseen is padding."""
    path = small(tmp_path)
    whole, then = path.read_bytes(), content(path)
    unseen = []
    with open(path, "r+b", buffering=0) as file:
        for at in range(len(whole)):
            os.pwrite(file.fileno(), bytes([whole[at] ^ 1 << at % 8]), at)
            if not is_noticed(path):
                unseen.append(at)
            os.pwrite(file.fileno(), whole[at : at + 1], at)
    first = whole.index(b"\n", whole.index(b"\n") + 1) + 1
    block = json.loads(whole.split(b"\n")[0])["block"]
    assert unseen == list(range(first, block))
    for at in (unseen[0], unseen[len(unseen) // 2], unseen[-1]):
        spoilt = bytearray(whole)
        spoilt[at] ^= 255
        path.write_bytes(spoilt)
        assert content(path) == then


def test_a_byte_changed_in_a_large_file(tmp_path: Path, no_h5py: None) -> None:
    path = save(tmp_path, client_state(), server_state())
    whole = path.read_bytes()
    block = json.loads(whole.split(b"\n")[0])["block"]
    random = np.random.default_rng(3)
    with open(path, "r+b", buffering=0) as file:
        for at in random.integers(block, len(whole), 1000).tolist():
            for value in (whole[at] ^ int(random.integers(1, 256)), whole[at]):
                os.pwrite(file.fileno(), bytes([value]), at)
                assert is_noticed(path) == (value != whole[at]), at


def test_a_file_that_is_cut_or_longer(tmp_path: Path, no_h5py: None) -> None:
    path = save(tmp_path, client_state(), server_state())
    whole = path.read_bytes()
    lengths = np.random.default_rng(0).integers(1, len(whole), 10).tolist()
    for length in (0, 1, 100, *lengths, len(whole) - 1):
        path.write_bytes(whole[:length])
        assert is_noticed(path), length
    for more in (b"\0", bytes(4096)):
        path.write_bytes(whole + more)
        assert is_noticed(path)


def signed(line: bytes) -> bytes:
    return b"%s\n%08x\n" % (line, zlib.crc32(line))


STRANGE = {
    "empty": b"",
    "zeros": bytes(10**5),
    "no line": b"x" * 10**5,
    "another kind of file": b"\x89HDF\r\n\x1a\n" + bytes(2000),
    "not JSON": signed(b"round 7"),
    "not UTF-8": signed(b"\xff\xfe"),
    "no table": signed(b"[1, 2]"),
    "a number": signed(b"7"),
    "an empty table": signed(b"{}"),
    "another program's": signed(json.dumps({"kind": "something else", "format": 1}).encode()),
}


@pytest.mark.parametrize("name", STRANGE)
def test_files_that_are_no_checkpoint(tmp_path: Path, no_h5py: None, name: str) -> None:
    path = tmp_path / "round-000001.h5"
    path.write_bytes(STRANGE[name])
    assert is_noticed(path)


def test_a_first_line_that_is_valid_before_garbage(tmp_path: Path, no_h5py: None) -> None:
    path = small(tmp_path)
    line, rest = path.read_bytes().split(b"\n", 1)
    for body in (b"", bytes(len(rest)), os.urandom(len(rest))):
        path.write_bytes(signed(line) + body[9:])
        assert is_noticed(path)


def test_a_first_line_that_vouches_for_nonsense(tmp_path: Path, no_h5py: None) -> None:
    """Nobody writes such a line by chance; yet no traceback, no endless loop, no memory without bound."""
    path = small(tmp_path)
    line, rest = path.read_bytes().split(b"\n", 1)
    head = json.loads(line)
    changes: list[dict[str, Any]] = [
        {key: value} for key in head for value in (None, "x", -1, 10**15, [], {}, 0.5)
    ]
    changes += [{"data": [["client/own", offset, 48, 0]]} for offset in (-5, 10**15, None)]
    changes += [{"data": [["client/own", 512, length, 0]]} for length in (-5, 10**15, "x")]
    for change in changes:
        path.write_bytes(signed(json.dumps({**head, **change}).encode()) + rest[9:])
        assert is_noticed(path), change
    for key in head:
        path.write_bytes(signed(json.dumps({k: v for k, v in head.items() if k != key}).encode()) + rest[9:])
        assert is_noticed(path), key


def test_another_versions_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "FORMAT", 2)
        path = small(tmp_path)
    with pytest.raises(UserError, match=f"{path}: is in format 2 .* reads format 1"):
        verify(path)
    with pytest.raises(UserError, match="format 2"):
        list(good(tmp_path))


def test_what_cannot_be_read_is_an_error_of_the_user(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="round-000001.h5: cannot be read: No such file"):
        verify(tmp_path / "round-000001.h5")
    (tmp_path / "round-000002.h5").mkdir()
    with pytest.raises(UserError, match="Is a directory"):
        verify(tmp_path / "round-000002.h5")


# ---- a folder of them


def test_the_newest_good_one_comes_first(tmp_path: Path) -> None:
    made = [small(tmp_path, number) for number in (9, 10, 100, 1000000)]
    (tmp_path / "round-x.h5").write_text("")
    (tmp_path / "other.h5").write_text("")
    assert [(path, reason) for path, reason in good(tmp_path)] == [(path, "") for path in made[::-1]]
    with open(made[-1], "r+b") as file:
        file.truncate(700)
    found = list(good(tmp_path))
    assert found[0][0] == made[-1] and "bytes" in found[0][1]
    assert found[1:] == [(path, "") for path in made[-2::-1]]
    assert list(good(tmp_path / "nowhere")) == []


def test_prune_keeps_the_newest(tmp_path: Path) -> None:
    made = [small(tmp_path, number) for number in (3, 9, 10, 11)]
    (tmp_path / "mine.txt").write_text("")
    shutil.copytree(tmp_path, tmp_path / "ditto")
    prune(tmp_path, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ditto",
        "mine.txt",
        made[2].name,
        made[3].name,
    ]
    assert len(list((tmp_path / "ditto").iterdir())) == 5
    prune(tmp_path, 1)
    assert checkpoint.listed(tmp_path) == [made[3]]


def test_tidy_takes_what_is_half_written(tmp_path: Path) -> None:
    made = small(tmp_path)
    (tmp_path / ".round-000012.h5.tmp").write_text("half-written")
    checkpoint.tidy(tmp_path)
    assert list(tmp_path.iterdir()) == [made]
    checkpoint.tidy(tmp_path / "nowhere")
