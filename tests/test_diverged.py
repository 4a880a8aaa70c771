"""A client whose training leaves the numbers: it sits the round out, and the others never notice.

The measure is a run in which that client was not drawn for those rounds: everything is the same then.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch
from ready import run_each
from running import result

from amn_mpi import rng, rounds, session, turns
from amn_mpi.clock import Clock
from amn_mpi.config import Local
from amn_mpi.data import prepare
from amn_mpi.fixed import BOUND
from amn_mpi.methods import METHODS, get
from amn_mpi.methods.base import Client, Update
from amn_mpi.rounds import Outcome, Run

BAD, ROUNDS = 3, 4
EARLY = {"amn": {"common_rounds": 1}, "fedfomo": {"models": 3}}
TRAINED = Local(epochs=1, batch_size=8, lr=0.1)
WRONG = (np.nan, np.inf, 1e9)


def begun(folder: Path, name: str, **keys: Any) -> Run:
    options = get(name).Options(**EARLY.get(name, {}))
    return plain.start(folder, options, rounds=ROUNDS, **{"local": TRAINED, **keys})


def diverging(this: Run, when: Callable[[int], bool], value: float = np.nan) -> None:
    """From now on client 3 returns ``value`` in the rounds for which ``when`` says so."""
    usual = this.method.local_update

    def update(client: Client, received: torch.Tensor, engine: Any) -> Update:
        made = usual(client, received, engine)
        if client.number != BAD or not when(client.round):
            return made
        if client.up.numel():
            client.up[-1, -1] = value
        state = {key: torch.full_like(vector, value) for key, vector in made.state.items()}
        return dataclasses.replace(made, state=state)

    this.method.local_update = update  # type: ignore[method-assign]


def without(monkeypatch: pytest.MonkeyPatch, when: Callable[[int], bool]) -> None:
    """From now on client 3 is not drawn in the rounds for which ``when`` says so."""
    drawn = rng.cohort

    def cohort(seed: int, round: int, *rest: Any) -> np.ndarray:
        members = drawn(seed, round, *rest)
        return members[members != BAD] if when(round) else members

    monkeypatch.setattr(rounds.rng, "cohort", cohort)


def all_rounds(this: Run) -> list[Outcome]:
    return [plain.one_round(this) for _ in range(ROUNDS)]


def assert_same(one: Run, other: Run) -> None:
    """Everything that is kept. How a matrix product rounds may depend on the number of its rows."""
    for mine, theirs in ((one.state, other.state), (one.server, other.server)):
        for name in set(mine) - {"sent"}:  # FedFomo's note of whom it asked in this round
            torch.testing.assert_close(mine[name], theirs[name], rtol=1e-4, atol=1e-5, msg=name)


PERIODS: dict[str, Callable[[int], bool]] = {
    "in round 2": lambda t: t == 2,
    "in the first rounds": lambda t: t <= 2,
    "always": lambda t: True,
}


@pytest.mark.parametrize("period", PERIODS)
@pytest.mark.parametrize("name", METHODS)
def test_it_sits_the_round_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, period: str
) -> None:
    when, this, other = PERIODS[period], begun(tmp_path, name), begun(tmp_path, name)
    diverging(this, when, WRONG[len(name) % 3])
    outcomes = all_rounds(this)
    assert [sorted(o.dropped) for o in outcomes] == [[BAD] if when(t) else [] for t in (1, 2, 3, 4)]
    assert [len(o.cohort) for o in outcomes] == [5] * 4
    without(monkeypatch, when)
    expected = all_rounds(other)
    assert_same(this, other)
    for mine, theirs in zip(outcomes, expected):
        assert mine.correct is not None and theirs.correct is not None
        assert np.array_equal(mine.correct, theirs.correct)
    assert all(v.isfinite().all() for v in (*this.state.values(), *this.server.values()))


@pytest.mark.parametrize("name", METHODS)
def test_it_would_have_made_a_difference(tmp_path: Path, name: str) -> None:
    """What the test above tells apart: a run in which the client's turn counts."""
    this, other = begun(tmp_path, name), begun(tmp_path, name)
    diverging(this, PERIODS["in round 2"])
    all_rounds(this), all_rounds(other)
    with pytest.raises(AssertionError):
        assert_same(this, other)


@pytest.mark.parametrize("name", METHODS)
def test_a_cohort_in_which_it_is_not_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    this, other = begun(tmp_path, name, cohort=0.5), begun(tmp_path, name, cohort=0.5)
    diverging(this, PERIODS["always"])
    outcomes = all_rounds(this)
    drawn = [BAD in rng.cohort(this.config.seed, t, 5, 0.5) for t in (1, 2, 3, 4)]
    assert [bool(o.dropped) for o in outcomes] == drawn and 0 < sum(drawn) < 4
    without(monkeypatch, PERIODS["always"])
    all_rounds(other)
    assert_same(this, other)


# ---- what its rounds amount to, by hand


@pytest.mark.parametrize("name", ["fedavg", "scaffold", "fedamp", "local"])
def test_one_round_by_numpy(tmp_path: Path, name: str) -> None:
    """Plain SGD from the common start at every client, then the mean of four."""
    this = begun(tmp_path, name)
    diverging(this, PERIODS["always"])
    x, y = plain.numbers(this)
    w, others = plain.initial(this), [0, 1, 2, 4]
    moved = {
        i: plain.sgd(plain.linear, w, x[i], y[i], TRAINED, rng.generator(this.config.seed, "shuffle", 1, i))
        for i in others
    }
    plain.one_round(this)
    close = {"rtol": 1e-4, "atol": 1e-5}
    if name == "fedavg":
        mean = np.average([moved[i] for i in others], axis=0, weights=[len(y[i]) for i in others])
        np.testing.assert_allclose(this.server["model"], mean, **close)
    elif name == "scaffold":
        steps = {i: -(-len(y[i]) // TRAINED.batch_size) for i in others}
        own = {i: (w - moved[i]) / (steps[i] * TRAINED.lr) for i in others}
        np.testing.assert_allclose(this.server["model"], np.mean(list(moved.values()), axis=0), **close)
        np.testing.assert_allclose(this.server["control"], np.sum(list(own.values()), axis=0) / 5, **close)
        assert not this.state["control"][BAD].any()
        np.testing.assert_allclose(this.state["control"][others], list(own.values()), rtol=1e-3, atol=1e-4)
    else:
        kept = this.state["model"] if name == "local" else this.method.stack.rows(this.server["models"])
        np.testing.assert_allclose(kept[BAD], w, rtol=1e-6)
        if name == "local":
            np.testing.assert_allclose(kept[others], list(moved.values()), **close)


def last_good(this: rounds.Run) -> tuple[torch.Tensor, torch.Tensor]:
    """Model and sketch of the client that diverges, as AMN's server has them."""
    models = this.method.stack.rows(this.server["models"])
    return models[BAD], this.server["sketches"][BAD].clone()


def test_amn_keeps_listening_to_its_last_good_model(tmp_path: Path) -> None:
    """Model and sketch of round 1 stay in attention; one that never returned any is not heard."""
    for when, seen in ((PERIODS["in round 2"], True), (PERIODS["always"], False)):
        this = begun(tmp_path, "amn")
        diverging(this, when)
        plain.one_round(this)
        before = last_good(this)
        plain.one_round(this)
        assert all(torch.equal(now, old) for now, old in zip(last_good(this), before))
        assert int(this.server["reports"][BAD]) == seen, "the round that diverged is no report"
        attention = this.method.attention(this.server)
        assert attention is not None
        assert (attention[:, [0, 1, 2, 4], BAD] > 0).all() == seen == (attention[:, BAD].sum() > 0)
        assert np.isfinite(attention).all()


@pytest.mark.skipif(plain.ENGINE == "batched", reason="counts what one client after another asks for")
def test_amn_restarts_from_the_hybrid_that_it_receives(tmp_path: Path) -> None:
    this = begun(tmp_path, "amn")
    diverging(this, PERIODS["in round 2"])
    for _ in (1, 2):
        plain.one_round(this)
    hybrid = this.exchange.down(3, np.arange(5), this.server)[BAD, 0].clone()
    start = this.engine.train
    begun_at: list[torch.Tensor] = []
    this.engine.train = lambda w, *rest, **keys: begun_at.append(w.clone()) or start(w, *rest, **keys)  # type: ignore[method-assign]
    plain.one_round(this)
    offset = plain.offset(this.samples[BAD].y.numpy(), 1.0, plain.CLASSES, len(hybrid))
    torch.testing.assert_close(begun_at[BAD].double(), hybrid.double() + torch.from_numpy(offset))
    assert torch.equal(this.state["hybrid"][BAD], hybrid)
    assert not torch.equal(hybrid, this.method.setting.draw(0))


# ---- real divergence


@pytest.mark.parametrize("factor", [1e5, 1e12, 1e30])
@pytest.mark.parametrize("name", METHODS)
def test_huge_inputs_at_one_client(tmp_path: Path, name: str, factor: float) -> None:
    """Whatever its training leads to, NaN or models of 1e20: the others learn.

    With 1e5 it may just stay within the numbers, and draw the others towards it.
    """
    keys = {} if name in plain.NETWORK else {"model": plain.Model("mlp", hidden=plain.HIDDEN)}
    this = begun(tmp_path, name, **keys)
    this.samples[BAD].x.mul_(factor)
    this.samples[BAD].x_test.mul_(factor)
    outcomes = all_rounds(this)
    assert all(set(o.dropped) <= {BAD} for o in outcomes)
    assert all(v.isfinite().all() for v in (*this.state.values(), *this.server.values()))
    limit = 100 if factor > 1e5 else BOUND
    for client, models in turns.personal_models(this, ROUNDS):
        for _, vector in models:
            assert client == BAD or float(vector.abs().max()) < limit


# ---- what is told


def test_it_is_told_once_and_counted_always(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    config = dataclasses.replace(begun(tmp_path, "amn").config, progress="off")
    ready = session.Session(config, plain.communicator(), prepare(config.data, config.seed)).meet()
    usual = ready.run

    def sick(*args: Any) -> Run:
        this = usual(*args)
        diverging(this, lambda t: t in (2, 4))
        return this

    monkeypatch.setattr(ready, "run", sick)
    _, recorder = session.train(ready, config, Clock(ready.comm, 0.0), None)
    assert recorder is not None and recorder.diverged == {BAD: 2}
    assert [row.get("diverged") for row in recorder.rounds] == [None, [BAD], None, [BAD]]
    told = [line for line in capsys.readouterr().err.splitlines() if "diverged" in line]
    assert len(told) == 1 and "amn, round 2: client 3 diverged: its model or a loss is NaN" in told[0]


def federation(folder: Path, huge: tuple[int, ...]) -> Path:
    """Four classes, so four clients of one class each; the samples of some are 1e30."""
    draw = np.random.default_rng(5)
    y = np.arange(160) % 4
    x = draw.normal(size=(160, 6)).astype(np.float32)
    x[np.isin(y, huge)] = 1e30
    np.savez(folder / "own.npz", x=x, y=y)
    return folder / "own.npz"


def keys(folder: Path, huge: tuple[int, ...]) -> list[object]:
    data = ["--data.name", federation(folder, huge), "--data.clients", 4, "--data.concept", "none"]
    data += ["--data.labels", "classes", "--data.classes_per_client", 1, "--data.cache", folder / "cache"]
    return [*data, "--rounds", 3, "--local.epochs", 2, "--device", "cpu", "--progress", "off"]


def test_the_same_bits_on_1_and_3_ranks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = []
    for ranks in (1, 3):
        out = tmp_path / f"{ranks}"
        words = [*keys(tmp_path, (2,)), "--method.common_rounds", 1, "--baselines", "fedavg,scaffold"]
        if ranks == 1:
            plain.here(*words, "--out", out)
            said, warned = capsys.readouterr()
        else:
            done = run_each([[*words, "--out", out]], tmp_path, ranks)
            said, warned = done.stdout, done.stderr
            assert done.returncode == 0, warned
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        names = [row.pop("diverged") for row in rows]
        assert names == [names[0]] * 3 and len(names[0]) == 1
        client = names[0][0]
        assert result(out)["diverged"] == {str(client): 3}
        told = warned.splitlines()
        assert len(told) == 3, warned  # of each method once
        for line, method in zip(told, ("amn", "fedavg", "scaffold")):
            assert line.startswith(f"amn_mpi: warning: {method}, round 1: client {client} diverged: ")
        assert "3 turns of 1 clients diverged" in said
        for row in rows:
            del row["turn_seconds"], row["seconds"]
        baselines = {name: s["mean_accuracy"] for name, s in result(out)["baselines"].items()}
        found.append((rows, result(out)["models_sha256"], baselines, names))
    assert found[0] == found[1]
