"""Networks as the compiled engine knows them: a row of numbers a layer, as ``native/steps.c`` reads it."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import nn

from amn_mpi.dense import unaltered

CONVOLUTION, LINEAR = 0, 1
OUTPUTS, WEIGHT, BIAS, NORM, RUNNING = 2, 7, 8, 10, 11  # some columns of a specification
MOST_LAYERS = 16


def specification(module: nn.Module, shape: tuple[int, ...]) -> np.ndarray | None:
    """The network as ``steps.c`` wants it, (layers, 12) int64; None if it is not of that form.

    The last two of a layer tell where the parameters and the running statistics of its batch
    normalisation start, -1 where it has none.

    Args:
        shape: of one sample.
    """
    if type(module) is not nn.Sequential or not unaltered(module):
        return None
    children, norms = _apart(list(module.children()))
    rows: list[tuple[int, ...]] = []
    at = 0
    while children and type(children[0]) is nn.Conv2d:
        if len(shape) != 3 or not _convolves(children[:3]) or children[0].in_channels != shape[0]:
            return None
        conv = children[0]
        kh, kw = conv.kernel_size
        inputs, outputs = conv.in_channels, conv.out_channels
        weight, bias, norm, at = _places(conv, at, conv in norms)
        rows.append((CONVOLUTION, inputs, outputs, *shape[1:], kh, kw, weight, bias, 1, norm, -1))
        shape = (outputs, (shape[1] - kh + 1) // 2, (shape[2] - kw + 1) // 2)
        if min(shape) < 1:
            return None
        children = children[3:]
    if not children or not _flattens(children[0]) or not _alternates(children[1:]):
        return None
    features, children = math.prod(shape), children[1:]
    if len(rows) + len(children[::2]) > MOST_LAYERS:
        return None
    for layer in children[::2]:
        if layer.in_features != features or layer.bias is None:
            return None
        outputs = layer.out_features
        weight, bias, norm, at = _places(layer, at, layer in norms)
        relu = layer is not children[-1]
        rows.append((LINEAR, features, outputs, 0, 0, 0, 0, weight, bias, relu, norm, -1))
        features = outputs
    tensors = list(module.parameters())
    plain = all(t.dtype == torch.float32 and t.device.type == "cpu" for t in tensors)
    layers = [layer for layer in module if type(layer) in (nn.Conv2d, nn.Linear)]
    fitting = all(_normalises(norm, layer) for layer, norm in norms.items()) and children[-1] not in norms
    if not plain or not fitting or sum(t.numel() for t in tensors) != at:
        return None
    if not _keeps_only(module, [norms[layer] for layer in layers if layer in norms]):
        return None
    found = np.array(rows, dtype=np.int64)
    for row, layer in zip(found, layers):
        if layer in norms:
            row[RUNNING], at = at, at + 2 * row[OUTPUTS]
    return found


def _flattens(layer: nn.Module) -> bool:
    """Whether it makes a row of all that a sample has."""
    return type(layer) is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1)


def _alternates(layers: list[nn.Module]) -> bool:
    """Whether they are linear layers with a ReLU between each two."""
    kinds = [type(layer) for layer in layers]
    return len(kinds) % 2 == 1 and kinds == ([nn.Linear, nn.ReLU] * len(kinds))[: len(kinds)]


def _keeps_only(module: nn.Module, norms: list[Any]) -> bool:
    """Whether its buffers are the running statistics of these, in order, and each its own."""
    buffers = [buffer for _, buffer in module.named_buffers() if buffer.is_floating_point()]
    kept = [each for norm in norms for each in _statistics(norm)]
    return len(buffers) == len(kept) and all(a is b for a, b in zip(buffers, kept))


def _apart(layers: list[Any]) -> tuple[list[Any], dict[Any, Any]]:
    """The layers without batch normalisation, and the layer before each normalisation -> that."""
    norms = {
        before: layer
        for before, layer in zip(layers, layers[1:])
        if type(layer) in (nn.BatchNorm1d, nn.BatchNorm2d)
    }
    taken = set(norms.values())
    return [layer for layer in layers if layer not in taken], norms


def _places(layer: Any, at: int, normalised: bool) -> tuple[int, int, int, int]:
    """(weights, biases, batch normalisation or -1, what comes after) in the flat vector from ``at`` on."""
    weights, outputs = layer.weight.numel(), layer.weight.shape[0]
    bias = at + weights
    end = bias + outputs
    return at, bias, end if normalised else -1, end + 2 * outputs * normalised


def _normalises(norm: Any, layer: Any) -> bool:
    """Whether it is the batch normalisation of such a layer, with torch's defaults."""
    kind = nn.BatchNorm2d if type(layer) is nn.Conv2d else nn.BatchNorm1d
    return (
        type(layer) in (nn.Conv2d, nn.Linear)
        and type(norm) is kind
        and norm.num_features == layer.weight.shape[0]
        and (norm.eps, norm.momentum, norm.affine, norm.track_running_stats) == (1e-5, 0.1, True, True)
    )


def _statistics(norm: Any) -> tuple[torch.Tensor, torch.Tensor]:
    return norm.running_mean, norm.running_var


def _convolves(layers: list[Any]) -> bool:
    """Whether they are convolution, ReLU, 2x2 max-pooling, without padding and strides of their own."""
    if [type(layer) for layer in layers] != [nn.Conv2d, nn.ReLU, nn.MaxPool2d]:
        return False
    conv, _, pool = layers
    ones = (conv.stride, conv.dilation, conv.groups)
    twos = (pool.kernel_size, pool.stride)
    return (
        ones == ((1, 1), (1, 1), 1)
        and conv.padding == (0, 0)
        and conv.bias is not None
        and all(size in (2, (2, 2)) for size in twos)
        and pool.padding in (0, (0, 0))
        and pool.dilation in (1, (1, 1))
        and not pool.ceil_mode
        and not pool.return_indices
    )
