"""Small models, sized from the shape of a sample and the number of classes.

A builder returns an ordinary torch module without buffers: what it learns is its parameters, and
these are what travels.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from amn_mpi.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from amn_mpi.config import Model

Shape = tuple[int, ...]


def build(options: Model, shape: Shape, classes: int, seed: int) -> torch.nn.Module:
    """The model named in the config, initialised from ``seed`` alone.

    Args:
        shape: of one sample, channels first for images, e.g. (1, 28, 28).

    Raises:
        ConfigError: the model cannot take samples of this shape.
    """
    import torch

    from amn_mpi.rng import torch_seed

    # A generator of its own: importing code that draws must not change a model's start.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "model"))
        return MODELS[options.name](tuple(shape), classes, options.hidden)


def linear(shape: Shape, classes: int, hidden: int) -> torch.nn.Module:
    """Softmax regression."""
    from torch import nn

    return nn.Sequential(_layers(("flatten", nn.Flatten()), ("fc", nn.Linear(_size(shape), classes))))


def mlp(shape: Shape, classes: int, hidden: int) -> torch.nn.Module:
    """One hidden layer of ``model.hidden`` units."""
    from torch import nn

    return nn.Sequential(
        _layers(
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(_size(shape), hidden)),
            ("relu", nn.ReLU()),
            ("fc2", nn.Linear(hidden, classes)),
        )
    )


def cnn(shape: Shape, classes: int, hidden: int) -> torch.nn.Module:
    """The two-convolution network of pFL papers (McMahan et al. 2017 in PFLlib's form).

    conv 32 and 64 of 5x5 without padding, each with 2x2 max-pooling, fc 512: 582,026 parameters
    on 28x28 grey images and ten classes.
    """
    from torch import nn

    channels, flat = _after_pools("cnn", shape, last=64, pools=2)
    return nn.Sequential(
        _layers(
            ("conv1", nn.Conv2d(channels, 32, 5)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(32, 64, 5)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(flat, 512)),
            ("relu3", nn.ReLU()),
            ("fc2", nn.Linear(512, classes)),
        )
    )


def lenet5(shape: Shape, classes: int, hidden: int) -> torch.nn.Module:
    """LeNet-5 with ReLU and max-pooling: conv 6 and 16 of 5x5, fc 120 and 84."""
    from torch import nn

    channels, flat = _after_pools("lenet5", shape, last=16, pools=2)
    return nn.Sequential(
        _layers(
            ("conv1", nn.Conv2d(channels, 6, 5)),
            ("relu1", nn.ReLU()),
            ("pool1", nn.MaxPool2d(2)),
            ("conv2", nn.Conv2d(6, 16, 5)),
            ("relu2", nn.ReLU()),
            ("pool2", nn.MaxPool2d(2)),
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(flat, 120)),
            ("relu3", nn.ReLU()),
            ("fc2", nn.Linear(120, 84)),
            ("relu4", nn.ReLU()),
            ("fc3", nn.Linear(84, classes)),
        )
    )


def resnet8(shape: Shape, classes: int, hidden: int) -> torch.nn.Module:
    """Three residual blocks (16, 32, 64 channels) with GroupNorm, global average pooling.

    GroupNorm and not BatchNorm: it has no running statistics, which averaging spoils
    (Hsieh et al., ICML 2020).
    """
    from torch import nn

    from amn_mpi.resnet import ResidualBlock

    if len(shape) != 3 or min(shape[1:]) < 4:
        raise _misfit("resnet8", shape, "images of at least 4x4")
    return nn.Sequential(
        _layers(
            ("conv", nn.Conv2d(shape[0], 16, 3, padding=1, bias=False)),
            ("norm", nn.GroupNorm(4, 16)),
            ("relu", nn.ReLU()),
            ("block1", ResidualBlock(16, 16, 1)),
            ("block2", ResidualBlock(16, 32, 2)),
            ("block3", ResidualBlock(32, 64, 2)),
            ("pool", nn.AdaptiveAvgPool2d(1)),
            ("flatten", nn.Flatten()),
            ("fc", nn.Linear(64, classes)),
        )
    )


MODELS: dict[str, Callable[[Shape, int, int], torch.nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "lenet5": lenet5,
    "resnet8": resnet8,
}


def _layers(*pairs: tuple[str, torch.nn.Module]) -> OrderedDict[str, torch.nn.Module]:

    return OrderedDict(pairs)


def _size(shape: Sequence[int]) -> int:
    size = 1
    for n in shape:
        size *= n
    return size


def _after_pools(name: str, shape: Shape, last: int, pools: int) -> tuple[int, int]:
    """(input channels, features after ``pools`` times a 5x5 convolution and a 2x2 pool)."""
    if len(shape) != 3:
        raise _misfit(name, shape, "images (channels, height, width)")
    height, width = shape[1:]
    for _ in range(pools):
        height, width = (height - 4) // 2, (width - 4) // 2
    if height < 1 or width < 1:
        raise _misfit(name, shape, "images of at least 16x16")
    return shape[0], last * height * width


def _misfit(name: str, shape: Shape, needs: str) -> ConfigError:
    fits = "valid for any shape: linear, mlp"
    return ConfigError(f"model.name = {name}: needs {needs}, the data has samples of {shape}; {fits}")
