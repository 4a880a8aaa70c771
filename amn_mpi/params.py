"""A model's parameters as one flat float32 vector, and the layer groups inside it.

A client's model is that vector. The module's parameters and gradients are views of two such
vectors, so SGD, mixing and sending are vector operations and no state_dict is ever walked.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Tensor:
    """One parameter tensor: name, shape, and where it starts in the flat vector."""

    name: str
    shape: tuple[int, ...]
    start: int
    size: int


@dataclass(frozen=True)
class Group:
    """A layer group: a layer's weight and bias together, coordinates ``start .. stop - 1``."""

    name: str
    start: int
    stop: int

    @property
    def size(self) -> int:
        return self.stop - self.start


@dataclass(frozen=True)
class ParameterLayout:
    """Where every tensor and every layer group lies in the flat vector of ``size`` floats."""

    tensors: tuple[Tensor, ...]
    groups: tuple[Group, ...]
    size: int

    @classmethod
    def of(cls, module: torch.nn.Module) -> ParameterLayout:
        """Layout of a module's parameters in their own order; consecutive ones of a layer group."""
        tensors: list[Tensor] = []
        groups: list[Group] = []
        start = 0
        for name, parameter in module.named_parameters():
            size = parameter.numel()
            tensors.append(Tensor(name, tuple(parameter.shape), start, size))
            layer = name.rpartition(".")[0]
            if groups and groups[-1].name == layer:
                groups[-1] = Group(layer, groups[-1].start, start + size)
            else:
                groups.append(Group(layer, start, start + size))
            start += size
        return cls(tuple(tensors), tuple(groups), start)

    def as_dict(self) -> dict:
        """Plain lists and numbers, for JSON and HDF5 attributes."""
        return {
            "tensors": [[t.name, list(t.shape), t.start] for t in self.tensors],
            "groups": [[g.name, g.start, g.stop] for g in self.groups],
            "size": self.size,
        }


def bind(module: torch.nn.Module, layout: ParameterLayout) -> tuple[torch.Tensor, torch.Tensor]:
    """Move a module's parameters into one flat vector; returns (parameters, gradients), each (P,).

    Values are kept. Afterwards writing to the vector changes the module, and backward() adds into
    the gradient vector.
    """
    import torch

    device = next(module.parameters()).device
    flat = torch.empty(layout.size, dtype=torch.float32, device=device)
    grad = torch.zeros(layout.size, dtype=torch.float32, device=device)
    for tensor, parameter in zip(layout.tensors, module.parameters()):
        piece = slice(tensor.start, tensor.start + tensor.size)
        view = flat[piece].view(tensor.shape)
        view.copy_(parameter.data)
        parameter.data = view
        parameter.grad = grad[piece].view(tensor.shape)
    return flat, grad


def load_into(module: torch.nn.Module, row: object) -> None:
    """Copy one flat row, shape (P,), into a module's parameters (no view is kept).

    Raises:
        ValueError: the row's length is not the module's number of parameters.
    """
    import numpy as np
    import torch

    flat = torch.from_numpy(np.array(row, dtype=np.float32))
    size = sum(p.numel() for p in module.parameters())
    if flat.shape != (size,):
        raise ValueError(f"row of shape {tuple(flat.shape)} for a model of {size} parameters")
    torch.nn.utils.vector_to_parameters(flat, module.parameters())
