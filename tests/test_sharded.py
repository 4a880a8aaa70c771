"""The sharded server gives the bits of the one on rank 0: any ranks, cohorts, resumed, stopped."""

from __future__ import annotations

import dataclasses
import json
import signal
from pathlib import Path
from typing import Any

import plain
import pytest
import torch
from ready import SCRIPTS, call, run_each
from running import end as ended
from running import one_line, options, ranks_of, result, start, wait_for

from amn_mpi import budget, methods, rounds
from amn_mpi.checkpoint import Reader, file_name
from amn_mpi.config import Config, Model
from amn_mpi.errors import ConfigError

RANKS = (3, 5, 1)
SICK = 4


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    """One call for each number of ranks; each goes on from the checkpoints of those before it, too."""
    folder, facts = tmp_path_factory.mktemp("sharded"), {}
    words = options(
        rounds=4, local__epochs=1, data__sizes="lognormal", data__clients=9, device="cpu", progress="off"
    )
    for n in RANKS:
        out = folder / f"{n}.json"
        more = ("--data.cache", folder / "cache")
        done = call(SCRIPTS / "sharded.py", out, *words, *more, ranks=n, timeout=120)
        assert done.returncode == 0, done.stderr
        facts[n] = json.loads(out.read_text())
    with Reader(folder / "checkpoints" / "3 rank0" / file_name(2)) as reader:
        assert "models" not in reader.shapes("server") and "model" in reader.shapes("client")
    return facts


@pytest.mark.parametrize("cohort", [1.0, 0.5])
@pytest.mark.parametrize("name", ["amn", "corrected", "fedamp", "heur_fedamp"])
def test_the_same_bits_as_on_rank_0(found: dict[int, dict], name: str, cohort: float) -> None:
    """Models, clients' and server's state, metrics, scores."""
    first = found[1][f"{name} {cohort} rank0"]
    for n in RANKS:
        for server in ("rank0", "sharded"):
            assert found[n][f"{name} {cohort} {server}"] == first, (n, server)
    assert len(set(first["models"])) == 9 and len(first["rounds"]) == 4
    if name in ("amn", "corrected"):  # the meta-network has moved
        assert first["rounds"][-1]["gate"] != first["rounds"][0]["gate"]
    if name == "corrected":
        assert first["models"] != found[1][f"amn {cohort} rank0"]["models"]


def test_resumed_is_unbroken(found: dict[int, dict]) -> None:
    """Models and drifts, from a checkpoint of either server, made on as many ranks or on others."""
    unbroken, here = found[1]["corrected 0.5 rank0"], []
    for n in RANKS:
        here.append(n)
        expected = {
            f"from {m} {a} {b}" for m in here for a in ("rank0", "sharded") for b in ("rank0", "sharded")
        }
        starts = {name: facts for name, facts in found[n].items() if name.startswith("from")}
        assert set(starts) == expected
        assert [name for name, facts in starts.items() if facts != unbroken] == []


@pytest.mark.parametrize("cohort", [1.0, 0.5])
def test_a_client_that_diverged_sits_the_round_out(found: dict[int, dict], cohort: float) -> None:
    first = found[1][f"diverged {cohort} rank0"]
    assert [row.get("diverged") for row in first["rounds"]] == [None, [SICK], None, None]
    assert first["models"] != found[1][f"corrected {cohort} rank0"]["models"]
    starts = [found[n][f"diverged {cohort} {server}"] for n in RANKS for server in ("rank0", "sharded")]
    assert all(facts == first for facts in starts)


def test_stopped_in_mid_round_and_gone_on_elsewhere(tmp_path: Path) -> None:
    """Through the program as users start it; with whole blocks two of the four owners hold nothing."""
    keys = {"rounds": 8, "device": "cpu", "data__clients": 6, "local__epochs": 1}
    keys |= {"data__cache": tmp_path / "cache", "method__common_rounds": 1}
    words = options(**keys, progress="off")
    unbroken, out = tmp_path / "unbroken", tmp_path / "out"
    plain.here(*words, "--out", unbroken)
    sharded = [*words, "--server", "sharded", "--out", out]
    process = start(*sharded, ranks=3, env={"TRAIN": 0.2}, script=SCRIPTS / "slow.py")
    wait_for(out / "metrics.jsonl", 3, process)
    signal_one(ranks_of(process, 3)[1])
    stopped = ended(process, 30)
    assert stopped.returncode == 75 and "stopped by SIGTERM" in one_line(stopped.stderr)
    assert not (out / "result.json").exists()
    done = run_each([[*sharded, "--resume", "auto"]], tmp_path, ranks=5)
    assert done.returncode == 0, done.stderr
    same = ("models_sha256", "per_client", "mean_last5")
    assert [result(out)[k] for k in same] == [result(unbroken)[k] for k in same]
    assert "alltoall" in result(out)["bytes_sent"] and "gather" in result(out)["bytes_sent"]


def signal_one(pid: int) -> None:
    import os

    os.kill(pid, signal.SIGTERM)


def test_a_run_on_one_rank_is_that_of_the_method(tmp_path: Path) -> None:
    """No rows of the models on the server; the columns hold them after a round."""
    runs = [
        plain.start(tmp_path, methods.options("amn")(common_rounds=0), server=s) for s in ("rank0", "sharded")
    ]
    for _ in range(3):
        assert plain.one_round(runs[0]).figures["gate"] == plain.one_round(runs[1]).figures["gate"]
    assert set(runs[0].server) - set(runs[1].server) == {"models", "drifts"}
    assert runs[0].server["sketches"].any() and not {"reference"} & set(runs[0].server)
    for name in set(runs[1].server):
        assert torch.equal(runs[0].server[name], runs[1].server[name]), name
    for k, (name, own) in enumerate((("models", "model"), ("drifts", "drift"))):
        assert torch.equal(columns_of(runs[1], k), runs[1].state[own]) and runs[1].state[own].any()
        assert torch.equal(runs[0].method.stack.rows(runs[0].server[name]), runs[1].state[own])


def columns_of(this: rounds.Run, k: int) -> torch.Tensor:
    """(N, P) out of this rank's blocks."""
    assert this.shards is not None
    return torch.cat([held.stacks[k] for held in this.shards._held], 1)


# ---- who may


SHARDABLE = ("amn", "fedamp", "heur_fedamp")


@pytest.mark.parametrize("name", methods.METHODS)
def test_methods_that_need_whole_models_refuse(tmp_path: Path, name: str) -> None:
    network = plain.NETWORK.get(name, "linear")
    this = plain.start(tmp_path, methods.options(name)())
    config = dataclasses.replace(this.config, server="sharded", model=Model(network, hidden=3))  # type: ignore[arg-type]
    fed = plain_federation(config)
    if name in SHARDABLE:
        budget.check(config, fed)
        return
    with pytest.raises(ConfigError) as caught:
        budget.check(config, fed)
    text = str(caught.value)
    assert text.startswith(f"server = sharded: method.name = {name} ") and "valid is rank0 or auto" in text
    budget.check(dataclasses.replace(config, server="auto", server_gb=0.0), fed)


def plain_federation(config: Config) -> Any:
    from amn_mpi.data import prepare

    return prepare(config.data, config.seed)


def test_baselines_of_a_sharded_run() -> None:
    """Those that can go on like it where they must, the others as ever."""
    base = Config(method=methods.options("amn")(), server="sharded")
    assert methods.baseline(base, "fedavg").server == methods.baseline(base, "fedamp").server == "auto"
    assert methods.baseline(dataclasses.replace(base, server="rank0"), "fedamp").server == "rank0"


def test_a_refusal_is_one_line_before_anything_is_trained(tmp_path: Path) -> None:
    words = options(server="sharded", method__name="fedavg", out=tmp_path / "out", data__cache=tmp_path)
    with pytest.raises(ConfigError, match="^server = sharded: "):
        plain.here(*words)
