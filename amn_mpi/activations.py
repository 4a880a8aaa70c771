"""What a batch takes on its way through the network, and how many clients can train together."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from amn_mpi.config import Config
    from amn_mpi.data import Federation
    from amn_mpi.params import ParameterLayout

FLOAT = 4
# Of the batched engine, in vectors of P floats a client: model and gradient, what is added to it
# (a layer's gradient, or the way to an anchor), and an anchor or a shift of its own.
STACKED = 4
# Bytes that a group may take. On a CPU no more than stays in its caches: larger groups are slower
# there (200 clients of an mlp: 165 ms a round in groups of 32, 211 ms in one). On a GPU enough for
# hundreds of small models.
ROOM, ROOM_ON_GPU = 32 * 2**20, 2**30
MOST = 256  # clients of a group: each has a thread


def largest(config: Config, fed: Federation) -> int:
    """Bytes of the largest batch inside the network, an estimate.

    In evaluation about six tensors of the largest kind live at a time (measured with the ResNet on
    CIFAR-10), and the samples.
    """
    sizes, sample = _sizes(config, fed)
    most = int(max(fed.train.max(), fed.test.max()))
    evaluation = FLOAT * (6 * max(sizes) + sample) * min(config.evaluate.batch_size, most)
    return max(training(config, fed), evaluation)


def training(config: Config, fed: Federation) -> int:
    """Bytes of one client's batch: every layer's output and its gradient are kept."""
    most = int(max(fed.train.max(), fed.test.max()))
    return FLOAT * 2 * sum(_sizes(config, fed)[0]) * min(config.local.batch_size, most)


def together(config: Config, fed: Federation, layout: ParameterLayout, device: str) -> int:
    """Clients that the batched engine trains together: by configuration and kind of device."""
    if config.engine_clients:
        return config.engine_clients
    each = FLOAT * (STACKED + bool(config.local.momentum)) * layout.size + training(config, fed)
    return min(MOST, max(1, (ROOM if device == "cpu" else ROOM_ON_GPU) // each))


def _sizes(config: Config, fed: Federation) -> tuple[list[int], int]:
    """Numbers that come out of each layer for one sample, and those of the sample."""
    import torch

    from amn_mpi import models, plugin, shapes

    if plugin.is_file(config.model.name):
        from amn_mpi import foreign

        own = models.build(config.model, fed.shape, fed.classes, config.seed)
        return foreign.outputs(own, fed.shape), math.prod(fed.shape)

    with torch.device("meta"):
        module = models.build(config.model, fed.shape, fed.classes, config.seed)
    return shapes.outputs(module, fed.shape), math.prod(fed.shape)
