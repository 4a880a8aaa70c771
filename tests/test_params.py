"""Flat vectors as views of a module's parameters, and layer groups."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from amn_mpi import models
from amn_mpi.config import Model
from amn_mpi.params import Group, ParameterLayout, bind, load_into


def module(name: str = "mlp", shape: tuple[int, ...] = (4,)) -> torch.nn.Module:
    return models.build(Model(name, hidden=5), shape, 3, 0)


def test_groups_hold_weight_and_bias_together() -> None:
    layout = ParameterLayout.of(module())
    assert layout.groups == (Group("fc1", 0, 25), Group("fc2", 25, 43))
    assert [(t.name, t.shape, t.start, t.size) for t in layout.tensors] == [
        ("fc1.weight", (5, 4), 0, 20),
        ("fc1.bias", (5,), 20, 5),
        ("fc2.weight", (3, 5), 25, 15),
        ("fc2.bias", (3,), 40, 3),
    ]
    assert layout.size == 43 and layout.groups[1].size == 18


@pytest.mark.parametrize(("name", "shape"), [("cnn", (1, 28, 28)), ("resnet8", (3, 32, 32))])
def test_groups_cover_every_model_without_gaps(name: str, shape: tuple[int, ...]) -> None:
    network = module(name, shape)
    layout = ParameterLayout.of(network)
    assert layout.size == sum(p.numel() for p in network.parameters())
    edges = [g.start for g in layout.groups] + [layout.size]
    assert edges[0] == 0 and [g.stop for g in layout.groups] == edges[1:]
    assert len({g.name for g in layout.groups}) == len(layout.groups)
    for t in layout.tensors:
        home = next(g for g in layout.groups if g.start <= t.start < g.stop)
        assert t.name.rpartition(".")[0] == home.name and t.start + t.size <= home.stop


def test_layout_as_plain_values() -> None:
    told = json.loads(json.dumps(ParameterLayout.of(module()).as_dict()))
    assert told["groups"] == [["fc1", 0, 25], ["fc2", 25, 43]] and told["size"] == 43
    assert told["tensors"][2] == ["fc2.weight", [3, 5], 25]


def test_vector_and_module_are_one() -> None:
    network = module()
    before = torch.cat([p.detach().flatten() for p in network.parameters()])
    flat, grad = bind(network, ParameterLayout.of(network))
    assert torch.equal(flat, before) and not grad.any()
    flat.copy_(torch.arange(43.0))
    assert network.fc1.weight[1, 2] == 6 and network.fc2.bias[2] == 42
    with torch.no_grad():
        network.fc2.weight[0, 0] = -7
    assert flat[25] == -7


def test_backward_adds_into_the_flat_gradient() -> None:
    network = module()
    _, grad = bind(network, ParameterLayout.of(network))
    network.fc2.bias.sum().backward()
    (3 * network.fc1.weight[0, 1]).backward()
    assert grad.nonzero().flatten().tolist() == [1, 40, 41, 42] and grad[1] == 3
    network.fc2.bias.sum().backward()
    assert grad[40:].tolist() == [2, 2, 2]


def test_load_into_copies() -> None:
    network = module()
    row = np.arange(43.0)
    load_into(network, row)
    row[:] = 0
    assert network.fc1.bias.tolist() == [20, 21, 22, 23, 24] and network.fc2.weight[2, 4] == 39


@pytest.mark.parametrize("shape", [(42,), (44,), (1, 43)])
def test_load_into_refuses_another_length(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="43 parameters"):
        load_into(module(), np.zeros(shape))


@pytest.mark.parametrize("name", [*models.MODELS, *models.TEXT])
def test_biases_of_the_scores(name: str) -> None:
    """What is added to them is added to the scores, whatever the sample."""
    network = module(name, (12,) if name in models.TEXT else (3, 32, 32)).eval()
    layout = ParameterLayout.of(network)
    where = layout.score_biases
    assert where is not None and where.stop - where.start == 3
    x = torch.ones(2, 12) if name in models.TEXT else torch.rand(2, 3, 32, 32)
    flat, _ = bind(network, layout)
    with torch.no_grad():
        before = network(x)
        flat[where] += torch.tensor([1.0, -2.0, 4.0])
        torch.testing.assert_close(network(x) - before, torch.tensor([[1.0, -2.0, 4.0]] * 2))


def test_a_network_without_biases_of_its_scores() -> None:
    def where(*layers: torch.nn.Module) -> slice | None:
        return ParameterLayout.of(torch.nn.Sequential(*layers)).score_biases

    linear = torch.nn.Linear
    assert where(linear(4, 3)) == slice(12, 15)
    assert where(linear(4, 3), torch.nn.ReLU()) == slice(12, 15)
    assert where(linear(4, 5), linear(5, 3, bias=False)) is None
    assert where(linear(4, 3), torch.nn.LayerNorm(3)) == slice(18, 21)
