"""Newcomers at the desk of a trained network, and what is kept and shown of them; needs torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from amn_mpi import job, newcomers, trained
from amn_mpi.comm import Communicator
from amn_mpi.data import Federation
from amn_mpi.errors import UserError
from amn_mpi.finished import SERVED
from amn_mpi.left import Left, together
from amn_mpi.newcomers import Desk, Served
from amn_mpi.progress import table
from amn_mpi.trained import Trained

if TYPE_CHECKING:
    from amn_mpi.checkpoint import Reader
    from amn_mpi.join import Request
    from amn_mpi.runfolder import RunFolder

HEARD, LEAST = 5, 0.005  # trained clients that are named for a newcomer, and the weight that they have
ROWS = 20  # newcomers in a table


@dataclass(frozen=True)
class Outcome:
    """All that there is to tell, on rank 0.

    Attributes:
        names: of the newcomers. left: bytes that left their ranks, by kind.
    """

    request: Request
    network: Trained
    names: tuple[str, ...]
    desk: Desk
    served: Served
    left: dict[str, int]

    @property
    def late(self) -> Federation:
        fed = self.desk.ready.fed
        return fed.newcomers or fed


def serve(
    comm: Communicator, request: Request, network: Trained, fed: Federation, reader: Reader | None
) -> tuple[Desk, Served, dict[str, int]]:
    """Serve ``fed.newcomers`` from a checkpoint, which rank 0 has open; a collective call.

    Returns:
        The desk, what they got, and what left their ranks; the last two on rank 0 only.

    Raises:
        UserError: on rank 0, where the method has nothing for newcomers.
    """
    ready = job.made_ready(network.config, comm, fed)
    method, server = trained.server_of(ready, network, reader)
    epochs = tuple(sorted({0, min(1, request.epochs), request.epochs}))
    left = Left(comm)
    desk = Desk(ready, method, server, left, request.first_epochs, epochs, keep=True, discard=True)
    served = newcomers.attend(desk)
    if served.refused and comm.is_server:
        raise UserError(f"{network.path}: {served.refused}")
    return desk, served, together(comm.collect(dict(left.bytes)))


def check(outcome: Outcome) -> None:
    """Raises UserError where somebody's training left the numbers."""
    bad = ~np.isfinite(outcome.served.models).all(1)
    if bad.any():
        who = ", ".join(name for name, odd in zip(outcome.names, bad) if odd)
        raise UserError(
            f"newcomer {who}: the training left the numbers (NaN or Inf); are its samples scaled as those of "
            "the run were?"
        )


def heard(attention: np.ndarray | None, number: int) -> list[tuple[int, float]]:
    """The trained clients that a newcomer listens to most, with their weights, the mean over the layers."""
    if attention is None:
        return []
    weights = attention[:, number].mean(0)
    order = np.argsort(-weights, kind="stable")[:HEARD]
    return [(int(client), round(float(weights[client]), 4)) for client in order if weights[client] >= LEAST]


def keep(outcome: Outcome, folder: RunFolder) -> None:
    """models.h5, as a run has it, with the model that counts of each newcomer; then result.json."""
    network, ready, models = outcome.network, outcome.desk.ready, outcome.served.models
    about = job.about_models(network.config, ready.fed)
    digest = folder.write_models(ready.layout, len(models), enumerate(models), about, network.round)
    folder.finish({**result(outcome), "models_sha256": digest})


def result(outcome: Outcome) -> dict[str, Any]:
    """What result.json says, but for the models' digest."""
    network, desk = outcome.network, outcome.desk
    about = desk.ready.about(network.config)
    return {
        SERVED: str(network.path),
        "round": network.round,
        "method": network.config.method.name,
        "data": outcome.request.data,
        "seed": network.config.seed,
        "ranks": desk.ready.comm.size,
        "engine": about["engine"],
        "newcomers": newcomers.told(desk, outcome.served),
        "each": [_each(outcome, number) for number in range(len(outcome.names))],
        "left": outcome.left,
        "versions": about["versions"],
        "config": network.config.as_dict(),
    }


def _each(outcome: Outcome, number: int) -> dict[str, Any]:
    desk, late, counts = outcome.desk, outcome.late, outcome.served.correct[number]
    correct: dict[str, Any] = {"handed_out": int(counts[0, 0])}
    for k, name in enumerate(desk.method.newcomer_models):
        correct[name] = {str(epochs): int(counts[1 + e, k]) for e, epochs in enumerate(desk.epochs)}
    found = {
        "name": outcome.names[number],
        "train": int(late.train[number]),
        "test": int(late.test[number]),
        "correct": correct,
    }
    if outcome.served.attention is not None:
        found["listens_to"] = [list(pair) for pair in heard(outcome.served.attention, number)]
    return found


# ---- on the terminal


def show(outcome: Outcome) -> None:
    """Accuracies by model, by newcomer where there are several, and whom they listen to."""
    network, desk, late = outcome.network, outcome.desk, outcome.late
    count, counting = len(outcome.names), desk.method.newcomer_models[-1]
    told = newcomers.told(desk, outcome.served)["scores"]
    steps = ["handed out", *(f"+{epochs}" for epochs in desk.epochs)]
    rows = [
        [f"{name}{' *' * (name == counting)}", f"{told['handed_out']['mean_accuracy']:.2f}"]
        + [f"{told[name][str(epochs)]['mean_accuracy']:.2f}" for epochs in desk.epochs]
        for name in desk.method.newcomer_models
    ]
    who = f"newcomer {outcome.names[0]}" if count == 1 else f"{count} newcomers"
    table(
        f"{who} at {network.path} ({network.config.method.name}, round {network.round}): {late.train.sum()} "
        f"training and {late.test.sum()} test samples; test accuracy, %",
        ["model", *steps],
        rows,
    )
    first = f"{desk.first} epoch{'s' * (desk.first > 1)}"
    print(f"  +0: after {first} from what is handed out and the server's answer; +N: after N epochs more")
    print(f"  * the model that counts; {counting} at +{desk.epochs[-1]} is the newcomer's own from now on")
    if count > 1:
        columns = ["newcomer", "training", "test", *steps]
        table(f"{counting} of each", columns, [_row(outcome, k) for k in range(min(count, ROWS))])
    for number, name in enumerate(outcome.names[:ROWS] if outcome.served.attention is not None else ()):
        clients = ", ".join(
            f"{network.fed.called(c)} ({w:.2f})" for c, w in heard(outcome.served.attention, number)
        )
        print(f"  newcomer {name} listens most to clients {clients}")
    if count > ROWS:
        print(f"  and {count - ROWS} newcomers more; result.json in --out DIR has all")
    if outcome.request.out:
        print(f"  result in {outcome.request.out}/result.json, models in {outcome.request.out}/models.h5")


def _row(outcome: Outcome, number: int) -> list[str]:
    """A newcomer's accuracies with the model that counts."""
    late, counts = outcome.late, outcome.served.correct[number]
    right = [int(counts[0, 0]), *counts[1:, -1].tolist()]
    percent = [f"{100 * each / late.test[number]:.2f}" for each in right]
    return [outcome.names[number], str(late.train[number]), str(late.test[number]), *percent]
