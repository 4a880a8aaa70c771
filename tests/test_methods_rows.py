"""FedAMP, HeurFedAMP, FedFomo, pFedHN and IFCA: real runs against plain numpy, and what follows from
their equations."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch

from amn_mpi import rng, rounds, turns
from amn_mpi.config import Local, Model
from amn_mpi.data import prepare
from amn_mpi.errors import ConfigError
from amn_mpi.methods import fedamp, fedavg, fedfomo, get, heur_fedamp, ifca, local, pfedhn
from amn_mpi.methods.base import Arrived
from amn_mpi.rounds import Run

Array = np.ndarray
STEPS = Local(epochs=1, steps=7, batch_size=5, lr=0.1, momentum=0.6, weight_decay=0.02)
EPOCHS = Local(epochs=2, steps=0, batch_size=8, lr=0.2, momentum=0.0, weight_decay=0.0)
MLP = Model("mlp", hidden=plain.HIDDEN)
CLOSE: dict[str, Any] = dict(rtol=1e-4, atol=2e-5)
COHORTS = pytest.mark.parametrize("cohort", [1.0, 0.5])


def network(run: Run) -> Callable:
    return plain.linear if run.config.model.name == "linear" else plain.mlp


def order(run: Run, t: int, client: int) -> np.random.Generator:
    return rng.generator(run.config.seed, "shuffle", t, client)


def attracted(model: Callable, anchor: Array, strength: float) -> Callable:
    """The model's loss with strength / 2 ||w - anchor||^2 beside it."""

    def both(w: Array, x: Array, y: Array) -> tuple[float, Array, int]:
        loss, gradient, right = model(w, x, y)
        away = w - anchor
        return loss + strength / 2 * (away**2).sum(), gradient + strength * away, right

    return both


def right(run: Run, models: Any) -> list[int]:
    """Rightly classified test samples of each client by its model."""
    tests = [run.samples[i] for i in range(run.clients)]
    return [network(run)(w, s.x_test.double().numpy(), s.y_test.numpy())[2] for w, s in zip(models, tests)]


def deployed(run: Run, t: int) -> Array:
    """Every client's only model, (N, P) float64."""
    return np.stack([next(models)[1].double().numpy() for _, models in turns.personal_models(run, t)])


def correct(outcome: rounds.Outcome) -> list[int]:
    assert outcome.correct is not None and outcome.correct.shape[1] == 1
    return outcome.correct[:, 0].tolist()


def unequal(run: Run) -> bool:
    return len({len(s.y) for s in run.samples.values()}) > 1


# ---- the methods in numpy; each yields what there is after a round


@dataclass
class After:
    """Clients' models for evaluation, and the rest by name."""

    models: Array
    rest: dict[str, Any] = field(default_factory=dict)


def amp_row(o: Any, models: Array, others: list[int], i: int) -> Array:
    """xi_i of FedAMP over whole models."""
    xi = np.zeros(len(models))
    h = 1e-5 * o.sigma
    for j in others:
        t = sum((a - b) ** 2 for a, b in zip(models[i], models[j]))
        # A' by a central difference of A(t) = 1 - exp(-t / sigma)
        xi[j] = o.alpha * ((1 - math.exp(-(t + h) / o.sigma)) - (1 - math.exp(-(t - h) / o.sigma))) / (2 * h)
    if xi.sum() > 1:
        return xi / xi.sum()
    xi[i] = 1 - xi.sum()
    return xi


def heur_row(o: Any, models: Array, others: list[int], i: int) -> Array:
    """xi_i of HeurFedAMP."""
    xi = np.zeros(len(models))
    for j in others:
        lengths = math.sqrt((models[i] ** 2).sum()) * math.sqrt((models[j] ** 2).sum())
        xi[j] = math.exp(o.sigma * sum(a * b for a, b in zip(models[i], models[j])) / lengths)
    if others:
        xi *= (1 - o.self_weight) / xi.sum()
    xi[i] = o.self_weight if others else 1.0
    return xi


def attentive(run: Run, count: int, row_of: Callable) -> Iterator[After]:
    """Both forms of FedAMP; ``rest`` holds the weights that the next round would use."""
    config, o, n = run.config, run.config.method, run.clients
    x, y = plain.numbers(run)
    w = np.tile(plain.initial(run), (n, 1))
    seen: set[int] = set()

    def weights() -> Array:
        found = np.eye(n)
        for i in seen:
            found[i] = row_of(o, w, sorted(seen - {i}), i)
        return found

    for t in range(1, count + 1):
        xi, new = weights(), w.copy()
        for i in map(int, plain.members(config, t, n)):
            u = sum(xi[i, j] * w[j] for j in range(n))
            start = u if o.start == "message" else w[i]
            loss = attracted(network(run), u, o.lam / o.alpha)
            new[i] = plain.sgd(loss, start, x[i], y[i], config.local, order(run, t, i))
            seen.add(i)
        w = new
        yield After(w.copy(), {"weights": weights(), "seen": sorted(seen)})


def validation(o: fedfomo.Options, samples: int) -> int:
    return max(min(2, samples // 2), min(samples // 2, round(o.validation * samples)))


def fomo(run: Run, count: int) -> Iterator[After]:
    """FedFomo; ``chance``: how often a slot did not go to (one of) the most liked."""
    config, o, n = run.config, run.config.method, run.clients
    x, y = plain.numbers(run)
    held = [validation(o, len(labels)) for labels in y]
    theta = np.tile(plain.initial(run), (n, 1))
    start, liked = theta.copy(), np.zeros((n, n))
    slots = np.full((n, min(o.models, n - 1)), -1)
    seen: set[int] = set()
    chance = nothing = mixed = 0
    for t in range(1, count + 1):
        cohort = [int(i) for i in plain.members(config, t, n)]
        old, epsilon = theta.copy(), max(0.0, o.epsilon - o.epsilon_decay * (t - 1))
        for i in cohort:
            draw = rng.generator(config.seed, "fomo", t, i)
            queue = sorted(seen - {i})
            draw.shuffle(queue)
            slots[i] = -1
            for slot in range(min(len(queue), slots.shape[1])):
                best = max(liked[i, j] for j in queue)
                take = queue[0] if draw.random() < epsilon else [j for j in queue if liked[i, j] == best][0]
                chance += liked[i, take] < best
                queue.remove(take)
                slots[i, slot] = take

            def loss(w: Array, i: int = i) -> float:
                return network(run)(w, x[i][: held[i]], y[i][: held[i]])[0]

            gains = {}
            for j in (i, *(int(j) for j in slots[i] if j >= 0)):
                away = math.sqrt(((old[j] - start[i]) ** 2).sum())
                gains[j] = (loss(start[i]) - loss(old[j])) / away if away else 0.0
                liked[i, j] += gains[j] if j != i else 0.0
            total = sum(max(gain, 0.0) for gain in gains.values())
            mixed += sum(gain > 0 for gain in gains.values()) > 1
            nothing += t > 1 and not total
            if total:
                start[i] = sum(max(gain, 0.0) / total * old[j] for j, gain in gains.items())
            part = slice(held[i], None)
            theta[i] = plain.sgd(
                network(run), start[i], x[i][part], y[i][part], config.local, order(run, t, i)
            )
        seen.update(cohort)
        rest = {"start": start.copy(), "affinity": liked.copy(), "sent": slots.copy()}
        yield After(theta.copy(), {**rest, "counts": (chance, nothing, mixed)})


@dataclass
class Hyper:
    """pFedHN's network: embeddings v, hidden (weight, bias) pairs with ReLU between, a linear head."""

    parts: list[Array]

    @classmethod
    def of(cls, vector: Array, o: pfedhn.Options, clients: int, size: int) -> Hyper:
        width = o.embedding or 1 + clients // 4
        shapes: list[tuple[int, ...]] = [(clients, width), (o.hidden, width), (o.hidden,)]
        shapes += [(o.hidden, o.hidden), (o.hidden,)] * o.layers + [(size, o.hidden), (size,)]
        cuts = np.cumsum([math.prod(shape) for shape in shapes])
        assert len(vector) == cuts[-1]
        return cls([part.reshape(s) for part, s in zip(np.split(vector.copy(), cuts[:-1]), shapes)])

    @property
    def vector(self) -> Array:
        return np.concatenate([part.ravel() for part in self.parts])

    def inputs(self, client: int) -> list[Array]:
        """What enters each linear map, and the model that comes out at the end."""
        found = [self.parts[0][client]]
        maps = list(zip(self.parts[1::2], self.parts[2::2]))
        for k, (weight, bias) in enumerate(maps):
            out = weight @ found[-1] + bias
            # no ReLU between the last hidden map and the head, nor behind the head
            found.append(np.maximum(out, 0) if k < len(maps) - 2 else out)
        return found

    def model(self, client: int) -> Array:
        return self.inputs(client)[-1]

    def back(self, client: int, d: Array) -> Array:
        """J^T d for all parameters, by the chain rule from the head down."""
        inputs, found = self.inputs(client), [np.zeros_like(part) for part in self.parts]
        for k in range(len(inputs) - 2, -1, -1):
            found[2 * k + 1], found[2 * k + 2] = np.outer(d, inputs[k]), d
            d = self.parts[2 * k + 1].T @ d
            if k and k < len(inputs) - 2:  # this map's input came through a ReLU
                d = d * (inputs[k] > 0)
        found[0][client] = d
        return np.concatenate([part.ravel() for part in found])


def hyper(run: Run, count: int) -> Iterator[After]:
    """pFedHN, a step a round on the cohort's mean; ``norms``: of the gradients before they are clipped."""
    config, o, n = run.config, run.config.method, run.clients
    x, y = plain.numbers(run)
    size = len(plain.initial(run))
    phi = run.server["network"].double().numpy().copy()
    momentum, norms = np.zeros_like(phi), []
    for t in range(1, count + 1):
        cohort = [int(i) for i in plain.members(config, t, n)]
        before = Hyper.of(phi, o, n, size)
        theta = {i: before.model(i) for i in cohort}
        trained = {
            i: plain.sgd(network(run), theta[i], x[i], y[i], config.local, order(run, t, i)) for i in cohort
        }
        gradient = np.mean([before.back(i, theta[i] - trained[i]) for i in cohort], axis=0)
        norms.append(math.sqrt((gradient**2).sum()))
        if o.clip and norms[-1] > o.clip:
            gradient = gradient / norms[-1] * o.clip
        momentum = o.server_momentum * momentum + gradient + o.server_decay * phi
        phi = phi - o.server_lr * momentum
        after = Hyper.of(phi, o, n, size)
        rest = {"network": phi.copy(), "momentum": momentum.copy(), "norms": norms, "trained": trained}
        yield After(np.stack([after.model(i) for i in range(n)]), rest)


def clustered(run: Run, count: int) -> Iterator[After]:
    """IFCA, option II."""
    config, n = run.config, run.clients
    x, y = plain.numbers(run)
    models = list(run.server["models"].double().numpy())

    def nearest(i: int) -> int:
        losses = [network(run)(w, x[i], y[i])[0] for w in models]
        return losses.index(min(losses))

    for t in range(1, count + 1):
        members: list[list[Array]] = [[] for _ in models]
        for i in map(int, plain.members(config, t, n)):
            j = nearest(i)
            members[j].append(plain.sgd(network(run), models[j], x[i], y[i], config.local, order(run, t, i)))
        models = [sum(group) / len(group) if group else w for w, group in zip(models, members)]
        rest = {"models": np.stack(models), "sizes": [len(group) for group in members]}
        yield After(np.stack([models[nearest(i)] for i in range(n)]), rest)


def attention(run: Run) -> Array:
    """The method's picture of who listens to whom; what holds for all of them is checked here."""
    found, n = run.method.attention(run.server), run.clients
    assert isinstance(found, np.ndarray) and found.shape == (1, n, n) and (found >= 0).all()
    sums = found[0].sum(1)
    assert np.all(np.isclose(sums, 1) | (sums == 0))
    assert not found[0].diagonal().any()
    return found[0]


# ---- FedAMP and HeurFedAMP


def weights(run: Run) -> Array:
    """xi, (N, N)."""
    method: Any = run.method
    return method.weights(run.server).numpy()


AMP: list[tuple[Any, Local, Model]] = [
    # sigma near the models' squared distances; alpha / sigma high enough that some rows are capped
    (fedamp.Options(lam=0.4, alpha=0.7, sigma=0.6, start="own"), STEPS, MLP),
    (fedamp.Options(lam=1.2, alpha=0.38, sigma=1.3, start="message"), EPOCHS, Model("linear")),
    (heur_fedamp.Options(lam=0.4, alpha=0.7, sigma=5.0, self_weight=0.3, start="message"), STEPS, MLP),
    (heur_fedamp.Options(lam=1.5, alpha=3.0, sigma=2.0, self_weight=0.0), EPOCHS, Model("linear")),
]


@COHORTS
@pytest.mark.parametrize("case", range(len(AMP)))
def test_attentive_message_passing(tmp_path: Path, case: int, cohort: float) -> None:
    o, trained, model = AMP[case]
    run = plain.start(tmp_path, o, rounds=3, local=trained, model=model, cohort=cohort)
    assert unequal(run)
    capped = free = 0
    row_of = amp_row if o.name == "fedamp" else heur_row
    for t, after in enumerate(attentive(run, 3, row_of), 1):
        outcome = plain.one_round(run)
        xi = after.rest["weights"]
        np.testing.assert_allclose(run.method.stack.rows(run.server["models"]), after.models, **CLOSE)
        np.testing.assert_allclose(run.state["model"], after.models, **CLOSE)
        np.testing.assert_array_equal(np.flatnonzero(run.server["seen"]), after.rest["seen"])
        np.testing.assert_allclose(weights(run), xi, **CLOSE)
        np.testing.assert_allclose(deployed(run, t), after.models, **CLOSE)
        assert correct(outcome) == right(run, after.models)
        others = np.where(np.eye(5) > 0, 0, xi)
        listens = others.sum(1, keepdims=True)
        np.testing.assert_allclose(attention(run), others / np.where(listens > 0, listens, 1), **CLOSE)
        own = xi.diagonal()[after.rest["seen"]]
        capped, free = capped + int((own == 0).sum()), free + int(((own > 0) & (own < 1)).sum())
    if case == 0:
        assert capped and free  # rows with and without the cap


@pytest.mark.parametrize("options", [fedamp.Options(alpha=4.0, sigma=3.0), heur_fedamp.Options(sigma=5.0)])
def test_weights_are_shares_of_those_who_have_trained(tmp_path: Path, options: Any) -> None:
    run = plain.start(tmp_path, options, rounds=4, local=EPOCHS, cohort=0.4)
    never = set(range(5))
    assert np.array_equal(weights(run), np.eye(5))
    assert not attention(run).any()
    for t in range(1, 5):
        never -= set(plain.one_round(run).cohort.tolist())
        xi = weights(run)
        np.testing.assert_allclose(xi.sum(1), 1, rtol=1e-12)
        assert (xi >= -1e-12).all() and xi[np.ix_(sorted(set(range(5)) - never), sorted(never))].sum() == 0
        for i in never:
            assert np.array_equal(xi[i], np.eye(5)[i]) and not attention(run)[i].any()
        if t == 1:
            assert len(never) == 3
    assert attention(run).any()


def test_message_of_who_hears_nobody_is_its_own_model(tmp_path: Path) -> None:
    """Round 1, and later whoever trains for the first time: u_i is the initial model."""
    run = plain.start(tmp_path, fedamp.Options(alpha=4.0, sigma=3.0), local=EPOCHS, cohort=0.4)
    cohort = plain.one_round(run).cohort
    out = torch.full((5, 1, 18), torch.nan)
    run.method.personalise(run.server, 2, np.arange(5), out)
    for i in range(5):
        same = np.allclose(out[i, 0], plain.initial(run), atol=1e-6)
        assert same == (i not in cohort)


def test_fedamp_without_attraction_is_local(tmp_path: Path) -> None:
    found = []
    for options in (fedamp.Options(lam=0.0, start="own"), local.Options()):
        run = plain.start(tmp_path, options, rounds=3, local=STEPS, cohort=0.6)
        counts = [correct(plain.one_round(run)) for t in (1, 2, 3)]
        found.append((run.state["model"], counts))
    assert torch.equal(found[0][0], found[1][0]) and found[0][1] == found[1][1]


@pytest.mark.parametrize("name", ["fedamp", "heur_fedamp"])
def test_who_is_nearer_is_heard_more(tmp_path: Path, name: str) -> None:
    options = get(name).Options(alpha=0.2, sigma=2.0)
    run = plain.start(tmp_path, options, local=EPOCHS)
    plain.one_round(run)
    w, xi = run.state["model"].double().numpy(), weights(run)
    for i in range(5):
        others = [j for j in range(5) if j != i]
        by_weight = sorted(others, key=lambda j: -xi[i, j])
        if name == "fedamp":
            far = [((w[i] - w[j]) ** 2).sum() for j in by_weight]
        else:
            far = [-(w[i] @ w[j]) / np.linalg.norm(w[j]) for j in by_weight]
        assert far == sorted(far) and xi[i, by_weight[0]] > xi[i, by_weight[-1]] + 1e-3


def test_capped_row_keeps_the_ratios(tmp_path: Path) -> None:
    """Where alpha is too large, the others share everything in the ratios of the equation."""
    found = []
    for alpha in (0.01, 1e4):
        run = plain.start(tmp_path, fedamp.Options(lam=0.0, alpha=alpha, sigma=5.0), local=EPOCHS)
        plain.one_round(run)
        found.append(weights(run))
    small, large = found
    assert abs(large.diagonal()).max() < 1e-12 and (small.diagonal() > 0.98).all()
    others = np.where(np.eye(5) > 0, 0, small)
    np.testing.assert_allclose(large, others / others.sum(1, keepdims=True), rtol=1e-9, atol=1e-12)


def test_self_weight_is_what_a_client_keeps(tmp_path: Path) -> None:
    for self_weight in (0.0, 0.35):
        run = plain.start(tmp_path, heur_fedamp.Options(self_weight=self_weight), local=EPOCHS, cohort=0.6)
        cohort = plain.one_round(run).cohort
        own = weights(run).diagonal()
        np.testing.assert_allclose(own, [self_weight if i in cohort else 1 for i in range(5)], atol=1e-12)


def test_who_alone_has_trained_keeps_everything(tmp_path: Path) -> None:
    """Nobody to listen to: xi_ii is 1 and not the self weight."""
    run = plain.start(tmp_path, heur_fedamp.Options(self_weight=0.3), local=EPOCHS, cohort=0.2)
    assert len(plain.one_round(run).cohort) == 1
    assert np.array_equal(weights(run), np.eye(5))


# ---- FedFomo


FOMO = [
    # two of four others: whom a client gets matters; without chance, and with much of it
    (fedfomo.Options(models=2, validation=0.3, epsilon=0.0), 1.0, EPOCHS, MLP),
    (fedfomo.Options(models=2, validation=0.3, epsilon=0.9, epsilon_decay=0.2), 1.0, STEPS, Model("linear")),
    (fedfomo.Options(models=2, validation=0.4, epsilon=0.9, epsilon_decay=0.2), 0.5, EPOCHS, MLP),
    (fedfomo.Options(models=2, validation=0.2, epsilon=0.0), 0.5, STEPS, Model("linear")),
    # more slots than there are others, and slots that stay empty at first
    (fedfomo.Options(models=9, validation=0.3), 0.4, EPOCHS, Model("linear")),
]


@pytest.mark.parametrize("case", range(len(FOMO)))
def test_fedfomo(tmp_path: Path, case: int) -> None:
    o, cohort, trained, model = FOMO[case]
    run = plain.start(tmp_path, o, rounds=5, local=trained, model=model, cohort=cohort)
    assert unequal(run)
    for t, after in enumerate(fomo(run, 5), 1):
        outcome = plain.one_round(run)
        np.testing.assert_array_equal(run.server["sent"], after.rest["sent"])
        np.testing.assert_allclose(run.state["start"], after.rest["start"], **CLOSE)
        np.testing.assert_allclose(run.state["model"], after.models, **CLOSE)
        np.testing.assert_allclose(run.server["models"], after.models, **CLOSE)
        np.testing.assert_allclose(run.server["affinity"], after.rest["affinity"], rtol=1e-3, atol=1e-5)
        np.testing.assert_allclose(deployed(run, t), after.models, **CLOSE)
        assert correct(outcome) == right(run, after.models)
        liked = np.maximum(after.rest["affinity"], 0)
        total = liked.sum(1, keepdims=True)
        np.testing.assert_allclose(
            attention(run), liked / np.where(total > 0, total, 1), rtol=1e-3, atol=1e-5
        )
    chance, _, mixed = after.rest["counts"]
    assert mixed and (chance > 0) == (o.epsilon > 0.5)


def test_fedfomo_begins_with_local_training(tmp_path: Path) -> None:
    """Round 1: from the initial model, on what is not held out; nobody is liked yet."""
    o = fedfomo.Options(models=2, validation=0.3)
    run = plain.start(tmp_path, o, local=EPOCHS)
    plain.one_round(run)
    x, y = plain.numbers(run)
    for i in range(5):
        held = round(0.3 * len(y[i]))
        assert 2 <= held < len(y[i]) / 2
        w = plain.sgd(plain.linear, plain.initial(run), x[i][held:], y[i][held:], EPOCHS, order(run, 1, i))
        np.testing.assert_allclose(run.state["model"][i], w, **CLOSE)
        np.testing.assert_array_equal(run.state["start"][i].double(), plain.initial(run))
    assert not run.server["affinity"].any() and (run.server["sent"] == -1).all()
    assert not attention(run).any()


def test_fedfomo_never_trains_on_what_is_held_out(tmp_path: Path) -> None:
    o = fedfomo.Options(models=2, validation=0.3)
    found = []
    for changed in (0, 1, 2):  # nothing, the held-out samples, one sample more
        run = plain.start(tmp_path, o, rounds=2, local=EPOCHS)
        for s in run.samples.values():
            held = validation(o, len(s.y)) + (changed == 2)
            if changed:
                s.x[:held] = -s.x[:held]
                s.y[:held] = (s.y[:held] + 1) % plain.CLASSES
        models = []
        for _t in (1, 2):
            plain.one_round(run)
            models.append(run.state["model"].clone())
        found.append(models)
    same, other, more = found
    assert torch.equal(same[0], other[0])
    assert not any(torch.equal(a, b) for a, b in zip(same[0], more[0]))
    assert not torch.equal(same[1], other[1])  # they weigh models


def good_and_bad(run: Run) -> tuple[Array, Array]:
    """For each client a model that fits its held-out samples, and one that fails on them."""
    x, y = plain.numbers(run)
    good = []
    for i in range(run.clients):
        held, w = validation(run.config.method, len(y[i])), plain.initial(run)
        for _ in range(100):
            w = w - 0.5 * plain.linear(w, x[i][:held], y[i][:held])[1]
        good.append(w)
    return np.stack(good), -np.stack(good)


def useless() -> torch.Tensor:
    """A model with a huge loss on everybody's data."""
    return 30 * torch.randn(18, generator=torch.Generator().manual_seed(1))


def test_fedfomo_keeps_its_start_where_all_are_worse(tmp_path: Path) -> None:
    run = plain.start(tmp_path, fedfomo.Options(models=4, validation=0.4), local=EPOCHS)
    plain.one_round(run)
    good, bad = (torch.from_numpy(w).float() for w in good_and_bad(run))
    run.state["start"][:] = good
    run.state["model"][:] = bad
    run.server["models"][:] = useless()
    plain.one_round(run)
    assert torch.equal(run.state["start"], good)
    affinity = run.server["affinity"].numpy()
    assert (affinity[~np.eye(5, dtype=bool)] < 0).all()  # worse models count in P
    assert not attention(run).any()


def test_fedfomo_weights_sum_to_one(tmp_path: Path) -> None:
    """All candidates the same and better: the client goes there, and no further."""
    run = plain.start(tmp_path, fedfomo.Options(models=3, validation=0.4), local=EPOCHS)
    plain.one_round(run)
    good, bad = good_and_bad(run)
    target = torch.from_numpy(good).float().mean(0)
    run.state["start"][:] = torch.from_numpy(bad).float()
    run.state["model"][:] = target
    run.server["models"][:] = target
    plain.one_round(run)
    np.testing.assert_allclose(run.state["start"], target.repeat(5, 1), **CLOSE)


def test_fedfomo_compares_with_the_start_of_the_last_training(tmp_path: Path) -> None:
    """The own trained model is a candidate: when the others are worse, it is where a client goes on."""
    run = plain.start(tmp_path, fedfomo.Options(models=4, validation=0.4), local=EPOCHS)
    plain.one_round(run)
    good, bad = (torch.from_numpy(w).float() for w in good_and_bad(run))
    run.state["model"][:] = good
    run.state["start"][:] = bad / 2
    run.server["models"][:] = useless()
    plain.one_round(run)
    np.testing.assert_allclose(run.state["start"], good, **CLOSE)


def test_fedfomo_counts_its_own_model_once(tmp_path: Path) -> None:
    """A slot that stays empty, as too few others have trained, is no candidate."""
    run = plain.start(tmp_path, fedfomo.Options(models=4, validation=0.4), local=EPOCHS)
    plain.one_round(run)
    good, bad = (torch.from_numpy(w).float() for w in good_and_bad(run))
    x, y = plain.numbers(run)
    better, other = 0.5 * good, good.flip(0) * 0.2
    run.state["start"][:], run.state["model"][:], run.server["models"][:] = bad, better, better
    run.server["models"][1] = other[1]
    run.server["seen"][:] = torch.tensor([False, True, False, False, False])
    plain.one_round(run)
    for i in (0, 2, 3, 4):
        held = validation(run.config.method, len(y[i]))
        candidates = [better[i].double().numpy(), other[1].double().numpy()]
        start = bad[i].double().numpy()

        def loss(w: Array, i: int = i, held: int = held) -> float:
            return plain.linear(w, x[i][:held], y[i][:held])[0]

        gains = [max(0.0, (loss(start) - loss(w)) / np.linalg.norm(w - start)) for w in candidates]
        expected = start + sum(g / sum(gains) * (w - start) for g, w in zip(gains, candidates))
        assert min(gains) > 0.01
        np.testing.assert_allclose(run.state["start"][i], expected, **CLOSE)


# ---- pFedHN


def shaped(**keys: Any) -> pfedhn.Options:
    return pfedhn.Options(**{"embedding": 4, "hidden": 7, "layers": 2, **keys})


HYPER = [
    (shaped(server_lr=0.05, server_momentum=0.8, server_decay=0.02, clip=0.5), STEPS, MLP),
    (shaped(server_lr=0.03, server_momentum=0.6, server_decay=0.1, clip=50.0), EPOCHS, Model("linear")),
    (
        shaped(server_lr=0.05, server_momentum=0.0, server_decay=0.0, clip=0.0, layers=0, embedding=0),
        EPOCHS,
        MLP,
    ),
    (shaped(server_lr=0.05, server_momentum=0.9, server_decay=0.01, clip=1.12), EPOCHS, MLP),
]


@COHORTS
@pytest.mark.parametrize("case", range(len(HYPER)))
def test_pfedhn(tmp_path: Path, case: int, cohort: float) -> None:
    o, trained, model = HYPER[case]
    run = plain.start(tmp_path, o, rounds=3, local=trained, model=model, cohort=cohort)
    assert unequal(run)
    for t, after in enumerate(hyper(run, 3), 1):
        outcome = plain.one_round(run)
        np.testing.assert_allclose(run.server["network"], after.rest["network"], **CLOSE)
        np.testing.assert_allclose(run.server["momentum"], after.rest["momentum"], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(deployed(run, t), after.models, **CLOSE)  # also who stayed out
        assert correct(outcome) == right(run, after.models)
    norms = np.array(after.rest["norms"])
    if case == 0:
        assert (norms > o.clip).all()
    if case == 1:
        assert (norms < o.clip).all()
    if case == 3:  # the limit lies among the norms: some steps are clipped, some are not
        assert (norms > o.clip).any() and (norms < o.clip).any()


def test_pfedhn_default_network(tmp_path: Path) -> None:
    """1 + n / 4 numbers a client, and the authors' sizes and steps."""
    run = plain.start(tmp_path, pfedhn.Options(), data={"clients": 9})
    o = run.config.method
    parts = Hyper.of(run.server["network"].double().numpy(), o, 9, 18).parts
    assert parts[0].shape == (9, 3) and [p.shape[0] for p in parts[1:]] == [100] * 8 + [18] * 2
    steps = (o.server_lr, o.server_momentum, o.server_decay, o.clip)
    assert steps == (0.1, 0.9, 0.001, 50.0) and not run.server["momentum"].any()


def test_pfedhn_step_goes_towards_the_trained_model(tmp_path: Path) -> None:
    """||h(v_i) - theta~_i|| shrinks as fast as the gradient says, for a small step."""
    small = shaped(server_lr=1e-3, server_momentum=0.0, server_decay=0.0, clip=0.0)
    run = plain.start(tmp_path, small, local=EPOCHS, cohort=0.2)
    before, first = deployed(run, 0), run.server["network"].double().numpy()
    after = next(hyper(run, 1))
    (i,) = map(int, plain.one_round(run).cohort)
    goal, moved = after.rest["trained"][i], deployed(run, 1)
    was, now = ((w[i] - goal) ** 2 for w in (before, moved))
    assert now.sum() < was.sum()
    # d/dt of half the squared distance along the flow is - ||J^T (h - theta~)||^2
    slope = Hyper.of(first, small, 5, 18).back(i, before[i] - goal)
    assert (was.sum() - now.sum()) / 2 == pytest.approx(1e-3 * (slope**2).sum(), rel=0.05)
    # The network is shared: all models move; embeddings of the others do not.
    assert all(not np.array_equal(a, b) for a, b in zip(before, moved))
    stayed = [
        np.array_equal(a, b)
        for a, b in zip(
            Hyper.of(first, small, 5, 18).parts[0],
            Hyper.of(run.server["network"].double().numpy(), small, 5, 18).parts[0],
        )
    ]
    assert stayed == [j != i for j in range(5)]


def test_pfedhn_evaluates_the_newest_models_of_all(tmp_path: Path) -> None:
    run = plain.start(tmp_path, shaped(server_lr=0.1), rounds=3, local=EPOCHS, cohort=0.2)
    for t in (1, 2, 3):
        out = torch.zeros(5, 1, 18)
        outcome = plain.one_round(run)
        run.method.personalise(run.server, t + 1, np.arange(5), out)
        assert len(outcome.cohort) == 1
        np.testing.assert_array_equal(deployed(run, t), out[:, 0].double())
        own = Hyper.of(run.server["network"].double().numpy(), run.config.method, 5, 18)
        np.testing.assert_allclose(out[:, 0], [own.model(i) for i in range(5)], **CLOSE)


def test_pfedhn_learns_with_many_clients(tmp_path: Path) -> None:
    """A server step for each of 32 clients in turn ended at chance; one on their mean does not."""
    run = plain.start(
        tmp_path, pfedhn.Options(), rounds=30, local=EPOCHS, data={"clients": 16, "min_samples": 4}
    )
    first = plain.one_round(run).correct.sum()
    for _t in range(2, 31):
        last = plain.one_round(run).correct.sum()
    tested = sum(len(s.y_test) for s in run.samples.values())
    assert last > first and last > 0.7 * tested  # chance is a third


def test_pfedhn_refuses_batch_normalisation(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="pfedhn.*batch normalisation"):
        plain.start(tmp_path, pfedhn.Options(), model=Model("mlp_bn", hidden=4))


# ---- IFCA


@COHORTS
@pytest.mark.parametrize(
    "groups, trained, model", [(3, STEPS, MLP), (2, EPOCHS, Model("linear")), (6, EPOCHS, MLP)]
)
def test_ifca(tmp_path: Path, groups: int, trained: Local, model: Model, cohort: float) -> None:
    data = {"concept": "permute", "concept_groups": 2}
    run = plain.start(
        tmp_path, ifca.Options(groups=groups), rounds=3, local=trained, model=model, cohort=cohort, data=data
    )
    assert unequal(run)
    start, sizes = run.server["models"].clone(), []
    assert len(np.unique(start.numpy(), axis=0)) == groups
    np.testing.assert_array_equal(start[0].double(), plain.initial(run))
    for t, after in enumerate(clustered(run, 3), 1):
        outcome = plain.one_round(run)
        assert outcome.figures["group_sizes"] == after.rest["sizes"]
        np.testing.assert_allclose(run.server["models"], after.rest["models"], **CLOSE)
        np.testing.assert_allclose(deployed(run, t), after.models, **CLOSE)
        assert correct(outcome) == right(run, after.models)
        sizes.append(after.rest["sizes"])
    assert sum(map(sum, sizes)) == 3 * (5 if cohort == 1 else 3)
    assert run.method.attention(run.server) is None
    never = ~np.array(sizes).any(0)
    assert torch.equal(run.server["models"][never], start[never])  # nobody chose these


def test_ifca_group_that_nobody_chose_stays(tmp_path: Path) -> None:
    run = plain.start(tmp_path, ifca.Options(groups=3), local=EPOCHS)
    w = torch.from_numpy(plain.initial(run)).float()
    far = 40 * torch.randn(18, generator=torch.Generator().manual_seed(2))
    run.server["models"][:] = torch.stack([far, w, -far])
    outcome = plain.one_round(run)
    assert outcome.figures["group_sizes"] == [0, 5, 0]
    assert torch.equal(run.server["models"][0], far) and torch.equal(run.server["models"][2], -far)
    assert not torch.equal(run.server["models"][1], w)


@COHORTS
def test_ifca_with_one_group_is_the_plain_mean(tmp_path: Path, cohort: float) -> None:
    """Clients count alike, whatever their size; with equal sizes that is FedAvg, bit for bit."""
    run = plain.start(tmp_path, ifca.Options(groups=1), rounds=2, local=STEPS, cohort=cohort)
    x, y = plain.numbers(run)
    w = plain.initial(run)
    for t in (1, 2):
        plain.one_round(run)
        chosen = [int(i) for i in plain.members(run.config, t, 5)]
        w = np.mean([plain.sgd(plain.linear, w, x[i], y[i], STEPS, order(run, t, i)) for i in chosen], 0)
    np.testing.assert_allclose(run.server["models"][0], w, **CLOSE)
    found = []
    for options in (ifca.Options(groups=1), fedavg.Options()):
        run = plain.start(tmp_path, options, rounds=2, local=STEPS, cohort=cohort, data={"sizes": "equal"})
        for _ in (1, 2):
            plain.one_round(run)
        found.append(deployed(run, 2))
    assert np.array_equal(found[0], found[1])


def test_ifca_finds_hidden_groups(tmp_path: Path) -> None:
    plain.write_blobs(tmp_path, 1200)
    keys: dict[str, Any] = {
        "data": {"clients": 10, "sizes": "equal", "labels": "iid", "concept": "permute", "concept_groups": 2},
        "rounds": 8,
        "local": Local(epochs=2, batch_size=10, lr=0.1),
    }
    accuracies = []
    for options in (ifca.Options(groups=2), fedavg.Options()):
        run = plain.start(tmp_path, options, **keys)
        outcomes = [plain.one_round(run) for t in range(1, 9)]
        tests = np.array([len(run.samples[i].y_test) for i in range(10)])
        accuracies.append((np.array(correct(outcomes[-1])) / tests).mean())
        if options.name == "fedavg":
            continue
        hidden = prepare(run.config.data, run.config.seed).concept_group
        assert set(hidden) == {0, 1}
        x, y = plain.numbers(run)
        models = run.server["models"].double().numpy()
        losses = np.array([[plain.linear(w, x[i], y[i])[0] for w in models] for i in range(10)])
        found = losses.argmin(1)
        assert np.array_equal(found, hidden) or np.array_equal(found, 1 - hidden)
        assert abs(losses[:, 0] - losses[:, 1]).min() > 0.5
        np.testing.assert_array_equal(deployed(run, 8), models[found])
    assert accuracies[0] > accuracies[1] + 0.15


def test_ifca_mean_is_over_the_group(tmp_path: Path) -> None:
    """The server's rule alone: a mean over the cohort becomes one over each group's members."""
    run = plain.start(tmp_path, ifca.Options(groups=3))
    before = run.server["models"].clone()
    sent = np.random.default_rng(0).normal(size=(4, 18))
    group = np.array([2, 0, 2, 2])
    mean = np.stack([(sent * (group == j)[:, None]).sum(0) / 4 for j in range(3)])
    cohort, figures = np.array([0, 1, 2, 4]), {"group": group.astype(float)}
    arrived = Arrived(
        cohort, torch.empty(0), torch.from_numpy(mean).float(), figures, torch.empty(4, 0), np.zeros(4)
    )
    figures = run.method.aggregate(run.server, 1, cohort, arrived)
    assert figures == {"group_sizes": [1, 0, 3]}
    np.testing.assert_allclose(run.server["models"][0], sent[1], rtol=1e-5)
    np.testing.assert_allclose(run.server["models"][2], sent[[0, 2, 3]].mean(0), rtol=1e-5, atol=1e-6)
    assert torch.equal(run.server["models"][1], before[1])
