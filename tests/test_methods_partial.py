"""FedPer, FedRep, LG-FedAvg and FedALA: real runs against plain numpy, from the papers' equations.

FedBN needs a model with batch normalisation: tests/test_batch_norm.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch

from amn_mpi import models, rng, rounds, turns
from amn_mpi.config import Local, Model
from amn_mpi.errors import ConfigError
from amn_mpi.methods import fedala, fedavg, fedavg_ft, fedper, fedrep, get, lg_fedavg
from amn_mpi.methods.base import Pull, Setting
from amn_mpi.params import ParameterLayout, Part

Array = np.ndarray
CLOSE: dict[str, Any] = dict(rtol=1e-4, atol=1e-5)
MLP = Model("mlp", hidden=plain.HIDDEN)
# By hand: weight and bias of the hidden layer, then of the output layer.
EDGE = plain.HIDDEN * (plain.FEATURES + 1)
SIZE = EDGE + plain.CLASSES * (plain.HIDDEN + 1)
BODY, HEAD, NONE = slice(0, EDGE), slice(EDGE, SIZE), slice(0, 0)
LOCALS = [
    Local(epochs=2, steps=0, batch_size=8, lr=0.2, momentum=0.0, weight_decay=0.0),
    Local(epochs=1, steps=7, batch_size=5, lr=0.1, momentum=0.6, weight_decay=0.02),
]


def train(folder: Path, method: Any, count: int = 2, **keys: Any) -> tuple[rounds.Run, list[rounds.Outcome]]:
    run = plain.start(folder, method, rounds=count, **{"model": MLP, **keys})
    return run, [plain.one_round(run) for t in range(1, count + 1)]


def draw(run: rounds.Run, t: int, client: int, purpose: str) -> np.random.Generator:
    return rng.generator(run.config.seed, purpose, t, client)


def members(run: rounds.Run, t: int) -> list[int]:
    return [int(i) for i in plain.members(run.config, t, run.clients)]


def right(run: rounds.Run, every: list[Array]) -> list[int]:
    tests = [run.samples[i] for i in range(run.clients)]
    return [plain.mlp(w, s.x_test.double().numpy(), s.y_test.numpy())[2] for w, s in zip(every, tests)]


def counts(outcome: rounds.Outcome) -> Array:
    assert outcome.correct is not None
    return outcome.correct


def deployed(run: rounds.Run, t: int) -> list[dict[str, Array]]:
    return [
        {name: v.double().numpy().copy() for name, v in told} for _, told in turns.personal_models(run, t)
    ]


# ---- layers that stay with the client, in numpy


def descend(
    w: Array, x: Array, y: Array, local: Local, order: np.random.Generator, moving: slice, passes: int = 0
) -> Array:
    """SGD on some coordinates, the others are constants; ``passes`` instead of what ``local`` says."""
    w, v = w.copy(), np.zeros(len(w))
    each = -(-len(y) // local.batch_size)
    left = passes * each if passes else (local.steps or local.epochs * each)
    while left:
        shuffled = order.permutation(len(y))
        for first in range(0, len(y), local.batch_size)[:left]:
            batch = shuffled[first : first + local.batch_size]
            v = local.momentum * v + plain.mlp(w, x[batch], y[batch])[1] + local.weight_decay * w
            w[moving] -= local.lr * v[moving]
            left -= 1
    return w


Turn = Callable[[rounds.Run, int, int, Array, Array, Array], Array]


def jointly(run: rounds.Run, t: int, i: int, w: Array, x: Array, y: Array) -> Array:
    return plain.sgd(plain.mlp, w, x, y, run.config.local, draw(run, t, i, "shuffle"))


def head_then_body(run: rounds.Run, t: int, i: int, w: Array, x: Array, y: Array) -> Array:
    o, local = run.config.method, run.config.local
    edge = EDGE if o.head else SIZE
    w = descend(w, x, y, local, draw(run, t, i, "head"), slice(edge, SIZE), o.head_epochs)
    return descend(w, x, y, local, draw(run, t, i, "shuffle"), slice(0, edge), o.body_epochs)


def partly_shared(
    run: rounds.Run, count: int, private: slice, turn: Turn, by_samples: bool
) -> tuple[Array, list[Array]]:
    """(the server's mean, every client's own model): ``private`` stays, the rest is averaged."""
    x, y = plain.numbers(run)
    mean = plain.initial(run)
    own = [mean] * run.clients

    def joined(i: int) -> Array:
        w = mean.copy()
        w[private] = own[i][private]
        return w

    for t in range(1, count + 1):
        cohort = members(run, t)
        new = {i: turn(run, t, i, joined(i), x[i], y[i]) for i in cohort}
        total = sum(len(y[i]) for i in cohort)
        weights = [len(y[i]) / total if by_samples else 1 / len(cohort) for i in cohort]
        mean = np.average([new[i] for i in cohort], 0, weights)
        for i in cohort:
            own[i] = new[i]
    return mean, [joined(i) for i in range(run.clients)]


@dataclass(frozen=True)
class Case:
    """A method, and what its paper says: who keeps what, how it trains, whose mean."""

    options: Any
    private: slice
    shared: slice
    turn: Turn = jointly
    by_samples: bool = True


REP = fedrep.Options
CASES = {
    "fedper": Case(fedper.Options(head=1), HEAD, BODY),
    "fedper, all shared": Case(fedper.Options(head=0), NONE, slice(0, SIZE)),
    "lg_fedavg": Case(lg_fedavg.Options(head=1), BODY, HEAD),
    "fedrep": Case(REP(head_epochs=3, body_epochs=4), HEAD, BODY, head_then_body, False),
    "fedrep, body as local": Case(REP(head_epochs=1), HEAD, BODY, head_then_body, False),
    "fedrep, no head": Case(REP(head=0), NONE, slice(0, SIZE), head_then_body, False),
}


@pytest.mark.parametrize("cohort", [1.0, 0.5])
@pytest.mark.parametrize("trained", LOCALS, ids=["epochs", "momentum"])
@pytest.mark.parametrize("name", CASES)
def test_private_layers(tmp_path: Path, name: str, trained: Local, cohort: float) -> None:
    case = CASES[name]
    run, outcomes = train(tmp_path, case.options, 3, local=trained, cohort=cohort)
    assert len({len(s.y) for s in run.samples.values()}) > 1
    assert [len(o.cohort) for o in outcomes] == [5 if cohort == 1 else 3] * 3
    mean, every = partly_shared(run, 3, case.private, case.turn, case.by_samples)
    assert set(run.server) == {"model"}
    np.testing.assert_allclose(run.server["model"], mean[case.shared], **CLOSE)
    kept = torch.cat(list(run.state.values()), 1)
    np.testing.assert_allclose(kept, [w[case.private] for w in every], **CLOSE)
    found = deployed(run, 3)
    assert [set(d) for d in found] == [{"personal"}] * 5
    np.testing.assert_allclose([d["personal"] for d in found], every, **CLOSE)
    assert counts(outcomes[-1])[:, 0].tolist() == right(run, every)


@pytest.mark.parametrize("cohort", [1.0, 0.5])
@pytest.mark.parametrize("trained", LOCALS, ids=["epochs", "momentum"])
def test_fedrep_fits_the_head_before_use(tmp_path: Path, trained: Local, cohort: float) -> None:
    """On the newest body, for this use alone: what trains is as without."""
    keys: dict[str, Any] = dict(local=trained, cohort=cohort)
    options = REP(head_epochs=3, body_epochs=4, fit=True)
    run, outcomes = train(tmp_path, options, 2, **keys)
    _, every = partly_shared(run, 2, HEAD, head_then_body, by_samples=False)
    x, y = plain.numbers(run)
    orders = [draw(run, 2, i, "fit") for i in range(5)]
    fitted = [descend(every[i], x[i], y[i], trained, orders[i], HEAD, 3) for i in range(5)]
    found = deployed(run, 2)
    np.testing.assert_allclose([d["personal"] for d in found], fitted, **CLOSE)
    assert min(abs(d["personal"] - w)[HEAD].max() for d, w in zip(found, every)) > 0.01
    assert counts(outcomes[-1])[:, 0].tolist() == right(run, fitted)
    plain_one, _ = train(tmp_path, REP(head_epochs=3, body_epochs=4), 2, **keys)
    assert torch.equal(run.server["model"], plain_one.server["model"])


@pytest.mark.parametrize("name", ["fedper", "fedrep", "lg_fedavg"])
def test_weights_of_the_mean_can_be_told_apart(tmp_path: Path, name: str) -> None:
    """With these unequal sizes the other kind of mean is far outside of the tolerance above."""
    case = CASES[name]
    run, _ = train(tmp_path, case.options, 1, local=LOCALS[0])
    other, _ = partly_shared(run, 1, case.private, case.turn, not case.by_samples)
    assert abs(other[case.shared] - run.server["model"].double().numpy()).max() > 5e-3


@pytest.mark.parametrize("trained", LOCALS, ids=["epochs", "momentum"])
def test_fedper_without_a_head_is_fedavg(tmp_path: Path, trained: Local) -> None:
    keys: dict[str, Any] = dict(local=trained, cohort=0.5)
    per, found = train(tmp_path, fedper.Options(head=0), 3, **keys)
    avg, same = train(tmp_path, fedavg.Options(), 3, **keys)
    assert torch.equal(per.server["model"], avg.server["model"])
    for one, other in zip(deployed(per, 3), deployed(avg, 3)):
        assert np.array_equal(one["personal"], other["global"])
    assert all(np.array_equal(counts(a), counts(b)) for a, b in zip(found, same))


@pytest.mark.parametrize("cohort", [1.0, 0.5])
@pytest.mark.parametrize("trained", LOCALS, ids=["epochs", "momentum"])
@pytest.mark.parametrize(("prior", "passes"), [(0.0, 0), (0.7, 0), (0.7, 3)])
def test_only_the_head_is_fine_tuned(
    tmp_path: Path, prior: float, passes: int, trained: Local, cohort: float
) -> None:
    options = fedavg_ft.Options(head=1, epochs=passes, prior=prior)
    run, outcomes = train(tmp_path, options, 2, local=trained, cohort=cohort)
    x, y = plain.numbers(run)
    mean = run.server["model"].double().numpy()
    used = [mean + plain.offset(y[i], prior, plain.CLASSES, SIZE) for i in range(5)]
    tuned = [
        descend(used[i], x[i], y[i], trained, draw(run, 2, i, "finetune"), HEAD, passes) for i in range(5)
    ]
    found = deployed(run, 2)
    np.testing.assert_allclose([d["finetuned"] for d in found], tuned, **CLOSE)
    assert all(np.array_equal(d["finetuned"][BODY], mean[BODY]) for d in found)
    assert min(abs(d["finetuned"] - own)[HEAD].max() for d, own in zip(found, used)) > 0.01
    assert counts(outcomes[-1]).T.tolist() == [right(run, tuned), right(run, used)]
    rounds_of_fedavg, _ = train(tmp_path, fedavg.Options(prior=prior), 2, local=trained, cohort=cohort)
    assert torch.equal(run.server["model"], rounds_of_fedavg.server["model"])


def test_a_head_of_all_layers_is_fine_tuning(tmp_path: Path) -> None:
    two, all_of_it = (train(tmp_path, fedavg_ft.Options(head=n), 1, local=LOCALS[1])[0] for n in (2, 0))
    for one, other in zip(deployed(two, 1), deployed(all_of_it, 1)):
        assert np.array_equal(one["finetuned"], other["finetuned"])


def test_more_layers_than_there_are() -> None:
    with pytest.raises(ConfigError, match="method.head = 3: the model has 2 layers .*valid is at most 2"):
        fedavg_ft.FedAvgFinetuned(fedavg_ft.Options(head=3), setting("mlp"))


@pytest.mark.parametrize(
    ("options", "shared"),
    [
        (fedper.Options(head=1), EDGE),
        (fedper.Options(head=0), SIZE),
        (fedrep.Options(head=1), EDGE),
        (lg_fedavg.Options(head=1), SIZE - EDGE),
        (fedala.Options(head=1), SIZE),
    ],
)
def test_only_what_is_shared_travels(tmp_path: Path, options: Any, shared: int) -> None:
    run, _ = train(tmp_path, options, 1, local=LOCALS[0])
    exchange = run.exchange
    assert run.method.part.size == shared == run.server["model"].numel()
    assert exchange._down.shape == exchange.up[:1].shape == (1, 1, shared)
    assert exchange._sum is not None and exchange._sum.shape == (1, shared)


def setting(name: Any) -> Setting:
    shape = (1, 28, 28) if name != "mlp" else (plain.FEATURES,)
    layout = ParameterLayout.of(models.build(Model(name, hidden=plain.HIDDEN), shape, plain.CLASSES, 0))
    return Setting(layout, np.array([9, 4]), 0, Local())


# lenet5 on 28x28 and three classes: 6 maps of 5x5, 16 of 6x5x5, 256 -> 120 -> 84 -> 3, with biases
LENET = np.cumsum([0, 6 * 26, 16 * 151, 120 * 257, 84 * 121, 3 * 85])


@pytest.mark.parametrize("head", [1, 2, 3, 4])
def test_lg_fedavg_shares_what_fedper_keeps(head: int) -> None:
    per = fedper.FedPer(fedper.Options(head=head), setting("lenet5"))
    rep = fedrep.FedRep(fedrep.Options(head=head), setting("lenet5"))
    lg = lg_fedavg.LGFedAvg(lg_fedavg.Options(head=head), setting("lenet5"))
    ala = fedala.FedALA(fedala.Options(head=head), setting("lenet5"))
    edge, end = int(LENET[5 - head]), int(LENET[-1])
    assert per.part == rep.part == lg.private == Part(((0, edge),))
    assert per.private == rep.private == lg.part == ala.top == Part(((edge, end),))
    assert ala.part == Part(((0, end),))


def test_who_stays_out_keeps_its_layers(tmp_path: Path) -> None:
    """Private layers of idle clients stay bit for bit, the shared ones are everybody's newest."""
    for options, shared, private in (
        (fedper.Options(), BODY, HEAD),
        (fedrep.Options(), BODY, HEAD),
        (lg_fedavg.Options(), HEAD, BODY),
    ):
        run = plain.start(tmp_path, options, rounds=4, cohort=0.5, local=LOCALS[0], model=MLP)
        before = np.tile(plain.initial(run)[private], (5, 1))
        for t in range(1, 5):
            plain.one_round(run)
            now = np.array([d["personal"] for d in deployed(run, t)])
            changed = (now[:, private] != before).any(1)
            assert np.flatnonzero(changed).tolist() == members(run, t)
            assert (now[:, shared] == run.server["model"].double().numpy()).all()
            before = now[:, private]


# ---- one part is trained, the other is constant


@pytest.mark.parametrize("trained", LOCALS, ids=["epochs", "momentum"])
@pytest.mark.parametrize("passes", [0, 3])
@pytest.mark.parametrize(("moving", "still"), [(HEAD, BODY), (BODY, HEAD)], ids=["head", "body"])
def test_a_phase_trains_its_part_only(
    tmp_path: Path, trained: Local, passes: int, moving: slice, still: slice
) -> None:
    run = plain.start(tmp_path, fedrep.Options(), model=MLP, local=trained)
    x, y = plain.numbers(run)
    only = run.method.private if moving is HEAD else run.method.part  # type: ignore[attr-defined]
    start = torch.from_numpy(plain.initial(run)).float()
    # a pull and a shift that would move everything, were it allowed to move
    pull, shift = Pull(start + 3, 0.1), torch.full((SIZE,), 0.2)
    sample = run.samples[2]
    extras: list[dict[str, Any]] = [{}, {"pull": pull, "shift": shift}]
    for extra in extras:
        kept = start.clone()
        order = draw(run, 1, 2, "any")
        out = run.engine.train(start, sample.x, sample.y, order, epochs=passes, only=only, **extra).clone()
        assert torch.equal(out[still], start[still]) and torch.equal(start, kept)
        assert (out[moving] != start[moving]).float().mean() > 0.5
        if not extra:
            if not trained.weight_decay:  # gradients of what stays are not even computed
                assert not run.engine.gradients[still].any()
            w = descend(start.double().numpy(), x[2], y[2], trained, draw(run, 1, 2, "any"), moving, passes)
            np.testing.assert_allclose(out, w, **CLOSE)
    # What was frozen learns again afterwards.
    out = run.engine.train(start, sample.x, sample.y, draw(run, 1, 2, "any"))
    w = plain.sgd(plain.mlp, start.double().numpy(), x[2], y[2], trained, draw(run, 1, 2, "any"))
    np.testing.assert_allclose(out, w, **CLOSE)


def test_nothing_to_train_takes_no_step(tmp_path: Path) -> None:
    run = plain.start(tmp_path, fedrep.Options(head=0), model=MLP, local=LOCALS[1])
    start = torch.from_numpy(plain.initial(run)).float()
    sample = run.samples[0]
    out = run.engine.train(start, sample.x, sample.y, draw(run, 1, 0, "any"), only=Part(()))
    assert torch.equal(out, start)


# ---- FedALA

STILL, STEPS_OF_LOSS, MOST = 0.1, 10, 50


@dataclass
class Merging:
    """A client's W, how often it has trained, and the passes of its mergings so far."""

    weights: Array
    turns: int = 0


@dataclass
class ALA:
    """FedALA after a round, and passes[t][i] of the merging with which client i begins round t."""

    mean: Array
    own: list[Array]
    weights: list[Array]
    merged: list[Array]
    passes: dict[int, dict[int, int]]
    edges: list[float]  # spreads of the last ten losses that decided on going on


def ala_merge(
    run: rounds.Run, t: int, i: int, own: Array, mean: Array, weights: Array, turns: int, top: slice
) -> tuple[Array, Array, int, list[float]]:
    """(theta^, W, passes, spreads): theta^ = theta_i + (theta - theta_i) W on top, theta below."""
    if turns == 0:
        return mean.copy(), weights, 0, []
    x, y = (a[i] for a in plain.numbers(run))
    o, size = run.config.method, run.config.local.batch_size
    count = max(1, int(o.samples * len(y)))
    first = int(draw(run, t, i, "stretch").integers(len(y) - count + 1))
    x, y = x[first : first + count], y[first : first + count]
    theta, weights = mean.copy(), weights.copy()
    apart = mean[top] - own[top]
    theta[top] = own[top] + apart * weights
    losses: list[float] = []
    spreads: list[float] = []
    while True:
        order = draw(run, t, i, "weights").permutation(count)  # as the authors: one order a round
        for begin in range(0, count, size):
            batch = order[begin : begin + size]
            loss, gradient, _ = plain.mlp(theta, x[batch], y[batch])
            weights = np.clip(weights - o.eta * gradient[top] * apart, 0.0, 1.0)
            theta[top] = own[top] + apart * weights
        losses.append(loss)
        if turns > 1 or len(losses) == MOST:
            return theta, weights, len(losses), spreads
        if len(losses) > STEPS_OF_LOSS:
            spreads.append(float(np.std(losses[-STEPS_OF_LOSS:])))
            if spreads[-1] < STILL:
                return theta, weights, len(losses), spreads


def ala(run: rounds.Run, count: int) -> Iterator[ALA]:
    x, y = plain.numbers(run)
    top, n = HEAD, run.clients
    mean = plain.initial(run)
    own, turns = [mean] * n, [0] * n
    weights = [np.ones(SIZE - EDGE)] * n
    passes: dict[int, dict[int, int]] = {}
    edges: list[float] = []
    for t in range(1, count + 1):
        cohort = members(run, t)
        passes[t] = {}
        for i in cohort:
            theta, weights[i], passes[t][i], seen = ala_merge(
                run, t, i, own[i], mean, weights[i], turns[i], top
            )
            edges += seen
            own[i] = plain.sgd(plain.mlp, theta, x[i], y[i], run.config.local, draw(run, t, i, "shuffle"))
            turns[i] += 1
        mean = np.average([own[i] for i in cohort], 0, [len(y[i]) for i in cohort])
        merged = []
        for i in range(n):
            theta, _, _, seen = ala_merge(run, t, i, own[i], mean, weights[i], turns[i], top)
            merged.append(theta)
            edges += seen
        yield ALA(mean, list(own), list(weights), merged, passes, edges)


# Without weight decay: the paper's L, by which W learns, has no such term.
OSCILLATES = Local(epochs=8, batch_size=40, lr=0.6, momentum=0.8)  # large steps and one batch a pass
ALAS = {
    "defaults": (fedala.Options(), LOCALS[0], 1.0, {11}),
    "some stay out": (fedala.Options(eta=5.0, samples=0.5), Local(steps=7, batch_size=5, lr=0.2), 0.5, {11}),
    "all samples": (fedala.Options(eta=50.0, samples=1.0), Local(steps=6, momentum=0.6), 0.5, {11}),
    "one never settles": (fedala.Options(eta=5.0, samples=0.5), OSCILLATES, 1.0, {11, 50}),
    "one settles late": (fedala.Options(eta=5.0, samples=0.5), OSCILLATES, 0.5, {11, 12, 50}),
}


@pytest.mark.parametrize("name", ALAS)
def test_fedala(tmp_path: Path, name: str) -> None:
    options, trained, cohort, passes = ALAS[name]
    # Weights that oscillate spread what rounding does.
    close = dict(rtol=1e-4, atol=3e-4 if plain.ENGINE == "batched" else 3e-5)
    run = plain.start(tmp_path, options, rounds=4, local=trained, cohort=cohort, model=MLP)
    seen: set[int] = set()
    for t, expected in enumerate(ala(run, 4), 1):
        outcome = plain.one_round(run)
        np.testing.assert_allclose(run.server["model"], expected.mean, **close)
        np.testing.assert_allclose(run.state["model"], expected.own, **close)
        np.testing.assert_allclose(run.state["weights"], expected.weights, **close)
        found = deployed(run, t)
        assert [list(d) for d in found] == [["merged", "local"]] * 5
        np.testing.assert_allclose([d["merged"] for d in found], expected.merged, **close)
        np.testing.assert_allclose([d["local"] for d in found], expected.own, **close)
        assert counts(outcome).T.tolist() == [right(run, expected.merged), right(run, expected.own)]
        seen |= set(expected.passes[t].values())
        # Rounding cannot decide how many passes there are.
        assert all(abs(edge - STILL) > 1e-3 for edge in expected.edges)
    assert seen == {0, 1} | passes  # nothing to merge, one pass later on, and until settled
    weights = run.state["weights"]
    assert weights.min() == 0 and weights.max() == 1 and ((weights > 0) & (weights < 1)).any()


def test_fedala_merges_the_top_alone(tmp_path: Path) -> None:
    """Below the last p layers everybody's model is the global one, bit for bit; above it is not."""
    run, _ = train(tmp_path, fedala.Options(), 3, local=LOCALS[0])
    mean = run.server["model"].double().numpy()
    for d in deployed(run, 3):
        assert np.array_equal(d["merged"][BODY], mean[BODY])
        assert abs(d["merged"][HEAD] - mean[HEAD]).max() > 1e-2
        # between the client's own and the global number
        low, high = np.minimum(d["local"], mean), np.maximum(d["local"], mean)
        assert (d["merged"] >= low - 1e-6).all() and (d["merged"] <= high + 1e-6).all()
    assert run.state["weights"].shape == (5, SIZE - EDGE)


@pytest.mark.parametrize("cohort", [1.0, 0.5])
def test_fedala_without_a_step_of_its_weights_is_fedavg(tmp_path: Path, cohort: float) -> None:
    """W stays 1, theta_i + (theta - theta_i) is theta."""
    keys: dict[str, Any] = dict(local=LOCALS[0], cohort=cohort)
    run, _ = train(tmp_path, fedala.Options(eta=1e-30), 3, **keys)
    avg, _ = train(tmp_path, fedavg.Options(), 3, **keys)
    assert (run.state["weights"] == 1).all()
    np.testing.assert_allclose(run.server["model"], avg.server["model"], **CLOSE)
    for d in deployed(run, 3):
        np.testing.assert_allclose(d["merged"], run.server["model"], **CLOSE)


def test_fedala_keeps_its_weights(tmp_path: Path) -> None:
    """They are refined from round to round, not learnt anew; who stays out keeps them."""
    run = plain.start(tmp_path, fedala.Options(eta=1e-3), rounds=5, local=LOCALS[0], cohort=0.5, model=MLP)
    turns = np.zeros(5)
    for t in range(1, 6):
        before = run.state["weights"].clone()
        plain.one_round(run)
        moved = (run.state["weights"] != before).any(1).numpy()
        # the first turn has nothing to merge; with tiny steps W never returns to 1 as a whole
        assert moved.tolist() == [i in members(run, t) and turns[i] > 0 for i in range(5)]
        turns[members(run, t)] += 1
        assert (run.state["weights"] < 1).any(1).tolist() == (turns > 1).tolist()


def test_fedala_says_what_it_evaluates_first(tmp_path: Path) -> None:
    run, _ = train(tmp_path, fedala.Options(), 1)
    assert run.method.headline == "merged"


@pytest.mark.parametrize("samples", [1e-6, 0.05])
def test_fedala_learns_its_weights_from_a_sample_at_least(tmp_path: Path, samples: float) -> None:
    run, _ = train(tmp_path, fedala.Options(samples=samples), 3, local=LOCALS[0])
    expected = list(ala(run, 3))[-1]
    np.testing.assert_allclose(run.state["weights"], expected.weights, **CLOSE)


# ---- what the model cannot give


NAMES = {"linear": ["fc"], "mlp": ["fc1", "fc2"], "mlp_bn": ["fc1", "norm1", "fc2"]}


@pytest.mark.parametrize("method", ["fedper", "fedrep", "lg_fedavg", "fedala"])
@pytest.mark.parametrize("model", NAMES)
@pytest.mark.parametrize("more", [1, 7])
def test_a_head_larger_than_it_can_be(tmp_path: Path, method: str, model: Any, more: int) -> None:
    """FedALA can merge all layers; the others need one for the body."""
    layers = NAMES[model]
    most = len(layers) - (method != "fedala")
    with pytest.raises(ConfigError) as caught:
        plain.start(tmp_path, get(method).Options(head=most + more), model=Model(model, hidden=plain.HIDDEN))
    told = str(caught.value)
    assert f"method.head = {most + more}: the model has {len(layers)} layer" in told
    assert f"({', '.join(layers)})" in told and "\n" not in told
    assert (f"valid is at most {most}" if most else "choose a model.name") in told


def test_fedala_can_merge_a_whole_linear_model(tmp_path: Path) -> None:
    run = plain.start(tmp_path, get("fedala").Options(head=1), model=Model("linear"), rounds=2)
    for _t in (1, 2):
        plain.one_round(run)
    assert run.method.top.size == run.method.setting.layout.size
    assert ((run.state["weights"] >= 0) & (run.state["weights"] <= 1)).all()
