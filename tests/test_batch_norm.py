"""Models with batch normalisation: layout, local engine and FedBN, against plain numpy."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch

from amn_mpi import models, native, params, rng, rounds, turns
from amn_mpi.compiled import CompiledEngine
from amn_mpi.config import Evaluate, Local, Model
from amn_mpi.errors import ConfigError
from amn_mpi.local import Engine
from amn_mpi.methods import fedavg, fedbn, fedper, get, lg_fedavg
from amn_mpi.methods.base import Arrived, Pull, Setting
from amn_mpi.params import Group, ParameterLayout, Part

Array = np.ndarray
CLOSE: dict[str, Any] = dict(rtol=1e-4, atol=1e-5)
GREY, COLOUR = (1, 28, 28), (3, 32, 32)
D, H, C = plain.FEATURES, plain.HIDDEN, plain.CLASSES

# The flat vector of mlp_bn by hand: fc1 (H x D, H), norm1 (H, H), fc2 (C x H, C), then the running
# mean and variance of norm1 (H, H).
FC1 = slice(0, H * D + H)
NORM1 = slice(FC1.stop, FC1.stop + 2 * H)
FC2 = slice(NORM1.stop, NORM1.stop + C * H + C)
RUNNING = slice(FC2.stop, FC2.stop + 2 * H)
SIZE = RUNNING.stop
OWN = np.r_[NORM1, RUNNING]  # what FedBN leaves with the client
SHARED = np.r_[FC1, FC2]
MLP_BN = Model("mlp_bn", hidden=H)

# Of 22, 39, 48 and 49 samples no client has two left for its last batch (between two, normalisation
# magnifies rounding), and in both settings one client has a single one.
DATA = {"min_samples": 22}
LOCALS = [
    Local(epochs=2, steps=0, batch_size=7, lr=0.1, momentum=0.0, weight_decay=0.0),
    Local(epochs=1, steps=9, batch_size=6, lr=0.05, momentum=0.6, weight_decay=0.02),
]


# ---- the same network in numpy


def mlp_bn(w: Array, x: Array, y: Array, training: bool) -> tuple[float, Array, int, Array]:
    """Linear, batch normalisation, ReLU, linear: loss, gradient, number right, new statistics."""
    w1, b1 = w[: H * D].reshape(H, D), w[H * D : H * D + H]
    scale, offset = w[NORM1][:H], w[NORM1][H:]
    w2, b2 = w[FC2][: C * H].reshape(C, H), w[FC2][C * H :]
    running = w[RUNNING].reshape(2, H)
    n = len(y)
    before = x @ w1.T + b1
    mean, variance = running
    if training:
        mean, variance = before.mean(0), ((before - before.mean(0)) ** 2).sum(0) / n
        seen = np.stack([mean, variance * n / (n - 1)])  # what is kept is the unbiased variance
        running = 0.9 * running + 0.1 * seen
    spread = np.sqrt(variance + 1e-5)
    unit = (before - mean) / spread
    normed = scale * unit + offset
    hidden = np.maximum(normed, 0)
    scores = hidden @ w2.T + b2
    loss, by_scores = plain._cross_entropy(scores, y)
    by_normed = (by_scores @ w2) * (normed > 0)
    by_unit = by_normed * scale
    if training:  # mean and variance depend on every sample
        by_unit = by_unit - by_unit.mean(0) - unit * (by_unit * unit).mean(0)
    by_before = by_unit / spread
    parts = (
        *(by_before.T @ x, by_before.sum(0)),
        *((by_normed * unit).sum(0), by_normed.sum(0)),
        *(by_scores.T @ hidden, by_scores.sum(0)),
        np.zeros(2 * H),
    )
    right = int((scores.argmax(1) == y).sum())
    return loss, np.concatenate([p.ravel() for p in parts]), right, running.ravel()


def descend(
    w: Array, x: Array, y: Array, local: Local, order: np.random.Generator, extra: Any = 0.0
) -> Array:
    """SGD; ``extra(w)`` is added to the gradient. A batch of one passes by the running statistics."""
    w, v = np.array(w, float), np.zeros(SIZE)
    still = np.arange(SIZE) >= RUNNING.start
    left = local.steps or local.epochs * -(-len(y) // local.batch_size)
    while left:
        shuffled = order.permutation(len(y))
        for first in range(0, len(y), local.batch_size)[:left]:
            batch = shuffled[first : first + local.batch_size]
            _, gradient, _, running = mlp_bn(w, x[batch], y[batch], len(batch) > 1)
            gradient = gradient + local.weight_decay * w + (extra(w) if callable(extra) else extra)
            v = local.momentum * v + np.where(still, 0.0, gradient)
            w = w - local.lr * v
            w[RUNNING] = running
            left -= 1
    return w


def test_numpy_gradient_is_the_slope_of_numpy_loss() -> None:
    """The formulas above against differences, so that they are nobody's copy."""
    draw = np.random.default_rng(4)
    x, y = draw.normal(size=(9, D)), draw.integers(0, C, 9)
    w = draw.normal(size=SIZE)
    w[RUNNING] = np.abs(w[RUNNING]) + 0.5
    for training in (True, False):
        _, gradient, _, _ = mlp_bn(w, x, y, training)
        for k in range(RUNNING.start):
            step = np.zeros(SIZE)
            step[k] = 1e-6
            up, down = (mlp_bn(w + s * step, x, y, training)[0] for s in (1, -1))
            assert (up - down) / 2e-6 == pytest.approx(gradient[k], abs=1e-6)


# ---- sizes and layouts, counted by hand


def build(name: Any, shape: tuple[int, ...] = GREY, hidden: int = 64, classes: int = 10) -> torch.nn.Module:
    return models.build(Model(name, hidden=hidden), shape, classes, 0)


# (parameters without normalisation, normalised units); scale and shift are parameters, as many
# running means and variances lie behind them
SIZES: dict[tuple[str, tuple[int, ...]], tuple[int, int]] = {
    ("mlp_bn", GREY): (784 * 64 + 64 + 64 * 10 + 10, 64),
    ("mlp_bn", COLOUR): (3072 * 64 + 64 + 64 * 10 + 10, 64),
    ("cnn_bn", GREY): (582_026, 32 + 64 + 512),
    ("cnn_bn", COLOUR): (2432 + 51_264 + 1600 * 512 + 512 + 5130, 32 + 64 + 512),
    ("lenet5_bn", GREY): (156 + 2416 + 30_840 + 10_164 + 850, 6 + 16 + 120 + 84),
    ("lenet5_bn", COLOUR): (456 + 2416 + 48_120 + 10_164 + 850, 6 + 16 + 120 + 84),
}
LAYERS = {
    "mlp_bn": ("fc1", "norm1", "fc2"),
    "cnn_bn": ("conv1", "norm1", "conv2", "norm2", "fc1", "norm3", "fc2"),
    "lenet5_bn": ("conv1", "norm1", "conv2", "norm2", "fc1", "norm3", "fc2", "norm4", "fc3"),
}


@pytest.mark.parametrize(("name", "shape"), SIZES)
def test_sizes_by_hand(name: str, shape: tuple[int, ...]) -> None:
    network = build(name, shape)
    layout = ParameterLayout.of(network)
    weights, units = SIZES[name, shape]
    assert sum(p.numel() for p in network.parameters()) == layout.trained == weights + 2 * units
    assert layout.size == weights + 4 * units == params.vector_of(network).numel()
    assert layout.layers == LAYERS[name]
    assert layout.normalised == tuple(n for n in LAYERS[name] if n.startswith("norm"))
    out = network(torch.randn(3, *shape))
    assert out.shape == (3, 10) and out.isfinite().all()


def test_layout_by_hand() -> None:
    layout = ParameterLayout.of(build("mlp_bn", (4,), 5, 3))
    assert layout.groups == (
        Group("fc1", 0, 25),
        Group("norm1", 25, 35),
        Group("fc2", 35, 53),
        Group("norm1.statistics", 53, 63),
    )
    assert [(t.name, t.shape, t.start, t.size) for t in layout.tensors] == [
        ("fc1.weight", (5, 4), 0, 20),
        ("fc1.bias", (5,), 20, 5),
        ("norm1.weight", (5,), 25, 5),
        ("norm1.bias", (5,), 30, 5),
        ("fc2.weight", (3, 5), 35, 15),
        ("fc2.bias", (3,), 50, 3),
        ("norm1.running_mean", (5,), 53, 5),
        ("norm1.running_var", (5,), 58, 5),
    ]
    assert (layout.trained, layout.size) == (53, 63)
    assert [g.layer for g in layout.groups] == ["fc1", "norm1", "fc2", "norm1"]
    assert layout.whole == Part(((0, 63),))
    told = layout.as_dict()
    assert told["trained"] == 53 and told["groups"][3] == ["norm1.statistics", 53, 63]


def test_layout_of_several_norms() -> None:
    layout = ParameterLayout.of(build("lenet5_bn", GREY))
    behind = [(g.name, g.size) for g in layout.groups if g.start >= layout.trained]
    assert behind == [(f"norm{k}.statistics", 2 * n) for k, n in ((1, 6), (2, 16), (3, 120), (4, 84))]
    starts = np.cumsum([layout.trained, 12, 32, 240, 168])
    assert [g.start for g in layout.groups[-4:]] == starts[:4].tolist() and layout.size == starts[4]


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "lenet5", "resnet8"])
def test_layout_without_batch_norm(name: str) -> None:
    layout = ParameterLayout.of(build(name))
    assert layout.normalised == () and layout.trained == layout.size


def test_start_of_a_normalised_model() -> None:
    """Scale and running variance 1, shift and running mean 0."""
    vector = params.vector_of(build("mlp_bn", (D,), H, C))
    ones, zeros = [1.0] * H, [0.0] * H
    assert vector[NORM1].tolist() == ones + zeros and vector[RUNNING].tolist() == zeros + ones


# ---- parts


@pytest.mark.parametrize(
    ("layers", "ranges"),
    [
        (["fc1"], ((0, 25),)),
        (["norm1"], ((25, 35), (53, 63))),
        (["fc2", "fc1"], ((0, 25), (35, 53))),
        (["norm1", "fc2"], ((25, 63),)),  # statistics follow the last parameters at once
        (["fc1", "norm1"], ((0, 35), (53, 63))),
        (["fc1", "norm1", "fc2"], ((0, 63),)),
        ([], ()),
    ],
)
def test_part_of_layers(layers: list[str], ranges: tuple) -> None:
    layout = ParameterLayout.of(build("mlp_bn", (4,), 5, 3))
    part = layout.part(layers)
    places = [k for start, stop in ranges for k in range(start, stop)]
    assert part.ranges == ranges and part.size == len(places)
    vector = torch.arange(63.0)
    taken = part.take(vector)
    assert taken.tolist() == places and taken.dtype == torch.float32
    into = torch.full((63,), -1.0)
    assert part.put(taken + 100, into) is into
    assert into.tolist() == [k + 100.0 if k in places else -1.0 for k in range(63)]
    assert torch.equal(part.take(into), taken + 100)
    assert torch.equal(vector, torch.arange(63.0))


def test_part_of_groups_in_any_order() -> None:
    groups = (Group("c", 7, 9), Group("a", 0, 2), Group("b", 2, 5))
    assert Part.of(groups) == Part(((0, 5), (7, 9))) and Part.of(groups).size == 7
    assert Part.of(iter(())) == Part(())


def test_a_part_of_one_range_is_a_view_of_others_a_copy() -> None:
    vector = torch.arange(63.0)
    one, two = Part(((25, 63),)), Part(((25, 35), (53, 63)))
    one.take(vector)[0] = -7
    two.take(vector)[1] = -9
    assert vector[25] == -7 and vector[26] == 26


# ---- one flat vector


def bound() -> tuple[Any, torch.Tensor, torch.Tensor]:
    network: Any = build("mlp_bn", (D,), H, C)
    return network, *params.bind(network, ParameterLayout.of(network))


def test_statistics_are_views_of_the_vector() -> None:
    network, flat, _ = bound()
    flat.copy_(torch.arange(float(SIZE)))
    assert network.norm1.running_mean.tolist() == list(range(FC2.stop, FC2.stop + H))
    assert network.norm1.running_var.tolist() == list(range(FC2.stop + H, SIZE))
    assert network.norm1.weight.tolist() == list(range(NORM1.start, NORM1.start + H))
    network.norm1.running_var[1] = -3
    assert flat[RUNNING.start + H + 1] == -3
    assert "norm1.running_mean" in dict(network.named_buffers())  # still a buffer, so .to() and eval() hold


def test_a_forward_pass_moves_the_statistics_in_the_vector() -> None:
    network, flat, grad = bound()
    before, x = flat.clone(), torch.randn(9, D, generator=torch.Generator().manual_seed(1))
    network.train()
    loss = torch.nn.functional.cross_entropy(network(x), torch.arange(9) % C)
    loss.backward()
    w = before.double().numpy()
    _, gradient, _, running = mlp_bn(w, x.double().numpy(), np.arange(9) % C, True)
    np.testing.assert_allclose(flat[RUNNING], running, **CLOSE)
    assert torch.equal(flat[: FC2.stop], before[: FC2.stop])
    np.testing.assert_allclose(grad, gradient, **CLOSE)
    assert not grad[RUNNING].any() and grad[NORM1].any()


@pytest.mark.parametrize("name", LAYERS)
def test_vector_and_module_there_and_back(name: str) -> None:
    network = build(name)
    vector = torch.arange(float(ParameterLayout.of(network).size)) / 100 + 1
    params.load_into(network, vector.numpy())
    assert torch.equal(params.vector_of(network), vector)
    flat, _ = params.bind(network, ParameterLayout.of(network))
    assert torch.equal(flat, vector) and torch.equal(params.vector_of(network), vector)
    with pytest.raises(ValueError, match=f"{len(vector)} parameters"):
        params.load_into(network, vector[:-1].numpy())


# ---- the engine

DRAW = np.random.default_rng(6)
N = 23
X = (DRAW.normal(size=(N, D)) * 2 + 1).astype(np.float32)
Y = DRAW.integers(0, C, N)
START = DRAW.normal(size=SIZE).astype(np.float32)
START[RUNNING] = np.abs(START[RUNNING]) + 0.5


Make = Callable[..., Engine]


@pytest.fixture(params=["torch", "compiled"])
def engine(request: pytest.FixtureRequest) -> Make:
    if request.param == "compiled" and not native.available():
        pytest.skip(native.reason())
    kind = CompiledEngine if request.param == "compiled" else Engine

    def make(local: Local, eval_batch: int = 1000, name: Any = "mlp_bn") -> Engine:
        module = build(name, (D,), H, C)
        layout = ParameterLayout.of(module)
        return kind(module, layout, local, (D,), eval_batch, torch.device("cpu"), lambda: None)

    return make


def tensors(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(X[:n]), torch.from_numpy(Y[:n])


def order() -> np.random.Generator:
    return np.random.default_rng(8)


@pytest.mark.parametrize("n", [22, 21, 19])  # 3 x 7 + 1 and 3 x 6 + 1: the last batch is one sample
@pytest.mark.parametrize("trained", LOCALS, ids=["epochs", "momentum"])
def test_training_equals_numpy(engine: Make, trained: Local, n: int) -> None:
    start = torch.from_numpy(START)
    kept = start.clone()
    out = engine(trained).train(start, *tensors(n), order())
    expected = descend(START, X[:n].astype(float), Y[:n], trained, order())
    np.testing.assert_allclose(out, expected, **CLOSE)
    assert torch.equal(start, kept)
    assert abs(out[RUNNING] - start[RUNNING]).min() > 1e-3  # every statistic moved


def test_pull_shift_and_decay_leave_statistics_alone(engine: Make) -> None:
    trained = Local(epochs=2, batch_size=5, lr=0.1, momentum=0.5, weight_decay=0.1)
    anchor, shift = START * 3 + 5, np.linspace(-0.5, 0.5, SIZE).astype(np.float32)
    out = engine(trained).train(
        torch.from_numpy(START),
        *tensors(),
        order(),
        pull=Pull(torch.from_numpy(anchor), 0.3),
        shift=torch.from_numpy(shift),
    )

    def extra(w: Array) -> Array:
        return 0.3 * (w - anchor) + shift

    expected = descend(START, X.astype(float), Y, trained, order(), extra)
    np.testing.assert_allclose(out, expected, **CLOSE)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_single_samples_never_move_statistics(engine: Make, momentum: float) -> None:
    """They have no statistics of their own, and decay, pull and shift may not touch the kept ones."""
    trained = Local(epochs=2, batch_size=1, lr=0.05, momentum=momentum, weight_decay=0.3)
    pull = Pull(torch.full((SIZE,), 9.0), 0.3)
    start, shift = torch.from_numpy(START), torch.ones(SIZE)
    out = engine(trained).train(start, *tensors(6), order(), pull=pull, shift=shift)
    assert torch.equal(out[RUNNING], start[RUNNING])
    assert (out[: FC2.stop] != start[: FC2.stop]).all()
    plainly = engine(trained).train(start, *tensors(6), order())
    expected = descend(START, X[:6].astype(float), Y[:6], trained, order())
    np.testing.assert_allclose(plainly, expected, **CLOSE)


@pytest.mark.parametrize("own_workspace", [True, False])
def test_slope_writes_the_batch_s_statistics_back(engine: Make, own_workspace: bool) -> None:
    """For methods that step by themselves: the batch's gradient, decay on parameters alone."""
    made = engine(Local(batch_size=8, weight_decay=0.1))
    at = made.parameters if own_workspace else torch.from_numpy(START).clone()
    at.copy_(torch.from_numpy(START))
    w = START.astype(float)
    shuffled = order().permutation(N)
    for k, size in enumerate(made.batches(*tensors(), order(), epochs=1)):
        batch = shuffled[8 * k : 8 * k + 8]
        assert size == len(batch)
        loss, gradient, _, running = mlp_bn(w, X[batch].astype(float), Y[batch], True)
        gradient[: FC2.stop] += 0.1 * w[: FC2.stop]
        found = made.slope(at)
        np.testing.assert_allclose(found, gradient, **CLOSE)
        assert made.batch_loss() == pytest.approx(loss, rel=1e-5)
        w[RUNNING] = running
        np.testing.assert_allclose(at, w, **CLOSE)


@pytest.mark.parametrize("eval_batch", [1, 4, 22, 1000])
@pytest.mark.parametrize("used", [False, True])
def test_evaluation_goes_by_the_running_statistics(engine: Make, eval_batch: int, used: bool) -> None:
    """In chunks of any size, one included, after training or not; and it changes nothing."""
    made = engine(Local(batch_size=8), eval_batch)
    if used:
        made.train(torch.from_numpy(START * 2), *tensors(), order())
    loss, gradient, right, _ = mlp_bn(START.astype(float), X.astype(float), Y, False)
    by_batch = mlp_bn(START.astype(float), X.astype(float), Y, True)
    assert abs(by_batch[0] - loss) > 0.05 and by_batch[2] != right  # the difference is seen
    at = torch.from_numpy(START).clone()
    for _ in range(2):
        assert made.loss(at, *tensors()) == pytest.approx(loss, rel=1e-5)
        assert made.correct(at, *tensors()) == right and 0 < right < N
        np.testing.assert_allclose(made.gradient(at, *tensors()), gradient, **CLOSE)
        assert torch.equal(at, torch.from_numpy(START)) and torch.equal(made.parameters, at)


def test_training_after_evaluation_is_in_training_mode(engine: Make) -> None:
    used, fresh = engine(LOCALS[1], 4), engine(LOCALS[1], 4)
    start = torch.from_numpy(START)
    used.correct(start, *tensors(21))
    first = used.train(start, *tensors(21), order()).clone()
    used.gradient(start, *tensors())
    again = used.train(start, *tensors(21), order()).clone()
    alone = fresh.train(start, *tensors(21), order())
    assert torch.equal(first, alone) and torch.equal(again, alone)


def test_a_model_without_batch_norm_is_left_as_it_is(engine: Make) -> None:
    """Its mode means nothing, so nobody sets it: each switch walks all modules."""
    made = engine(LOCALS[1], 4, "mlp")
    start = torch.from_numpy(START[: made.layout.size])
    made.correct(start, *tensors())
    assert made.module.training


@pytest.mark.parametrize("trained", LOCALS, ids=["epochs", "momentum"])
def test_a_stored_row_gives_back_the_model(engine: Make, trained: Local) -> None:
    made = engine(trained)
    row = made.train(torch.from_numpy(START), *tensors(), order()).clone()
    network = models.build(MLP_BN, (D,), C, seed=5)
    params.load_into(network, row.numpy())
    assert torch.equal(params.vector_of(network), row)
    network.eval()
    x, y = tensors()
    scores = network(x).detach()
    assert int((scores.argmax(1) == y).sum()) == made.correct(row, x, y)
    loss = float(torch.nn.functional.cross_entropy(scores, y))
    assert made.loss(row, x, y) == pytest.approx(loss, rel=1e-6)
    assert torch.equal(params.vector_of(network), row)


# ---- methods on such a model


def train(folder: Path, method: Any, count: int = 2, **keys: Any) -> tuple[rounds.Run, list[rounds.Outcome]]:
    run = plain.start(folder, method, rounds=count, **{"model": MLP_BN, "data": DATA, **keys})
    return run, [plain.one_round(run) for t in range(1, count + 1)]


def begin(run: rounds.Run) -> Array:
    """The common start: scale 1, shift 0, running mean 0, running variance 1."""
    return np.concatenate([plain.initial(run), np.zeros(H), np.ones(H)])


def members(run: rounds.Run, t: int) -> list[int]:
    return [int(i) for i in plain.members(run.config, t, run.clients)]


def averaged(run: rounds.Run, count: int, own: Array, by_samples: bool) -> tuple[Array, list[Array]]:
    """(server's mean, all clients' models) where the coordinates ``own`` stay with the clients."""
    x, y = plain.numbers(run)
    mean = begin(run)
    kept = [mean] * run.clients

    def joined(i: int) -> Array:
        w = mean.copy()
        w[own] = kept[i][own]
        return w

    for t in range(1, count + 1):
        cohort = members(run, t)
        for i in cohort:
            draw = rng.generator(run.config.seed, "shuffle", t, i)
            kept[i] = descend(joined(i), x[i], y[i], run.config.local, draw)
        weights = [len(y[i]) if by_samples else 1 for i in cohort]
        mean = np.average([kept[i] for i in cohort], 0, weights)
    return mean, [joined(i) for i in range(run.clients)]


NOTHING = np.arange(0)
HEAD2 = np.r_[NORM1, FC2, RUNNING]  # the last two layers; statistics go with their layer
METHODS = {
    "fedavg": (fedavg.Options(), NOTHING, True),
    "fedbn": (fedbn.Options(), OWN, False),
    "fedper 1": (fedper.Options(head=1), np.r_[FC2], True),
    "fedper 2": (fedper.Options(head=2), HEAD2, True),
    "lg_fedavg 2": (lg_fedavg.Options(head=2), np.r_[FC1], True),
}


@pytest.mark.parametrize("cohort", [1.0, 0.5])
@pytest.mark.parametrize("trained", LOCALS, ids=["epochs", "momentum"])
@pytest.mark.parametrize("name", METHODS)
def test_methods(tmp_path: Path, name: str, trained: Local, cohort: float) -> None:
    options, own, by_samples = METHODS[name]
    run, outcomes = train(tmp_path, options, 3, local=trained, cohort=cohort)
    assert {len(s.y) for s in run.samples.values()} == {22, 39, 48, 49}
    mean, every = averaged(run, 3, own, by_samples)
    shared = np.setdiff1d(np.arange(SIZE), own)
    assert set(run.server) == {"model"} and run.exchange.up.shape == (1, 1, len(shared))
    np.testing.assert_allclose(run.server["model"], mean[shared], **CLOSE)
    if len(own):
        np.testing.assert_allclose(run.state["private"], [w[own] for w in every], **CLOSE)
    found = [[v.double().numpy().copy() for _, v in told][0] for _, told in turns.personal_models(run, 3)]
    np.testing.assert_allclose(found, every, **CLOSE)
    tests = [run.samples[i] for i in range(5)]
    right = [mlp_bn(w, s.x_test.double().numpy(), s.y_test.numpy(), False)[2] for w, s in zip(every, tests)]
    assert outcomes[-1].correct is not None and outcomes[-1].correct[:, 0].tolist() == right


def test_fedavg_averages_statistics_too(tmp_path: Path) -> None:
    """They are in the mean, and no longer where they started."""
    run, _ = train(tmp_path, fedavg.Options(), 1, local=LOCALS[0])
    assert run.server["model"].shape == (SIZE,)
    assert (run.server["model"].numpy()[RUNNING] != begin(run)[RUNNING]).all()


def test_fedbn_weights_can_be_told_apart(tmp_path: Path) -> None:
    run, _ = train(tmp_path, fedbn.Options(), 1, local=LOCALS[0])
    other, _ = averaged(run, 1, OWN, by_samples=True)
    assert abs(other[SHARED] - run.server["model"].double().numpy()).max() > 5e-3


@pytest.mark.parametrize("cohort", [1.0, 0.5])
def test_fedbn_keeps_normalisation_apart(tmp_path: Path, cohort: float) -> None:
    run, _ = train(tmp_path, fedbn.Options(), 4, local=LOCALS[0], cohort=cohort)
    assert run.method.part.size == len(SHARED) == run.server["model"].numel()
    rows = np.array([next(told)[1].numpy().copy() for _, told in turns.personal_models(run, 4)])
    trained = sorted({i for t in range(1, 5) for i in members(run, t)})
    for kind in (NORM1, RUNNING):
        for half in (slice(kind.start, kind.start + H), slice(kind.start + H, kind.stop)):
            assert len({rows[i, half].tobytes() for i in trained}) == len(trained)
    for i in range(5):
        assert np.array_equal(rows[i, SHARED], run.server["model"].numpy())
        if i not in trained:
            assert np.array_equal(rows[i, OWN], begin(run)[OWN])


def test_evaluation_of_fedbn_changes_nothing(tmp_path: Path) -> None:
    found = []
    for every in (1, 50):
        run, _ = train(tmp_path, fedbn.Options(), 8, local=LOCALS[0], evaluate=Evaluate(every, 7))
        found.append(np.array([next(told)[1].numpy().copy() for _, told in turns.personal_models(run, 8)]))
    assert np.array_equal(found[0], found[1])


@pytest.mark.parametrize("name", LAYERS)
def test_fedbn_by_hand_on_every_model(name: str) -> None:
    layout = ParameterLayout.of(build(name))
    method = fedbn.FedBN(fedbn.Options(), Setting(layout, np.array([5, 6]), 0, Local()))
    weights, units = SIZES[name, GREY]
    assert method.part.size == weights and method.private.size == 4 * units
    norms = [g for g in layout.groups if g.name.startswith("norm")]
    inside = np.concatenate([np.arange(g.start, g.stop) for g in norms])
    places = torch.arange(layout.size)
    assert method.private.take(places).tolist() == inside.tolist()
    assert method.part.take(places).tolist() == np.setdiff1d(np.arange(layout.size), inside).tolist()


@pytest.mark.parametrize("name", ["linear", "mlp", "cnn", "lenet5", "resnet8"])
def test_fedbn_needs_batch_normalisation(name: str) -> None:
    setting = Setting(ParameterLayout.of(build(name)), np.array([5, 6]), 0, Local())
    with pytest.raises(ConfigError) as caught:
        fedbn.FedBN(fedbn.Options(), setting)
    told = str(caught.value)
    assert "fedbn" in told and "model.name" in told and "\n" not in told
    assert all(valid in told for valid in LAYERS)


def test_a_run_of_fedbn_on_another_model_does_not_start(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="model.name"):
        plain.start(tmp_path, fedbn.Options(), model=Model("mlp", hidden=H))


# ---- what methods do with running statistics


@pytest.mark.parametrize(("name", "key"), [("pfedme", "beta"), ("scaffold", "global_lr")])
def test_statistics_are_not_extrapolated(tmp_path: Path, name: str, key: str) -> None:
    """A server step of 2 goes beyond the cohort's mean; a variance must not, or it may fall below 0."""
    run = plain.start(tmp_path, get(name).Options(**{key: 2.0}), model=Model("mlp_bn", hidden=4))
    method, size = run.method, run.method.setting.layout.size
    trained = run.method.setting.layout.trained
    run.server["model"].fill_(1.0)
    mean = torch.full((method.wire.returned, size), 0.25 if name == "pfedme" else -0.75)
    method.aggregate(
        run.server,
        1,
        np.arange(5),
        Arrived(np.arange(5), torch.empty(0), mean, {}, torch.empty(5, 0), np.zeros(5)),
    )
    assert torch.equal(run.server["model"][:trained], torch.full((trained,), -0.5))
    assert torch.equal(run.server["model"][trained:], torch.full((size - trained,), 0.25))


def test_fedala_merges_with_the_global_statistics_below_the_top(tmp_path: Path) -> None:
    """The passes that train W run batches through the model; their statistics are not kept."""
    options = get("fedala").Options(head=1)
    run = plain.start(tmp_path, options, model=Model("mlp_bn", hidden=4), rounds=3, local=Local(epochs=1))
    for _t in (1, 2, 3):
        plain.one_round(run)
    trained = run.method.setting.layout.trained
    for _, own in turns.personal_models(run, 3):
        name, merged = next(own)
        assert name == "merged" and torch.equal(merged[trained:], run.server["model"][trained:])


def test_fedala_trains_its_weights_on_the_loss_alone(tmp_path: Path) -> None:
    """Weight decay belongs to local training, not to the merging."""
    found = []
    for decay in (0.0, 0.5):
        local = Local(epochs=1, lr=0.1, weight_decay=decay)
        run = plain.start(tmp_path, get("fedala").Options(eta=3.0), local=local)
        draw = torch.Generator().manual_seed(0)
        for key in ("model", "merges"):
            run.state[key].copy_(torch.randn(run.state[key].shape, generator=draw).abs())
        theta = torch.randn(run.state["model"].shape[1], generator=draw)
        client = turns.view(run, 2, 0, run.exchange.up[:0])
        found.append(run.method.merged(client, theta, run.engine)[1].clone())  # type: ignore[attr-defined]
    assert torch.equal(*found) and (found[0] < 1).any()
