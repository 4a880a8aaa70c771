"""Weights & Biases, offline: what its own file holds after a stop, a kill and a resume."""

from __future__ import annotations

import json
import os
import signal
import struct
import sys
import time
import zlib
from collections.abc import Iterator
from itertools import accumulate
from pathlib import Path
from typing import Any

import pytest
from running import end, one_line, ranks_of, result, run, start, variable, wait_for

from amn_mpi import callbacks
from amn_mpi.config import Logging
from amn_mpi.errors import ConfigError

WORDS = ("--data.clients", 4, "--local.epochs", 1, "--progress", "off", "--checkpoint.every", 5)
WORDS += ("--logging.callbacks", "wandb", "--evaluate.every", 1, "--resume", "auto")
BLOCK, HEADER = 32768, 7
NO_HOME = "/proc/none"


# ---- the file, by its format (LevelDB's log of protocol buffers)


def records(path: Path) -> Iterator[Any]:
    """What the file holds, by the library's own description of a record."""
    from wandb.proto import wandb_internal_pb2

    data, at, parts = path.read_bytes(), HEADER, b""
    while at + HEADER <= len(data):
        left = BLOCK - at % BLOCK
        if left < HEADER:
            at += left
            continue
        checksum, size, kind = struct.unpack_from("<IHB", data, at)
        if not kind:
            at += left
            continue
        part = data[at + HEADER : at + HEADER + size]
        assert zlib.crc32(part, zlib.crc32(bytes([kind]))) == checksum
        parts, at = parts + part, at + HEADER + size
        if kind in (1, 4):  # whole, or the last of several parts
            record = wandb_internal_pb2.Record()
            record.ParseFromString(parts)
            parts = b""
            yield record


def plainly(items: Any) -> dict[str, Any]:
    return {".".join(item.nested_key) or item.key: json.loads(item.value_json) for item in items}


class Kept:
    """The only offline run of a folder."""

    def __init__(self, folder: Path) -> None:
        (self.path,) = (folder / "wandb").glob("offline-run-*")
        (file,) = self.path.glob("*.wandb")
        found = [(record.WhichOneof("record_type"), record) for record in records(file)]
        self.rows = [plainly(record.history.item) for kind, record in found if kind == "history"]
        self.summary: dict[str, Any] = {}
        for kind, record in found:
            if kind == "summary":
                self.summary |= plainly(record.summary.update)
        self.exit = [record.exit.exit_code for kind, record in found if kind == "exit"]
        (self.run,) = [record.run for kind, record in found if kind == "run"]
        self.config = plainly(self.run.config.update)


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def check_rows(kept: Kept, rows: list[dict[str, Any]]) -> None:
    """Every round once, with the values of metrics.jsonl; where a round was not evaluated, no accuracy."""
    assert [row["round"] for row in kept.rows] == [row["_step"] for row in kept.rows]
    assert [row["round"] for row in kept.rows] == [row["round"] for row in rows]
    best = list(accumulate((row["mean_accuracy"] for row in rows), max))
    for told, row, most in zip(kept.rows, rows, best):
        assert told["accuracy/best"] == most
        assert told["round/seconds"] == row["seconds"] and told["gate/fc2"] == row["gate"][1]
        for model, scores in row["models"].items():
            assert told[f"accuracy/{model}"] == scores["mean_accuracy"]
            assert told[f"worst_tenth/{model}"] == scores["worst10"]


# ---- stopped with all of a job's processes, killed, gone on


def helpers() -> list[int]:
    """Processes of the library that a run of this file has started, as long as they live."""
    every = [path.parent for path in Path("/proc").glob("[0-9]*/comm") if name_of(path) == "wandb-core"]
    return [int(path.name) for path in every if variable(int(path.name), "HOME") == NO_HOME]


def name_of(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:  # it has ended meanwhile
        return ""


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that was stopped as Slurm stops a job, then killed, then finished; and what was seen."""
    base = tmp_path_factory.mktemp("wandb")
    folder, env = base / "out", {"AMN_CACHE": base / "cache", "HOME": NO_HOME}
    what = (*WORDS, "--out", folder)
    process = start(*what, "--rounds", 4000, ranks=3, env=env)
    wait_for(folder / "metrics.jsonl", 12, process)
    (helper,) = helpers()
    os.kill(helper, signal.SIGTERM)
    process.send_signal(signal.SIGTERM)
    began = time.monotonic()
    seen: dict[str, Any] = {"stopped": end(process, 20.0), "took": time.monotonic() - began}
    seen |= {"kept": Kept(folder), "rows": rows_of(folder)}
    process = start(*what, "--rounds", 4000, ranks=3, env=env)
    wait_for(folder / "metrics.jsonl", len(seen["rows"]) + 12, process)
    os.kill(ranks_of(process, 3)[0], signal.SIGKILL)
    end(process, 20.0)
    rounds = len(rows_of(folder)) + 5
    seen["finished"] = run(*what, "--rounds", rounds, env=env)
    until = time.monotonic() + 10
    while helpers() and time.monotonic() < until:
        time.sleep(0.05)
    return folder, {**seen, "left": helpers(), "rounds": rounds}


def test_a_stop_is_as_fast_and_quiet_as_without(lived: tuple[Path, dict[str, Any]]) -> None:
    """Although the library's process was told to end, too, with all that it had not written."""
    seen = lived[1]
    assert seen["stopped"].returncode == 75 and seen["took"] < 6.0
    assert one_line(seen["stopped"].stderr).startswith("amn_mpi: stopped by SIGTERM")
    assert seen["stopped"].stdout == ""
    check_rows(seen["kept"], seen["rows"])
    assert seen["kept"].exit == [1] and seen["kept"].summary["ended"].startswith("stopped by SIGTERM")


def test_a_killed_run_goes_on_as_the_same_one(lived: tuple[Path, dict[str, Any]]) -> None:
    folder, seen = lived
    assert (seen["finished"].returncode, seen["finished"].stderr) == (0, "")
    kept, done = Kept(folder), result(folder)
    assert kept.path.name != seen["kept"].path.name, "a folder a start; earlier ones are gone"
    assert kept.run.run_id == seen["kept"].run.run_id == (folder / "wandb" / "id").read_text().strip()
    assert (kept.run.project, kept.run.display_name) == ("amn_mpi", "out")
    assert len(rows_of(folder)) == seen["rounds"]
    check_rows(kept, rows_of(folder))
    assert kept.exit == [0] and kept.summary["ended"] == "finished"
    assert kept.summary["result/mean_last5"] == done["mean_last5"]
    assert kept.summary["result/models.local.worst10"] == done["models"]["local"]["worst10"]
    assert kept.config["rounds"] == seen["rounds"]
    assert kept.config["data"]["clients"] == kept.config["run"]["clients"] == 4


def test_the_attention_is_shown_where_it_is_kept(lived: tuple[Path, dict[str, Any]]) -> None:
    from PIL import Image

    folder = lived[0]
    kept = Kept(folder)
    images = {row["round"]: row["attention.path"] for row in kept.rows if "attention.path" in row}
    assert images and list(images) == [int(path.stem) for path in sorted(folder.glob("attention/*.npy"))]
    assert Image.open(kept.path / "files" / images[max(images)]).width > 100


def test_nothing_is_left_behind(lived: tuple[Path, dict[str, Any]]) -> None:
    folder, seen = lived
    assert seen["left"] == []
    assert not (folder / "wandb" / "cache" / "wandb" / "settings").exists()


def test_one_folder_stays_where_several_begin_within_a_second(tmp_path: Path) -> None:
    """The library then numbers them, ...-ID and ...-ID-1."""
    from amn_mpi.wandb import WandB

    (tmp_path / "metrics.jsonl").write_text(json.dumps({"round": 1, "seconds": 1.0}) + "\n")
    facts = {"layers": ["a"], "ranks": 1, "clients": 1, "parameters": 1, "done": 0}
    told = WandB()
    told.begin({}, tmp_path, facts)
    for _ in range(4):
        told._again()
    told.end({})
    told.close()
    assert [row["round"] for row in Kept(tmp_path).rows] == [1]


def test_a_missing_package_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if "site-packages" not in p])
    monkeypatch.delitem(sys.modules, "wandb", raising=False)
    with pytest.raises(ConfigError) as refusal:
        callbacks.Callbacks(Logging(callbacks="wandb"))
    assert str(refusal.value) == (
        "logging.callbacks = wandb: needs the package wandb: pip install '.[wandb]'"
    )
