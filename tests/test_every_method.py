"""What holds for all methods alike: independence of the ranks, declared memory, traffic, papers."""

from __future__ import annotations

import dataclasses
import json
import re
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
from ready import SCRIPTS, call

from amn_mpi import rng, rounds, session, turns
from amn_mpi.checkpoint import Reader, file_name
from amn_mpi.clock import Clock
from amn_mpi.config import Config, Local
from amn_mpi.data import prepare
from amn_mpi.errors import ConfigError, Stopped
from amn_mpi.methods import METHODS, get
from amn_mpi.methods.base import Client

SCRIPT = SCRIPTS / "every_method.py"
# An odd number of parameters: rows of vectors then lie differently in memory on other numbers of ranks.
KEYS = (
    "--rounds",
    4,
    "--local.epochs",
    1,
    "--data.sizes",
    "lognormal",
    "--data.clients",
    9,
    "--model.hidden",
    17,
)
NAMES = [*(f"{name}_bn" if name == "fedbn" else name for name in METHODS), "fedavg_bn", "ditto_bn"]
NAMES += ["fedavg_prior", "fedavg_ft_prior", "amn_plain"]
HERE = [*METHODS, "amn_plain"]  # which sends other vectors than amn
# Who has one model for clients that come when the training is over.
SERVES = {
    "amn",
    "local",
    "fedavg",
    "fedavg_ft",
    "fedprox",
    "per_fedavg",
    "pfedme",
    "ditto",
    "apfl",
    "pfedhn",
    "fedala",
}


def on_ranks(
    folder: Path, cohort: float, ranks: tuple[int, ...], resume: bool = False
) -> dict[int, dict[str, Any]]:
    """All methods in one call of the ranks; ``resume``: each goes on from checkpoints, too."""
    found = {}
    for n in ranks:
        out = folder / f"{n}.json"
        words = (*KEYS, "--cohort", cohort, "--data.cache", folder / "cache", "--device", "cpu")
        what = "resume" if resume else "once"
        done = call(SCRIPT, out, what, *words, "--progress", "off", ranks=n, timeout=300)
        assert done.returncode == 0, done.stderr
        found[n] = json.loads(out.read_text())
        assert sorted(found[n]["unbroken"]) == sorted(NAMES)
    return found


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    return on_ranks(tmp_path_factory.mktemp("half"), 0.5, (3, 5, 1), resume=True)


@pytest.fixture(scope="module")
def full(tmp_path_factory: pytest.TempPathFactory) -> dict[int, dict[str, Any]]:
    return on_ranks(tmp_path_factory.mktemp("full"), 1.0, (1, 3))


@pytest.mark.parametrize("name", NAMES)
def test_half_a_cohort_on_1_3_and_5_ranks(half: dict[int, dict[str, Any]], name: str) -> None:
    one, three, five = (half[n]["unbroken"][name] for n in (1, 3, 5))
    assert one == three == five
    different = len(set(one["models"]))
    shared = not name.endswith(("_prior", "_plain")) and get(name.removesuffix("_bn")).models[0] == "global"
    if name == "ifca":
        assert 1 <= different <= 4, "one model a group"
    else:
        assert different == (1 if shared else 9)
    assert [row["clients"] for row in one["rounds"]] == [5] * 4


@pytest.mark.parametrize("name", NAMES)
def test_all_clients_on_1_and_3_ranks(full: dict[int, dict[str, Any]], name: str) -> None:
    assert full[1]["unbroken"][name] == full[3]["unbroken"][name]
    accuracy = [row["mean_accuracy"] for row in full[1]["unbroken"][name]["rounds"]]
    assert len(set(accuracy)) > 1  # something is learnt


@pytest.mark.parametrize("name", NAMES)
def test_resumed_is_unbroken(half: dict[int, dict], name: str) -> None:
    """After round 1 of 4 on the same ranks, after round 2 also on others: models, metrics, figures."""
    ends = {
        3: ["3 round-000001.h5", "3 round-000002.h5"],
        5: ["3 round-000002.h5", "5 round-000001.h5", "5 round-000002.h5"],
        1: ["1 round-000001.h5", "1 round-000002.h5", "3 round-000002.h5", "5 round-000002.h5"],
    }
    for n, expected in ends.items():
        resumed = half[n]["resumed"][name]
        assert sorted(resumed) == expected
        assert all(facts == half[n]["unbroken"][name] for facts in resumed.values())


def test_no_two_methods_are_the_same(full: dict[int, dict[str, Any]]) -> None:
    first = [full[1]["unbroken"][name]["models"][0] for name in NAMES]
    assert len(set(first)) == len(first)


# ---- a checkpoint after a round whose evaluation was cut off


def end_of(ready: session.Session, config: Config, **places: Path) -> tuple[list, list, Any]:
    """Models, metrics and scores of a run in this process."""
    clock = Clock(ready.comm, time.monotonic())
    this, recorder = session.train(ready, config, clock, None, **places)
    assert recorder is not None
    rows = [{k: v for k, v in row.items() if k != "turn_seconds"} for row in recorder.rounds]
    return [row.tolist() for _, row in session.final_models(this)], rows, recorder.scores()


@pytest.mark.skipif(plain.ENGINE == "batched", reason="counts what one client after another asks for")
@pytest.mark.parametrize("cohort", [1.0, 0.5])
@pytest.mark.parametrize("name", ["amn", "fedala", "pfedhn"])
def test_an_evaluation_that_was_cut_off_is_made_up_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cohort: float
) -> None:
    config = dataclasses.replace(begun(tmp_path, name, cohort).config, rounds=4, progress="off")
    comm = plain.communicator()
    ready = session.Session(config, comm, prepare(config.data, config.seed))
    ready.meet()
    unbroken = end_of(ready, config)
    models, calls = len(get(name).models), 0

    def stopped(*args: Any) -> int:
        """A signal comes while the third client is evaluated after round 2."""
        nonlocal calls
        if not sys._getframe(1).f_code.co_filename.endswith("rounds.py"):
            return correct(*args)  # AMN's clients, of their held-out samples
        calls += 1
        monkeypatch.setattr(comm, "stopping", int(signal.SIGTERM) if calls > (5 + 2) * models else 0)
        return correct(*args)

    correct = ready.engine.correct
    with monkeypatch.context() as patched, pytest.raises(Stopped) as stop:
        patched.setattr(ready.engine, "correct", stopped)
        end_of(ready, config, keeps=tmp_path / "kept")
    assert stop.value.agreed and calls == 7 * models + 1
    monkeypatch.setattr(comm, "stopping", 0)
    path = tmp_path / "kept" / file_name(2)
    with Reader(path) as reader:
        assert reader.text("about")["open"] and len(reader.text("history")["rounds"]) == 1
    assert end_of(ready, config, keeps=tmp_path / "kept", saved=path) == unbroken


# ---- what a method declares and what it takes, on one rank


def begun(folder: Path, name: str, cohort: float = 1.0) -> rounds.Run:
    options = get("amn").Options(drift=0.0) if name == "amn_plain" else get(name).Options()
    return plain.start(folder, options, rounds=3, cohort=cohort, local=Local(epochs=1, lr=0.1))


@pytest.mark.parametrize("cohort", [1.0, 0.5])
@pytest.mark.parametrize("name", HERE)
def test_buffers_are_as_large_as_declared(tmp_path: Path, name: str, cohort: float) -> None:
    this = begun(tmp_path, name, cohort)
    method, exchange, own = this.method, this.exchange, this.clients
    size, members = method.setting.layout.size, len(rng.cohort(3, 1, own, cohort))
    constant, each = method.worker_rows()
    share = method.part.size / size
    # On one rank nothing is held for MPI's neighbour, and workspace and scratch are not buffers.
    constant -= 4 + method.scratch + method.kept
    constant -= (method.wire.up == "mean") * 2 * method.wire.returned * share
    each -= method.fresh + 2 * method.features / size
    # Of a group each client has a slot.
    constant += (method.wire.up == "mean") * (len(exchange.up) - 1) * method.wire.returned * share
    held = exchange._down.numel() + exchange.up.numel() + sum(v.numel() for v in this.state.values())
    held += 2 * (exchange._sum.numel() if exchange._sum is not None else 0)
    if cohort == 1:
        assert held == pytest.approx((constant + each * own) * size)
    else:
        assert held <= (constant + each * own) * size + 0.5
        assert members < own


@pytest.mark.parametrize("name", HERE)
def test_what_a_turn_allocates_for_its_state(tmp_path: Path, name: str) -> None:
    """State that points into what travels anyway costs nothing; nothing points into the workspace."""
    this = begun(tmp_path, name)
    for t in (1, 2):  # in the second round everybody has a past
        if t == 2:
            plain.one_round(this)
        everyone = np.arange(this.clients)
        received = this.exchange.down(t, everyone, this.server)
        client = turns.view(this, t, 0, this.exchange.slot(0))
        assert isinstance(client, Client)
        update = this.method.local_update(client, turns.share(this, 0, received), this.engine)
        assert set(update.state) == set(this.state) and set(update.figures) == set(this.method.wire.figures)
        there = {this.exchange.up.untyped_storage().data_ptr(), received.untyped_storage().data_ptr()}
        workspace = {v.untyped_storage().data_ptr() for v in (this.engine.parameters, this.engine.gradients)}
        new = 0
        for key, vector in update.state.items():
            assert vector.shape == this.state[key].shape[1:], key
            place = vector.untyped_storage().data_ptr()
            assert place not in workspace, key
            new += vector.numel() * (place not in there) if vector.numel() > 1 else 0
        assert new == pytest.approx(this.method.fresh * this.method.setting.layout.size)


@pytest.mark.parametrize("name", HERE)
def test_server_state_is_within_what_is_declared(tmp_path: Path, name: str) -> None:
    this = begun(tmp_path, name)
    plain.one_round(this)
    held = sum(v.numel() * v.element_size() for v in this.server.values())
    size = this.method.setting.layout.size
    assert held <= 4 * size * this.method.server_rows(this.clients) + 4 * this.clients
    assert all(v.isfinite().all() for v in this.server.values() if v.is_floating_point())


@pytest.mark.parametrize("name", HERE)
def test_newcomers_change_nothing_on_the_server(tmp_path: Path, name: str) -> None:
    """What it hands out and what it answers leave the state as it was."""
    this = begun(tmp_path, name)
    for _ in range(2):
        plain.one_round(this)
    before = {key: value.clone() for key, value in this.server.items()}
    initial = torch.zeros(this.method.setting.layout.size)
    try:
        start = this.method.welcome(this.server, initial)
    except ConfigError:
        assert name not in SERVES
        return
    assert name.removesuffix("_plain") in SERVES
    models = start + torch.linspace(-1, 1, 3 * len(start)).view(3, -1)
    reply = this.method.receive(this.server, models)
    assert (reply is not None) == (name in ("amn", "amn_plain", "pfedhn"))
    assert reply is None or reply.models.shape == models.shape
    assert set(before) == set(this.server)
    assert all(torch.equal(before[key], this.server[key]) for key in before)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_names_its_source(name: str) -> None:
    import importlib

    text = importlib.import_module(METHODS[name].partition(":")[0]).__doc__ or ""
    assert text, f"{METHODS[name]}: the module's docstring says whose method it is"
    if name not in ("amn", "local"):  # of this project
        assert re.search(r"\b20[12]\d\b|arXiv:", text), "of which year?"
        assert any(word in text for word in ("algorithm", "section", "equation")), "which of its equations?"
