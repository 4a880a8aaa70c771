"""The methods once more in plain float64 numpy, from their equations alone. Holds no test.

Nothing here calls the package's own arithmetic. What is random is part of a method's definition
and comes from ``amn_mpi.rng``; the signs of AMN's sketch come from torch's generator.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amn_mpi import main, rng, rounds, session, signals
from amn_mpi.clock import Clock
from amn_mpi.comm import Communicator
from amn_mpi.config import Config, Data, Evaluate, Local, Model
from amn_mpi.data import prepare
from amn_mpi.keeper import Keeper
from amn_mpi.rounds import Outcome, Run
from amn_mpi.startup import Startup

Array = np.ndarray
ENGINE: Any = os.environ.get("AMN_TEST_ENGINE", "auto")  # "torch" holds the methods against that one
FEATURES, CLASSES, HIDDEN = 5, 3, 6
# Methods that need more than one layer, or batch normalisation.
NETWORK = {**dict.fromkeys(("fedper", "fedrep", "lg_fedavg", "fedala"), "mlp"), "fedbn": "mlp_bn"}

# ---- a small federation and a real run on one rank


@cache
def communicator() -> Communicator:
    return Communicator()


def here(*args: object) -> None:
    """A whole run on one rank in this process: starting another one takes seconds, most of them torch.

    What it refuses it raises; ``main.main`` turns that into a line and a status.
    """
    before = {number: signal.getsignal(number) for number in signals.NUMBERS}
    try:
        main.Work(Startup(time.monotonic()))(communicator(), list(map(str, args)))
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def write_blobs(folder: Path, samples: int = 240) -> Path:
    """Three overlapping classes of five features."""
    draw = np.random.default_rng(11)
    y = np.arange(samples) % CLASSES
    x = draw.normal(size=(samples, FEATURES)) + 1.2 * draw.normal(size=(CLASSES, FEATURES))[y]
    np.savez(folder / "blobs.npz", x=x.astype(np.float32), y=y)
    return folder / "blobs.npz"


def start(folder: Path, method: Any, **keys: Any) -> Run:
    """A run at its beginning: five clients of unequal size unless ``data`` says otherwise."""
    data = {"clients": 5, "concept": "none", "sizes": "lognormal", "sigma": 0.7, **keys.pop("data", {})}
    path = folder / "blobs.npz"
    if not path.exists():
        write_blobs(folder)
    if "model" not in keys and getattr(method, "name", "") in NETWORK:
        keys["model"] = Model(NETWORK[method.name], hidden=HIDDEN)  # type: ignore[arg-type]
    keys = {"seed": 3, "model": Model("linear"), "evaluate": Evaluate(batch_size=7), **keys}
    able = ENGINE != "batched" or not (keys["model"].name.endswith("_bn") or "precision" in keys)
    config = Config(
        method=method,
        data=Data(name=str(path), cache=str(folder / "cache"), **data),
        device="cpu",
        **{"engine": ENGINE if able else "auto", **keys},
    )
    return begin(config)


def begin(config: Config) -> Run:
    comm = communicator()
    ready = session.Session(config, comm, prepare(config.data, config.seed)).meet()
    return ready.run(config, Clock(comm, time.monotonic()), Keeper(comm, config.checkpoint, None))


def one_round(run: Run) -> Outcome:
    """The next round of a run."""
    found: list[Outcome] = []
    rounds.run_round(run, found.append)
    return found[0]


def numbers(run: Run) -> tuple[list[Array], list[Array]]:
    """Every client's training samples, x as float64."""
    every = [run.samples[i] for i in range(run.clients)]
    return [s.x.double().numpy() for s in every], [s.y.numpy() for s in every]


def initial(run: Run) -> Array:
    """The start of all models; its values are the package's choice."""
    from amn_mpi import models

    module = models.build(run.config.model, (FEATURES,), CLASSES, run.config.seed)
    return np.concatenate([p.detach().double().numpy().ravel() for p in module.parameters()])


# ---- models: mean cross-entropy and its gradient by explicit formulas


def _cross_entropy(scores: Array, y: Array) -> tuple[float, Array]:
    """Mean loss, and its derivative by the scores."""
    scores = scores - scores.max(1, keepdims=True)
    chance = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    right = np.eye(scores.shape[1])[y]
    return float(-np.log((chance * right).sum(1)).mean()), (chance - right) / len(y)


def linear(w: Array, x: Array, y: Array, classes: int = CLASSES) -> tuple[float, Array, int]:
    """Softmax regression (weight (C, D), then bias): loss, gradient, number right."""
    weight, bias = w[:-classes].reshape(classes, -1), w[-classes:]
    scores = x @ weight.T + bias
    loss, by_scores = _cross_entropy(scores, y)
    gradient = np.concatenate([(by_scores.T @ x).ravel(), by_scores.sum(0)])
    return loss, gradient, int((scores.argmax(1) == y).sum())


def mlp(w: Array, x: Array, y: Array, soften: float = 1.0, added: Any = 0.0) -> tuple[float, Array, int]:
    """One hidden layer with ReLU, FEATURES-HIDDEN-CLASSES; loss and gradient of scores / soften + added."""
    first, second = w[: HIDDEN * (FEATURES + 1)], w[HIDDEN * (FEATURES + 1) :]
    w1, b1 = first[:-HIDDEN].reshape(HIDDEN, FEATURES), first[-HIDDEN:]
    w2, b2 = second[:-CLASSES].reshape(CLASSES, HIDDEN), second[-CLASSES:]
    before = x @ w1.T + b1
    hidden = np.maximum(before, 0)
    scores = hidden @ w2.T + b2
    loss, by_softened = _cross_entropy(scores / soften + added, y)
    by_scores = by_softened / soften
    by_before = (by_scores @ w2) * (before > 0)
    parts = (by_before.T @ x, by_before.sum(0), by_scores.T @ hidden, by_scores.sum(0))
    return loss, np.concatenate([p.ravel() for p in parts]), int((scores.argmax(1) == y).sum())


def sgd(
    model: Callable,
    w: Array,
    x: Array,
    y: Array,
    local: Local,
    draw: np.random.Generator,
    only: slice = slice(None),
    shift: Array | float = 0.0,
) -> Array:
    """v <- momentum v + g + decay w + shift, w <- w - lr v; v starts at 0; all of it in the part ``only``."""
    w, v, taken = np.array(w, np.float64), np.zeros(len(w)), 0
    while local.steps == 0 or taken < local.steps:
        order = draw.permutation(len(y))
        for first in range(0, len(y), local.batch_size):
            batch = order[first : first + local.batch_size]
            v = local.momentum * v + model(w, x[batch], y[batch])[1] + local.weight_decay * w + shift
            w[only] = w[only] - local.lr * v[only]
            taken += 1
            if taken == local.steps:
                return w
        if not local.steps and taken == local.epochs * -(-len(y) // local.batch_size):
            return w
    return w


def members(config: Config, t: int, clients: int) -> Array:
    return rng.cohort(config.seed, t, clients, config.cohort)


# ---- AMN, from docs/method.md


@dataclass
class Meta:
    """The meta-network's free numbers: v of the evidence, (L,), and z of the gates, (L,)."""

    v: Array
    z: Array

    @property
    def omega(self) -> Array:
        return _softmax(self.v)

    @property
    def gates(self) -> Array:
        return 1 / (1 + np.exp(-self.z))


def _softmax(row: Array) -> Array:
    e = np.exp(row - row.max())
    return e / e.sum()


def sketch(row: Array, signs: Array, groups: list[slice], k: int) -> Array:
    """Coordinate c of a group goes to bucket c mod k with its sign."""
    out = np.zeros((len(groups), k))
    for layer, group in enumerate(groups):
        for c, value in enumerate(row[group] * signs[group]):
            out[layer, c % k] += value
    return out


def cosines(sketches: Array, seen: Array) -> Array:
    """(N, L, k) -> (L, N, N), of the sketches less their mean over the seen."""
    n, layers, _ = sketches.shape
    s = np.zeros((layers, n, n))
    centre = sketches[seen].mean(0)
    for layer in range(layers):
        for i in np.flatnonzero(seen):
            for j in np.flatnonzero(seen):
                a, b = sketches[i, layer] - centre[layer], sketches[j, layer] - centre[layer]
                length = np.sqrt(a @ a) * np.sqrt(b @ b)
                s[layer, i, j] = a @ b / length if length else 0.0
    return s


def similarity(features: list[list[Array]], layers: int, k: int) -> Array:
    """Cosines (L, N, N) of the means over each client's rounds; who has none is unseen."""
    seen = np.array([bool(rounds) for rounds in features])
    means = np.stack([np.mean(rounds, axis=0) if rounds else np.zeros((layers, k)) for rounds in features])
    return cosines(means, seen) if seen.any() else np.zeros((layers, len(features), len(features)))


def attention(omega: Array, tau: float, s: Array, i: int, seen: Array) -> Array:
    """a_ij for one client, (N,): softmax over the other seen clients, the same for all layers."""
    a = np.zeros(s.shape[1])
    others = [j for j in np.flatnonzero(seen) if j != i] if seen[i] else []
    if others:
        a[others] = _softmax(
            np.array([tau * sum(o * s[m, i, j] for m, o in enumerate(omega)) for j in others])
        )
    return a


def common(samples: Array, seen: Array, i: int) -> Array:
    """(N,) weights of the common part for client i."""
    p = np.where(seen, samples, 0.0)
    p[i] = 0.0
    if not p.sum():
        p[i] = 1.0
    return p / p.sum()


def mixing(meta: Meta, tau: float, s: Array, samples: Array, seen: Array, i: int) -> Array:
    """(L, N) weights of client i's hybrid: b a + (1 - b) c."""
    a, c = attention(meta.omega, tau, s, i, seen), common(samples, seen, i)
    b = meta.gates if a.any() else np.zeros(len(meta.z))
    return b[:, None] * a + (1 - b)[:, None] * c


def judging(samples: Array, clients: Any) -> Array:
    """p_i of the clients that hold samples out: a single one is trained on."""
    some = [samples[i] if samples[i] > 1 else 0.0 for i in clients]
    return np.array(some) / sum(some)


@dataclass
class Lesson:
    """q of the meta step, (L,), and G_i of the cohort, (n, L)."""

    slope: Array
    saved: Array


def lesson(
    omega: Array, tau: float, s: Array, samples: Array, seen: Array, clients: Any, inner: Array
) -> Lesson:
    """``inner`` (L, n, N) holds h_ij^l = g_i^l . theta_j^l of the cohort ``clients``."""
    layers, p = len(inner), judging(samples, clients)
    slope, each = np.zeros(layers), np.zeros((len(clients), layers))
    for r, i in enumerate(clients):
        a, c = attention(omega, tau, s, i, seen), common(samples, seen, i)
        if not a.any():
            continue  # nobody to listen to
        whole = [sum(inner[layer, r, j] for layer in range(layers)) for j in range(len(a))]
        mean = sum(a[k] * whole[k] for k in range(len(a)))
        for layer in range(layers):
            slope[layer] += tau * p[r] * sum(a[j] * (whole[j] - mean) * s[layer, i, j] for j in range(len(a)))
            each[r, layer] = sum((c[j] - a[j]) * inner[layer, r, j] for j in range(len(a)))
    return Lesson(slope, each)


def pooled(each: Array, p: Array) -> tuple[Array, Array]:
    """G_l and N_l of clients with shares p_i that save ``each``, (n, L); who has no share says nothing."""
    gains, noises, n = [], [], sum(p > 0)
    for column in each.T:
        gain = sum(share * value for share, value in zip(p, column))
        away = sum(share**2 * (value - gain) ** 2 for share, value in zip(p, column))
        gains.append(gain)
        noises.append(np.sqrt(n / (n - 1) * away) if n > 1 else np.inf)
    return np.array(gains), np.array(noises)


def meta_step(meta: Meta, slope: Array, gain: Array, noise: Array, sizes: list[int], o: Any) -> Meta:
    """``sizes`` P_l, ``o`` with evidence_lr, gate_lr and price."""
    v = meta.v - o.evidence_lr * slope
    top, z = max(v), meta.z.copy()
    saved = [max(value, 0.0) for value in gain]
    for layer, size in enumerate(sizes):
        need = o.price * (size / sum(sizes)) ** 1.5 * sum(saved) + noise[layer]
        above = saved[layer] / need if need else np.inf if saved[layer] else 0.0
        z[layer] = min(4.6, max(-4.6, z[layer] + o.gate_lr * min(3.0, max(-1.0, above - 1))))
    return Meta(np.array([max(value - top, -5.0) for value in v]), z)


def across(gradient: Array, model: Array) -> Array:
    """A layer's gradient without its part along the layer."""
    length = sum(model**2)
    return gradient - sum(gradient * model) / length * model if length else gradient


@dataclass
class Picture:
    """Everything of AMN after a round."""

    hybrids: Array
    models: Array
    meta: Meta
    attention: Array
    drifts: Array


def offset(y: Array, prior: float, classes: int, size: int) -> Array:
    """What a client adds to the last numbers of a model: the biases of its scores."""
    found = np.zeros(size)
    if prior:
        frequencies = (np.bincount(y, minlength=classes) + 1) / (len(y) + classes)
        found[-classes:] = prior * (np.log(frequencies) - np.log(frequencies).mean())
    return found


def amn(run: Run, groups: list[slice], signs: Array, rounds: int) -> Iterator[Picture]:
    """AMN's rounds with the mlp; each yields what the server and the clients hold afterwards."""
    config, o, n = run.config, run.config.method, run.clients
    xs, ys = numbers(run)
    samples = np.array([len(y) for y in ys], float)
    held = [max(min(2, len(y) // 2), min(len(y) // 2, round(o.held_out * len(y)))) for y in ys]
    w0 = initial(run)
    theta, hybrid = np.tile(w0, (n, 1)), np.tile(w0, (n, 1))
    drift = np.zeros_like(theta)
    own = [offset(y, o.prior, CLASSES, len(w0)) for y in ys]
    seen, features = np.zeros(n, bool), [[] for _ in range(n)]
    sketches: dict[int, Array] = {}
    gains: dict[int, Array] = {}
    layers, sizes = len(groups), [g.stop - g.start for g in groups]
    meta = Meta(np.zeros(layers), np.full(layers, np.log(o.gate / (1 - o.gate))))
    for t in range(1, rounds + 1):
        cohort, learning = members(config, t, n), t <= o.meta_rounds
        s = similarity(features, layers, o.sketch)
        down, shift = {}, {}
        for i in cohort:
            if not seen.any():
                down[i], shift[i] = w0, 0 * w0
                continue
            weights = np.tile(np.where(seen, samples, 0) / samples[seen].sum(), (layers, 1))
            if t > o.common_rounds:
                weights = mixing(meta, o.tau, s, samples, seen, i)
            down[i], heard = (
                np.concatenate([weights[layer] @ rows[:, g] for layer, g in enumerate(groups)])
                for rows in (theta, drift)
            )
            shift[i] = o.drift * (heard - drift[i])  # over all steps of the round together
        new, inner, ahead = {}, [], theta - drift
        for i in cohort:
            h = held[i] if learning else 0
            draw = rng.generator(config.seed, "shuffle", t, int(i))
            steps = config.local.epochs * -(-(len(ys[i]) - h) // config.local.batch_size)
            each = shift[i] / (steps * config.local.lr)
            new[i] = sgd(mlp, down[i] + own[i], xs[i][h:], ys[i][h:], config.local, draw, shift=each)
            new[i] -= own[i]
            if learning and not h:
                inner.append([np.zeros(n)] * layers)  # says nothing
            elif learning:
                part = (xs[i][:h], ys[i][:h], o.soften, own[i][-CLASSES:])
                g = mlp(new[i], *part)[1]
                others = ahead if o.drift else theta
                inner.append([others[:, c] @ across(g[c], new[i][c]) for c in groups])
        if learning and t > o.common_rounds:
            by_layer = np.array(inner).transpose(1, 0, 2)
            found = lesson(meta.omega, o.tau, s, samples, seen, cohort, by_layer)
            for i, each in zip(cohort, found.saved):
                if samples[i] > 1:
                    gains[i] = o.recall * gains[i] + (1 - o.recall) * each if i in gains else each
            p = np.array([samples[i] for i in gains])
            gain, noise = pooled(np.array(list(gains.values())), p / p.sum())
            meta = meta_step(meta, found.slope, gain, noise, sizes, o)
        for i in cohort:
            theta[i], hybrid[i], seen[i] = new[i], down[i], True
            astray = 0 < np.linalg.norm(drift[i]) < np.linalg.norm(down[i] - new[i])
            drift[i] = 0 if astray else down[i] - new[i] - shift[i]
            features_of = theta[i] - drift[i] if o.drift else theta[i]
            sketches[i] = sketch(features_of, signs, groups, o.sketch)
        for i in cohort:
            features[i].append(sketches[i] - np.mean(list(sketches.values()), axis=0))
        s = similarity(features, layers, o.sketch)
        every = np.stack([attention(meta.omega, o.tau, s, i, seen) for i in range(n)])
        yield Picture(hybrid.copy(), theta.copy(), meta, every, drift.copy())


def signs_of(run: Run) -> Array:
    """The signs of the run's sketch: drawn by torch from (seed, "sketch")."""
    draw = torch.Generator().manual_seed(rng.torch_seed(run.config.seed, "sketch"))
    size = run.method.setting.layout.size
    return torch.randint(0, 2, (size,), generator=draw).double().numpy() * 2 - 1
