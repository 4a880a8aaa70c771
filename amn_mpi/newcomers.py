"""Clients that come when the training is over: what a method has for them, and what it is worth.

Each trains a first model for one epoch from what the method hands out (``Method.welcome``) and sends it;
the method answers with a model for it (``Method.receive``) and learns nothing from it; the newcomer trains
on for 0, 1 and 5 epochs. A method that does not answer is plain fine-tuning of what it hands out, for as
many epochs. Nothing depends on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from amn_mpi import metrics, rng
from amn_mpi.errors import ConfigError
from amn_mpi.left import COUNTS, PARAMETERS, Left
from amn_mpi.methods.base import Method, Reply, State
from amn_mpi.placement import Placement, place, training_steps
from amn_mpi.rounds import Run, Samples

if TYPE_CHECKING:
    from amn_mpi.params import Part
    from amn_mpi.session import Session

FIRST = 1  # epochs of the model that is sent: enough to tell whom it resembles
EPOCHS = (0, 1, 5)  # after the answer
BEFORE = -1  # what was handed out, before any training


@dataclass(frozen=True)
class Desk:
    """What newcomers come to: a trained method, and ranks that train for them.

    Attributes:
        ready: the ranks; its ``fed.newcomers`` are who comes.
        server: the method's state on rank 0, else empty.
        left: the account of what the newcomers' ranks send.
        first: epochs of the model that is sent. epochs: after the answer, ascending.
        keep: ``attend`` brings the models that count to rank 0, too.
        discard: the newcomers' file is deleted as soon as every rank has read its part: who is killed later
            leaves nothing behind.
    """

    ready: Session
    method: Method
    server: State
    left: Left
    first: int = FIRST
    epochs: tuple[int, ...] = EPOCHS
    keep: bool = False
    discard: bool = False


@dataclass
class Newcomer:
    """One newcomer of this rank.

    Attributes:
        first: the model that it trained and sent, (P,).
        answer: what the method answered, (P,); ``first`` itself where it does not.
        model: the model that counts, after all epochs, (P,); empty until then.
    """

    number: int
    samples: Samples
    first: torch.Tensor
    answer: torch.Tensor
    model: torch.Tensor

    def order(self, seed: int, purpose: str) -> np.random.Generator:
        return rng.generator(seed, f"newcomer {purpose}", client=self.number)


@dataclass(frozen=True)
class Served:
    """What n newcomers got, on rank 0; on the others all of it is empty.

    Attributes:
        refused: why this method has nothing for them, else empty.
        correct: right answers on their test samples, (n, 1 + epochs, models): first of what was handed out.
        attention: to the N trained clients, (layers, n, N); None where the method has none.
        models: the model that counts of each, (n, P), where they were to be kept.
    """

    refused: str = ""
    correct: np.ndarray = field(default_factory=lambda: np.empty((0, 0, 0), np.int64))
    attention: np.ndarray | None = None
    models: np.ndarray = field(default_factory=lambda: np.empty((0, 0), np.float32))


def serve(ready: Session, run: Run) -> dict[str, Any]:
    """Serve the clients that were held back, and evaluate what they get; a collective call after training.

    Returns:
        On rank 0 what result.json says of them; else, and without newcomers, nothing.
    """
    if ready.fed.newcomers is None:
        return {}
    desk = Desk(ready, run.method, run.server, run.exchange.left)
    if run.shards is not None:
        found = Served("server = sharded: newcomers need --server rank0")
    else:
        found = attend(desk)
    return told(desk, found) if run.comm.is_server else {}


def attend(desk: Desk) -> Served:
    """All newcomers arrive, are answered and train on; a collective call that changes nothing at the desk."""
    ready, comm = desk.ready, desk.ready.comm
    fed = ready.fed.newcomers
    if fed is None:
        return Served()
    refused, welcome = _welcome(desk)
    if refused:
        return Served(refused)
    placement = place(training_steps(ready.config.local, fed.train), comm.owners)
    mine = placement.clients(comm.owner) if comm.owner is not None else range(0)
    samples = ready.load(fed, mine)
    if desk.discard:
        comm.collect(None)
        if comm.is_server:
            Path(fed.path).unlink(missing_ok=True)
    here = [_arrive(desk, number, samples[number], welcome) for number in mine]
    attention = _exchange(desk, placement, here)
    own = [[list(_judged(desk, welcome, one, epochs)) for epochs in (BEFORE, *desk.epochs)] for one in here]
    shape = 1 + len(desk.epochs), len(desk.method.newcomer_models)
    correct = _gathered(desk, placement, np.array(own, np.int64).reshape(-1, *shape), COUNTS)
    if not desk.keep:
        return Served("", correct, attention)
    rows = _rows([one.model for one in here], ready.layout.size)
    return Served("", correct, attention, _gathered(desk, placement, rows, PARAMETERS))


def _welcome(desk: Desk) -> tuple[str, torch.Tensor]:
    """What newcomers start from, on every rank, or why the method has nothing for them."""
    initial, comm = desk.ready.initial, desk.ready.comm
    start, refused = initial.clone(), ""
    if comm.is_server:
        try:
            start.copy_(desk.method.welcome(desk.server, initial))
        except ConfigError as reason:
            refused = str(reason)
    refused = comm.share(refused)
    if not refused:
        comm.broadcast(start.numpy())
    return refused, start


def _arrive(desk: Desk, number: int, samples: Samples, start: torch.Tensor) -> Newcomer:
    """A newcomer after its first local training."""
    one = Newcomer(number, samples, start, start, torch.empty(0))
    one.first = one.answer = _trained(desk, one, start, "first", desk.first)
    return one


def _trained(
    desk: Desk, one: Newcomer, start: torch.Tensor, purpose: str, epochs: int, only: Part | None = None
) -> torch.Tensor:
    """What it would send after so many epochs, of one part alone or all, from a model of the server's."""
    samples, order = one.samples, one.order(desk.ready.config.seed, purpose)
    begin = desk.method.to_client(start, samples.y)
    made = desk.ready.engine.train(begin, samples.x, samples.y, order, epochs=epochs, only=only)
    return desk.method.from_client(made.cpu().clone(), samples.y)


def _exchange(desk: Desk, placement: Placement, here: list[Newcomer]) -> np.ndarray | None:
    """First models go up, answers come down; the attention to the trained clients on rank 0."""
    comm = desk.ready.comm
    first = _rows([one.first for one in here], desk.ready.layout.size)
    rows = _gathered(desk, placement, first, PARAMETERS)
    reply: Reply | None = None
    if comm.is_server:
        reply = desk.method.receive(desk.server, torch.from_numpy(rows))
    if not comm.share(reply is not None):
        return None
    down = None if reply is None else reply.models.contiguous().numpy()
    answers = comm.scatter_rows(down, np.diff(placement.bounds), np.empty_like(first))
    for one, answer in zip(here, answers):
        one.answer = torch.from_numpy(answer.copy())
    return None if reply is None else reply.attention


def _judged(desk: Desk, welcome: torch.Tensor, one: Newcomer, epochs: int) -> Iterator[int]:
    """Right answers of the newcomer's models by name after so many epochs more."""
    engine, method, samples = desk.ready.engine, desk.method, one.samples
    if epochs == BEFORE:
        begin = method.to_client(welcome, samples.y)
        right = engine.correct(begin, samples.x_test, samples.y_test)
        yield from (right for _ in method.newcomer_models)
        return

    def trained(only: Part | None = None) -> torch.Tensor:
        if epochs:
            return _trained(desk, one, one.answer, "on", epochs, only)
        return one.first if only is None else one.answer

    for _, sent in method.settle(one.answer, trained):
        model = method.to_client(sent, samples.y)
        one.model = model if desk.keep else one.model
        yield engine.correct(model, samples.x_test, samples.y_test)


def _rows(models: list[torch.Tensor], size: int) -> np.ndarray:
    return torch.stack(models).numpy() if models else np.empty((0, size), np.float32)


def _gathered(desk: Desk, placement: Placement, own: np.ndarray, kind: str) -> np.ndarray:
    """All newcomers' rows on rank 0, in their order; on the others their own."""
    comm = desk.ready.comm
    box = np.empty((placement.bounds[-1], *own.shape[1:]), own.dtype) if comm.is_server else None
    desk.left.add(own.nbytes, kind)
    return comm.gather_rows(own, np.diff(placement.bounds), box)


def told(desk: Desk, found: Served) -> dict[str, Any]:
    """What a result says of newcomers: scores by model and epochs, attention; on rank 0."""
    fed, names = desk.ready.fed.newcomers, desk.method.newcomer_models
    if found.refused or fed is None:
        return {"refused": found.refused}
    scores: dict[str, Any] = {"handed_out": metrics.summary(found.correct[:, 0, 0], fed.test)}
    for k, name in enumerate(names):
        counts = {epochs: found.correct[:, 1 + e, k] for e, epochs in enumerate(desk.epochs)}
        scores[name] = {str(epochs): metrics.summary(each, fed.test) for epochs, each in counts.items()}
    about: dict[str, Any] = {
        "clients": fed.clients,
        "first_epochs": desk.first,
        "model": names[-1],
        "scores": scores,
    }
    if found.attention is not None:
        seen, own = np.asarray(desk.ready.fed.concept_group), np.asarray(fed.concept_group)
        about["attention"] = np.round(found.attention.mean(0), 4).tolist()
        if len(np.unique(seen)) > 1:
            inside = (found.attention * (own[:, None] == seen[None])).sum(2).mean(1)
            about["inside_concept_groups"] = [round(float(v), 6) for v in inside]
    return about


def show(found: Mapping[str, Any]) -> None:
    """The newcomers' table at the end of a run: the configured method, then the baselines."""
    from amn_mpi.progress import table

    every = {found["method"]: found.get("newcomers", {})}
    every |= {name: scores.get("newcomers", {}) for name, scores in found["baselines"].items()}
    served = {name: told for name, told in every.items() if "scores" in told}
    rows = [
        [f"{name}: {model}", f"{told['scores']['handed_out']['mean_accuracy']:.2f}"]
        + [f"{by_epochs[str(e)]['mean_accuracy']:.2f}" for e in EPOCHS]
        for name, told in served.items()
        for model, by_epochs in told["scores"].items()
        if model != "handed_out"
    ]
    if rows:
        told = next(iter(served.values()))
        title = (
            f"{told['clients']} newcomers, test accuracy, %: of what they start from, after one epoch and "
            "the server's answer, and after more epochs"
        )
        table(title, ["newcomers", "handed out", *(f"+{e}" for e in EPOCHS)], rows)
    for name, told in every.items():
        if "refused" in told:
            print(f"  newcomers, {name}: {told['refused']}", flush=True)
