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


def mlp(w: Array, x: Array, y: Array) -> tuple[float, Array, int]:
    """One hidden layer with ReLU, FEATURES-HIDDEN-CLASSES."""
    first, second = w[: HIDDEN * (FEATURES + 1)], w[HIDDEN * (FEATURES + 1) :]
    w1, b1 = first[:-HIDDEN].reshape(HIDDEN, FEATURES), first[-HIDDEN:]
    w2, b2 = second[:-CLASSES].reshape(CLASSES, HIDDEN), second[-CLASSES:]
    before = x @ w1.T + b1
    hidden = np.maximum(before, 0)
    scores = hidden @ w2.T + b2
    loss, by_scores = _cross_entropy(scores, y)
    by_before = (by_scores @ w2) * (before > 0)
    parts = (by_before.T @ x, by_before.sum(0), by_scores.T @ hidden, by_scores.sum(0))
    return loss, np.concatenate([p.ravel() for p in parts]), int((scores.argmax(1) == y).sum())


def sgd(model: Callable, w: Array, x: Array, y: Array, local: Local, draw: np.random.Generator) -> Array:
    """v <- momentum v + g + decay w, w <- w - lr v; v starts at 0."""
    w, v, taken = np.array(w, np.float64), np.zeros(len(w)), 0
    while local.steps == 0 or taken < local.steps:
        order = draw.permutation(len(y))
        for first in range(0, len(y), local.batch_size):
            batch = order[first : first + local.batch_size]
            v = local.momentum * v + model(w, x[batch], y[batch])[1] + local.weight_decay * w
            w = w - local.lr * v
            taken += 1
            if taken == local.steps:
                return w
        if not local.steps and taken == local.epochs * -(-len(y) // local.batch_size):
            return w
    return w


def members(config: Config, t: int, clients: int) -> Array:
    return rng.cohort(config.seed, t, clients, config.cohort)


# ---- AMN


@dataclass
class Meta:
    """The meta-network's numbers: evidence logits (L, L) and gate logits (L,)."""

    evidence: Array
    gate: Array

    @property
    def omega(self) -> Array:
        return _softmax(self.evidence)

    @property
    def gates(self) -> Array:
        return 1 / (1 + np.exp(-self.gate))


def _softmax(rows: Array) -> Array:
    e = np.exp(rows - rows.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


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


def attention(meta: Meta, tau: float, s: Array, i: int, seen: Array) -> Array:
    """a_ij^l for one client, (L, N): softmax over the other seen clients."""
    layers, n = s.shape[:2]
    a = np.zeros((layers, n))
    others = [j for j in np.flatnonzero(seen) if j != i] if seen[i] else []
    for layer in range(layers):
        if others:
            e = [tau * sum(meta.omega[layer, m] * s[m, i, j] for m in range(layers)) for j in others]
            a[layer, others] = _softmax(np.array(e))
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
    a, c = attention(meta, tau, s, i, seen), common(samples, seen, i)
    b = meta.gates if a.any() else np.zeros(len(a))
    return b[:, None] * a + (1 - b)[:, None] * c


def meta_gradient(
    meta: Meta, tau: float, s: Array, samples: Array, seen: Array, i: int, inner: Array
) -> tuple[Array, Array]:
    """dL_i by evidence and gate logits; ``inner`` (L, N) holds g_i^l . theta_j^l."""
    a, c, b = attention(meta, tau, s, i, seen), common(samples, seen, i), meta.gates
    by_evidence, by_gate = np.zeros_like(meta.evidence), np.zeros_like(meta.gate)
    if not a.any():
        return by_evidence, by_gate
    for layer in range(len(b)):
        by_a = b[layer] * inner[layer]
        by_e = a[layer] * (by_a - a[layer] @ by_a)
        by_omega = tau * np.array([by_e @ s[m, i] for m in range(len(b))])
        by_evidence[layer] = meta.omega[layer] * (by_omega - meta.omega[layer] @ by_omega)
        by_gate[layer] = b[layer] * (1 - b[layer]) * (inner[layer] @ (a[layer] - c))
    return by_evidence, by_gate


@dataclass
class Picture:
    """Everything of AMN after a round."""

    hybrids: Array
    models: Array
    meta: Meta
    rho: float
    attention: Array
    blends: Array


RHO = (0.0, 0.25, 0.5, 0.75, 1.0)


def offset(y: Array, prior: float, classes: int, size: int) -> Array:
    """What a client adds to the last numbers of a model: the biases of its scores."""
    found = np.zeros(size)
    if prior:
        frequencies = (np.bincount(y, minlength=classes) + 1) / (len(y) + classes)
        found[-classes:] = prior * (np.log(frequencies) - np.log(frequencies).mean())
    return found


def amn(run: Run, groups: list[slice], signs: Array, rounds: int, model: Callable = mlp) -> Iterator[Picture]:
    """AMN's rounds; each yields what the server and the clients hold afterwards."""
    config, o, n = run.config, run.config.method, run.clients
    xs, ys = numbers(run)
    samples = np.array([len(y) for y in ys], float)
    held = [max(min(2, len(y) // 2), min(len(y) // 2, round(o.held_out * len(y)))) for y in ys]
    w0 = initial(run)
    theta, hybrid = np.tile(w0, (n, 1)), np.tile(w0, (n, 1))
    own = [offset(y, o.prior, run.method.setting.classes, len(w0)) for y in ys]
    seen, sketches = np.zeros(n, bool), np.zeros((n, len(groups), o.sketch))
    layers = len(groups)
    meta = Meta(np.zeros((layers, layers)), np.full(layers, np.log(o.gate / (1 - o.gate))))
    first = second = np.zeros(layers * layers + layers)
    smooth, steps = np.array([np.inf] * 4 + [0.0]), 0
    for t in range(1, rounds + 1):
        cohort = members(config, t, n)
        p = samples[cohort] / samples[cohort].sum()
        s = cosines(sketches, seen) if seen.any() else np.zeros((layers, n, n))
        down = {}
        for i in cohort:
            if not seen.any():
                down[i] = w0
                continue
            weights = np.tile(np.where(seen, samples, 0) / samples[seen].sum(), (layers, 1))
            if t > o.common_rounds:
                weights = mixing(meta, o.tau, s, samples, seen, i)
            down[i] = np.concatenate([weights[layer] @ theta[:, g] for layer, g in enumerate(groups)])
        new, by, losses = {}, np.zeros_like(first), np.zeros(len(RHO))
        for i, p_i in zip(cohort, p):
            h = held[i]
            draw = rng.generator(config.seed, "shuffle", t, int(i))
            new[i] = sgd(model, down[i] + own[i], xs[i][h:], ys[i][h:], config.local, draw) - own[i]
            g = model(new[i] + own[i], xs[i][:h], ys[i][:h])[1]
            for k, rho in enumerate(RHO):
                blend = rho * new[i] + (1 - rho) * down[i] + own[i]
                losses[k] += p_i * model(blend, xs[i][:h], ys[i][:h])[0]
            inner = np.stack([theta[:, c] @ g[c] for c in groups])
            parts = meta_gradient(meta, o.tau, s, samples, seen, i, inner)
            by += p_i * np.concatenate([part.ravel() for part in parts])
        if t > o.common_rounds:
            steps += 1
            first, second = 0.9 * first + 0.1 * by, 0.99 * second + 0.01 * by**2
            unbiased = np.sqrt(second / (1 - 0.99**steps))
            move = o.meta_lr * first / (1 - 0.9**steps) / (unbiased + 1e-12)
            meta = Meta(
                meta.evidence - move[: layers * layers].reshape(layers, layers),
                meta.gate - move[layers * layers :],
            )
        for i in cohort:
            theta[i], hybrid[i], seen[i] = new[i], down[i], True
            sketches[i] = sketch(new[i], signs, groups, o.sketch)
        for k in (0, 2) if t % 2 else (1, 3):  # two blends a round, against the local model
            decay = o.rho_decay**2 if np.isfinite(smooth[k]) else 0.0
            smooth[k] = (decay * smooth[k] if decay else 0.0) + (1 - decay) * (losses[k] - losses[4])
        s = cosines(sketches, seen)
        every = np.stack([attention(meta, o.tau, s, i, seen) for i in range(n)], 1)
        yield Picture(hybrid.copy(), theta.copy(), meta, RHO[int(smooth.argmin())], every, smooth.copy())


def signs_of(run: Run) -> Array:
    """The signs of the run's sketch: drawn by torch from (seed, "sketch")."""
    draw = torch.Generator().manual_seed(rng.torch_seed(run.config.seed, "sketch"))
    size = run.method.setting.layout.size
    return torch.randint(0, 2, (size,), generator=draw).double().numpy() * 2 - 1
