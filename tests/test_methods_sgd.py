"""FedProx, SCAFFOLD, Per-FedAvg, pFedMe, Ditto, APFL: real runs against the papers' equations.

The expected numbers are float64 numpy from the equations; the package lends only its randomness
(which clients, which batches), which is part of a method's definition.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch

from amn_mpi import rng, rounds, turns
from amn_mpi.config import Local, Model
from amn_mpi.errors import ConfigError
from amn_mpi.methods import apfl, ditto, fedavg, fedprox, get, local, per_fedavg, pfedme, scaffold

Array = np.ndarray
Slope = Callable[[Array], Array]

EPOCHS = Local(epochs=2, steps=0, batch_size=8, lr=0.2, momentum=0.0, weight_decay=0.0)
DECAY = Local(epochs=1, steps=7, batch_size=5, lr=0.1, momentum=0.0, weight_decay=0.05)
MOMENTUM = replace(DECAY, momentum=0.6)
ONE_BATCH = Local(epochs=1, steps=1, batch_size=1000, lr=0.1)  # it holds all samples of a client
LINEAR, MLP = Model("linear"), Model("mlp", hidden=plain.HIDDEN)
NETWORKS: dict[str, Callable] = {"linear": plain.linear, "mlp": plain.mlp}

CLOSE: dict[str, Any] = dict(rtol=1e-4, atol=1e-5)
TIGHT: dict[str, Any] = dict(rtol=1e-6, atol=1e-6)  # the same float32 numbers, added in another order

every_cohort = pytest.mark.parametrize("cohort", [1.0, 0.5])


def settings(second: Local) -> Any:
    """A network with local training: whole epochs, and a number of steps that is no whole epoch."""
    pairs = [(LINEAR, EPOCHS), (MLP, second)]
    return pytest.mark.parametrize(("network", "trained"), pairs, ids=["linear", "mlp"])


# ---- a run and what plain numpy may know of it


def train(folder: Path, options: Any, count: int, **keys: Any) -> tuple[rounds.Run, list[rounds.Outcome]]:
    run = plain.start(folder, options, rounds=count, **keys)
    return run, [plain.one_round(run) for t in range(1, count + 1)]


class Problem:
    """The clients' losses as gradient functions, batch by batch."""

    def __init__(self, run: rounds.Run) -> None:
        self.config, self.local, self.n = run.config, run.config.local, run.clients
        self.o: Any = run.config.method
        self.network = NETWORKS[run.config.model.name]
        self.x, self.y = plain.numbers(run)
        self.w0 = plain.initial(run)

    def cohorts(self) -> Iterator[tuple[int, list[int]]]:
        for t in range(1, self.config.rounds + 1):
            yield t, [int(i) for i in plain.members(self.config, t, self.n)]

    def slope(self, i: int, batch: Any = slice(None)) -> Slope:
        """Gradient of client i's mean loss, with weight decay as a part of the loss."""
        x, y = self.x[i][batch], self.y[i][batch]
        return lambda w: self.network(w, x, y)[1] + self.local.weight_decay * w

    def slopes(self, t: int, i: int, purpose: str = "shuffle", passes: int = 0) -> Iterator[Slope]:
        """One for each batch of the client's turn: epochs, each in a new order, or so many steps."""
        draw = rng.generator(self.config.seed, purpose, t, i)
        n, size = len(self.y[i]), self.local.batch_size
        each = -(-n // size)
        left = passes * each or self.local.steps or self.local.epochs * each
        while True:
            order = draw.permutation(n)
            for first in range(0, n, size):
                if not left:
                    return
                yield self.slope(i, order[first : first + size])
                left -= 1

    def descend(self, w: Array, slopes: Iterator[Slope], extra: Slope) -> Array:
        """SGD with momentum on the loss and ``extra``."""
        velocity = np.zeros_like(w)
        for slope in slopes:
            velocity = self.local.momentum * velocity + slope(w) + extra(w)
            w = w - self.local.lr * velocity
        return w

    def by_samples(self, new: dict[int, Array]) -> Array:
        weights = np.array([len(self.y[i]) for i in new], float)
        return weights / weights.sum() @ np.array(list(new.values()))


@dataclass
class Expected:
    """What is held after the last round: by the server, by each client, and each client's models."""

    server: dict[str, Array]
    models: dict[str, Array]
    state: dict[str, Array] = field(default_factory=dict)


def compare(run: rounds.Run, outcomes: list[rounds.Outcome], want: Expected) -> None:
    last = outcomes[-1]
    assert len({len(s.y) for s in run.samples.values()}) > 1, "weights of the mean would not show"
    assert len(last.cohort) == (5 if run.config.cohort == 1 else 3)
    assert run.server.keys() == want.server.keys() and run.state.keys() == want.state.keys()
    assert list(run.method.models) == list(want.models)
    for name, vector in want.server.items():
        np.testing.assert_allclose(run.server[name], vector, **CLOSE, err_msg=f"server's {name}")
    for name, rows in want.state.items():
        np.testing.assert_allclose(run.state[name], rows, **CLOSE, err_msg=f"clients' {name}")
    found = deployed(run, run.config.rounds)
    for name, rows in want.models.items():
        np.testing.assert_allclose(found[name], rows, **CLOSE, err_msg=f"model {name}")
    assert last.correct is not None
    assert last.correct.T.tolist() == [right(run, rows) for rows in want.models.values()]


def deployed(run: rounds.Run, t: int) -> dict[str, Array]:
    """The models that are evaluated: name -> (clients, P)."""
    each = [[v.clone().numpy() for _, v in models] for _, models in turns.personal_models(run, t)]
    return {name: np.array(rows) for name, rows in zip(run.method.models, zip(*each))}


def right(run: rounds.Run, models: Array) -> list[int]:
    network, tests = NETWORKS[run.config.model.name], [run.samples[i] for i in range(run.clients)]
    return [network(w, s.x_test.double().numpy(), s.y_test.numpy())[2] for w, s in zip(models, tests)]


# ---- FedProx: w_k minimises F_k(w) + mu/2 ||w - w_t||^2, approximately


def plain_fedprox(run: rounds.Run) -> Expected:
    p = Problem(run)
    w = p.w0
    for t, cohort in p.cohorts():
        anchor = w
        new = {
            i: p.descend(anchor, p.slopes(t, i), lambda at, a=anchor: p.o.mu * (at - a))  # type: ignore[misc]
            for i in cohort
        }
        w = p.by_samples(new)
    return Expected({"model": w}, {"global": np.tile(w, (p.n, 1))})


@every_cohort
@settings(MOMENTUM)
def test_fedprox(tmp_path: Path, network: Model, trained: Local, cohort: float) -> None:
    keys = dict(model=network, local=trained, cohort=cohort)
    run, outcomes = train(tmp_path, fedprox.Options(mu=0.7), 3, **keys)
    compare(run, outcomes, plain_fedprox(run))


def test_fedprox_without_its_term_is_fedavg(tmp_path: Path) -> None:
    prox, _ = train(tmp_path, fedprox.Options(mu=0.0), 3, local=MOMENTUM, cohort=0.5)
    average, _ = train(tmp_path, fedavg.Options(), 3, local=MOMENTUM, cohort=0.5)
    assert torch.equal(prox.server["model"], average.server["model"])


def test_fedprox_ends_where_the_two_forces_balance(tmp_path: Path) -> None:
    """One client, all its samples in each batch: after many steps grad F(w) = mu (w_t - w)."""
    keys = dict(local=replace(ONE_BATCH, steps=400, lr=0.2), cohort=0.2)
    run, (outcome,) = train(tmp_path, fedprox.Options(mu=0.5), 1, **keys)
    (client,), p = outcome.cohort, Problem(run)
    w = run.server["model"].double().numpy()
    assert abs(w - p.w0).max() > 0.1
    np.testing.assert_allclose(p.slope(client)(w), 0.5 * (p.w0 - w), rtol=0, atol=1e-5)


# ---- SCAFFOLD: y <- y - eta (g(y) - c_i + c); option II: c_i <- c_i - c + (x - y) / (K eta)


def plain_scaffold(run: rounds.Run) -> Expected:
    p = Problem(run)
    x, c, own = p.w0, np.zeros_like(p.w0), np.zeros((p.n, len(p.w0)))
    for t, cohort in p.cohorts():
        moves, changes = [], []
        for i in cohort:
            y, steps = x, 0
            for slope in p.slopes(t, i):
                y, steps = y - p.local.lr * (slope(y) - own[i] + c), steps + 1
            new = own[i] - c + (x - y) / (steps * p.local.lr)
            moves.append(y - x)
            changes.append(new - own[i])
            own[i] = new
        x = x + p.o.global_lr * sum(moves) / len(cohort)
        c = c + sum(changes) / p.n
    return Expected({"model": x, "control": c}, {"global": np.tile(x, (p.n, 1))}, {"control": own})


@every_cohort
@settings(DECAY)
def test_scaffold(tmp_path: Path, network: Model, trained: Local, cohort: float) -> None:
    keys = dict(model=network, local=trained, cohort=cohort)
    run, outcomes = train(tmp_path, scaffold.Options(global_lr=0.6), 3, **keys)
    compare(run, outcomes, plain_scaffold(run))


def test_scaffolds_controls_average_to_the_servers(tmp_path: Path) -> None:
    """Over all clients and unweighted: also over those that sat out, some of them always so far."""
    run = plain.start(tmp_path, scaffold.Options(global_lr=1.3), rounds=4, local=EPOCHS, cohort=0.3)
    for _t in range(1, 5):
        assert len(plain.one_round(run).cohort) == 2
        assert run.server["control"].abs().max() > 0.01
        np.testing.assert_allclose(run.state["control"].mean(0), run.server["control"], **TIGHT)


@every_cohort
def test_scaffolds_first_round_is_fedavgs(tmp_path: Path, cohort: float) -> None:
    """The controls start at 0; clients of one size, as FedAvg would weigh them otherwise."""
    keys = dict(local=EPOCHS, cohort=cohort, data={"sizes": "equal"})
    average, _ = train(tmp_path, fedavg.Options(), 1, **keys)
    run, _ = train(tmp_path, scaffold.Options(), 1, **keys)
    assert len({len(s.y) for s in run.samples.values()}) == 1
    np.testing.assert_allclose(run.server["model"], average.server["model"], **TIGHT)


def test_scaffolds_control_is_the_mean_gradient_on_the_way(tmp_path: Path) -> None:
    """With one step on all samples options I and II are the same: the gradient at the server's model."""
    run = plain.start(tmp_path, scaffold.Options(), rounds=3, local=ONE_BATCH)
    p = Problem(run)
    for _t in (1, 2, 3):
        x = run.server["model"].double().numpy()
        plain.one_round(run)
        np.testing.assert_allclose(run.state["control"], [p.slope(i)(x) for i in range(5)], **CLOSE)


# ---- Per-FedAvg: w <- w - beta (I - alpha Hess f(w; D'')) grad f(w - alpha grad f(w; D); D')


def by_difference(slope: Slope, w: Array, v: Array, delta: float) -> Array:
    """The paper's stand-in for Hess f(w) v."""
    return (slope(w + delta * v) - slope(w - delta * v)) / (2 * delta)


def by_hessian(slope: Slope, w: Array, v: Array, delta: float) -> Array:
    """The Hessian column by column, times v."""
    h = 1e-5
    columns = [(slope(w + h * e) - slope(w - h * e)) / (2 * h) for e in np.eye(len(w))]
    return np.array(columns).T @ v


def plain_per_fedavg(run: rounds.Run, product: Callable = by_difference) -> Expected:
    p = Problem(run)
    a, w = p.o.alpha, p.w0
    width = 3 if p.o.hessian == "hessian_free" else 2
    for t, cohort in p.cohorts():
        total = np.zeros_like(w)
        for i in cohort:
            y, fresh = w, list(p.slopes(t, i))
            for k in range(0, len(fresh), width):
                taken = fresh[k : k + width]
                taken += taken[-1:] * (width - len(taken))  # no batch left: the last one again
                v = taken[1](y - a * taken[0](y))
                step = v - a * product(taken[2], y, v, p.o.delta) if width == 3 else v
                y = y - p.local.lr * step
            total += y / len(cohort)
        w = total
    adapted = np.tile(w, (p.n, 1))
    for i in range(p.n):
        slopes = p.slopes(p.config.rounds, i, "adapt", passes=p.o.adapt_steps)
        for _ in range(p.o.adapt_steps):
            adapted[i] -= a * next(slopes)(adapted[i])
    return Expected({"model": w}, {"adapted": adapted, "global": np.tile(w, (p.n, 1))})


FORMS = pytest.mark.parametrize("hessian", ["first_order", "hessian_free"])
META = per_fedavg.Options(alpha=0.3, delta=0.4, adapt_steps=3)  # a delta so wide that its value shows


@every_cohort
@FORMS
@settings(DECAY)
def test_per_fedavg(tmp_path: Path, network: Model, trained: Local, hessian: Any, cohort: float) -> None:
    keys = dict(model=network, local=trained, cohort=cohort)
    run, outcomes = train(tmp_path, replace(META, hessian=hessian), 2, **keys)
    compare(run, outcomes, plain_per_fedavg(run))


@FORMS
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_per_fedavg_where_the_batches_run_out(tmp_path: Path, hessian: Any, steps: int) -> None:
    keys = dict(model=MLP, local=replace(DECAY, steps=steps))
    run, outcomes = train(tmp_path, replace(META, hessian=hessian), 2, **keys)
    compare(run, outcomes, plain_per_fedavg(run))


def test_per_fedavg_adapts_by_as_many_steps_as_asked(tmp_path: Path) -> None:
    """More steps than a small client has batches: further passes; the paper's one step by default."""
    assert per_fedavg.Options().adapt_steps == 1
    for steps in (1, 9):
        keys = dict(local=replace(EPOCHS, steps=2, batch_size=15))
        run, outcomes = train(tmp_path, replace(META, adapt_steps=steps), 1, **keys)
        assert min(len(s.y) for s in run.samples.values()) < 9 * 15
        compare(run, outcomes, plain_per_fedavg(run))


def test_per_fedavg_against_the_hessian(tmp_path: Path) -> None:
    """HF with a small delta is the whole gradient of F_i, which FO is not."""
    keys = dict(local=replace(DECAY, steps=9, lr=0.3))
    options = per_fedavg.Options(hessian="hessian_free", alpha=0.3, delta=0.005)
    run, _ = train(tmp_path, options, 2, **keys)
    exact = plain_per_fedavg(run, by_hessian).server["model"]
    np.testing.assert_allclose(run.server["model"], exact, rtol=0, atol=1e-4)
    short = plain_per_fedavg(run, lambda slope, w, v, delta: 0 * v).server["model"]
    assert abs(short - exact).max() > 0.02


@FORMS
def test_per_fedavg_without_adaptation_is_sgd_on_the_second_batches(tmp_path: Path, hessian: Any) -> None:
    options = per_fedavg.Options(hessian=hessian, alpha=1e-8)
    run, _ = train(tmp_path, options, 1, local=replace(DECAY, steps=6))
    p = Problem(run)
    found = deployed(run, 1)
    np.testing.assert_allclose(found["adapted"], found["global"], **TIGHT)
    ends = []
    for i in range(5):
        second = list(p.slopes(1, i))[1 :: 3 if hessian == "hessian_free" else 2]
        assert len(second) == (2 if hessian == "hessian_free" else 3)
        ends.append(p.descend(p.w0, iter(second), np.zeros_like))
    np.testing.assert_allclose(run.server["model"], np.mean(ends, 0), **CLOSE)


# ---- pFedMe: theta ~ argmin f(theta) + lambda/2 ||theta - w||^2, then w <- w - eta lambda (w - theta)


def plain_pfedme(run: rounds.Run) -> Expected:
    p = Problem(run)
    w, personal = p.w0, np.tile(p.w0, (p.n, 1))
    for t, cohort in p.cohorts():
        total = np.zeros_like(w)
        for i in cohort:
            own = theta = w
            for slope in p.slopes(t, i):
                for _ in range(p.o.inner_steps):
                    theta = theta - p.o.inner_lr * (slope(theta) + p.o.lam * (theta - own))
                own = own - p.local.lr * p.o.lam * (own - theta)
            total += own
            personal[i] = theta
        w = (1 - p.o.beta) * w + p.o.beta * total / len(cohort)
    models = {"personal": personal, "global": np.tile(w, (p.n, 1))}
    return Expected({"model": w}, models, {"personal": personal})


@every_cohort
@pytest.mark.parametrize("beta", [0.6, 2.0])
@settings(DECAY)
def test_pfedme(tmp_path: Path, network: Model, trained: Local, cohort: float, beta: float) -> None:
    keys = dict(model=network, local=trained, cohort=cohort)
    options = pfedme.Options(lam=4.0, inner_steps=3, inner_lr=0.06, beta=beta)
    run, outcomes = train(tmp_path, options, 3, **keys)
    compare(run, outcomes, plain_pfedme(run))


def test_pfedme_solves_its_inner_problem(tmp_path: Path) -> None:
    """grad f(theta) + lambda (theta - w) = 0 at each personal model, w the model received; so the
    global model moves by -eta times the mean of grad f at the personal models."""
    run = plain.start(
        tmp_path, pfedme.Options(lam=2.0, inner_steps=80, inner_lr=0.2), rounds=2, local=ONE_BATCH
    )
    p = Problem(run)
    for _t in (1, 2):
        w = run.server["model"].double().numpy()
        plain.one_round(run)
        thetas = run.state["personal"].double().numpy()
        slopes = np.array([p.slope(i)(theta) for i, theta in enumerate(thetas)])
        assert abs(slopes).max() > 0.1
        np.testing.assert_allclose(slopes + 2.0 * (thetas - w), 0 * slopes, rtol=0, atol=1e-5)
        np.testing.assert_allclose(run.server["model"], w - ONE_BATCH.lr * slopes.mean(0), **CLOSE)


# ---- Ditto: v <- v - eta (grad F(v) + lambda (v - w_t)); w by FedAvg


def plain_ditto(run: rounds.Run) -> Expected:
    p = Problem(run)
    w, v = p.w0, np.tile(p.w0, (p.n, 1))
    for t, cohort in p.cohorts():
        anchor, new = w, {}
        for i in cohort:
            new[i] = p.descend(anchor, p.slopes(t, i), np.zeros_like)
            slopes = p.slopes(t, i, passes=p.o.personal_epochs)
            v[i] = p.descend(v[i], slopes, lambda at, a=anchor: p.o.lam * (at - a))  # type: ignore[misc]
        w = p.by_samples(new)
    models = {"personal": v, "global": np.tile(w, (p.n, 1))}
    return Expected({"model": w}, models, {"personal": v})


@every_cohort
@pytest.mark.parametrize("epochs", [0, 3])
@settings(MOMENTUM)
def test_ditto(tmp_path: Path, network: Model, trained: Local, cohort: float, epochs: int) -> None:
    keys = dict(model=network, local=trained, cohort=cohort)
    run, outcomes = train(tmp_path, ditto.Options(lam=0.8, personal_epochs=epochs), 3, **keys)
    compare(run, outcomes, plain_ditto(run))


def test_ditto_without_its_pull_is_local_beside_fedavg(tmp_path: Path) -> None:
    keys = dict(local=MOMENTUM, cohort=0.5)
    run, _ = train(tmp_path, ditto.Options(lam=0.0), 3, **keys)
    alone, _ = train(tmp_path, local.Options(), 3, **keys)
    average, _ = train(tmp_path, fedavg.Options(), 3, **keys)
    assert torch.equal(run.state["personal"], alone.state["model"])
    assert torch.equal(run.server["model"], average.server["model"])
    pulled, _ = train(tmp_path, ditto.Options(lam=0.8, personal_epochs=1), 3, **keys)
    assert torch.equal(pulled.server["model"], average.server["model"])  # personal models never leave
    assert (pulled.state["personal"] - run.state["personal"]).abs().max() > 0.01


# ---- APFL: u = alpha v + (1 - alpha) w; w <- w - eta grad f(w), v <- v - eta alpha grad f(u),
# ---- alpha <- alpha - eta <v - w, grad f(u)>


def plain_apfl(run: rounds.Run, unclipped: list[float] | None = None) -> Expected:
    p = Problem(run)
    w, v, mixed = p.w0, np.tile(p.w0, (p.n, 1)), np.tile(p.w0, (p.n, 1))
    alpha = np.full((p.n, 1), p.o.alpha)
    for t, cohort in p.cohorts():
        total = np.zeros_like(w)
        for i in cohort:
            own, a = w, alpha[i, 0]
            for k, slope in enumerate(p.slopes(t, i)):
                by_mixed, apart, old = slope(a * v[i] + (1 - a) * own), v[i] - own, a
                if p.o.adaptive and k == 0:
                    a = old - p.local.lr * (apart @ by_mixed)
                    if unclipped is not None:
                        unclipped.append(a)
                    a = np.clip(a, 0, 1)
                own, v[i] = own - p.local.lr * slope(own), v[i] - p.local.lr * old * by_mixed
            alpha[i], mixed[i] = a, a * v[i] + (1 - a) * own
            total += own
        w = total / len(cohort)
    state = {"personal": v, "mixed": mixed, "alpha": alpha}
    return Expected({"model": w}, {"mixed": mixed, "global": np.tile(w, (p.n, 1))}, state)


@every_cohort
@pytest.mark.parametrize("adaptive", [True, False])
@settings(DECAY)
def test_apfl(tmp_path: Path, network: Model, trained: Local, cohort: float, adaptive: bool) -> None:
    """The mlp tells mixed parameters from mixed outputs."""
    keys = dict(model=network, local=trained, cohort=cohort)
    run, outcomes = train(tmp_path, apfl.Options(alpha=0.3, adaptive=adaptive), 3, **keys)
    want = plain_apfl(run)
    compare(run, outcomes, want)
    assert (abs(want.state["alpha"] - 0.3).max() > 0.002) == adaptive


@pytest.mark.parametrize("alpha", [0.01, 0.99])
def test_apfl_keeps_alpha_between_0_and_1(tmp_path: Path, alpha: float) -> None:
    run, outcomes = train(tmp_path, apfl.Options(alpha=alpha), 5, local=replace(EPOCHS, lr=0.4))
    unclipped: list[float] = []
    want = plain_apfl(run, unclipped)
    assert min(unclipped) < 0 if alpha < 0.5 else max(unclipped) > 1
    compare(run, outcomes, want)


def test_apfl_all_personal_is_local(tmp_path: Path) -> None:
    keys = dict(model=MLP, local=DECAY, cohort=0.5)
    run, _ = train(tmp_path, apfl.Options(alpha=1.0, adaptive=False), 3, **keys)
    alone, _ = train(tmp_path, local.Options(), 3, **keys)
    np.testing.assert_allclose(run.state["personal"], alone.state["model"], **TIGHT)
    assert torch.equal(run.state["mixed"], run.state["personal"])


def test_apfl_nothing_personal_is_fedavg(tmp_path: Path) -> None:
    """The mixed model is the client's FedAvg model as trained; clients of one size, so equal weights."""
    keys = dict(local=DECAY, cohort=0.5, data={"sizes": "equal"})
    run, _ = train(tmp_path, apfl.Options(alpha=0.0, adaptive=False), 2, **keys)
    average, _ = train(tmp_path, fedavg.Options(), 1, **keys)
    received = average.server["model"].clone()
    cohort = plain.one_round(average).cohort
    np.testing.assert_allclose(run.server["model"], average.server["model"], **TIGHT)
    for i in map(int, cohort):
        at, order = average.samples[i], rng.generator(average.config.seed, "shuffle", 2, i)
        trained = average.engine.train(received, at.x, at.y, order)
        np.testing.assert_allclose(run.state["mixed"][i], trained, **TIGHT)
    np.testing.assert_allclose(run.state["personal"], [plain.initial(run)] * 5, **TIGHT)


# ---- all of them


KEPT = {"scaffold": "control", "pfedme": "personal", "ditto": "personal", "apfl": "mixed"}


@pytest.mark.parametrize("name", KEPT)
def test_who_sits_out_keeps_its_state(tmp_path: Path, name: str) -> None:
    """And, where a model of its own is evaluated, that model; whoever takes part gets another."""
    run = plain.start(tmp_path, get(name).Options(), rounds=5, cohort=0.5, local=EPOCHS)
    out, own = 0, run.method.headline
    for t in range(1, 6):
        before, shown = {k: v.clone() for k, v in run.state.items()}, deployed(run, t - 1)
        cohort = plain.one_round(run).cohort
        now, idle = deployed(run, t), [i for i in range(5) if i not in cohort]
        assert all(torch.equal(run.state[k][idle], before[k][idle]) for k in before)
        assert not any(torch.equal(run.state[KEPT[name]][i], before[KEPT[name]][i]) for i in cohort)
        if own != "global":
            assert np.array_equal(now[own][idle], shown[own][idle])
            assert not any(np.array_equal(now[own][i], shown[own][i]) for i in cohort)
        out += len(idle)
    assert out == 10


@pytest.mark.parametrize("name", ["scaffold", "per_fedavg", "pfedme", "apfl"])
def test_momentum_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        plain.start(tmp_path, get(name).Options(), local=MOMENTUM)
    message = str(caught.value)
    assert "local.momentum = 0.6" in message and f"method.name = {name}" in message
    assert message.endswith("valid is 0")
