"""The batched engine against the reference engine, to rounding; and how a group of clients ends.

Rounding differs by some 1e-6 after a few rounds (measured, see ``CLOSE``); a sample too many or too few
in one step, or a step missing, makes 1e-3 and more.
"""

from __future__ import annotations

import dataclasses
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import plain
import pytest
import torch
from ready import run_each
from running import result

from amn_mpi import activations, data, models, rounds
from amn_mpi.batched import BatchedEngine, Seat
from amn_mpi.baton import Request, together
from amn_mpi.config import Local, Model
from amn_mpi.errors import Interrupted, UserError
from amn_mpi.local import Engine
from amn_mpi.methods import METHODS, get
from amn_mpi.methods.base import Pull, Update
from amn_mpi.params import ParameterLayout, vector_of

CLOSE = {"rtol": 1e-4, "atol": 2e-5}
EARLY = {"amn": {"common_rounds": 1}, "fedfomo": {"models": 3}}
OPTIONS = {name: get(name).Options(**EARLY.get(name, {})) for name in METHODS if name != "fedbn"}
OPTIONS |= {f"{name}_prior": get(name).Options(prior=1.0) for name in ("fedavg", "fedavg_ft")}
ROUNDS = 3


def begun(folder: Path, name: str, engine: Any, clients: int = 0, **keys: Any) -> rounds.Run:
    """Five clients of unequal size; ``clients`` of them at once, 0: all."""
    keys = {"local": Local(epochs=2, batch_size=8, lr=0.1), "rounds": ROUNDS, **keys}
    return plain.start(folder, OPTIONS[name], engine=engine, engine_clients=clients, **keys)


def assert_close(one: rounds.Run, other: rounds.Run) -> None:
    """All that clients and server keep."""
    for mine, theirs in ((one.state, other.state), (one.server, other.server)):
        assert set(mine) == set(theirs)
        for name in mine:
            torch.testing.assert_close(mine[name], theirs[name], msg=lambda m, n=name: f"{n}: {m}", **CLOSE)


# ---- every method


@pytest.mark.parametrize("name", OPTIONS)
def test_every_method_is_as_with_the_reference_engine(tmp_path: Path, name: str) -> None:
    mine = [begun(tmp_path, name, "batched", clients) for clients in (0, 1, 3)]
    reference = begun(tmp_path, name, "torch")
    sizes = [len(s.y) for s in reference.samples.values()]
    assert len(set(sizes)) > 2 and [this.engine.at_once for this in mine] == [256, 1, 3]
    for _ in range(ROUNDS):
        expected = plain.one_round(reference)
        for this in mine:
            found = plain.one_round(this)
            assert found.correct is not None and expected.correct is not None
            assert np.abs(found.correct - expected.correct).max() <= 1
    for this in mine:
        assert_close(this, reference)


@pytest.mark.parametrize("name", ["amn", "fedavg_ft", "apfl"])
def test_networks_with_convolutions(tmp_path: Path, name: str) -> None:
    """Against the reference engine, on images."""
    path = tmp_path / "blobs.npz"
    draw = np.random.default_rng(3)
    y = np.arange(60) % plain.CLASSES
    x = draw.normal(size=(60, 1, 16, 16)) + draw.normal(size=(plain.CLASSES, 1, 16, 16))[y]
    np.savez(path, x=x.astype(np.float32), y=y)
    keys: Any = {"model": Model("lenet5"), "local": Local(epochs=1, batch_size=4, lr=0.05)}
    runs = [begun(tmp_path, name, engine, **keys) for engine in ("batched", "torch")]
    for _ in range(2):
        for this in runs:
            plain.one_round(this)
    assert_close(*runs)


# ---- local training, one engine beside the other

SHAPES = {"linear": (7,), "mlp": (7,), "lenet5": (1, 16, 16), "cnn": (1, 16, 16), "resnet8": (3, 8, 8)}
SIZES = (11, 4, 9, 1, 16)  # batches of 4: last ones of 3, none, 1, 1 alone, none


def engines(name: Any, local: Local, tick: Callable[[], None] = lambda: None) -> tuple[BatchedEngine, Engine]:
    made: list[Any] = []
    for kind, more in ((BatchedEngine, (len(SIZES),)), (Engine, ())):
        module = models.build(Model(name, hidden=6), SHAPES[name], 3, 0)
        layout = ParameterLayout.of(module)
        made.append(kind(module, layout, local, SHAPES[name], 6, torch.device("cpu"), tick, *more))
    return made[0], made[1]


def clients(name: str) -> list[tuple[torch.Tensor, torch.Tensor]]:
    draw = torch.Generator().manual_seed(1)
    return [
        (torch.randn(n, *SHAPES[name], generator=draw), torch.randint(0, 3, (n,), generator=draw))
        for n in SIZES
    ]


Work = Callable[[int, Engine], Any]


def both(name: str, local: Local, work: Work, only: tuple[int, ...] = (0, 1, 2, 3, 4)) -> tuple[list, list]:
    """What ``work`` gives for each client, with the batched engine and with the reference engine."""
    batched, reference = engines(name, local)
    steps = [reference.steps(SIZES[k]) for k in only]
    turns = [lambda engine, k=k: work(k, engine) for k in only]
    return batched.together(turns, steps), [work(k, reference) for k in only]


LOCALS = {
    "plain": Local(epochs=2, batch_size=4, lr=0.1),
    "steps": Local(steps=7, batch_size=4, lr=0.1),
    "momentum and decay": Local(epochs=2, batch_size=4, lr=0.1, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("extra", ["", "pull", "own pull", "shift", "only"])
@pytest.mark.parametrize("local", LOCALS)
@pytest.mark.parametrize("name", ["mlp", "lenet5"])
def test_training(name: str, local: str, extra: str) -> None:
    samples = clients(name)
    layout = engines(name, LOCALS[local])[1].layout
    draw = torch.Generator().manual_seed(2)
    start, other = (
        vector_of(models.build(Model(name, hidden=6), SHAPES[name], 3, 0)),
        0.2 * torch.randn(len(SIZES), layout.size, generator=draw),
    )

    def work(k: int, engine: Engine) -> torch.Tensor:
        keys: dict[str, Any] = {
            "": {},
            "pull": {"pull": Pull(other[0], 0.5)},
            "own pull": {"pull": Pull(other[k], 0.5)},
            "shift": {"shift": other[k]},
            "only": {"only": layout.part(layout.layers[1:])},
        }[extra]
        return engine.train(start, *samples[k], np.random.default_rng(k), **keys).clone()

    mine, theirs = both(name, LOCALS[local], work)
    for one, two in zip(mine, theirs):
        torch.testing.assert_close(one, two, **CLOSE)
        assert (one - start).abs().max() > 1e-2
    assert len({one.square().sum().item() for one in mine}) == len(SIZES)


@pytest.mark.parametrize("name", ["linear", "cnn", "resnet8"])
def test_other_networks_train_alike(name: str) -> None:
    samples, start = clients(name), vector_of(models.build(Model(name, hidden=6), SHAPES[name], 3, 0))

    def work(k: int, engine: Engine) -> torch.Tensor:
        return engine.train(start, *samples[k], np.random.default_rng(k)).clone()

    for one, two in zip(*both(name, LOCALS["plain"], work)):
        torch.testing.assert_close(one, two, **CLOSE)


def test_clients_that_want_different_things() -> None:
    """Each its own number of passes, parts and pulls; some end before others begin to train."""
    samples, start = clients("mlp"), vector_of(models.build(Model("mlp", hidden=6), SHAPES["mlp"], 3, 0))

    def work(k: int, engine: Engine) -> list[Any]:
        w = engine.vector(start)
        if k == 2:
            return [engine.loss(w, *samples[k])]
        losses = []
        for _ in range(k):
            for _ in engine.batches(*samples[k], np.random.default_rng(k), epochs=1):
                w -= 0.1 * engine.slope(w)
            losses.append(engine.batch_loss())
        pull = Pull(start, 0.1 * k) if k % 2 else None
        found = [engine.train(w, *samples[k], np.random.default_rng(9), epochs=1 + k, pull=pull).clone()]
        part = engine.layout.part(engine.layout.layers[:1])
        found.append(
            engine.train(engine.parameters, *samples[k], np.random.default_rng(8), only=part).clone()
        )
        found.append(engine.gradient(found[-1], *samples[k]).clone())
        return [*losses, *found, engine.loss(start, *samples[k]), engine.correct(w, *samples[k])]

    for order in ((0, 1, 2, 3, 4), (3, 0), (4, 2, 1)):
        mine, theirs = both("mlp", LOCALS["momentum and decay"], work, order)
        for one, two in zip(mine, theirs):
            torch.testing.assert_close(one, two, **CLOSE)


def test_nobody_finds_a_trace_of_who_sat_there_before() -> None:
    """Bit by bit: a group after another one is as in a fresh engine; outside of groups, too."""
    samples = clients("mlp")
    used, _ = engines("mlp", LOCALS["momentum and decay"])
    fresh, reference = engines("mlp", LOCALS["momentum and decay"])
    start = vector_of(models.build(Model("mlp", hidden=6), SHAPES["mlp"], 3, 0))

    def work(k: int, engine: Engine, scale: float = 1.0) -> torch.Tensor:
        w = engine.train(start * scale, *samples[k], np.random.default_rng(k)).clone()
        for _ in engine.batches(*samples[k], np.random.default_rng(k), epochs=1):
            w -= engine.slope(w)
        return w

    before = [lambda e, k=k: work(k, e, 3.0) for k in (4, 0, 2, 1)]
    now = [lambda e, k=k: work(k, e) for k in (3, 1, 2)]
    used.together(before, [8, 6, 6, 2])
    for one, two in zip(used.together(now, [2, 2, 6]), fresh.together(now, [2, 2, 6])):
        assert torch.equal(one, two)
    assert torch.equal(work(0, used), work(0, reference))


# ---- how groups are made, and how they end


def test_groups_follow_from_the_configuration(tmp_path: Path) -> None:
    this = begun(tmp_path, "fedavg", "batched")
    config, fed = this.config, data.prepare(this.config.data, this.config.seed)
    layout = this.method.setting.layout
    assert activations.together(config, fed, layout, "cpu") == activations.MOST == this.engine.at_once
    big = dataclasses.replace(config, model=Model("mlp", hidden=100_000))
    wide = ParameterLayout.of(models.build(big.model, fed.shape, fed.classes, 0))
    each = 4 * 4 * wide.size + activations.training(big, fed)
    assert activations.together(big, fed, wide, "cpu") == activations.ROOM // each == 1
    assert activations.together(big, fed, wide, "cuda") == activations.ROOM_ON_GPU // each > 10
    assert activations.together(dataclasses.replace(big, engine_clients=7), fed, wide, "cpu") == 7


def test_a_stop_inside_a_group(tmp_path: Path) -> None:
    """No thread, and the run goes on as if nothing had been."""
    this, other = (begun(tmp_path, "ditto", "batched") for _ in range(2))
    plain.one_round(this), plain.one_round(other)
    engine, ticks, usual = this.engine, 0, this.engine.tick

    def stop() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 7:
            raise Interrupted

    engine.tick = stop
    kept = {name: rows.clone() for name, rows in this.state.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(this.comm, "stopping", 15)
        rounds.run_round(this, lambda outcome: pytest.fail("the round does not count"))
    engine.tick = usual
    assert ticks == 7 and this.stopped == 15 and this.done == 1
    assert threading.active_count() == 1
    assert all(torch.equal(rows, kept[name]) for name, rows in this.state.items())
    this.stopped = 0
    plain.one_round(this), plain.one_round(other)
    for name, rows in this.state.items():
        assert torch.equal(rows, other.state[name])


class Broken(Exception):
    """Of a method's author."""


def test_an_exception_in_a_local_update(tmp_path: Path) -> None:
    this = begun(tmp_path, "ditto", "batched")
    usual = this.method.local_update

    def update(client: Any, received: torch.Tensor, engine: Engine) -> Update:
        made = usual(client, received, engine)
        if client.number == 3:
            raise Broken("in client 3")
        return made

    this.method.local_update = update  # type: ignore[method-assign]
    with pytest.raises(Broken, match="in client 3") as found:
        plain.one_round(this)
    assert any(entry.name == "update" for entry in found.traceback)
    assert threading.active_count() == 1 and this.done == 0


@pytest.mark.parametrize("name", ["local", "fedavg"])
def test_a_row_of_the_stacks_as_state(tmp_path: Path, name: str) -> None:
    this = begun(tmp_path, name, "batched")
    usual = this.method.local_update

    def update(client: Any, received: torch.Tensor, engine: Engine) -> Update:
        assert isinstance(engine, Seat)
        usual(client, received, engine)
        shared = {"local": engine.parameters, "fedavg": client.up[0] if len(client.up) else None}[name]
        return Update(state={"model": shared})

    this.method.local_update = update  # type: ignore[method-assign]
    this.state = {"model": torch.zeros(this.clients, this.method.setting.layout.size)}
    with pytest.raises(TypeError, match="returned a workspace as state model"):
        plain.one_round(this)


def test_pieces_run_one_at_a_time_in_their_order() -> None:
    told: list[Any] = []

    def work(number: int, ask: Any) -> int:
        total = 0
        for k in range(number):
            told.append((number, k))
            total += ask(Request("double", number + k))
        return total

    def meet(waiting: Any) -> dict[int, int]:
        told.append(sorted(waiting))
        return {number: 2 * request.what for number, request in waiting.items()}

    works = [lambda ask, n=n: work(n, ask) for n in (2, 0, 3)]
    assert together(works, meet) == [2 * (2 + 3), 0, 2 * (3 + 4 + 5)]
    assert told == [(2, 0), (3, 0), [0, 2], (2, 1), (3, 1), [0, 2], (3, 2), [2]]


def test_a_piece_cannot_hold_up_its_end() -> None:
    """Where one fails the others end where they wait, whatever they catch."""
    ended: list[int] = []

    def stubborn(number: int, ask: Any) -> None:
        try:
            while True:
                try:
                    ask(Request("anything", number))
                except Exception:
                    ended.append(-1)
        finally:
            ended.append(number)

    def meet(waiting: Any) -> dict[int, int]:
        raise Broken

    with pytest.raises(Broken):
        together([lambda ask, n=n: stubborn(n, ask) for n in range(3)], meet)
    assert ended == [0, 1, 2] and threading.active_count() == 1


# ---- whole runs

KEYS = ("--data.clients", 8, "--data.sizes", "lognormal", "--rounds", 3, "--local.epochs", 1)
KEYS = (*KEYS, "--device", "cpu", "--progress", "off", "--method.common_rounds", 1)


def finished(out: Path) -> tuple[dict[str, Any], np.ndarray]:
    """Result and models of a run."""
    with h5py.File(out / "models.h5") as file:
        return result(out), file["models"][...]


def test_one_rank_three_ranks_and_the_reference_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To rounding; and to the bit where ranks and groups are the same, also from a checkpoint."""
    monkeypatch.setenv("AMN_CACHE", str(tmp_path / "cache"))

    def line(name: str, engine: str, *more: object) -> tuple[object, ...]:
        return (*KEYS, "--engine", engine, "--out", tmp_path / name, *more)

    plain.here(*line("reference", "torch"))
    plain.here(*line("alone", "batched"))
    again = line("again", "batched", "--engine_clients", 3, "--resume", "auto")
    lines = [line("spread", "batched", "--engine_clients", 3), (*again, "--rounds", 2), again]
    done = run_each(lines, tmp_path, ranks=3)
    assert (done.returncode, done.stderr) == (0, "")
    _, reference = finished(tmp_path / "reference")
    alone, one = finished(tmp_path / "alone")
    spread, three = finished(tmp_path / "spread")
    assert alone["engine"] == spread["engine"] == "cpu-batched"
    np.testing.assert_allclose(one, reference, **CLOSE)
    np.testing.assert_allclose(three, reference, **CLOSE)
    resumed = result(tmp_path / "again")
    assert resumed["models_sha256"] == spread["models_sha256"]
    assert [each["after_round"] for each in resumed["starts"]] == [0, 2]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--model.name", "mlp_bn"), "valid are auto, compiled, torch"),
        (("--engine_clients", -1), "engine_clients = -1: valid is a whole number >= 0"),
    ],
)
def test_bad_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[object, ...], told: str
) -> None:
    monkeypatch.setenv("AMN_CACHE", str(tmp_path / "cache"))
    with pytest.raises(UserError) as caught:
        plain.here(*KEYS, "--engine", "batched", *words, "--out", tmp_path / "out")
    assert caught.value.status == 2
    assert told in str(caught.value) and "\n" not in str(caught.value)
