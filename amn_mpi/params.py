"""A model as one flat float32 vector, the layer groups inside it, and parts of it.

A client's model is that vector. The module's parameters and gradients are views of two such
vectors, so SGD, mixing and sending are vector operations and no state_dict is ever walked.
Running statistics of batch normalisation lie behind the parameters: they belong to the model that
is kept, sent and evaluated, and no step of SGD touches them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

STATISTICS = ".statistics"


@dataclass(frozen=True)
class Tensor:
    """One tensor: name, shape, and where it starts in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Group:
    """A layer group: a layer's weight and bias together, coordinates ``start .. stop - 1``.

    A layer's running statistics are a group of their own, ``<layer>.statistics``.
    """

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start

    @property
    def layer(self) -> str:
        return self.name.removesuffix(STATISTICS)


@dataclass(frozen=True)
class Part:
    """Some coordinates of the flat vector: ascending ranges ``(start, stop)`` that do not touch."""

    ranges: tuple[tuple[int, int], ...]

    @classmethod
    def of(cls, groups: Iterable[Group]) -> Part:
        """The coordinates of layer groups; neighbours become one range."""
        ranges: list[tuple[int, int]] = []
        for group in sorted(groups, key=lambda g: g.start):
            if ranges and ranges[-1][1] == group.start:
                ranges[-1] = (ranges[-1][0], group.stop)
            else:
                ranges.append((group.start, group.stop))
        return cls(tuple(ranges))

    @property
    def size(self) -> int:
        return sum(stop - start for start, stop in self.ranges)

    def take(self, vector: torch.Tensor) -> torch.Tensor:
        """(P,) -> (S,); a view where the part is one range."""
        import torch

        pieces = [vector[start:stop] for start, stop in self.ranges]
        return pieces[0] if len(pieces) == 1 else torch.cat([vector[:0], *pieces])

    def put(self, piece: torch.Tensor, vector: torch.Tensor) -> torch.Tensor:
        """Write (S,) into its coordinates of ``vector``, (P,), in place; returns ``vector``."""
        at = 0
        for start, stop in self.ranges:
            vector[start:stop] = piece[at : at + stop - start]
            at += stop - start
        return vector


@dataclass(frozen=True)
class ParameterLayout:
    """Where every tensor and every layer group lies in the flat vector of ``size`` floats.

    ``trained``: coordinates below it are parameters, those from it on running statistics.
    """

    tensors: tuple[Tensor, ...]
    groups: tuple[Group, ...]
    size: int
    trained: int

    @classmethod
    def of(cls, module: torch.nn.Module) -> ParameterLayout:
        """Layout of a module's parameters in their own order, then of its running statistics."""
        tensors: list[Tensor] = []
        groups: list[Group] = []
        start = trained = 0
        for name, tensor, kind in _tensors(module):
            size = tensor.numel()
            tensors.append(Tensor(name, tuple(tensor.shape), start, size))
            layer = name.rpartition(".")[0] + kind
            if groups and groups[-1].name == layer:
                groups[-1] = Group(layer, groups[-1].start, start + size)
            else:
                groups.append(Group(layer, start, start + size))
            start += size
            trained = trained if kind else start
        return cls(tuple(tensors), tuple(groups), start, trained)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that have parameters, from the input to the output."""
        return tuple(group.name for group in self.groups if group.stop <= self.trained)

    @property
    def score_biases(self) -> slice | None:
        """Where the biases of the classes' scores lie, if the last layer ends with one for each score."""
        *others, last = (tensor for tensor in self.tensors if tensor.start < self.trained)
        weight = others[-1] if others else None
        layer, _, leaf = last.name.rpartition(".")
        if leaf != "bias" or weight is None or weight.name.rpartition(".")[0] != layer:
            return None
        if weight.shape[:1] != last.shape:
            return None
        return slice(last.start, last.start + last.size)

    @property
    def whole(self) -> Part:
        return Part(((0, self.size),))

    def part(self, layers: Iterable[str]) -> Part:
        """The coordinates of whole layers, their running statistics included."""
        chosen = set(layers)
        return Part.of(group for group in self.groups if group.layer in chosen)

    @property
    def normalised(self) -> tuple[str, ...]:
        """Names of the layers with running statistics (batch normalisation)."""
        return tuple(group.layer for group in self.groups if group.start >= self.trained)

    def as_dict(self) -> dict:
        """Plain lists and numbers, for JSON and HDF5 attributes."""
        return {
            "tensors": [[t.name, list(t.shape), t.start] for t in self.tensors],
            "groups": [[g.name, g.start, g.stop] for g in self.groups],
            "size": self.size,
            "trained": self.trained,
        }


def _tensors(module: torch.nn.Module) -> Iterator[tuple[str, torch.Tensor, str]]:
    """(name, tensor, "" or STATISTICS): parameters, then buffers of floats (not the counters)."""
    yield from ((name, tensor, "") for name, tensor in module.named_parameters())
    for name, tensor in module.named_buffers():
        if tensor.is_floating_point():
            yield name, tensor, STATISTICS


def vector_of(module: torch.nn.Module) -> torch.Tensor:
    """A copy of a module's parameters and running statistics, (P,)."""
    import torch

    return torch.cat([tensor.detach().reshape(-1).float() for _, tensor, _ in _tensors(module)])


def bind(module: torch.nn.Module, layout: ParameterLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Move a module's tensors into one flat vector; returns (vector, gradient), each (P,).

    Values are kept. Afterwards writing to the vector changes the module, and backward() adds into
    the gradient, which stays 0 where running statistics are.
    """
    import torch

    device = next(module.parameters()).device
    flat = torch.empty(layout.size, dtype=torch.float32, device=device)
    grad = torch.zeros(layout.size, dtype=torch.float32, device=device)
    flat.copy_(vector_of(module))
    for tensor in layout.tensors:
        point(module, layout, tensor, flat)
        if tensor.start < layout.trained:
            piece = grad[tensor.start : tensor.start + tensor.size]
            module.get_parameter(tensor.name).grad = piece.view(tensor.shape)
    return flat, grad


def point(module: torch.nn.Module, layout: ParameterLayout, tensor: Tensor, flat: torch.Tensor) -> None:
    """Make one tensor of a module a view of ``flat``; a parameter takes its type over."""
    owner, _, leaf = tensor.name.rpartition(".")
    holder = module.get_submodule(owner)
    view = flat[tensor.start : tensor.start + tensor.size].view(tensor.shape)
    if tensor.start >= layout.trained:
        setattr(holder, leaf, view)
    else:
        getattr(holder, leaf).data = view


def load_into(module: torch.nn.Module, row: object) -> None:
    """Copy one flat row, shape (P,), into a module (no view is kept).

    Raises:
        ValueError: the row's length is not the module's.
    """
    import numpy as np
    import torch

    flat = torch.from_numpy(np.array(row, dtype=np.float32))
    layout = ParameterLayout.of(module)
    if flat.shape != (layout.size,):
        raise ValueError(f"row of shape {tuple(flat.shape)} for a model of {layout.size} parameters")
    with torch.no_grad():
        for tensor, (_, own, _) in zip(layout.tensors, _tensors(module)):
            own.copy_(flat[tensor.start : tensor.start + tensor.size].view(tensor.shape))
