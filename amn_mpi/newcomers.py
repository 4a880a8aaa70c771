"""Clients that come when the training is over: what a method has for them, and what it is worth.

Each trains a first model for one epoch from what the method hands out (``Method.welcome``) and sends it;
the method answers with a model for it (``Method.receive``) and learns nothing from it; the newcomer trains
on for 0, 1 and 5 epochs. A method that does not answer is plain fine-tuning of what it hands out, for as
many epochs. Nothing depends on the number of ranks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from amn_mpi import metrics, rng
from amn_mpi.errors import ConfigError
from amn_mpi.left import COUNTS, PARAMETERS
from amn_mpi.methods.base import Reply
from amn_mpi.placement import Placement, place, training_steps
from amn_mpi.rounds import Run, Samples

if TYPE_CHECKING:
    from amn_mpi.session import Session

FIRST = 1  # epochs of the model that is sent: enough to tell whom it resembles
EPOCHS = (0, 1, 5)  # after the answer
BEFORE = -1  # what was handed out, before any training


@dataclass
class Newcomer:
    """One newcomer of this rank.

    Attributes:
        first: the model that it trained and sent, (P,).
        answer: what the method answered, (P,); ``first`` itself where it does not.
    """

    number: int
    samples: Samples
    first: torch.Tensor
    answer: torch.Tensor

    def order(self, seed: int, purpose: str) -> np.random.Generator:
        return rng.generator(seed, f"newcomer {purpose}", client=self.number)


def serve(ready: Session, run: Run) -> dict[str, Any]:
    """Serve the clients that were held back, and evaluate what they get; a collective call after training.

    Returns:
        On rank 0 what result.json says of them; else, and without newcomers, nothing.
    """
    fed, comm = ready.fed.newcomers, run.comm
    if fed is None:
        return {}
    refused, welcome = _welcome(run, ready.initial)
    if refused:
        return {"refused": refused} if comm.is_server else {}
    placement = place(training_steps(run.config.local, fed.train), comm.owners)
    mine = placement.clients(comm.owner) if comm.owner is not None else range(0)
    samples = ready.load(fed, mine)
    here = [_arrive(run, number, samples[number], welcome) for number in mine]
    attention = _exchange(run, placement, here)
    names = (*run.method.newcomer_models,)
    own = [[list(_judged(run, welcome, one, epochs)) for epochs in (BEFORE, *EPOCHS)] for one in here]
    width = (1 + len(EPOCHS)) * len(names)
    table = np.array(own, np.int64).reshape(-1, width)
    box = np.empty((fed.clients, width), np.int64) if comm.is_server else None
    run.exchange.left.add(table.nbytes, COUNTS)
    counts = comm.gather_rows(table, _counts(placement), box)
    if not comm.is_server:
        return {}
    correct = counts.reshape(fed.clients, 1 + len(EPOCHS), len(names))
    return _told(ready, run, correct, attention)


def _welcome(run: Run, initial: torch.Tensor) -> tuple[str, torch.Tensor]:
    """What newcomers start from, on every rank, or why this run has nothing for them."""
    start, refused = initial.clone(), ""
    if run.comm.is_server:
        try:
            if run.shards is not None:
                raise ConfigError("server = sharded: newcomers need --server rank0")
            start.copy_(run.method.welcome(run.server, initial))
        except ConfigError as reason:
            refused = str(reason)
    refused = run.comm.share(refused)
    if not refused:
        run.comm.broadcast(start.numpy())
    return refused, start


def _arrive(run: Run, number: int, samples: Samples, start: torch.Tensor) -> Newcomer:
    """A newcomer after its first local training."""
    one = Newcomer(number, samples, start, start)
    order = one.order(run.config.seed, "first")
    one.first = run.engine.train(start, samples.x, samples.y, order, epochs=FIRST).cpu().clone()
    one.answer = one.first
    return one


def _exchange(run: Run, placement: Placement, here: list[Newcomer]) -> np.ndarray | None:
    """First models go up, answers come down; the attention to the trained clients on rank 0."""
    comm, size = run.comm, run.method.setting.layout.size
    first = torch.stack([one.first for one in here]) if here else torch.empty(0, size)
    box = np.empty((placement.bounds[-1], size), np.float32) if comm.is_server else None
    run.exchange.left.add(first.numel() * first.element_size(), PARAMETERS)
    rows = comm.gather_rows(first.numpy(), _counts(placement), box)
    reply: Reply | None = None
    if comm.is_server:
        reply = run.method.receive(run.server, torch.from_numpy(rows))
    if not comm.share(reply is not None):
        return None
    down = None if reply is None else reply.models.contiguous().numpy()
    answers = comm.scatter_rows(down, _counts(placement), np.empty_like(first.numpy()))
    for one, answer in zip(here, answers):
        one.answer = torch.from_numpy(answer.copy())
    return None if reply is None else reply.attention


def _judged(run: Run, welcome: torch.Tensor, one: Newcomer, epochs: int) -> Iterator[int]:
    """Right answers of the newcomer's models by name after so many epochs more."""
    engine, samples = run.engine, one.samples
    own = one.first if epochs == 0 else one.answer
    if epochs > 0:
        order = one.order(run.config.seed, "on")
        own = engine.train(one.answer, samples.x, samples.y, order, epochs=epochs).cpu().clone()
    if epochs == BEFORE:
        right = engine.correct(welcome, samples.x_test, samples.y_test)
        yield from (right for _ in run.method.newcomer_models)
        return
    for _, model in run.method.settle(one.answer, own, run.numbers):
        yield engine.correct(model, samples.x_test, samples.y_test)


def _told(ready: Session, run: Run, correct: np.ndarray, attention: np.ndarray | None) -> dict[str, Any]:
    fed, names = ready.fed.newcomers, run.method.newcomer_models
    if fed is None:
        return {}
    scores: dict[str, Any] = {"handed_out": metrics.summary(correct[:, 0, 0], fed.test)}
    for k, name in enumerate(names):
        each = {epochs: metrics.summary(correct[:, 1 + e, k], fed.test) for e, epochs in enumerate(EPOCHS)}
        scores[name] = {str(epochs): summary for epochs, summary in each.items()}
    told = {
        "clients": fed.clients,
        "first_epochs": FIRST,
        "model": names[-1],
        "scores": scores,
    }
    if attention is not None:
        seen, own = np.asarray(ready.fed.concept_group), np.asarray(fed.concept_group)
        told["attention"] = np.round(attention.mean(0), 4).tolist()
        if len(np.unique(seen)) > 1:
            inside = (attention * (own[:, None] == seen[None])).sum(2).mean(1)
            told["inside_concept_groups"] = [round(float(v), 6) for v in inside]
    return told


def _counts(placement: Placement) -> list[int]:
    return np.diff(placement.bounds).tolist()


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
