"""The budget against numbers worked out by hand: 4 clients, 10 parameters, 40 bytes a vector."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plain
import pytest

from amn_mpi import activations, budget, forecast, methods, models, rng
from amn_mpi.config import Config, Data, Evaluate, Local, Model
from amn_mpi.data import Federation
from amn_mpi.errors import ConfigError
from amn_mpi.placement import Placement

# Floats of AMN's server. 4 models, a block of whose columns begins at a multiple of 16 floats.
MODELS = 48
# A block, here all 10 columns: 4 gradients; 4 x 4 products twice.
BLOCK = 4 * 10 + 2 * 4 * 4
# The sums of these, in float64 and as used; 4 x 4 sketches of 512; 8 x 4 x 4.
AMN = 3 * 4 * 4 + 4 * 4 * 512 + 8 * 4 * 4
SKETCHES = 4 * 512  # of all clients, as rank 0 gets them


def settings(method: str = "amn", drift: float = 0.0, **keys: Any) -> Config:
    given = {"local": Local(epochs=1), "model": Model("linear"), "rounds": 7, **keys}
    own = {"drift": drift} if method == "amn" else {}
    return Config(method=methods.options(method)(**own), data=Data(clients=4), **given)


def federation(clients: int = 4, shape: tuple[int, ...] = (1, 2, 2)) -> Federation:
    """20 training and 5 test samples a client, two classes: a linear model has 4 x 2 + 2 parameters."""
    ones = np.ones(clients, np.int64)
    return Federation(
        name="tiny", path="", x_offset=0, y_offset=0, x_dtype="|u1", shape=shape,
        class_names=["cat", "dog"], scale=1.0, shift=0.0, start=np.arange(clients + 1) * 25,
        train=20 * ones, test=5 * ones, train_counts=np.stack([17 * ones, 3 * ones], 1),
        label_group=0 * ones, concept_group=np.arange(clients) % 2,
    )  # fmt: skip


def needs(ranks: int, what: Config) -> list[budget.Need]:
    fed = federation()
    return budget.needs(what, fed, ranks, budget.layout_of(what, fed))


def test_amn_on_three_ranks() -> None:
    server, *workers = needs(3, settings("amn"))
    # 2 clients x 25 samples x (4 floats + a label). 4 + 2 x (1 received + 2 returned + 2 kept) vectors,
    # a byte for each sign, two sketches of 512 for each client. Up: 2 clients x (2 vectors + seconds +
    # sketch), the second vector in the last two of 7 rounds; 7 evaluations of 3 models, 2 models.
    vectors, told, run = 14 * 40 + 10 + 2 * 2 * 4 * 512, 16 + 2 * 4 * 512, 9 * 2 * 40
    expected = budget.Need(
        clients=2, data=1200, vectors=vectors, down=80, up=round(told + run / 7), down_run=560,
        up_run=run + 7 * told + 7 * 2 * 3 * 8 + 80,
    )  # fmt: skip
    assert workers == [expected, expected]
    # 3 + 2 owners, 4 down, 8 gathered; what the steps take.
    floats = (3 + 2 + 4 + 8) * 10 + 2 * SKETCHES + MODELS + BLOCK + AMN
    assert server == budget.Need(0, 0, floats * 4, 160, 2 * expected.up, 1120, 2 * expected.up_run)
    assert workers[0].memory == budget.BASE + 1200 + vectors


def test_amn_with_drifts() -> None:
    """Two vectors down and a number more up; one vector more kept, fresh and scratch, on rank 0 kept."""
    server, *workers = needs(3, settings("amn", drift=1.0))
    vectors = (4 + 1 + 2 * (2 + 2 + 3 + 1)) * 40 + 10 + 2 * 2 * 4 * 512
    told, run = 2 * 16 + 2 * 4 * 512, 9 * 2 * 40
    expected = budget.Need(
        clients=2, data=1200, vectors=vectors, down=160, up=round(told + run / 7), down_run=1120,
        up_run=run + 7 * told + 7 * 2 * 3 * 8 + 80,
    )  # fmt: skip
    assert workers == [expected, expected]
    # 3 + 2 owners, 8 down, 8 gathered; models and drifts; 4 x 10 columns of both together, and of drifts.
    floats = (3 + 2 + 8 + 8) * 10 + 2 * SKETCHES + 2 * MODELS + BLOCK + 2 * 4 * 10 + AMN
    assert server == budget.Need(0, 0, floats * 4, 320, 2 * expected.up, 2240, 2 * expected.up_run)


def test_amn_alone_sends_nothing() -> None:
    floats = (4.25 + 4 * 5) * 10 + 4 * SKETCHES + MODELS + BLOCK + AMN
    assert needs(1, settings("amn")) == [budget.Need(4, 2400, int(floats * 4))]


def test_what_is_measured_counts_in_whatever_rounds_it_is() -> None:
    """Products are measured after the common rounds and up to the last meta round, or not at all."""
    most = needs(1, settings())[0].vectors
    products = 4 * (2 * 4 * 4 + 3 * 4 * 4)  # of a block, and of all
    for common, meta, there in ((5, 30, True), (0, 1, True), (5, 5, False), (6, 0, False)):
        o = methods.options("amn")(common_rounds=common, meta_rounds=meta, drift=0.0)
        what = dataclasses.replace(settings(), method=o)
        assert needs(1, what)[0].vectors == most - (not there) * products


def test_sharded_amn_on_three_ranks() -> None:
    """One layer of 10 columns is one block: the first owner holds it."""
    before, what = needs(3, settings("amn")), settings("amn", server="sharded")
    server, holder, other = needs(3, what)
    # Seven rounds, the last two of which need the products: numbers that are measured.
    weights, measured = 4 * 4, 4 * 2 * 4
    # Weights; 2 x 2 rows to send; 4 x 2 of a block, and those that count; the block. The holder: 4 models.
    beside = weights + 4 * 10 + 2 * 8 * 10 + BLOCK
    assert holder.vectors == before[1].vectors + 4 * (4 * 10 + beside)
    assert other.vectors == before[2].vectors + 4 * beside
    assert server.vectors == 4 * ((3 + 2) * 10 + 2 * SKETCHES + AMN)
    # The holder gets 2 rows, in two rounds 2 x 2, and gives 2 hybrids; the other one the reverse.
    assert holder.down_run == 4 * (9 * 2 * 10 + 7 * weights)
    assert other.down_run == 7 * 4 * (2 * 10 + weights)
    told = before[1].up_run - 9 * 80
    assert holder.up_run == told + 4 * (7 * 2 * 10 + measured)
    assert other.up_run == told + 4 * 9 * 2 * 10
    assert (server.down_run, server.up_run) == (7 * 4 * 2 * weights, 2 * told + 4 * measured)
    assert (server.down, server.up) == (4 * 2 * weights, 2 * 16 + 4 * SKETCHES + round(4 * measured / 7))


def test_sharded_amn_with_drifts() -> None:
    """The holder of columns keeps both vectors that it sent; all ranks get a figure of each client."""
    without, what = needs(3, settings("amn", server="sharded")), settings("amn", drift=1.0, server="sharded")
    server, holder, other = needs(3, what)
    # Kept, fresh and received by 2 clients, and scratch; two kinds of columns more in a block.
    client, block = 2 * 3 + 1, 2 * 4
    assert other.vectors == without[2].vectors + 4 * 10 * (client + block + 2 * 4)
    # 4 drifts, 4 x 2 vectors that were sent.
    assert holder.vectors == without[1].vectors + 4 * 10 * (client + block + 2 * 4 + 4 + 4 * 2)
    told = 4 * 8
    assert holder.down_run == without[1].down_run + 7 * told
    assert other.down_run == without[2].down_run + 7 * (2 * 40 + told)
    assert holder.up_run == without[1].up_run + 7 * (2 * 40 + 2 * 8)
    assert other.up_run == without[2].up_run + 7 * 2 * 8
    assert server.down_run == without[0].down_run + 7 * 2 * told
    assert server.up_run == without[0].up_run + 7 * told


def test_sharded_amn_alone_holds_all() -> None:
    (alone,) = needs(1, settings("amn", server="sharded"))
    floats = (4.25 + 4 * 5 + 4 + 8 + 2 * 8) * 10 + 4 * SKETCHES + 4 * 4 + BLOCK + AMN
    assert alone == budget.Need(4, 2400, int(floats * 4))


def test_sharded_by_memory() -> None:
    """Four models of 10 floats are 160 bytes."""
    for limit, there in ((160 / 2**30, False), (159 / 2**30, True)):
        for name in ("amn", "fedamp", "fedavg"):
            given = {"server": "auto", "server_gb": limit}
            as_asked = settings(name, server="sharded" if there and name != "fedavg" else "rank0")
            assert needs(3, settings(name, **given)) == needs(3, as_asked)


def test_fedavg_on_three_ranks() -> None:
    server, *workers = needs(3, settings("fedavg"))
    # 4, the broadcast, 5 for a mean in 64 bits. One broadcast more than rounds: the last evaluation.
    expected = budget.Need(2, 1200, 10 * 40, 40, 96, 8 * 40, 7 * 96 + 7 * 2 * 8 + 80)
    assert workers == [expected, expected]
    assert server == budget.Need(0, 0, (3 + 2 + 1 + 7 + 1) * 40, 80, 192, 640, 2 * expected.up_run)


def test_local_on_five_ranks() -> None:
    server, *workers = needs(5, settings("local"))
    assert workers == [budget.Need(1, 600, (4 + 2) * 40, 0, 8, 0, 7 * 8 + 7 * 8 + 40)] * 4
    assert server == budget.Need(0, 0, (3 + 4 + 1) * 40, 0, 32, 0, 4 * (14 * 8 + 40))


def test_momentum_takes_a_vector_more() -> None:
    plain = needs(3, settings("fedavg"))[1]
    assert needs(3, settings("fedavg", local=Local(epochs=1, momentum=0.9)))[1].vectors == plain.vectors + 40


def test_half_a_cohort_halves_the_traffic() -> None:
    found = needs(3, settings("amn", cohort=0.5))
    assert [need.down for need in found] == [80, 40, 40]
    worker = 8 + 2048 + round(40 * 9 / 7)
    assert [need.up for need in found] == [2 * worker, worker, worker]


def test_ranks_beyond_the_clients_need_no_vectors_per_client() -> None:
    last = needs(6, settings("amn"))[5]
    assert (last.clients, last.data, last.vectors, last.down, last.up_run) == (0, 0, 170, 0, 0)


@pytest.mark.parametrize("rounds", [1, 4, 5, 6, 17, 40])
@pytest.mark.parametrize("every", [1, 3, 10, 100])
def test_evaluations_are_counted_as_they_happen(rounds: int, every: int) -> None:
    from amn_mpi.rounds import evaluates

    what = settings(rounds=rounds, evaluate=Evaluate(every=every))
    assert budget._evaluations(what) == sum(evaluates(what, t) for t in range(1, rounds + 1))


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.25, 0.5, 1.0])
def test_the_cohort_is_counted_as_it_is_drawn(fraction: float) -> None:
    for clients in (1, 2, 7, 10, 33):
        drawn = rng.cohort(0, 1, clients, fraction)
        assert budget._cohort_size(settings(cohort=fraction), clients) == len(drawn)


@pytest.mark.parametrize(
    ("model", "words"),
    [(Model("cnn"), ("model.name = cnn", "(1, 2, 2)")), (Model("mlp", 10**18), ("model.hidden",))],
)
def test_a_model_that_cannot_be(model: Model, words: tuple[str, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        budget.layout_of(settings(model=model), federation())
    assert all(word in str(caught.value) for word in words)


def test_a_model_larger_than_memory_is_counted_without_memory() -> None:
    assert budget.layout_of(settings(model=Model("mlp", 10**10)), federation()).size == 7 * 10**10 + 2


# ---- warnings


def warned(monkeypatch: pytest.MonkeyPatch, left: int, what: Config, on_host: int = 3) -> list[str]:
    monkeypatch.setattr(forecast, "available", lambda: left)
    comm: Any = SimpleNamespace(size=3, ranks_on_host=on_host, host="here")
    return forecast.warnings(what, federation(), comm)


def test_a_warning_comes_with_the_first_byte_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    what = settings("fedavg")
    needed = 3 * budget.BASE - 2 * budget.SHARED + 560 + 2 * (1200 + 400)
    assert warned(monkeypatch, needed, what) == []
    (line,) = warned(monkeypatch, needed - 1, what)
    assert "3 ranks on here" in line and "0.5 GB" in line and "number of ranks (3)" in line


def test_only_the_ranks_of_this_host_count(monkeypatch: pytest.MonkeyPatch) -> None:
    assert warned(monkeypatch, budget.BASE + 560, settings("fedavg"), on_host=1) == []


def test_a_warning_names_the_key_to_lower(monkeypatch: pytest.MonkeyPatch) -> None:
    (line,) = warned(
        monkeypatch,
        2**30,
        settings(model=Model("mlp", 10**8), evaluate=Evaluate(batch_size=1), local=Local(batch_size=1)),
    )
    assert "rank 0 alone needs" in line and "model.hidden (100000000) or data.clients (4)" in line


def test_limits_of_control_groups(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "memory.max").write_text("700\n")
    (tmp_path / "a" / "b" / "memory.max").write_text("max\n")
    (tmp_path / "memory" / "c").mkdir(parents=True)
    (tmp_path / "memory" / "c" / "memory.limit_in_bytes").write_text("900\n")
    membership = tmp_path / "cgroup"
    membership.write_text("7:cpu:/c\n4:memory:/c\n0::/a/b\n")
    assert sorted(forecast._limits(membership, tmp_path)) == [700, 900]
    assert forecast._limits(tmp_path / "none", tmp_path) == []


def test_available_is_less_than_all_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """The machine's memory, or what a control group leaves of it."""
    total = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    assert total / 100 < forecast.available() < total
    monkeypatch.setattr(forecast, "_limits", lambda membership: [total, 12345])
    assert forecast.available() == 12345


# ---- tables


def test_a_row_per_client() -> None:
    columns, rows = forecast.client_table(federation(), Placement((0, 2, 4)), ranks=3)
    assert columns[-1] == "concept group"
    assert rows[2] == ["2", "2", "20", "5", "2", "cat x 17, dog x 3", "0"]
    assert [row[1] for row in rows] == ["1", "1", "2", "2"]
    assert [row[1] for row in forecast.client_table(federation(), Placement((0, 4)), 1)[1]] == ["0"] * 4


def test_many_clients_and_ranks_are_shortened(capsys: pytest.CaptureFixture[str]) -> None:
    comm: Any = SimpleNamespace(size=31, owners=30, ranks_on_host=31, host="here")
    forecast.show(settings("fedavg"), federation(60), comm)
    out = capsys.readouterr().out
    assert "20 more clients are not listed" in out
    assert "1-30" in out and "31 ranks on here" in out
    forecast.show(settings("fedavg"), federation(40), comm)
    assert "more clients" not in capsys.readouterr().out


def test_ranks_that_need_the_same_share_a_row() -> None:
    small, large = budget.Need(1, 10, 10), budget.Need(2, 20, 20)
    rows = forecast.rank_table([small, small, large, small, small])[1]
    assert [row[:2] for row in rows] == [["0", "1"], ["2", "2"], ["1, 3-4", "1"]]


def test_sizes_are_readable() -> None:
    sizes = [0, 1023, 1024, 1536, 250 * 2**20, 2**40]
    assert [forecast._size(n) for n in sizes] == ["0 B", "1023 B", "1.0 KB", "1.5 KB", "250 MB", "1024 GB"]


def test_every_method_has_a_budget() -> None:
    for name in methods.METHODS:
        model = Model(plain.NETWORK.get(name, "linear"), hidden=3)  # type: ignore[arg-type]
        server, *workers = needs(3, settings(name, model=model))
        assert len(workers) == 2 and server.vectors > 0
        assert server.down_run == sum(w.down_run for w in workers) and workers[0].up_run > 0


def test_a_part_of_the_model_is_what_travels() -> None:
    """An mlp of 4-3-2: 15 parameters of the body travel, 8 of the head stay."""
    what = settings("fedper", model=Model("mlp", hidden=3))
    worker = needs(3, what)[1]
    assert (worker.down, worker.up) == (15 * 4, 15 * 8 + 2 * 8)
    # 4 + 1 vectors of 23, the broadcast and 5 for the mean of the body, a head kept and a new one.
    assert worker.vectors == (5 * 23 + 6 * 15 + 2 * 2 * 8) * 4


def test_what_evaluation_renews_is_counted() -> None:
    """pFedHN: seven rounds and the last evaluation; with half a cohort every evaluation is for all."""
    row = 10 * 4
    assert needs(3, settings("pfedhn"))[1].down_run == (7 + 1) * 2 * row
    assert needs(3, settings("pfedhn", cohort=0.5))[1].down_run == 7 * row + 7 * 2 * row


def test_activations_by_hand() -> None:
    """The linear model: 4 flattened numbers, 2 outputs; 20 samples at most, batches of 10."""
    assert activations.largest(settings(), federation()) == 4 * (6 * 4 + 4) * 20
    small = settings(evaluate=Evaluate(batch_size=2))
    assert activations.largest(small, federation()) == 4 * 2 * (4 + 2) * 10


@pytest.mark.parametrize("name", models.MODELS)
def test_every_model_has_activations(name: str) -> None:
    assert activations.largest(settings(model=Model(name)), federation(shape=(1, 16, 16))) > 0  # type: ignore[arg-type]


def test_a_large_batch_is_warned_of(monkeypatch: pytest.MonkeyPatch) -> None:
    """LeNet-5 on 64 x 64: six outputs of 6 x 60 x 60 floats a sample, where a batch is 20 samples."""
    what, fed = settings(model=Model("lenet5")), federation(shape=(1, 64, 64))
    found = budget.planned(what, fed, 3, budget.layout_of(what, fed))
    assert [need.work for need in found] == [0, 0, 0]  # 10 MB: BASE covers them
    monkeypatch.setattr(budget, "COVERED", 0)
    found = budget.planned(what, fed, 3, budget.layout_of(what, fed))
    assert [need.work for need in found] == [0] + 2 * [4 * (6 * 6 * 60 * 60 + 64 * 64) * 20]
