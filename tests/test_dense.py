"""The written-out step against autograd."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from amn_mpi import models
from amn_mpi.config import Model
from amn_mpi.dense import Dense
from amn_mpi.params import ParameterLayout, bind

DEEP = nn.Sequential(nn.Flatten(), nn.Linear(12, 9), nn.ReLU(), nn.Linear(9, 7), nn.ReLU(), nn.Linear(7, 4))


def networks() -> list[nn.Module]:
    built = [
        models.build(Model("linear"), (1, 28, 28), 10, 3),
        models.build(Model("mlp", hidden=64), (1, 28, 28), 10, 3),
        models.build(Model("mlp", hidden=5), (12,), 4, 3),
    ]
    return [*built, DEEP]


@pytest.mark.parametrize("size", [1, 2, 7, 10, 33])
@pytest.mark.parametrize("number", range(4))
def test_gradients_are_autograds(number: int, size: int) -> None:
    module = networks()[number]
    parameters, gradients = bind(module, ParameterLayout.of(module))
    shape = (1, 28, 28) if parameters.numel() > 5000 else (12,)
    draw = torch.Generator().manual_seed(size)
    x = torch.randn(size, *shape, generator=draw)
    y = torch.randint(0, 4, (size,), generator=draw)
    gradients.zero_()
    expected = functional.cross_entropy(module(x), y)
    expected.backward()
    right = gradients.clone()
    gradients.fill_(7.0)  # everything is written, nothing is added to what was there
    chance = Dense(module).backward(x, y)
    torch.testing.assert_close(gradients, right, rtol=1e-5, atol=1e-8)
    torch.testing.assert_close(functional.nll_loss(chance, y), expected.detach())


def test_what_is_frozen_is_left_alone() -> None:
    module = networks()[3]
    _, gradients = bind(module, ParameterLayout.of(module))
    x, y = torch.randn(6, 12), torch.tensor([0, 1, 2, 3, 0, 1])
    Dense(module).backward(x, y)
    whole = gradients.clone()
    for frozen in ([0], [0, 1], [2], [1]):
        layers = [layer for layer in module if isinstance(layer, nn.Linear)]
        for k, layer in enumerate(layers):
            layer.weight.requires_grad_(k not in frozen)
        gradients.fill_(-3.0)
        Dense(module).backward(x, y)
        for k, layer in enumerate(layers):
            layer.weight.requires_grad_(True)
            assert bool((layer.weight.grad == -3.0).all()) == (k in frozen)
        free = gradients != -3.0
        assert torch.equal(gradients[free], whole[free]) and free.any()


@pytest.mark.parametrize("name", models.MODELS)
def test_which_networks_fit(name: str) -> None:
    assert Dense.fits(models.build(Model(name), (1, 28, 28), 10, 0)) == (name in ("linear", "mlp"))


def test_other_networks_do_not_fit() -> None:
    assert Dense.fits(DEEP)
    for wrong in (
        nn.Sequential(nn.Linear(3, 4)),
        nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.ReLU()),
        nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)),
        nn.Sequential(nn.Flatten(), nn.Linear(3, 4), nn.Linear(4, 2)),
    ):
        assert not Dense.fits(wrong)
