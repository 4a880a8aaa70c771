"""The main job on two hosts that share nothing but a TCP link and a file system."""

from __future__ import annotations

import json
from pathlib import Path

import hosts
import plain
import pytest
from running import result, run

JOB = ("--data.clients", 6, "--local.epochs", 1, "--rounds", 8, "--progress", "off")
SCRIPT = Path(__file__).resolve().parent / "scripts" / "on_hosts.py"


@pytest.fixture(scope="module")
def under() -> list[str]:
    return hosts.under()


@pytest.fixture(scope="module")
def models(under: list[str], tmp_path_factory: pytest.TempPathFactory) -> str:
    """The checksum of the models that one rank makes."""
    folder = tmp_path_factory.mktemp("one")
    plain.here(*JOB, "--out", folder / "out", "--data.cache", folder / "cache")
    return result(folder / "out")["models_sha256"]


@pytest.mark.parametrize("network", hosts.NETWORKS)
def test_two_hosts_give_the_same_models(tmp_path: Path, under: list[str], models: str, network: str) -> None:
    env = {"AMN_CACHE": tmp_path / "cache", "MARK": tmp_path, **hosts.NETWORKS[network]}
    done = run(*JOB, "--out", tmp_path / "out", ranks=4, env=env, script=SCRIPT, under=under)
    assert (done.returncode, done.stderr) == (0, "")
    found = result(tmp_path / "out")
    assert found["ranks"] == 4
    assert found["models_sha256"] == models

    seen = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(4)]
    assert [rank["host"] for rank in seen] == ["n1", "n1", "n2", "n2"]
    assert [rank["ranks_on_host"] for rank in seen] == [2, 2, 2, 2]
    assert [rank["server_on_host"] for rank in seen] == [True, True, False, False]
    # Ranks 2 and 3 own two of six clients each: two thirds of the rows cross the link. Beside them
    # rank 0 receives some 350 kB there and sends 100 kB, whatever is trained: here the rows weigh more.
    up, down = (found["bytes_sent"][kind] * 2 / 3 for kind in ("gather", "scatter"))
    assert up <= seen[0]["received"] < 1.2 * up + 300_000
    assert down <= seen[0]["sent"] < 1.2 * down + 300_000
    assert seen[3]["sent"] >= up and seen[3]["received"] >= down
