"""What a rank's clients do in a round: the turns of those in the cohort, and the models of all.

An engine takes one client after another, or a group of them together.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, TypeVar

import numpy as np
import torch

from amn_mpi import declared, rng
from amn_mpi.errors import Interrupted, Misdeclared
from amn_mpi.exchange import CUT
from amn_mpi.local import Engine
from amn_mpi.methods.base import Client, Update

if TYPE_CHECKING:
    from amn_mpi.rounds import Run

T = TypeVar("T")


def mine(run: Run, cohort: np.ndarray) -> Iterator[tuple[int, int]]:
    """This rank's members of the cohort as (position among them, client)."""
    if run.comm.owner is None:
        return iter(())
    return enumerate(map(int, run.placement.of(run.comm.owner, cohort)))


def turns(run: Run, t: int, cohort: np.ndarray, received: torch.Tensor) -> list[Update]:
    """The turns of this rank's members of the cohort; after a stop the rest is cut off."""
    members, updates = list(mine(run, cohort)), list[Update]()
    try:
        for group in groups(run, members):
            updates += turns_of(run, t, cohort, group, received)
    except Interrupted:
        nothing = Update(figures=dict.fromkeys(run.method.wire.figures, 0.0), trouble=CUT)
        updates += [nothing] * (len(members) - len(updates))
    return updates


def turns_of(
    run: Run, t: int, cohort: np.ndarray, group: list[tuple[int, int]], received: torch.Tensor
) -> list[Update]:
    """The method's local update for each client of a group, and a check of what it returns."""

    def update(k: int, number: int, engine: Engine) -> Update:
        client = view(run, t, number, run.exchange.slot(k))
        return run.method.local_update(client, share(run, k, received), engine)

    started = time.monotonic()
    made = together(run, group, update)
    checked = [finish(run, cohort, k, number, one) for (k, number), one in zip(group, made)]
    steps = np.array([run.engine.steps(len(run.samples[number].y)) for _, number in group])
    seconds = (time.monotonic() - started) * steps / steps.sum()
    return [replace(one, seconds=float(own)) for one, own in zip(checked, seconds)]


def finish(run: Run, cohort: np.ndarray, k: int, number: int, update: Update) -> Update:
    """A turn is over: what it returned is checked, and taken up into a mean."""
    check(run, update)
    trouble = run.exchange.take(number, k, cohort, update)
    state = {name: vector.cpu() for name, vector in update.state.items()}  # a GPU holds one group
    return replace(update, state=state, features=run.exchange.keep(k, update.features), trouble=trouble)


def check(run: Run, update: Update) -> None:
    """What a method returns is what it declares; else its author hears of it in the first turn.

    Raises:
        Misdeclared: no Update, names missing or too many, state of another shape, another number of features,
            or what the next client's turn would overwrite.
    """
    method, who = run.method, type(run.method).__name__
    if not isinstance(update, Update):
        raise Misdeclared(f"{who}.local_update returned {type(update).__name__}; valid is Update(...)")
    features = update.features
    for kind, got, valid in (
        ("state", update.state, run.state),
        ("figures", update.figures, method.wire.figures),
    ):
        if set(got) != set(valid):
            hint = f": return Update({kind}={{name: ...}})" if valid else ""
            raise Misdeclared(
                f"{who}.local_update returned {kind} {sorted(got)}, declared are {sorted(valid)}{hint}"
            )
    for name, vector in update.state.items():
        shape = tuple(run.state[name].shape[1:])
        if tuple(vector.shape) != shape:
            raise Misdeclared(
                f"{who}.local_update returned state {name} of shape {tuple(vector.shape)}, declared {shape}"
            )
    number = 0 if features is None else features.numel()
    if number != method.features:
        raise Misdeclared(f"{who}.local_update returned {number} features, declared are {method.features}")
    shared = list(run.engine.workspaces)
    shared += [run.exchange.up] if method.wire.up == "mean" else []
    workspace = {v.untyped_storage().data_ptr() for v in shared}
    kept = {f"state {name}": vector for name, vector in update.state.items()}
    for what, vector in (kept if features is None else {**kept, "features": features}).items():
        if vector.untyped_storage().data_ptr() in workspace:
            raise Misdeclared(f"{who}.local_update returned a workspace as {what}: clone it")


def groups(run: Run, members: list[tuple[int, int]]) -> Iterator[list[tuple[int, int]]]:
    """Members (position, client) in groups of as many as the engine takes together, mostly one."""
    for first in range(0, len(members), run.engine.at_once):
        yield members[first : first + run.engine.at_once]


def together(run: Run, group: list[tuple[int, int]], work: Callable[[int, int, Engine], T]) -> list[T]:
    """``work`` for each member of a group by the engine it is given; what it returns, in their order."""
    steps = [run.engine.steps(len(run.samples[client].y)) for _, client in group]
    return run.engine.together([partial(work, k, client) for k, client in group], steps)


def personal_models(run: Run, t: int) -> Iterator[tuple[int, Iterator[tuple[str, torch.Tensor]]]]:
    """This rank's clients with their models after round ``t``; a collective call."""
    newest = run.exchange.renew(t + 1, np.arange(run.clients), run.server)
    for k, number in enumerate(run.samples):
        yield number, deployed(run, t, k, number, newest, run.engine)


def deployed(
    run: Run, t: int, k: int, number: int, newest: torch.Tensor, engine: Engine
) -> Iterator[tuple[str, torch.Tensor]]:
    """A client's models by name, from what the server would send next.

    Raises:
        Misdeclared: the method yields other models than it declares.
    """
    client, models = view(run, t, number, run.exchange.up[:0]), list(run.method.models)
    found: list[str] = []
    for name, vector in run.method.deployed(client, share(run, k, newest), engine) or ():
        found.append(name)
        if found != models[: len(found)]:
            break
        declared.model(run.method, name, vector, run.method.setting.layout.size)
        yield name, vector
    if found != models:
        who = type(run.method).__name__
        raise Misdeclared(f"{who}.deployed yielded {found}, declared models are {models}")


def share(run: Run, k: int, received: torch.Tensor) -> torch.Tensor:
    """What came down for the k-th of this rank's clients: (received, S), or empty."""
    if not len(received):
        return received
    return received[k if run.method.wire.down == "rows" else 0]


def view(run: Run, t: int, number: int, up: torch.Tensor) -> Client:
    """A client as its method sees it."""
    samples = run.samples[number]
    state = {name: rows[run.row(number)] for name, rows in run.state.items()}
    draw = partial(rng.generator, run.config.seed, round=t, client=number)
    return Client(number, t, samples.x, samples.y, state, up, draw)
