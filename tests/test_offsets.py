"""A client's class frequencies on the biases of its scores, by hand; methods' own tests have whole rounds."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
import torch

from amn_mpi import config, methods, rng
from amn_mpi.methods.base import Setting
from amn_mpi.methods.offsets import ClassOffsets
from amn_mpi.newcomers import Desk, Newcomer, _trained
from amn_mpi.params import ParameterLayout

WITH = [name for name in methods.METHODS if hasattr(methods.options(name)(), "prior")]


def made(name: str, bias: bool = True, classes: int = 3, **options: Any) -> Any:
    """A method for a network of two layers with 4 x 2 + 4 + 3 x 4 (+ 3) parameters."""
    network = torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.ReLU(), torch.nn.Linear(4, 3, bias=bias))
    layout = ParameterLayout.of(network)
    setting = Setting(
        layout, np.array([5, 5]), 0, config.Local(), lambda k: torch.zeros(layout.size), classes
    )
    return methods.get(name)(methods.options(name)(**options), setting)


def test_who_has_them() -> None:
    assert WITH == ["amn", "fedavg", "fedavg_ft"]
    assert [methods.options(name)().prior for name in WITH] == [1.0, 0.0, 0.0]


@pytest.mark.parametrize("name", WITH)
def test_offsets_by_hand(name: str) -> None:
    """Counts and one more: 4, 1, 1 of 6. A client that lacks classes is told so in numbers."""
    method, y = made(name, prior=0.5), torch.tensor([0, 0, 0])
    model = torch.arange(27.0)
    there = method.to_client(model, y)
    shift = (there - model).tolist()
    third = np.log(4) / 3
    assert shift[:24] == [0] * 24
    assert shift[24:] == pytest.approx([third, -third / 2, -third / 2], abs=1e-5)
    torch.testing.assert_close(method.from_client(there, y), model)
    assert model.tolist() == list(range(27)), "changed in place"


@pytest.mark.parametrize("name", WITH)
@pytest.mark.parametrize("what", [{"prior": 0.0}, {"bias": False}, {"classes": 4}], ids=str)
def test_where_there_are_none_nothing_is_copied(name: str, what: dict[str, Any]) -> None:
    """No prior, no biases of the scores, other biases than scores."""
    method, y = made(name, **{"prior": 1.0, **what}), torch.tensor([0, 0, 1])
    model = torch.arange(float(method.setting.layout.size))
    room = torch.zeros(0)
    assert method.to_client(model, y) is model and method.from_client(model, y) is model
    assert method.shifted(model, method.offset(y), room=room) is model


@pytest.mark.parametrize("name", [name for name in methods.METHODS if name not in WITH])
def test_methods_without_the_option_have_none(name: str) -> None:
    """Those derived from FedAvg, too."""
    cls = methods.get(name)
    if name == "fedbn":
        setting = dataclasses.replace(made("fedavg").setting, layout=_normalised())
        method = cls(methods.options(name)(), setting)
    else:
        method = made(name)
    model, y = torch.arange(float(method.setting.layout.size)), torch.tensor([0, 0, 1])
    assert method.to_client(model, y) is model and method.from_client(model, y) is model
    assert not isinstance(method, ClassOffsets) or not len(method.offset(y))


@pytest.mark.parametrize(("name", "more"), [("amn", 0), ("fedavg", 0), ("fedavg_ft", 1)])
def test_what_they_take_is_in_the_forecast_of_memory(name: str, more: int) -> None:
    """Fine-tuning starts from a vector of its own; a turn starts from where it will put what it sends."""
    (without, each), (there, same) = (made(name, prior=prior).worker_rows() for prior in (0.0, 1.0))
    assert (there - without, same - each) == (more, 0)


def _normalised() -> ParameterLayout:
    layers = (torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 3))
    return ParameterLayout.of(torch.nn.Sequential(*layers))


@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_a_newcomer_trains_above_its_own_frequencies(tmp_path: Path, prior: float) -> None:
    """What FedAvg's newcomer sends: trained from the global model + offset, less it."""
    options = methods.options("fedavg_ft")(prior=prior)
    local = config.Local(epochs=3, batch_size=8, lr=0.2)
    run = plain.start(tmp_path, options, local=local)
    draw = np.random.default_rng(4)
    x, y = draw.normal(size=(11, plain.FEATURES)).astype(np.float32), np.arange(11) % 2  # never class 2
    samples: Any = dataclasses.replace(run.samples[0], x=torch.from_numpy(x), y=torch.from_numpy(y))
    start = torch.from_numpy(draw.normal(size=run.method.setting.layout.size)).float()
    one = Newcomer(2, samples, start, start, start)
    ready: Any = type("Ready", (), {"engine": run.engine, "config": run.config})
    desk = Desk(ready, run.method, {}, run.exchange.left)
    found = _trained(desk, one, start, "first", 1)
    own = plain.offset(y, prior, plain.CLASSES, len(start))
    order = rng.generator(run.config.seed, "newcomer first", client=2)
    once = dataclasses.replace(local, epochs=1)
    expected = plain.sgd(plain.linear, start.double().numpy() + own, x.astype(float), y, once, order) - own
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
