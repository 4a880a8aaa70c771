"""The compiled engine in bf16 against the same roundings in torch, with sums in float64."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from test_compiled import CASES, moved, network, order, samples
from torch import nn
from torch.nn import functional

from amn_mpi import compiled, native
from amn_mpi.compiled import CompiledEngine, Network
from amn_mpi.config import Local
from amn_mpi.params import ParameterLayout, Part, vector_of

SET = "avx512bf16"
pytestmark = pytest.mark.skipif(
    SET not in native.runnable("bf16"), reason=native.reason("bf16") or f"no {SET} here"
)
Rounding = Callable[[torch.Tensor], torch.Tensor]


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Forward(torch.autograd.Function):
    """Rounds to bf16; the gradient passes as it is."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.float().bfloat16().double()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return g


class Backward(torch.autograd.Function):
    """Rounds the gradient to bf16."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, g: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        return g.float().bfloat16().double()


def same(x: torch.Tensor) -> torch.Tensor:
    return x


def simulated(
    module: nn.Module,
    x: torch.Tensor,
    y: torch.Tensor,
    ahead: Rounding = Forward.apply,
    back: Rounding = Backward.apply,
) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(scores, gradient of the mean loss, mean loss) with the roundings that ``compiled`` tells of."""
    double = copy.deepcopy(module).double()
    given = x.double()
    for layer in double.children():
        if isinstance(layer, nn.Conv2d):
            given = functional.conv2d(ahead(given), ahead(layer.weight), layer.bias)
        elif isinstance(layer, nn.Linear):
            given = back(functional.linear(ahead(given), ahead(layer.weight))) + layer.bias
        else:
            given = layer(given)
    loss = functional.cross_entropy(given, y)
    loss.backward()
    gradient = [p.grad.reshape(-1) for p in double.parameters() if p.grad is not None]
    return given.detach(), torch.cat(gradient), loss.item()


def distance(found: torch.Tensor, right: torch.Tensor) -> float:
    return float((found.double() - right.double()).norm() / right.double().norm())


def whole_numbers(
    module: nn.Module, shape: tuple[int, ...], n: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(w, x, y): inputs and weights that have to be rounded, and sums that are exact in float32 then."""
    draw = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in module.parameters():
            rows = torch.zeros(len(parameter), parameter[0].numel())
            if parameter.dim() > 1:
                nonzero = min(4, rows.shape[1])
                places = torch.rand(rows.shape, generator=draw).topk(nonzero, 1).indices
                values = torch.tensor([1.0, -1.0, 1 + 2.0**-9, -1 - 2.0**-9])
                rows.scatter_(1, places, values[torch.randint(0, 4, places.shape, generator=draw)])
            parameter.copy_(rows.view(parameter.shape))
    x = torch.randint(-511, 512, (n, *shape), generator=draw).float()
    return vector_of(module), x, torch.arange(n) % 2


@pytest.mark.parametrize("case", CASES)
def test_scores_and_gradients_are_exact_where_sums_are(case: str) -> None:
    module, shape, classes = network(case)
    for n in (1, 7, 64):
        w, x, y = whole_numbers(module, shape, n)
        made, g, out = Network(module, shape, 32, SET), torch.empty_like(w), torch.empty(n, classes)
        scores, gradient, _ = simulated(module, x, y)
        if n == 64:
            assert not torch.equal(scores, simulated(module, x, y, same)[0])
        assert torch.equal(made.scores(w, x).double(), scores)
        made.slope(w, x, y, 1 / n, g, scores=out)
        assert torch.equal(out.double(), scores)
        assert distance(g, gradient) < 1e-6 or gradient.abs().max() < 1e-30


@pytest.mark.parametrize("case", CASES)
def test_scores_losses_and_gradients_have_the_roundings_told(case: str) -> None:
    """Where two sums fall on different sides of a rounding, an activation is a 256th off: rare, and seen."""
    module, shape, classes = network(case)
    w = vector_of(module)
    made = Network(module, shape, 64, SET)
    for n in (1, 7, 64, 70):  # 70 = 64 + 6
        x, y = samples(shape, classes, n, n)
        scores, gradient, loss = simulated(module, x, y)
        found = made.scores(w, x)
        assert distance(found, scores) < (1e-3 if len(made.specification) > 2 else 1e-6)
        total, right = made.judge(w, x, y)
        assert total / n == pytest.approx(loss, rel=1e-4)
        assert abs(right - int((scores.argmax(1) == y).sum())) <= n // 32
        g, out = torch.full_like(w, 7.0), torch.empty(n, classes)
        made.slope(w, x, y, 1 / n, g, scores=out)
        assert torch.equal(out, found)
        for tensor in ParameterLayout.of(module).tensors:
            piece = slice(tensor.start, tensor.start + tensor.size)
            assert distance(g[piece], gradient[piece]) < 2e-2
        assert distance(g, gradient) < 2e-3
        h = g.clone()
        made.slope(w, x, y, 0.5 / n, h, add=True)
        assert distance(h, 1.5 * g) < 1e-6


@pytest.mark.parametrize("case", ["linear", "deep", "mlp", "cnn", "lenet5-odd", "wide"])
def test_no_other_roundings_fit(case: str) -> None:
    module, shape, classes = network(case)
    w, (x, y) = vector_of(module), samples(shape, classes, 32)
    made, g = Network(module, shape, 32, SET), torch.empty_like(vector_of(module))
    found = made.scores(w, x)
    made.slope(w, x, y, 1 / 32, g)
    scores, gradient, _ = simulated(module, x, y)
    exact, other, _ = simulated(module, x, y, same, same)
    without = simulated(module, x, y, Forward.apply, same)[1]
    assert distance(found, scores) < 0.1 * distance(found, exact)
    assert distance(g, gradient) < 0.3 * min(distance(g, other), distance(g, without))


def test_rounding_is_to_the_nearest_and_ties_go_to_even() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(33, 3))
    step = 2.0**-7  # between neighbours in [1, 2)
    values = torch.tensor([1.0, 1 + 0.5 * step, 1 + 0.51 * step, 1 + 1.5 * step, 1 + 1.49 * step])
    right = torch.tensor([1.0, 1.0, 1 + step, 1 + 2 * step, 1 + step])
    made, w = Network(module, (33,), 8, SET), torch.zeros(3 * 34)
    for place in (0, 1, 31, 32):
        for sign in (1.0, -1.0):
            x = torch.zeros(len(values), 33)
            x[:, place], w[:] = sign * values, 0.0
            w[33 + place] = 1.0
            assert torch.equal(made.scores(w, x)[:, 1], sign * right)
            for value, nearest in zip(values, right):
                x[:, place], w[33 + place] = 1.0, sign * value
                assert torch.equal(made.scores(w, x)[:, 1], (sign * nearest).expand(len(x)))
    w[:] = 0.0
    w[99:] = values[1:4]  # biases stay as they are
    assert torch.equal(made.scores(w, x)[0], values[1:4])


def test_sums_are_in_float32() -> None:
    """1 + 2^-7 k would stop growing at 2 if a sum were rounded to bf16."""
    module = nn.Sequential(nn.Flatten(), nn.Linear(1000, 2))
    w, x = torch.full((2002,), 2.0**-9), torch.ones(3, 1000)
    assert torch.equal(Network(module, (1000,), 4, SET).scores(w, x), torch.full((3, 2), 1001 * 2.0**-9))


@pytest.mark.parametrize("case", ["mlp", "lenet5", "cnn", "wide"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_none(case: str, wrong: float) -> None:
    module, shape, classes = network(case)
    w, (x, y) = vector_of(module), samples(shape, classes, 5)
    made, g = Network(module, shape, 5, SET), torch.zeros_like(vector_of(module))
    x[3, ..., 5, 5] = wrong
    scores = made.scores(w, x)
    assert not scores[3].isfinite().any() and scores[[0, 1, 2, 4]].isfinite().all()
    made.slope(w, x, y, 0.2, g)
    for tensor in ParameterLayout.of(module).tensors:
        assert not g[tensor.start : tensor.start + tensor.size].isfinite().all()
    assert not np.isfinite(made.judge(w, x, y)[0])
    x[3] = 0.0
    made.slope(w, x, y, 0.2, g)  # and leaves nothing behind
    fresh = torch.empty_like(g)
    Network(module, shape, 5, SET).slope(w, x, y, 0.2, fresh)
    assert g.isfinite().all() and torch.equal(g, fresh)


@pytest.mark.parametrize("case", ["linear", "mlp-17", "mlp", "lenet5-odd", "cnn", "wide"])
def test_results_depend_on_the_numbers_alone(case: str) -> None:
    module, shape, classes = network(case)
    w, (x, y) = vector_of(module), samples(shape, classes, 23)
    numbers, rule = order().permutation(23), native.Rule(0.1)
    fresh, used = Network(module, shape, 10, SET), Network(module, shape, 10, SET)

    def trained(made: Network, offset: int, calls: int) -> torch.Tensor:
        own, g, rows = (moved(t, offset) for t in (w, w, x))
        for part in np.split(numbers, [10, 20]) if calls > 1 else [numbers]:
            made.train(own, g, rows, y, np.ascontiguousarray(part), 10, rule)
        return own.clone()

    once = trained(fresh, 0, 1)
    assert torch.equal(trained(fresh, 0, 3), once)
    wrong = x.clone()
    wrong[::2] = float("nan")
    used.slope(w * 3, wrong, y, 1.0, torch.empty_like(w))
    used.scores(w, x[:3])
    for offset in (0, 1, 3, 7, 13):
        assert torch.equal(trained(used, offset, 1), once)
    whole = fresh.scores(w, x)
    for n in (1, 6, 9):  # at another place of another batch
        assert torch.equal(used.scores(moved(w, 3), moved(x[n : n + 11], 1)), whole[n : n + 11])
        assert torch.equal(Network(module, shape, n, SET).scores(w, x), whole)


def engine(case: str, local: Local, instructions: str) -> CompiledEngine:
    module, shape, _ = network(case)
    rest = (ParameterLayout.of(module), local, shape, 20, torch.device("cpu"), lambda: None)
    return CompiledEngine(module, *rest, instructions)


@pytest.mark.parametrize("case", ["linear", "mlp", "lenet5", "cnn"])
def test_steps_that_bf16_would_lose_are_kept(case: str) -> None:
    """The learning rate is so small that no weight of a bf16 network would ever move."""
    local = Local(batch_size=10, epochs=10, lr=1e-6)
    at, (x, y) = vector_of(network(case)[0]).bfloat16().float(), samples(*CASES[case][1:], 30)
    found, right = (engine(case, local, name).train(at, x, y, order()) - at for name in (SET, "avx512"))
    still = found.abs() < 2.0**-10 * at.abs()
    assert still.float().mean() > 0.9
    assert torch.equal((at + found)[still].bfloat16(), at[still].bfloat16())
    changed = [(each != 0).float().mean() for each in (found, right)]
    assert changed[0] > 0.9 * changed[1] > 0.2
    # float32 rounds each step to a part in 2^24 of a weight; what is left is the gradients' error.
    assert distance(found, right) < 0.1


@pytest.mark.parametrize("case", ["deep", "mlp", "lenet5", "wide"])
def test_an_epoch_is_near_float32s_and_the_same_in_every_way_to_take_it(case: str) -> None:
    local = Local(batch_size=7, epochs=2, lr=0.05, momentum=0.5)
    at, (x, y) = vector_of(network(case)[0]), samples(*CASES[case][1:], 33)
    half, full = engine(case, local, SET), engine(case, local, "avx512")
    found, right = (made.train(at, x, y, order()).clone() for made in (half, full))
    assert 0 < distance(found - at, right - at) < 0.25
    w, v = at.clone(), torch.zeros_like(at)
    for _ in half.batches(x, y, order()):
        v = v * 0.5 + half.slope(w)
        w = w - 0.05 * v
    assert distance(w - at, found - at) < 1e-2  # a weight at a rounding may fall on its other side
    assert half.loss(at, x, y) == pytest.approx(full.loss(at, x, y), rel=0.01)
    layers = half.layout.groups
    some = half.train(at, x, y, order(), only=Part.of([layers[-1]]))
    assert torch.equal(some[: layers[-1].start], at[: layers[-1].start])
    assert not torch.equal(some[layers[-1].start :], at[layers[-1].start :])


def test_where_the_set_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    assert SET not in native.runnable() and native.available() != SET
    assert native.available("bf16") == SET and native.reason("bf16") == ""
    assert Network(*network("deep")[:2], 2).instructions == native.available()
    monkeypatch.setenv("AMN_NATIVE", SET)
    assert native.available("bf16") == SET and native.available() == "avx512"
    for limit in ("avx512", "generic"):
        monkeypatch.setenv("AMN_NATIVE", limit)
        assert native.available() == limit and native.runnable("bf16") == ()
        assert native.reason("bf16") == f"AMN_NATIVE is {limit}" and native.reason() == ""
        with pytest.raises(RuntimeError, match="runs not here"):
            native.functions(SET)
    monkeypatch.setenv("AMN_NATIVE", "off")
    assert native.runnable("bf16") == () and native.reason("bf16") == "AMN_NATIVE is off"
    monkeypatch.setattr(native, "_compiled", lambda: ("avx2", "generic"))
    monkeypatch.delenv("AMN_NATIVE")
    assert native.reason("bf16") == "bf16 needs avx512bf16, of processor and compiler"
    assert compiled.fits(*network("deep")[:2]) and not native.available("bf16")
