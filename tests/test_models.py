"""The models: sizes worked out by hand, shapes, starts, and shapes that do not fit."""

from __future__ import annotations

import pytest
import torch

from amn_mpi import config, models
from amn_mpi.config import Model
from amn_mpi.errors import ConfigError

GREY, COLOUR = (1, 28, 28), (3, 32, 32)


def build(name: str, shape: tuple[int, ...] = GREY, seed: int = 0) -> torch.nn.Module:
    return models.build(Model(name, hidden=64), shape, 10, seed)


def block(inside: int, outside: int) -> int:
    """Two 3x3 convolutions without bias, two norms, a 1x1 shortcut where channels change."""
    convolutions = 9 * inside * outside + 9 * outside * outside
    return convolutions + 4 * outside + inside * outside * (inside != outside)


COUNTS = {
    ("linear", GREY): 784 * 10 + 10,
    ("linear", COLOUR): 3072 * 10 + 10,
    ("mlp", GREY): 784 * 64 + 64 + 64 * 10 + 10,
    # 28 -> 24 -> 12 -> 8 -> 4: 64 x 4 x 4 features; McMahan's cnn without padding
    ("cnn", GREY): 582_026,
    ("cnn", COLOUR): 3 * 25 * 32 + 32 + 32 * 25 * 64 + 64 + 64 * 5 * 5 * 512 + 512 + 5120 + 10,
    # 28 -> 24 -> 12 -> 8 -> 4: 16 x 4 x 4 features
    ("lenet5", GREY): 25 * 6 + 6 + 6 * 25 * 16 + 16 + 256 * 120 + 120 + 120 * 84 + 84 + 840 + 10,
    ("lenet5", COLOUR): 456 + 2416 + 400 * 120 + 120 + 10_164 + 850,
    ("resnet8", GREY): 9 * 16 + 32 + block(16, 16) + block(16, 32) + block(32, 64) + 650,
    ("resnet8", COLOUR): 27 * 16 + 32 + block(16, 16) + block(16, 32) + block(32, 64) + 650,
}


def test_the_configuration_names_the_models_that_there_are() -> None:
    """It keeps a list of its own: reading a command line imports no torch."""
    assert list(config.MODELS) == [*models.MODELS, *models.TEXT] and tuple(models.TEXT) == config.TEXT


@pytest.mark.parametrize(("name", "shape"), COUNTS)
def test_parameters_by_hand(name: str, shape: tuple[int, ...]) -> None:
    assert sum(p.numel() for p in build(name, shape).parameters()) == COUNTS[name, shape]


def test_the_sum_of_the_cnn() -> None:
    assert COUNTS["cnn", GREY] == 832 + 51_264 + 1024 * 512 + 512 + 5130


@pytest.mark.parametrize("shape", [GREY, COLOUR])
@pytest.mark.parametrize("name", models.MODELS)
def test_forward(name: str, shape: tuple[int, ...]) -> None:
    network = build(name, shape)
    out = network(torch.randn(2, *shape))
    assert out.shape == (2, 10) and out.isfinite().all()
    assert bool(list(network.buffers())) == name.endswith("_bn")
    out.sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters() if p.ndim > 1)


@pytest.mark.parametrize("name", models.MODELS)
def test_a_sample_counts_for_itself(name: str) -> None:
    network, x = build(name).eval(), torch.randn(3, *GREY, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(network(x)[1], network(x[1:2])[0], atol=1e-5)


@pytest.mark.parametrize("name", models.MODELS)
def test_the_start_follows_from_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    first = torch.nn.utils.parameters_to_vector(build(name).parameters())
    drawn = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), drawn)  # the global generator was left as it was
    again = torch.nn.utils.parameters_to_vector(build(name).parameters())
    other = torch.nn.utils.parameters_to_vector(build(name, seed=1).parameters())
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cnn", (1, 15, 28)),
        ("cnn", (1, 28, 12)),
        ("cnn", (784,)),
        ("lenet5", (1, 15, 15)),
        ("lenet5", (28, 28)),
        ("resnet8", (1, 3, 9)),
        ("resnet8", (64,)),
    ],
)
def test_shapes_that_do_not_fit(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError) as caught:
        build(name, shape)
    assert f"model.name = {name}" in str(caught.value) and str(shape) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cnn", (1, 16, 16)),
        ("lenet5", (2, 16, 40)),
        ("resnet8", (1, 4, 4)),
        ("linear", (3,)),
        ("mlp", (2, 3, 4, 5)),
        ("cnn_bn", (1, 16, 16)),
        ("lenet5_bn", (2, 16, 40)),
        ("mlp_bn", (3,)),
    ],
)
def test_smallest_and_odd_shapes_that_fit(name: str, shape: tuple[int, ...]) -> None:
    assert build(name, shape)(torch.randn(2, *shape)).shape == (2, 10)


def test_hidden_sizes_the_mlp() -> None:
    network = models.build(Model("mlp", hidden=7), (5,), 3, 0)
    assert sum(p.numel() for p in network.parameters()) == 5 * 7 + 7 + 7 * 3 + 3
