"""The local engine against plain numpy, and that a client finds no trace of the one before."""

from __future__ import annotations

import numpy as np
import plain
import pytest
import torch

from amn_mpi import models
from amn_mpi.config import Local, Model
from amn_mpi.local import Engine
from amn_mpi.params import ParameterLayout
from amn_mpi.placement import training_steps

D, C, N = 7, 4, 23
DRAW = np.random.default_rng(2)
X = DRAW.normal(size=(N, D)).astype(np.float32)
Y = (X @ DRAW.normal(size=(D, C)) + DRAW.normal(size=(N, C))).argmax(1)
START = DRAW.normal(size=D * C + C).astype(np.float32)
SGD = dict(batch_size=5, lr=0.3, momentum=0.9, weight_decay=0.05)  # 23 = 4 x 5 + 3


def engine(local: Local, eval_batch: int = 1000, name: str = "linear", tick=lambda: None) -> Engine:
    module = models.build(Model(name, hidden=6), (D,), C, 0)
    layout = ParameterLayout.of(module)
    return Engine(module, layout, local, (D,), eval_batch, torch.device("cpu"), tick)


def tensors(n: int = N) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.from_numpy(X[:n]), torch.from_numpy(Y[:n])


def train(local: Local, n: int = N) -> np.ndarray:
    return engine(local).train(torch.from_numpy(START), *tensors(n), order()).numpy().copy()


def order() -> np.random.Generator:
    return np.random.default_rng(8)


def expected(local: Local, n: int = N) -> np.ndarray:
    def model(w: np.ndarray, x: np.ndarray, y: np.ndarray) -> tuple:
        return plain.linear(w, x, y, C)

    return plain.sgd(model, START, X[:n].astype(float), Y[:n], local, order())


@pytest.mark.parametrize(
    "local",
    [
        Local(epochs=1, **SGD),
        Local(epochs=3, **SGD),
        Local(steps=3, **SGD),
        Local(steps=7, **SGD),
        Local(steps=5, epochs=4, **SGD),
        Local(epochs=2, **{**SGD, "momentum": 0.0}),
        Local(epochs=2, **{**SGD, "weight_decay": 0.0}),
        Local(epochs=1, **{**SGD, "batch_size": 50}),
    ],
)
def test_sgd_equals_numpy(local: Local) -> None:
    np.testing.assert_allclose(train(local), expected(local), rtol=2e-5, atol=2e-6)


def test_one_step_by_hand() -> None:
    # one sample (1, ..., 1) of class 2, weights 0: every class has 1/4, v = g, w = -lr g
    x, y = torch.ones(1, D), torch.tensor([2])
    out = engine(Local(epochs=1, lr=0.5)).train(torch.zeros(D * C + C), x, y, order())
    rows = np.array([-0.125, -0.125, 0.375, -0.125])
    np.testing.assert_allclose(out, np.concatenate([np.repeat(rows, D), rows]), atol=1e-7)


@pytest.mark.parametrize(
    ("local", "samples", "steps"),
    [
        (Local(epochs=2, batch_size=5), 23, 10),
        (Local(epochs=1, batch_size=5), 20, 4),
        (Local(epochs=3, batch_size=50), 2, 3),
        (Local(steps=4, epochs=9), 23, 4),
    ],
)
def test_number_of_steps(local: Local, samples: int, steps: int) -> None:
    ticks: list[int] = []
    made = engine(local, tick=lambda: ticks.append(1))
    made.train(torch.from_numpy(START), *tensors(samples), order())
    assert made.steps(samples) == steps == len(ticks)
    assert training_steps(local, np.array([samples, samples])) == [steps, steps], "by which ranks get clients"


@pytest.mark.parametrize("eval_batch", [1, 4, 10, 23, 1000])
def test_gradient_and_loss_and_correct_in_chunks(eval_batch: int) -> None:
    loss, gradient, right = plain.linear(START.astype(float), X.astype(float), Y, C)
    made, start = engine(Local(), eval_batch), torch.from_numpy(START)
    np.testing.assert_allclose(made.gradient(start, *tensors()), gradient, rtol=2e-5, atol=1e-6)
    assert made.loss(start, *tensors()) == pytest.approx(loss, rel=1e-6)
    assert made.correct(start, *tensors()) == right and 0 < right < N


def test_gradient_does_not_add_to_what_was_there() -> None:
    made, start = engine(Local()), torch.from_numpy(START)
    first = made.gradient(start, *tensors()).clone()
    made.train(start, *tensors(), order())
    assert torch.equal(made.gradient(start, *tensors()), first)


@pytest.mark.parametrize("name", ["linear", "mlp"])
def test_a_client_leaves_no_trace(name: str) -> None:
    local = Local(epochs=2, **SGD)
    fresh, used = engine(local, name=name), engine(local, name=name)
    start = torch.from_numpy(np.resize(START, fresh.layout.size))
    alone = fresh.train(start, *tensors(), order()).clone()
    kept = start.clone()
    x, y = tensors()
    used.train(-start, x[:9] * 7, y[:9], np.random.default_rng(1))
    used.gradient(start * 3, x, y)
    used.correct(start * 5, x, y)
    assert torch.equal(used.train(start, x, y, order()), alone)
    assert torch.equal(start, kept)


def test_the_module_may_be_used_by_many_engines_in_turn() -> None:
    local = Local(**SGD)
    one, two = engine(local), engine(local)
    first = one.train(torch.from_numpy(START), *tensors(), order()).clone()
    two.train(torch.from_numpy(START * 2), *tensors(), order())
    assert torch.equal(one.parameters, first)
