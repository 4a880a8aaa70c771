"""amn_mpi.train from a script, alone and under a launcher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import plain
import pytest
from running import REPOSITORY, environment, result, run

from amn_mpi import api
from amn_mpi.errors import ConfigError, UserError

SCRIPT = Path(__file__).resolve().parent / "scripts" / "calls.py"
EXAMPLE = REPOSITORY / "examples" / "train_api.py"
SMALL = {"data.clients": 4, "local": {"epochs": 1}, "rounds": 2, "progress": "off"}


def digests(folder: Path) -> list[str]:
    return [result(folder / f"lr-{rate}")["models_sha256"] for rate in (0.02, 0.05, 0.1)]


def test_the_example_gives_what_the_command_gives(tmp_path: Path) -> None:
    env = {"AMN_CACHE": tmp_path / "cache"}
    said = []
    for ranks, out in ((0, tmp_path / "one"), (3, tmp_path / "three")):
        done = run(out, ranks=ranks, script=EXAMPLE, env=env)
        assert (done.returncode, done.stderr) == (0, "")
        said.append(done.stdout)
    assert said[0] == said[1] and said[0].count("local.lr ") == 3
    assert "refused: mapping 1 of amn_mpi.train: rounds = 0: valid is a whole number >= 1" in said[0]
    assert digests(tmp_path / "one") == digests(tmp_path / "three")
    keys = ("--rounds", 10, "--data.clients", 8, "--local.lr", 0.1, "--progress", "off")
    plain.here(*keys, "--data.cache", tmp_path / "cache", "--out", tmp_path / "main")
    assert result(tmp_path / "main")["models_sha256"] == digests(tmp_path / "three")[2]


def test_errors_come_to_every_rank_and_the_ranks_live_on(tmp_path: Path) -> None:
    """Wrong configurations, data, folders and divergence; after each the next call works."""
    env = {"AMN_CACHE": tmp_path / "cache", "CUDA_VISIBLE_DEVICES": ""}
    owner = np.repeat(np.arange(2), 30)
    np.savez(tmp_path / "own.npz", x=np.eye(60, dtype=np.float32), y=np.arange(60) % 2, client=owner)
    done = run(tmp_path, ranks=4, script=SCRIPT, env=env)
    assert done.returncode == 0, done.stderr
    lines = [line for line in done.stderr.splitlines() if "own.npz has 2 clients" not in line]
    assert len(lines) == len(done.stderr.splitlines()) - 1 and all("1 stay idle" in line for line in lines)
    heard = [json.loads((tmp_path / f"heard-{rank}.json").read_text()) for rank in range(4)]
    kinds = ["ConfigError", "ConfigError", "UserError", "UserError", "UserError", "Diverged", "UserError"]
    assert [kind for kind, _ in heard[0]["errors"]] == kinds
    assert all(each["errors"] == heard[0]["errors"] for each in heard[1:])
    told = [text for _, text in heard[0]["errors"]]
    assert "rounds = 0" in told[0] and "did you mean local.lr" in told[1]
    assert (
        "nowhere.h5" in told[2]
        and "holds a run already" in told[3]
        and "no usable GPU" in told[4]
        and "diverged" in told[5]
    )
    assert "result.json" in told[6], "what rank 0 alone meets at the very end"
    assert heard[0]["sha"] == result(tmp_path / "good-2")["models_sha256"]
    assert heard[0]["again"] == heard[0]["sha"], "a finished run gives back its result"
    assert [each["sha"] for each in heard[1:]] == [None] * 3
    assert (heard[0]["own"]["clients"], heard[0]["own"]["labels"]) == (2, "own"), "as on the command line"


def test_what_nobody_catches_ends_all_ranks_with_one_line(tmp_path: Path) -> None:
    script = tmp_path / "uncaught.py"
    script.write_text("import amn_mpi\namn_mpi.train({'rounds': 0})\n")
    done = run(ranks=3, script=script)
    assert done.returncode == 2
    assert [line for line in done.stderr.splitlines() if "amn_mpi" in line] == [
        "amn_mpi: mapping 1 of amn_mpi.train: rounds = 0: valid is a whole number >= 1 and < 2147483648"
    ]


def test_importing_the_package_imports_nothing() -> None:
    code = "import sys, amn_mpi; print([m for m in sys.modules if m.startswith('amn_mpi')])"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=environment(), check=True
    )
    assert done.stdout.strip() == "['amn_mpi']"


def test_configurations_from_python(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("rounds: 7\nlocal: {lr: 0.5}\n")
    nested = {"data": {"clients": np.int64(6)}, "local.lr": 0.25, "baselines": ("local", "fedavg")}
    config = api.resolved(("fedavg", file, nested, {"out": tmp_path / "x"}))
    assert (config.method.name, config.rounds, config.local.lr) == ("fedavg", 7, 0.25)
    assert (config.data.clients, config.baselines) == (6, "local,fedavg")
    assert config.out == str(tmp_path / "x")


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (({"data": {"client": 3}},), "data.client: unknown key (mapping 1 of amn_mpi.train); did you mean"),
        (({"data": {"clients": object()}},), "data.clients: a object is no value of a key"),
        (({"rounds": "many"},), "rounds = many: valid is a whole number"),
        (("nowhere.yaml",), "nowhere.yaml: no such file; known by name are"),
        ((3,), "amn_mpi.train: 3: valid are mappings of keys, and YAML files' names"),
        (({"faults.survive": True},), "faults.survive = true: valid in amn_mpi.train is false"),
    ],
)
def test_wrong_configurations(given: tuple[object, ...], says: str) -> None:
    with pytest.raises(ConfigError) as refusal:
        api.resolved(given)  # type: ignore[arg-type]
    assert says in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_thread_is_refused() -> None:
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as pool, pytest.raises(UserError, match="valid is the main thread"):
        pool.submit(api.train, SMALL).result()
