"""``python -m amn_mpi.data``: list, show, prepare, and fetch from a server of this test's own."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import re
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest
from running import REPOSITORY, environment, one_line

from amn_mpi import cli, data
from amn_mpi.config import Data
from amn_mpi.data.__main__ import main
from amn_mpi.data.commands import COMMANDS, download, listing, show
from amn_mpi.data.commands.sources import SOURCES
from amn_mpi.data.readers import READERS


@pytest.fixture(autouse=True)
def apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMN_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("AMN_DATA", raising=False)
    monkeypatch.setenv("no_proxy", "*")


def refused(capsys: pytest.CaptureFixture[str], status: int, *words: object) -> str:
    """The only line of a command that fails."""
    assert main(list(map(str, words))) == status
    return one_line(capsys.readouterr().err)


# ---- command lines


@pytest.mark.parametrize(
    "line, told",
    [
        ("", "data what?: no such command; valid are list, show, prepare, fetch"),
        ("shw default", "shw: no such command; valid are list, show, prepare, fetch"),
        ("show", "show what? valid is show CONFIG"),
        ("prepare --data.clients 3", "prepare what? valid is prepare CONFIG"),
        ("show nope", "--config nope: no such file; known by name are amn, "),
        ("show default --data.name nope", "data.name = nope: valid are digits, mnist"),
        ("show default --data.client 3", "data.client: unknown key"),
        ("show default --dry_run", "--dry_run: is for runs"),
        ("show default --dry_run=1", "--dry_run=1: is for runs"),
        ("show default --figure who.gif", "--figure who.gif: valid is a file that ends in .png, .pdf, .svg"),
        ("show default --figure nowhere/who.png", "there is no folder nowhere"),
        ("show default --figure", "--figure: a value is missing after it"),
        ("list digits", "digits: not an option here"),
        ("list --root nowhere", "data.root = nowhere: there is no such folder"),
        ("fetch", "fetch what?: valid is one of mnist, fashion_mnist, cifar10, cifar100"),
        ("fetch digits", "fetch digits: valid is one of mnist, "),
        ("fetch mnist cifar10", "cifar10: not an option here; valid is fetch NAME"),
    ],
)
def test_wrong_lines(capsys: pytest.CaptureFixture[str], line: str, told: str) -> None:
    assert told in refused(capsys, 2, *line.split())


def test_as_a_command(tmp_path: Path) -> None:
    """Help, and that nothing heavy is imported for a table."""
    code = "import sys; from amn_mpi.data.__main__ import main; s = main(sys.argv[1:]); "
    code += "print([m for m in ('torch', 'matplotlib', 'mpi4py') if m in sys.modules]); sys.exit(s)"
    env = environment({"AMN_CACHE": tmp_path})
    for start in (["-m", "amn_mpi.data", "--help"], ["-c", code, "show", "default", "--data.clients", "3"]):
        done = subprocess.run(
            [sys.executable, *start], capture_output=True, text=True, env=env, cwd=REPOSITORY
        )
        assert (done.returncode, done.stderr) == (0, "")
        assert all(name in done.stdout for name in COMMANDS) or done.stdout.endswith("[]\n")


# ---- list


def test_list(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert set(listing.WHAT) == set(READERS)
    folder = tmp_path / "cifar-100-binary"
    folder.mkdir()
    for name in ("train.bin", "test.bin"):
        (folder / name).touch()
    assert main(["list", "--root", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    lines = {line.split()[0].rstrip(":"): line for line in out.splitlines() if line.split()}
    assert re.search(rf"^  cifar100 .* {folder}", out, re.M)
    assert re.search(r"^  cifar10 .* not found", out, re.M)
    rows = [line for line in out.splitlines() if re.match(r"  (name|digits|emnist|cifar100) ", line)]
    assert len({re.search(r"  (what|\d[\d,]+) ", row).start() for row in rows}) == 1, (
        "texts begin below each other"
    )  # type: ignore[union-attr]
    assert "python -m amn_mpi.data fetch cifar10`, or get cifar-10-binary.tar.gz from" in lines["cifar10"]
    assert lines["emnist"].startswith("  emnist: get gzip.zip")


# ---- show and prepare


def test_show_says_what_a_run_gets(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["default", "--data.clients", "7", "--data.sizes", "lognormal", "--seed", "3"]
    assert main(["show", *words]) == 0
    out = capsys.readouterr().out
    config = cli.parse(["--config", *words])[0]
    fed = data.prepare(config.data, config.seed)
    for client, loaded in enumerate(data.load_clients(fed, range(7))):
        labels, counts = np.unique(loaded.y_train, return_counts=True)
        label, most = labels[counts.argmax()], counts.max()
        row = rf"^  {client} +{len(loaded.y_train)} +{len(loaded.y_test)} +{len(labels)} +{label} x {most},"
        assert re.search(row, out, re.M), (row, out)
    assert "concept group" in out and "label group" not in out
    assert f"training samples {fed.train.sum():,}: {fed.train.min()} to {fed.train.max()} a client" in out


@pytest.mark.parametrize("clients, classes, end", [(4, 10, "png"), (300, 100, "pdf")])
def test_figure(tmp_path: Path, clients: int, classes: int, end: str) -> None:
    """All of the counts are in it, and the names on the axes do not run into each other."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from amn_mpi.data.commands import figure as drawing

    fed = data.describe(Data(clients=4), 0)
    counts = np.random.default_rng(0).integers(0, 50, (clients, classes))
    names = [f"${k}^" for k in range(classes)]  # not mathematics
    fed = replace(fed, train_counts=counts, train=counts.sum(1), test=counts[:, 0], class_names=names)
    drawn = drawing.draw(fed, Figure)
    image = drawn.axes[1].images[0]
    assert (image.get_array() == counts.T).all()
    assert [bar.get_height() for bar in drawn.axes[0].patches] == counts.sum(1).tolist()
    canvas = FigureCanvasAgg(drawn)
    canvas.draw()
    for axis, along in ((drawn.axes[1].xaxis, "x"), (drawn.axes[1].yaxis, "y")):
        boxes = [label.get_window_extent() for label in axis.get_ticklabels()]
        ends = sorted((getattr(b, f"{along}0"), getattr(b, f"{along}1")) for b in boxes)
        assert len(ends) >= 4 and all(one[1] <= two[0] for one, two in zip(ends, ends[1:])), along
    drawing.save(fed, tmp_path / f"who.{end}")
    begins = {"png": b"\x89PNG", "pdf": b"%PDF"}[end]
    assert (tmp_path / f"who.{end}").read_bytes().startswith(begins)


def test_show_draws(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["show", "default", "--figure", str(tmp_path / "a.svg")]) == 0
    assert f"figure in {tmp_path / 'a.svg'}" in capsys.readouterr().out
    assert b"<svg" in (tmp_path / "a.svg").read_bytes()
    (tmp_path / "b.png").mkdir()
    told = refused(capsys, 1, "show", "default", "--figure", tmp_path / "b.png")
    assert "b.png: cannot be written (Is a directory)" in told


def test_without_matplotlib(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install '.[report]'" in refused(capsys, 1, "show", "default", "--figure", "a.png")
    assert show.FORMATS[0] == ".png" and not Path("a.png").exists()


def test_prepare_is_what_a_run_finds(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["prepare", "default", "--data.clients", "5"]) == 0
    out = capsys.readouterr().out
    (path,) = (tmp_path / "cache").iterdir()
    assert out.rstrip().endswith(f"{path.stat().st_size / 1e6:.1f} MB in {path}")
    changed = path.stat().st_mtime_ns
    assert data.prepare(Data(clients=5), 0).path == str(path)
    assert path.stat().st_mtime_ns == changed


# ---- fetch


class Server(ThreadingHTTPServer):
    """Files by path; it notes what it was asked, and hangs up after ``cut`` bytes so often.

    Attributes:
        asked: (path, the first byte asked for).
        ranges: whether it knows ranges.
    """

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.asked: list[tuple[str, int]] = []
        self.cut, self.cuts, self.ranges = 0, 0, True
        self.url = f"http://127.0.0.1:{self.server_port}/m"


class Handler(BaseHTTPRequestHandler):
    server: Server

    def log_message(self, *args: object) -> None:
        pass

    def do_GET(self) -> None:
        server, name = self.server, self.path.removeprefix("/m/")
        start = int((self.headers["Range"] or "bytes=0-")[6:-1])
        server.asked.append((name, start))
        if name not in server.files:
            return self.send_error(404)
        content = server.files[name]
        start = start if server.ranges else 0
        if start >= len(content):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = len(content)
        if server.cuts:
            server.cuts, stop = server.cuts - 1, start + server.cut
        self.wfile.write(content[start:stop])
        self.close_connection = True


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """It has two data sets of its own content; the table has their sums."""
    made = Server()
    rng = np.random.default_rng(0)
    for name in SOURCES["mnist"].sums:
        made.files[name] = gzip.compress(rng.bytes(3000))
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        for name in (*SOURCES["cifar100"].unpacked, "../../evil", "more.txt"):
            entry = tarfile.TarInfo(f"cifar-100-binary/{name}")
            entry.size = 2000
            archive.addfile(entry, io.BytesIO(rng.bytes(2000)))
    made.files["cifar-100-binary.tar.gz"] = packed.getvalue()
    for name in ("mnist", "cifar100"):
        sums = {file: hashlib.md5(made.files[file]).hexdigest() for file in SOURCES[name].sums}
        monkeypatch.setitem(SOURCES, name, replace(SOURCES[name], sums=sums))
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield made
    made.shutdown()
    thread.join()
    made.server_close()


def fetch(server: Server, name: str, to: Path) -> int:
    return main(["fetch", name, "--to", str(to), "--from", server.url])


def below(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


def test_fetch_then_find(server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert fetch(server, "mnist", tmp_path / "d") == 0
    folder = tmp_path / "d" / "MNIST" / "raw"
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == {
        name: server.files[name] for name in SOURCES["mnist"].sums
    }
    found = READERS["mnist"].locate(Data(name="mnist", root=str(tmp_path / "d")))
    assert {path.parent for path in found.values()} == {folder}
    assert f"--data.root {tmp_path / 'd'}" in capsys.readouterr().out
    before = len(server.asked)
    (folder / "t10k-labels-idx1-ubyte.gz").write_bytes(b"broken since")
    assert fetch(server, "mnist", tmp_path / "d") == 0
    assert server.asked[before:] == [("t10k-labels-idx1-ubyte.gz", 0)]


def test_an_archive_is_unpacked(server: Server, tmp_path: Path) -> None:
    for _ in range(2):
        assert fetch(server, "cifar100", tmp_path / "d") == 0
    assert len(server.asked) == 1
    assert below(tmp_path) == {f"d/cifar-100-binary/{name}" for name in SOURCES["cifar100"].unpacked}


def test_a_cut_connection_goes_on(server: Server, tmp_path: Path) -> None:
    server.cut, server.cuts = 1000, 2
    assert fetch(server, "mnist", tmp_path) == 0
    first = "train-images-idx3-ubyte.gz"
    assert [start for name, start in server.asked if name == first] == [0, 1000, 2000]


def test_the_next_call_goes_on(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(download, "TRIES", 1)
    first = "train-images-idx3-ubyte.gz"
    part = tmp_path / "MNIST" / "raw" / f"{first}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files[first][:700])
    server.cut, server.cuts = 0, 1
    told = refused(capsys, 1, "fetch", "mnist", "--to", tmp_path, "--from", server.url)
    assert "broke 1 times in a row; what came (700 bytes) is kept" in told
    assert part.read_bytes() == server.files[first][:700]
    assert fetch(server, "mnist", tmp_path) == 0
    assert server.asked[:2] == [(first, 700)] * 2 and not part.exists()


def test_a_part_that_is_whole(server: Server, tmp_path: Path) -> None:
    first = "train-images-idx3-ubyte.gz"
    part = tmp_path / "MNIST" / "raw" / f"{first}.part"
    part.parent.mkdir(parents=True)
    part.write_bytes(server.files[first])
    assert fetch(server, "mnist", tmp_path) == 0


def test_a_server_without_ranges(server: Server, tmp_path: Path) -> None:
    server.ranges, server.cut, server.cuts = False, 1000, 1
    assert fetch(server, "mnist", tmp_path) == 0
    assert server.asked[:2] == [("train-images-idx3-ubyte.gz", 0), ("train-images-idx3-ubyte.gz", 1000)]


@pytest.mark.parametrize("name", ["mnist", "cifar100"])
def test_a_wrong_checksum_keeps_nothing(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    first = next(iter(SOURCES[name].sums))
    server.files[first] = b"x" + server.files[first][1:]
    told = refused(capsys, 1, "fetch", name, "--to", tmp_path, "--from", server.url)
    assert f"{first}: is not the file that was published" in told and SOURCES[name].sums[first] in told
    assert below(tmp_path) == set()


def test_no_server_no_file_no_room(
    server: Server, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def told(url: str, to: object = tmp_path) -> str:
        return refused(capsys, 1, "fetch", "mnist", "--to", to, "--from", url)

    assert "cannot reach 127.0.0.1:1 (Connection refused): is there a network?" in told("http://127.0.0.1:1")
    assert "the server says 404 Not Found" in told(f"{server.url}/elsewhere")
    assert "is no address; valid is http:// or https://" in told("file:///etc")
    (tmp_path / "file").touch()
    assert "cannot be written (Not a directory)" in told(server.url, tmp_path / "file")
    assert below(tmp_path) == {"file"}


def test_folders_are_those_of_the_readers(tmp_path: Path) -> None:
    """What is fetched under each name is found by the reader of that name."""
    for name, source in SOURCES.items():
        folder = tmp_path / name / source.folder
        folder.mkdir(parents=True)
        for file in source.unpacked or source.sums:
            (folder / file).touch()
        found = READERS[name].locate(Data(name=name, root=str(tmp_path / name)))
        assert {os.path.dirname(path) for path in found.values()} == {str(folder)}
