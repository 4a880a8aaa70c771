"""Resident memory as measured: a worker pays for its own clients, whatever their number in all."""

from __future__ import annotations

import dataclasses
import functools
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from running import REPOSITORY, options, result, run

from amn_mpi import budget, config, data, methods
from amn_mpi.methods.base import Setting

OWN = 75  # clients of each worker in every run here
PEAKS = REPOSITORY / "tests" / "scripts" / "peaks.py"
# Method, number of hidden units, where the models are, engine; by the number of ranks. Those of one number
# run in one start of the ranks: every process takes seconds before it trains. The first is the base, what
# any run takes; before it comes one that is not looked at, for what only the first run brings into memory.
Case = tuple[str, int, str, str]
BASE = ("local", 1, "rank0", "auto")
RUNS: dict[int, list[Case]] = {
    3: [
        BASE,
        ("local", 1350, "rank0", "auto"),
        ("fedavg", 1350, "rank0", "batched"),
        ("local", 1350, "rank0", "batched"),
        ("amn", 1350, "rank0", "auto"),
        ("amn", 1350, "sharded", "auto"),
        ("fedavg", 13500, "rank0", "auto"),
        ("amn", 4050, "sharded", "auto"),
    ],
    5: [BASE, ("amn", 1350, "rank0", "auto"), ("amn", 1350, "sharded", "auto")],
}
# What one run differs from the next by (allocator, libraries), the part of the prediction that
# may be off, and how many freed vectors glibc may keep.
NOISE_MB, SLACK, KEPT = 10.0, 0.05, 5


@pytest.fixture(scope="module")
def samples(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """4800 small images, 16 for each of 300 clients."""
    path = tmp_path_factory.mktemp("memory") / "images.npz"
    x = np.random.default_rng(0).integers(0, 256, (4800, 8, 8), dtype=np.uint8)
    np.savez(path, x=x, y=np.arange(4800) % 10)
    return path


def words(folder: Path, ranks: int, case: Case, out: Path) -> list[object]:
    """The command line of one round with OWN clients on every worker."""
    method, hidden, server, engine = case
    return [
        *options(
            data__name=folder / "images.npz",
            data__clients=OWN * (ranks - 1),
            data__labels="iid",
            data__concept="none",
            data__train_per_client=12,
            data__test_per_client=4,
            data__cache=folder / "cache",
            model__hidden=hidden,
            local__steps=1,
            local__lr=0.001,
            rounds=1,
            method__name=method,
            **({"method__common_rounds": 0} if method == "amn" else {}),  # so that products are measured
            server=server,
            engine=engine,
            device="cpu",
            progress="off",
            out=out,
        )
    ]


@functools.cache
def on(ranks: int, folder: Path) -> dict[Case, dict[str, Any]]:
    """Results of the runs; ``risen_mb``: how far each rank's peak is above what was there before."""
    outs = [folder / f"{ranks}-{'-'.join(map(str, case))}" for case in RUNS[ranks]]
    lines = [words(folder, ranks, BASE, folder / f"{ranks}-first")]
    lines += [words(folder, ranks, case, out) for case, out in zip(RUNS[ranks], outs)]
    path = folder / f"{ranks}.json"
    path.write_text(json.dumps([list(map(str, line)) for line in lines]))
    done = run(path, ranks=ranks, script=PEAKS, timeout=240)
    assert done.returncode == 0, done.stderr
    found = [(result(out), json.loads((out / "resident.json").read_text())) for out in outs]
    risen = [[b - a for a, b in zip(resident, one["peak_memory_mb"])] for one, resident in found]
    return {case: {**one, "risen_mb": mb} for case, (one, _), mb in zip(RUNS[ranks], found, risen)}


def measured(
    samples: Path, method: str, ranks: int, hidden: int, server: str = "rank0", engine: str = "auto"
) -> dict[str, Any]:
    return on(ranks, samples.parent)[method, hidden, server, engine]


def peaks(samples: Path, method: str, ranks: int, hidden: int) -> list[float]:
    """MB of the workers, above what was there before."""
    return measured(samples, method, ranks, hidden)["risen_mb"][1:]


def declared(method: str, keys: dict[str, Any]) -> tuple[float, float]:
    what = config.build(keys, methods.options(method))
    fed = data.describe(what.data, what.seed)
    setting = Setting(budget.layout_of(what, fed), fed.train, what.seed, what.local)
    return methods.get(method)(what.method, setting).worker_rows()


# That the number of clients does not matter is tried with one method.
CASES = pytest.mark.parametrize(
    ("method", "hidden", "most"), [("amn", 1350, 5), ("local", 1350, 3), ("fedavg", 13500, 3)]
)


# One row too many for each client would be 29 MB with 100,000 parameters.
@CASES
def test_a_worker_holds_what_its_method_declares(samples: Path, method: str, hidden: int, most: int) -> None:
    few, many = peaks(samples, method, 3, hidden), peaks(samples, method, most, hidden)
    base = max(peaks(samples, "local", 3, 1))
    vector = measured(samples, method, 3, hidden)["parameters"] * 4 / 2**20
    constant, each = declared(method, measured(samples, method, 3, hidden)["config"])
    expected = (constant + each * OWN) * vector
    for peak in (*few, *many):
        assert peak - base == pytest.approx(expected, abs=NOISE_MB + SLACK * expected + KEPT * vector)
    # 150 clients or 300: the same.
    assert max(many) - max(few) < NOISE_MB


@pytest.mark.parametrize("method", ["local", "fedavg"])
def test_the_batched_engine_takes_what_the_budget_says(samples: Path, method: str) -> None:
    """Stacks for the clients of a group: some 30 MB more than one by one."""
    base = max(peaks(samples, "local", 3, 1))
    found = measured(samples, method, 3, 1350, engine="batched")
    what = config.build(found["config"], methods.options(method))
    fed = data.describe(what.data, what.seed)
    layout = budget.layout_of(what, fed)
    needs = budget.needs(what, fed, 3, layout)[1:]
    alone = budget.needs(dataclasses.replace(what, engine="torch"), fed, 3, layout)[1:]
    vector = found["parameters"] * 4 / 2**20
    for peak, need, one in zip(found["risen_mb"][1:], needs, alone):
        expected = need.vectors / 2**20
        assert expected > one.vectors / 2**20 + 20
        # An upper bound: neither anchors nor shifts are needed here.
        assert peak - base < (1 + SLACK) * expected + NOISE_MB + KEPT * vector
        assert peak - base > 0.6 * expected - NOISE_MB


@CASES
def test_rank_0_holds_and_moves_what_the_budget_says(
    samples: Path, method: str, hidden: int, most: int
) -> None:
    found = measured(samples, method, most, hidden)
    what = config.build(found["config"], methods.options(method))
    fed = data.describe(what.data, what.seed)
    server = budget.needs(what, fed, most, budget.layout_of(what, fed))[0]
    base = measured(samples, "local", 3, 1)["risen_mb"][0]
    vector, expected = found["parameters"] * 4 / 2**20, server.vectors / 2**20
    # An upper bound, for not all of it is held at one time.
    assert found["risen_mb"][0] - base < (1 + SLACK) * expected + NOISE_MB + KEPT * vector
    assert found["risen_mb"][0] - base > 0.7 * expected - NOISE_MB
    sent = found["bytes_sent"]
    final = 4 * found["clients"] * found["parameters"]  # sent after the figures were taken
    assert sent.get("gather", 0) + sent.get("reduce", 0) == server.up_run - final
    assert sent.get("scatter", 0) + sent.get("broadcast", 0) == server.down_run


def test_a_sharded_server_has_nothing_of_the_size_n_x_p(samples: Path, record_property: Any) -> None:
    """Twice the clients, or three times the parameters: rank 0's peak follows the budget, not N x P."""
    base = max(peaks(samples, "local", 3, 1))
    held, expected, models = [], [], []
    for ranks, hidden in ((3, 1350), (5, 1350), (3, 4050)):
        found = measured(samples, "amn", ranks, hidden, "sharded")
        what = config.build(found["config"], methods.options("amn"))
        fed = data.describe(what.data, what.seed)
        server, *owners = budget.needs(what, fed, ranks, budget.layout_of(what, fed))
        vector, final = found["parameters"] * 4 / 2**20, 4 * found["clients"] * found["parameters"]
        held.append(found["risen_mb"][0])
        expected.append(server.vectors / 2**20)
        models.append(found["clients"] * vector)
        # What is measured in a step takes arrays of up to 10 MB, of which glibc keeps some.
        most = max(need.vectors for need in owners) / 2**20
        assert max(found["risen_mb"][1:]) - base < (1 + SLACK) * most + 3 * NOISE_MB
        sent = found["bytes_sent"]
        assert (sent["broadcast"], sent["gather"] + sent["turns"]) == (server.down_run, server.up_run - final)
        assert sent["alltoall"] + sent["broadcast"] == sum(need.down_run for need in owners)
        assert sent["alltoall"] + server.up_run == sum(need.up_run for need in owners)
    record_property("rank_0_mb", held)
    record_property("models_mb", models)
    for case in (1, 2):
        grown = held[case] - held[0]
        assert grown < expected[case] - expected[0] + NOISE_MB
        assert expected[case] - expected[0] < 0.3 * (models[case] - models[0])
