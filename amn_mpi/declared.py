"""What a method returns is what it declares; else its author hears of it in one line."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import numpy as np

from amn_mpi.errors import Misdeclared

if TYPE_CHECKING:
    from amn_mpi.methods.base import Method, State

# What a line of metrics.jsonl says of every run.
COLUMNS = frozenset(
    ("round", "clients", "seconds", "turn_seconds", "diverged", "models", "mean_accuracy", "worst10", "std")
    + ("deciles", "effective_neighbours", "inside_concept_groups", "inside_label_groups")
)


def state(method: Method, what: str, found: Any) -> State:
    """Server or client state as it is.

    Args:
        what: who returned it, for the message.

    Raises:
        Misdeclared: it is something else than tensors by name.
    """
    import torch

    who = f"{type(method).__name__}.{what}"
    if not isinstance(found, dict):
        raise Misdeclared(f"{who} returned {type(found).__name__}; valid is {{name: tensor}}")
    for name, value in found.items():
        if not isinstance(value, torch.Tensor):
            raise Misdeclared(f"{who} holds {name} of type {type(value).__name__}; valid is a tensor")
    return found


def figures(method: Method, found: Any) -> dict[str, Any]:
    """A round's figures as JSON holds them: numbers of numpy and torch become Python's.

    Raises:
        Misdeclared: no dict, a name that is taken, or a value that JSON does not know.
    """
    who = f"{type(method).__name__}.aggregate"
    if not isinstance(found, dict):
        raise Misdeclared(f"{who} returned {type(found).__name__}; valid is {{name: figure}}, or {{}}")
    if taken := sorted(COLUMNS.intersection(found)):
        raise Misdeclared(f"{who} returned a figure {taken[0]}, which every run has; give it another name")
    plain = {name: _plain(value) for name, value in found.items()}
    for name, value in plain.items():
        try:
            json.dumps(value)
        except (TypeError, ValueError) as reason:
            raise Misdeclared(f"{who} returned a figure {name} that is no JSON value: {reason}") from None
    return plain


def _plain(value: Any) -> Any:
    import torch

    if isinstance(value, torch.Tensor):
        value = value.detach().cpu().numpy()
    return value.tolist() if isinstance(value, (np.ndarray, np.generic)) else value


def model(method: Method, name: str, vector: Any, size: int) -> None:
    """One of a client's models.

    Raises:
        Misdeclared: it is no vector of all parameters.
    """
    found = tuple(getattr(vector, "shape", ())) if vector is not None else "None"
    if found != (size,):
        raise Misdeclared(
            f"{type(method).__name__}.deployed yielded model {name} of shape {found}; valid is ({size},)"
        )
