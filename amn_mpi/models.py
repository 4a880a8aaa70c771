"""Small models, sized from the shape of a sample and the number of classes.

A builder returns an ordinary torch module. What travels is its parameters and, where there is batch
normalisation (the ``_bn`` forms), its running statistics.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

from amn_mpi import plugin
from amn_mpi.errors import ConfigError

if TYPE_CHECKING:
    import torch

    from amn_mpi.config import Model

Shape = tuple[int, ...]


def build(options: Model, shape: Shape, classes: int, seed: int, number: int = 0) -> torch.nn.Module:
    """The model named in the config, initialised from ``seed`` and ``number`` alone.

    Args:
        shape: of one sample, channels first for images, e.g. (1, 28, 28).
        number: which of many random starts.

    Raises:
        ConfigError: the model cannot take samples of this shape, or a user's own is not in order.
    """
    import torch

    from amn_mpi.rng import torch_seed

    # A generator of its own: importing code that draws must not change a model's start.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(seed, "model", number))
        if plugin.is_file(options.name):
            from amn_mpi import foreign

            return foreign.build(options.name, tuple(shape), classes, options.hidden)
        if options.name in TEXT:
            return TEXT[options.name](tuple(shape), classes, options)
        return MODELS[options.name](tuple(shape), classes, options.hidden)


def linear(shape: Shape, classes: int, hidden: int) -> torch.nn.Module:
    """Softmax regression."""
    from torch import nn

    return nn.Sequential(_layers(("flatten", nn.Flatten()), ("fc", nn.Linear(_size(shape), classes))))


def mlp(shape: Shape, classes: int, hidden: int, norm: bool = False) -> torch.nn.Module:
    """One hidden layer of ``model.hidden`` units; ``norm`` puts batch normalisation before its ReLU."""
    from torch import nn

    return nn.Sequential(
        _layers(
            ("flatten", nn.Flatten()),
            ("fc1", nn.Linear(_size(shape), hidden)),
            *([("norm1", nn.BatchNorm1d(hidden))] if norm else []),
            ("relu", nn.ReLU()),
            ("fc2", nn.Linear(hidden, classes)),
        )
    )


def cnn(shape: Shape, classes: int, hidden: int, norm: bool = False) -> torch.nn.Module:
    """The two-convolution network of pFL papers (McMahan et al. 2017 in PFLlib's form).

    conv 32 and 64 of 5x5 without padding, each with 2x2 max-pooling, fc 512: 582,026 parameters
    on 28x28 grey images and ten classes.
    """
    from torch import nn

    channels, flat = _after_pools("cnn", shape, last=64, pools=2)
    layers = _convolutions(channels, (32, 64), norm)
    return nn.Sequential(_layers(*layers, *_dense((flat, 512, classes), 3, norm)))


def lenet5(shape: Shape, classes: int, hidden: int, norm: bool = False) -> torch.nn.Module:
    """LeNet-5 with ReLU and max-pooling: conv 6 and 16 of 5x5, fc 120 and 84."""
    from torch import nn

    channels, flat = _after_pools("lenet5", shape, last=16, pools=2)
    layers = _convolutions(channels, (6, 16), norm)
    return nn.Sequential(_layers(*layers, *_dense((flat, 120, 84, classes), 3, norm)))


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


def text(shape: Shape, classes: int, options: Model) -> torch.nn.Module:
    """The mean of a text's token embeddings, and a linear layer."""
    from amn_mpi.text import MeanOfTokens

    _check_tokens("text", shape)
    return MeanOfTokens(options.vocabulary, options.embedding, classes)


def textcnn(shape: Shape, classes: int, options: Model) -> torch.nn.Module:
    """Convolutions over 3, 4 and 5 tokens, ``model.hidden`` filters of each, and a linear layer."""
    from amn_mpi.text import Convolutions

    _check_tokens("textcnn", shape)
    return Convolutions(options.vocabulary, options.embedding, options.hidden, (3, 4, 5), classes)


MODELS: dict[str, Callable[[Shape, int, int], torch.nn.Module]] = {
    "linear": linear,
    "mlp": mlp,
    "cnn": cnn,
    "lenet5": lenet5,
    "resnet8": resnet8,
    "mlp_bn": partial(mlp, norm=True),
    "cnn_bn": partial(cnn, norm=True),
    "lenet5_bn": partial(lenet5, norm=True),
}
# Of samples that are token numbers.
TEXT: dict[str, Callable[[Shape, int, Model], torch.nn.Module]] = {"text": text, "textcnn": textcnn}


def _layers(*pairs: tuple[str, torch.nn.Module]) -> OrderedDict[str, torch.nn.Module]:
    return OrderedDict(pairs)


def _convolutions(channels: int, widths: Sequence[int], norm: bool) -> list[tuple[str, torch.nn.Module]]:
    """5x5 convolutions, each (normalised and) with ReLU and 2x2 max-pooling."""
    from torch import nn

    found: list[tuple[str, torch.nn.Module]] = []
    for k, width in enumerate(widths, 1):
        found.append((f"conv{k}", nn.Conv2d(channels, width, 5)))
        found += [(f"norm{k}", nn.BatchNorm2d(width))] if norm else []
        found += [(f"relu{k}", nn.ReLU()), (f"pool{k}", nn.MaxPool2d(2))]
        channels = width
    return found


def _dense(widths: Sequence[int], first: int, norm: bool) -> list[tuple[str, torch.nn.Module]]:
    """Fully connected layers; those before the last (normalised and) with ReLU, counted from ``first``."""
    from torch import nn

    found: list[tuple[str, torch.nn.Module]] = [("flatten", nn.Flatten())]
    for k, (inputs, outputs) in enumerate(zip(widths, widths[1:]), 1):
        found.append((f"fc{k}", nn.Linear(inputs, outputs)))
        if k < len(widths) - 1:
            number = first + k - 1
            found += [(f"norm{number}", nn.BatchNorm1d(outputs))] if norm else []
            found.append((f"relu{number}", nn.ReLU()))
    return found


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


def _check_tokens(name: str, shape: Shape) -> None:
    if len(shape) != 1:
        raise _misfit(name, shape, "texts of token numbers (length,)")


def _misfit(name: str, shape: Shape, needs: str) -> ConfigError:
    fits = "valid for any shape: linear, mlp, mlp_bn"
    return ConfigError(f"model.name = {name}: needs {needs}, the data has samples of {shape}; {fits}")
