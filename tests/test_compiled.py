"""The compiled engine against autograd in float64, and against the reference engine."""

from __future__ import annotations

import copy
import importlib.util
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from amn_mpi import compiled, models, native
from amn_mpi.compiled import CompiledEngine, Network
from amn_mpi.config import Local, Model
from amn_mpi.local import Engine
from amn_mpi.methods.base import Pull
from amn_mpi.params import ParameterLayout, Part, vector_of

pytestmark = pytest.mark.skipif(not native.available(), reason=native.reason() or "there")
SETS = native.runnable()
torch.manual_seed(5)  # the two networks that follow
DEEP = nn.Sequential(nn.Flatten(), nn.Linear(17, 33), nn.ReLU(), nn.Linear(33, 7), nn.ReLU(), nn.Linear(7, 4))
WIDE = nn.Sequential(  # uneven everywhere
    nn.Conv2d(2, 5, (3, 2)), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(5, 70, (1, 4)), nn.ReLU(), nn.MaxPool2d(2),
    nn.Conv2d(70, 19, 2), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(38, 3),
)  # fmt: skip
WIDE_BN = nn.Sequential(  # some of its layers, and channels of every kind
    *WIDE[:1], nn.BatchNorm2d(5), *WIDE[1:4], nn.BatchNorm2d(70), *WIDE[4:10],
    nn.Linear(38, 21), nn.ReLU(), nn.Linear(21, 18), nn.BatchNorm1d(18), nn.ReLU(), nn.Linear(18, 3),
)  # fmt: skip
FIRST = {
    f"first-{n}": nn.Sequential(
        nn.Conv2d(inputs, n, (5, 4)), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(features, 3)
    )
    for n, inputs, features in (
        (1, 1, 8 * 34), (2, 4, 7 * 18 * 2), (7, 2, 9 * 17 * 7), (8, 1, 7 * 17 * 8), (9, 3, 7 * 17 * 9)
    )
}  # fmt: skip
OWN = {**FIRST, "deep": DEEP, "wide": WIDE, "wide-bn": WIDE_BN}
CASES = {
    "linear": ("linear", (1, 28, 28), 10),
    "linear-one": ("linear", (1,), 2),
    "mlp": ("mlp", (1, 28, 28), 10),
    "mlp-digits": ("mlp", (1, 8, 8), 10),
    "mlp-17": ("mlp", (17,), 5),
    "deep": ("deep", (17,), 4),
    "cnn": ("cnn", (1, 28, 28), 10),
    "cnn-colour": ("cnn", (3, 32, 32), 10),
    "lenet5": ("lenet5", (1, 28, 28), 10),
    "lenet5-colour": ("lenet5", (3, 32, 32), 100),
    "lenet5-odd": ("lenet5", (1, 29, 31), 7),
    "lenet5-least": ("lenet5", (1, 16, 17), 7),
    "wide": ("wide", (2, 22, 26), 3),
}
FEW = {  # channels of a first convolution, and long rows
    "first-1": ("first-1", (1, 20, 71), 3),
    "first-2": ("first-2", (4, 19, 40), 3),
    "first-7": ("first-7", (2, 23, 38), 3),
    "first-8": ("first-8", (1, 18, 37), 3),
    "first-9": ("first-9", (3, 18, 37), 3),
}
NORMALISED = {
    "mlp-bn": ("mlp_bn", (17,), 5),
    "cnn-bn": ("cnn_bn", (2, 19, 22), 7),
    "lenet5-bn": ("lenet5_bn", (1, 28, 28), 10),
    "lenet5-bn-odd": ("lenet5_bn", (3, 27, 25), 4),
    "wide-bn": ("wide-bn", (2, 22, 26), 3),
}


def network(case: str) -> tuple[nn.Module, tuple[int, ...], int]:
    name, shape, classes = {**CASES, **FEW, **NORMALISED}[case]
    if name in OWN:
        return copy.deepcopy(OWN[name]), shape, classes
    return models.build(Model(name, hidden=37), shape, classes, 3), shape, classes


def samples(shape: tuple[int, ...], classes: int, n: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randn(n, *shape, generator=draw), torch.randint(0, classes, (n,), generator=draw)


def exact(module: nn.Module, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, float]:
    """(scores, gradient of the mean loss, mean loss) in float64."""
    double = copy.deepcopy(module).double()
    scores = double(x.double())
    loss = functional.cross_entropy(scores, y)
    loss.backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in double.parameters()])
    return scores.detach(), gradient, loss.item()


def close(found: torch.Tensor, right: torch.Tensor, within: float = 2e-6) -> None:
    """Close in norm: an element may be a difference of large terms."""
    scale = float(right.abs().max()) or 1.0
    assert float((found.double() - right).abs().max()) <= within * scale


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make small steps slow where others compute."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


# ---- scores, gradients, losses


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("case", [*CASES, *FEW])
def test_scores_losses_and_gradients_are_autograds(case: str, instructions: str) -> None:
    module, shape, classes = network(case)
    w = vector_of(module)
    made = Network(module, shape, 16, instructions)
    for n in (1, 7, 10, 50):  # 50 = 16 + 16 + 16 + 2
        x, y = samples(shape, classes, n, n)
        scores, gradient, loss = exact(module, x, y)
        close(made.scores(w, x), scores)
        total, right = made.judge(w, x, y)
        assert total / n == pytest.approx(loss, rel=2e-6)
        assert right == int((scores.argmax(1) == y).sum())
        g, out = torch.full_like(w, 7.0), torch.empty(n, classes)
        made.slope(w, x, y, 1 / n, g, scores=out)
        close(out, scores)
        for tensor in ParameterLayout.of(module).tensors:
            piece = slice(tensor.start, tensor.start + tensor.size)
            close(g[piece], gradient[piece], 1e-5)
        made.slope(w, x, y, 0.5 / n, g, add=True)
        close(g, gradient * 1.5, 1e-5)


@pytest.mark.parametrize("instructions", SETS)
def test_ties_in_pooling_go_to_the_first_and_dead_units_learn_nothing(instructions: str) -> None:
    module, shape, classes = network("lenet5")
    draw = torch.Generator().manual_seed(1)
    x = torch.randint(0, 2, (6, *shape), generator=draw).float()
    x[:, :, :14] = 0.0  # equal patches, as the border of a digit has them
    y = torch.arange(6) % classes
    with torch.no_grad():  # whole numbers: sums are exact, so ties are ties in every arithmetic
        for name, parameter in module.named_parameters():
            values = torch.randint(-1, 2, parameter.shape, generator=draw).float()
            parameter.copy_(values / (64 if name.startswith("fc") else 1))
    w, g = vector_of(module), torch.empty(ParameterLayout.of(module).size)
    Network(module, shape, 6, instructions).slope(w, x, y, 1 / 6, g)
    single = copy.deepcopy(module)
    functional.cross_entropy(single(x), y).backward()
    reference = torch.cat([p.grad.reshape(-1) for p in single.parameters()])
    close(g, reference.double(), 1e-5)


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("case", ["mlp", "lenet5", "cnn"])
@pytest.mark.parametrize("wrong", [float("nan"), float("inf")])
def test_what_is_not_a_number_stays_none(case: str, wrong: float, instructions: str) -> None:
    module, shape, classes = network(case)
    w, (x, y) = vector_of(module), samples(shape, classes, 5)
    made, g = Network(module, shape, 5, instructions), torch.zeros_like(vector_of(module))
    x[3, ..., 5, 5] = wrong
    scores = made.scores(w, x)
    assert not scores[3].isfinite().any() and scores[[0, 1, 2, 4]].isfinite().all()
    made.slope(w, x, y, 0.2, g)
    for tensor in ParameterLayout.of(module).tensors:
        assert not g[tensor.start : tensor.start + tensor.size].isfinite().all()
    assert not np.isfinite(made.judge(w, x, y)[0])
    x[3] = 0.0
    made.slope(w, x, y, 0.2, g)  # and leaves nothing behind
    assert g.isfinite().all()
    w[0] = wrong
    made.slope(w, x, y, 0.2, g)
    assert not g.isfinite().all()


@pytest.mark.parametrize("case", ["deep", "lenet5", "wide"])
def test_what_is_frozen_is_left_alone(case: str) -> None:
    module, shape, classes = network(case)
    w, (x, y) = vector_of(module), samples(shape, classes, 6)
    made, layout = Network(module, shape, 6), ParameterLayout.of(module)
    whole, g = torch.empty_like(w), torch.empty_like(w)
    made.slope(w, x, y, 1 / 6, whole)
    groups = layout.groups
    for flags in np.ndindex(*(2,) * len(groups)):
        g.fill_(-3.0)
        made.slope(w, x, y, 1 / 6, g, trained=np.array(flags, dtype=np.uint8))
        for flag, group in zip(flags, groups):
            piece = slice(group.start, group.stop)
            assert torch.equal(g[piece], whole[piece] if flag else torch.full((group.size,), -3.0))


def test_labels_and_rows_have_to_be_there() -> None:
    module, shape, classes = network("mlp-17")
    made, w, (x, y) = Network(module, shape, 4), vector_of(module), samples(shape, classes, 6)
    y[3] = classes
    with pytest.raises(IndexError):
        made.judge(w, x, y)
    with pytest.raises(IndexError):
        made.slope(w, x, y, 1.0, torch.empty_like(w))
    for order in ([0, 3], [0, 6], [-1]):
        with pytest.raises(IndexError):
            made.train(w, w.clone(), x, y, np.array(order), 2, native.Rule(0.1))


# ---- batch normalisation


def normalised(case: str) -> tuple[nn.Module, tuple[int, ...], int, torch.Tensor]:
    """A network with scales of either sign and statistics of its own; and its vector."""
    module, shape, classes = network(case)
    draw = torch.Generator().manual_seed(2)
    for layer in module:
        if isinstance(layer, (nn.BatchNorm1d, nn.BatchNorm2d)):
            for tensor in (layer.weight, layer.bias, layer.running_mean, layer.running_var):
                tensor.data.copy_(torch.randn(len(tensor), generator=draw))
            layer.running_var.abs_().add_(0.3)
    return module, shape, classes, vector_of(module)


def passed(module: nn.Module, x: torch.Tensor, y: torch.Tensor, own: bool) -> tuple[torch.Tensor, ...]:
    """(scores, gradient, statistics afterwards) by autograd in float64."""
    double = copy.deepcopy(module).double().train(own)
    scores = double(x.double())
    functional.cross_entropy(scores, y).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in double.parameters()])
    buffers = [b for b in double.buffers() if b.is_floating_point()]
    return scores.detach(), gradient, torch.cat(buffers)


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize("case", NORMALISED)
def test_normalised_networks_are_autograds(case: str, own: bool, instructions: str) -> None:
    module, shape, classes, start = normalised(case)
    made, layout = Network(module, shape, 16, instructions), ParameterLayout.of(module)
    for n in (2, 7, 16, *(() if own else (1, 37))):
        w, g, out = start.clone(), torch.full_like(start, 7.0), torch.empty(n, classes)
        x, y = samples(shape, classes, n, n)
        scores, gradient, statistics = passed(module, x, y, own)
        made.slope(w, x, y, 1 / n, g, scores=out, own=own)
        close(out, scores, 1e-5)
        close(w[layout.trained :], statistics)
        assert torch.equal(w[: layout.trained], start[: layout.trained])
        assert own or torch.equal(w, start)
        # Two samples of a normalised unit are +1 and -1, and its gradient is a difference of equals.
        for tensor in layout.tensors:
            piece = slice(tensor.start, tensor.start + tensor.size)
            if tensor.start < layout.trained:
                # A bias before the normalisation has no effect: autograd's gradient is rounding.
                error = (g[piece].double() - gradient[piece]).abs().max()
                assert error <= (2e-3 if n == 2 else 2e-5) * gradient[piece].abs().max() + 1e-7
            else:
                assert (g[piece] == 7.0).all()
        again = torch.zeros_like(g)
        made.slope(start.clone(), x, y, 1 / n, again, own=own)
        made.slope(start.clone(), x, y, 0.5 / n, again, own=own, add=True)
        trained = slice(0, layout.trained)
        close(again[trained], g[trained].double() * 1.5, 1e-5)
    if not own:
        close(made.scores(start, x), scores, 1e-5)
        total, right = made.judge(start, x, y)
        assert total / n == pytest.approx(float(functional.cross_entropy(scores, y)), rel=1e-5)
        assert right == int((scores.argmax(1) == y).sum())


@pytest.mark.parametrize("own", [False, True])
def test_normalisation_is_frozen_by_itself(own: bool) -> None:
    module, shape, classes, w = normalised("lenet5-bn")
    x, y = samples(shape, classes, 6)
    made, layout = Network(module, shape, 6), ParameterLayout.of(module)
    whole, g = torch.empty_like(w), torch.empty_like(w)
    made.slope(w.clone(), x, y, 1 / 6, whole, own=own)
    names = [name for name in layout.layers if not name.startswith("norm")]
    flags_of = {**{name: k for k, name in enumerate(names)}, **{f"norm{k + 1}": 5 + k for k in range(4)}}
    for flags in np.ndindex(*(2,) * 9):
        g.fill_(-3.0)
        moved_on = w.clone()
        made.slope(moved_on, x, y, 1 / 6, g, trained=np.array([*flags, 0], dtype=np.uint8), own=own)
        for group in layout.groups:
            piece = slice(group.start, group.stop)
            if group.start < layout.trained:
                expected = whole[piece] if flags[flags_of[group.name]] else torch.full((group.size,), -3.0)
                assert torch.equal(g[piece], expected)
        assert torch.equal(moved_on, w) != own


def test_normalised_batches_pass_at_once() -> None:
    module, shape, classes, w = normalised("mlp-bn")
    made, (x, y) = Network(module, shape, 4), samples(shape, classes, 6)
    made.slope(w, x, y, 1 / 6, torch.zeros_like(w))
    with pytest.raises(ValueError, match="whole batch"):
        made.slope(w, x, y, 1 / 6, torch.zeros_like(w), own=True)
    with pytest.raises(ValueError, match="whole batch"):
        made.train(w, w.clone(), x, y, np.arange(6), 5, native.Rule(0.1))
    made.train(w, w.clone(), x, y, np.arange(4), 1000, native.Rule(0.1))
    with pytest.raises(ValueError, match="two samples"):
        made.slope(w, x[:1], y[:1], 1.0, torch.zeros_like(w), own=True)
    if native.runnable("bf16"):
        with pytest.raises(ValueError, match="float32"):
            Network(module, shape, 4, native.runnable("bf16")[0])


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("n", [300, 2501, 5001])
def test_large_normalised_batches(n: int, instructions: str) -> None:
    module, shape, classes, start = normalised("mlp-bn")
    made, (x, y) = Network(module, shape, n, instructions), samples(shape, classes, n)
    w, g, out = start.clone(), torch.zeros_like(start), torch.empty(n, classes)
    scores, gradient, statistics = passed(module, x, y, True)
    made.slope(w, x, y, 1 / n, g, scores=out, own=True)
    close(out, scores, 1e-5)
    close(g[: len(gradient)], gradient, 1e-5)
    close(w[len(gradient) :], statistics)


# ---- training


def engine(kind: type[Engine], case: str, local: Local, eval_batch: int = 20, tick=lambda: None) -> Engine:
    module, shape, _ = network(case)
    return kind(module, ParameterLayout.of(module), local, shape, eval_batch, torch.device("cpu"), tick)


def order(seed: int = 8) -> np.random.Generator:
    return np.random.default_rng(seed)


OPTIONS = {
    "plain": ({}, {}),
    "steps": ({"steps": 5}, {}),
    "decay": ({"weight_decay": 0.05}, {}),
    "momentum": ({"momentum": 0.9}, {}),
    "pull": ({}, {"pull": 0.3}),
    "shift": ({}, {"shift": True}),
    "first": ({}, {"only": 0}),
    "last": ({"momentum": 0.5}, {"only": -1}),
    "outer": ({"weight_decay": 0.1}, {"only": slice(None, None, 2)}),
    "part of a layer": ({"momentum": 0.5}, {"only": "half"}),
    "all": ({"momentum": 0.9, "weight_decay": 0.05}, {"pull": 0.3, "shift": True, "only": slice(1, None)}),
    "nothing": ({}, {"only": slice(0, 0)}),
    "large batch": ({"batch_size": 70, "momentum": 0.9}, {"pull": 0.1}),
}


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("case", ["deep", "mlp-digits", "lenet5", "mlp-bn", "lenet5-bn"])
def test_training_is_the_reference_engines(
    case: str, option: str, instructions: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AMN_NATIVE", instructions)
    own, terms = OPTIONS[option]
    local = Local(**{"batch_size": 10, "epochs": 2, "lr": 0.1, **own})
    shape, classes = {**CASES, **NORMALISED}[case][1:]
    # Normalisation within a few samples magnifies rounding: no small last batch there.
    few, many = (30, 140) if case in NORMALISED else (23, 73)
    x, y = samples(shape, classes, many if "batch_size" in own else few)
    results = []
    for kind in (Engine, CompiledEngine):
        made = engine(kind, case, local)
        start = vector_of(network(case)[0])
        draw = torch.Generator().manual_seed(4)
        noise = [torch.randn(len(start), generator=draw) * 0.01 for _ in range(2)]
        given = {}
        if "pull" in terms:
            given["pull"] = Pull(start + noise[0], terms["pull"])
        if "shift" in terms:
            given["shift"] = noise[1]
        if "only" in terms:
            groups = made.layout.groups[: len(made.layout.layers)]
            chosen = terms["only"]
            if chosen == "half":
                given["only"] = Part(((groups[-1].start, groups[-1].start + 9),))
            else:
                given["only"] = Part.of(groups[chosen] if isinstance(chosen, slice) else [groups[chosen]])
        for _ in range(2):  # the second finds the workspace used
            result = made.train(start, x, y, order(), **given).clone()
        results.append(result)
        assert torch.equal(start, vector_of(network(case)[0]))
    reference, found = results
    moved = (reference - start).abs().max()
    assert (moved > 0) == (option != "nothing")
    assert torch.equal(found == start, reference == start) or (found - reference).abs().max() <= 1e-5 * moved
    assert (found - reference).abs().max() <= 1e-3 * moved


@pytest.mark.parametrize("case", ["linear", "mlp", "cnn", "lenet5", "cnn-bn"])
def test_a_local_epoch_ends_where_the_reference_engine_does(case: str) -> None:
    shape, classes = {**CASES, **NORMALISED}[case][1:]
    local = Local(batch_size=10, epochs=1, lr=0.05)
    x, y = samples(shape, classes, 57)
    start = vector_of(network(case)[0])
    expected = engine(Engine, case, local).train(start, x, y, order())
    found = engine(CompiledEngine, case, local).train(start, x, y, order())
    assert (found - expected).norm() <= 2e-5 * (expected - start).norm()


@pytest.mark.parametrize("case", ["mlp-17", "lenet5"])
def test_the_rest_of_the_engine(case: str) -> None:
    shape, classes = CASES[case][1:]
    local = Local(batch_size=6, epochs=1, lr=0.1, weight_decay=0.01)
    x, y = samples(shape, classes, 45)
    start = vector_of(network(case)[0])
    both = [engine(kind, case, local, 20) for kind in (Engine, CompiledEngine)]
    a, b = ((made.gradient(start, x, y), made.loss(start, x, y), made.correct(start, x, y)) for made in both)
    close(b[0], a[0].double(), 1e-5)
    assert b[1] == pytest.approx(a[1], rel=1e-5) and b[2] == a[2]
    for _ in zip(*(made.batches(x, y, order()) for made in both)):
        one, other = (made.slope(start) for made in both)
        close(other, one.double(), 1e-5)
        assert both[1].batch_loss() == pytest.approx(both[0].batch_loss(), rel=1e-5)
    double = both[1].correct(start, x.double().transpose(0, -1).contiguous().transpose(0, -1), y.int())
    assert double == a[2]
    nothing = x[:0], y[:0]
    assert both[1].correct(start, *nothing) == 0 == both[1].loss(start, *nothing)
    assert not both[1].gradient(start, *nothing).any()


@pytest.mark.parametrize("size", [12, 80])
@pytest.mark.parametrize("case", ["mlp-17", "lenet5", "mlp-bn", "lenet5-bn"])
def test_steps_on_one_batch(case: str, size: int) -> None:
    shape, classes = {**CASES, **NORMALISED}[case][1:]
    x, y = samples(shape, classes, 2 * size)
    start = vector_of(network(case)[0])
    found = []
    for kind in (Engine, CompiledEngine):
        made = engine(kind, case, Local(batch_size=size, epochs=1, weight_decay=0.1))
        made.parameters.copy_(start)
        for _ in made.batches(x, y, order()):
            made.solve(4, 0.05, Pull(start * 0.5, 2.0))
        found.append(made.parameters.clone())
    reference, other = found
    assert (reference - start).norm() > 0.1 * start.norm()
    assert (other - reference).norm() <= 2e-5 * (reference - start).norm()


def test_ticks_come_between_the_calls() -> None:
    ticks: list[int] = []
    made = engine(CompiledEngine, "lenet5", Local(batch_size=2, epochs=3), tick=lambda: ticks.append(1))
    made.train(vector_of(network("lenet5")[0]), *samples((1, 28, 28), 10, 31), order())
    assert 3 <= len(ticks) <= made.steps(31)


# ---- bit by bit


@pytest.mark.parametrize("instructions", SETS)
@pytest.mark.parametrize("case", ["mlp-17", "mlp", "lenet5", "cnn", "mlp-bn", "lenet5-bn", "lenet5-bn-odd"])
def test_results_depend_on_the_numbers_alone(case: str, instructions: str) -> None:
    module, shape, classes = network(case)
    w, (x, y) = vector_of(module), samples(shape, classes, 23)
    numbers = order().permutation(23)
    rule = native.Rule(0.1)
    fresh, used = Network(module, shape, 10, instructions), Network(module, shape, 10, instructions)

    def trained(made: Network, offset: int, calls: int) -> torch.Tensor:
        """Everything ``offset`` floats away from where it would be."""
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
    g, h = torch.zeros_like(w), moved(torch.zeros_like(w), 5)
    fresh.slope(w, x[:7], y[:7], 0.3, g)
    used.slope(moved(w, 3), moved(x[:7], 1), y[:7], 0.3, h)
    assert torch.equal(g, h)


def moved(tensor: torch.Tensor, offset: int) -> torch.Tensor:
    room = torch.empty(tensor.numel() + offset)
    room[offset:] = tensor.reshape(-1)
    return room[offset:].view(tensor.shape)


# ---- which networks, and where


@pytest.mark.parametrize("name", models.MODELS)
def test_which_networks_fit(name: str) -> None:
    module = models.build(Model(name), (1, 28, 28), 10, 0)
    assert compiled.fits(module, (1, 28, 28)) == (name != "resnet8")
    assert not compiled.fits(module, (2, 9, 9))


def test_other_networks_do_not_fit() -> None:
    rest = [nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(4 * 36, 2)]
    assert compiled.fits(nn.Sequential(nn.Conv2d(1, 4, 3), *rest), (1, 14, 14))
    for conv in (
        nn.Conv2d(1, 4, 3, padding=1),
        nn.Conv2d(1, 4, 3, stride=2),
        nn.Conv2d(1, 4, 3, dilation=2),
        nn.Conv2d(1, 4, 3, bias=False),
    ):
        assert not compiled.fits(nn.Sequential(conv, *rest), (1, 14, 14))
    plain = nn.Conv2d(1, 4, 3)
    for pool in (nn.MaxPool2d(3), nn.MaxPool2d(2, 1), nn.MaxPool2d(2, ceil_mode=True), nn.AvgPool2d(2)):
        assert not compiled.fits(nn.Sequential(plain, nn.ReLU(), pool, *rest[2:]), (1, 14, 14))
    first, norm = nn.Linear(9, 4), nn.BatchNorm1d(4)
    assert compiled.fits(nn.Sequential(nn.Flatten(), first, norm, nn.ReLU(), nn.Linear(4, 2)), (9,))
    for other in (
        nn.BatchNorm1d(4, eps=1e-3),
        nn.BatchNorm1d(4, momentum=0.2),
        nn.BatchNorm1d(4, momentum=None),
        nn.BatchNorm1d(4, affine=False),
        nn.BatchNorm1d(4, track_running_stats=False),
        nn.BatchNorm2d(4),
        nn.BatchNorm1d(5),
    ):
        assert not compiled.fits(nn.Sequential(nn.Flatten(), first, other, nn.ReLU(), nn.Linear(4, 2)), (9,))
    for odd in (
        [nn.Flatten(), norm, first, nn.ReLU(), nn.Linear(4, 2)],
        [nn.Flatten(), first, nn.ReLU(), norm, nn.Linear(4, 2)],
        [nn.Flatten(), first, nn.ReLU(), nn.Linear(4, 4), norm],
        [nn.Flatten(), first, norm, nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2)],
        [nn.Flatten(), first, norm, nn.ReLU(), nn.Linear(4, 4), norm, nn.ReLU(), nn.Linear(4, 2)],
    ):
        assert not compiled.fits(nn.Sequential(*odd), (9,))
    for owner in ("whole", "layer"):
        network = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.BatchNorm1d(4), nn.ReLU(), nn.Linear(4, 2))
        assert compiled.fits(network, (9,))
        (network if owner == "whole" else network[1]).register_buffer("mean", torch.full((3,), 5.0))
        assert not compiled.fits(network, (9,))
    one, two = nn.BatchNorm1d(4), nn.BatchNorm1d(4)
    two.running_mean, two.running_var = one.running_mean, one.running_var
    layers = [nn.Flatten(), nn.Linear(9, 4), one, nn.ReLU(), nn.Linear(4, 4), two, nn.ReLU(), nn.Linear(4, 2)]
    assert not compiled.fits(nn.Sequential(*layers), (9,))
    assert not compiled.fits(DEEP[1:], (17,))
    assert not compiled.fits(DEEP, (18,))
    assert not compiled.fits(copy.deepcopy(DEEP).double(), (17,))
    assert not compiled.fits(DEEP[:-1], (17,))


def test_the_environment_sets_a_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AMN_NATIVE", "generic")
    assert native.available() == "generic" and native.runnable() == ("generic",)
    monkeypatch.setenv("AMN_NATIVE", "off")
    assert native.available() == "" and "off" in native.reason()
    assert not compiled.fits(DEEP, (17,))
    with pytest.raises(RuntimeError, match="off"):
        Network(DEEP, (17,), 3)
    monkeypatch.setenv("AMN_NATIVE", "sse9")
    assert native.available() == "" and "sse9" in native.reason()


def test_it_builds_anywhere_and_says_why_it_does_not(tmp_path: Path) -> None:
    from amn_mpi.native import build

    missing = {**os.environ, "CC": "", "PATH": str(tmp_path)}
    code = (
        "import sysconfig, pathlib; sysconfig.get_config_var = lambda name: None\n"
        "from amn_mpi.native import build\n"
        "try: build.build(pathlib.Path('x/libsteps.so'))\n"
        "except build.BuildError as error: print(error)"
    )
    root = Path(build.__file__).resolve().parents[2]
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env=missing, capture_output=True, text=True, timeout=60
    )
    assert "no C compiler" in done.stdout, done.stderr
    assert importlib.util.find_spec("amn_mpi.native.build") is not None
