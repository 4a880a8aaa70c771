"""FedAvg, FedAvg with fine-tuning and Local: real runs against plain numpy."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import plain
import pytest
import torch

from amn_mpi import rng, rounds, session, turns
from amn_mpi.config import Evaluate, Local
from amn_mpi.errors import UserError
from amn_mpi.methods import METHODS, amn, fedavg, fedavg_ft, get, local
from amn_mpi.methods.base import Client, Update
from amn_mpi.progress import Progress
from amn_mpi.recorder import Recorder

LOCALS = [
    Local(epochs=2, steps=0, batch_size=8, lr=0.2, momentum=0.0, weight_decay=0.0),
    Local(epochs=1, steps=7, batch_size=5, lr=0.1, momentum=0.6, weight_decay=0.02),
]
CLOSE = dict(rtol=1e-4, atol=1e-5)


def train(folder: Path, method: Any, count: int = 2, **keys: Any) -> tuple[rounds.Run, list]:
    run = plain.start(folder, method, rounds=count, **keys)
    return run, [plain.one_round(run) for t in range(1, count + 1)]


def order(run: rounds.Run, t: int, client: int, purpose: str = "shuffle") -> np.random.Generator:
    return rng.generator(run.config.seed, purpose, t, client)


def right(run: rounds.Run, models: list[np.ndarray]) -> list[int]:
    tests = [run.samples[i] for i in range(run.clients)]
    return [plain.linear(w, s.x_test.double().numpy(), s.y_test.numpy())[2] for w, s in zip(models, tests)]


def offsets(run: rounds.Run) -> list[np.ndarray]:
    """What each client adds to a model."""
    prior, size = run.config.method.prior, run.method.setting.layout.size
    return [plain.offset(y, prior, plain.CLASSES, size) for y in plain.numbers(run)[1]]


def averaged(run: rounds.Run, count: int) -> np.ndarray:
    """w <- sum n_i w_i / sum n_i over the cohort; w_i is trained from w + offset, and is less it."""
    x, y = plain.numbers(run)
    w, own = plain.initial(run), offsets(run)
    for t in range(1, count + 1):
        total, weight = np.zeros_like(w), 0
        for i in plain.members(run.config, t, run.clients):
            new = plain.sgd(plain.linear, w + own[i], x[i], y[i], run.config.local, order(run, t, int(i)))
            total, weight = total + len(y[i]) * (new - own[i]), weight + len(y[i])
        w = total / weight
    return w


def deployed(run: rounds.Run, t: int) -> list[dict[str, np.ndarray]]:
    return [
        {name: v.double().numpy().copy() for name, v in models} for _, models in turns.personal_models(run, t)
    ]


@pytest.mark.parametrize("cohort", [1.0, 0.5])
@pytest.mark.parametrize("trained", LOCALS)
@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_fedavg(tmp_path: Path, trained: Local, cohort: float, prior: float) -> None:
    run, outcomes = train(tmp_path, fedavg.Options(prior=prior), local=trained, cohort=cohort)
    sizes = [len(s.y) for s in run.samples.values()]
    assert len(set(sizes)) > 1 and [len(o.cohort) for o in outcomes] == [5 if cohort == 1 else 3] * 2
    w = averaged(run, 2)
    np.testing.assert_allclose(run.server["model"], w, **CLOSE)
    used = [w + own for own in offsets(run)]
    assert outcomes[-1].correct[:, 0].tolist() == right(run, used)
    for found, expected in zip(deployed(run, 2), used):
        np.testing.assert_allclose(found["global"], expected, **CLOSE)
        assert prior or np.array_equal(found["global"], run.server["model"].double())


def test_weights_are_samples(tmp_path: Path) -> None:
    """The plain mean is far from the weighted one, so the tolerance above tells them apart."""
    run, _ = train(tmp_path, fedavg.Options(), 1, local=LOCALS[0])
    x, y = plain.numbers(run)
    each = [
        plain.sgd(plain.linear, plain.initial(run), x[i], y[i], LOCALS[0], order(run, 1, i)) for i in range(5)
    ]
    assert abs(np.mean(each, 0) - run.server["model"].double().numpy()).max() > 0.01


@pytest.mark.parametrize("cohort", [1.0, 0.5])
@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_fedavg_with_fine_tuning(tmp_path: Path, cohort: float, prior: float) -> None:
    run, outcomes = train(tmp_path, fedavg_ft.Options(prior=prior), local=LOCALS[1], cohort=cohort)
    w = averaged(run, 2)
    used = [w + own for own in offsets(run)]
    x, y = plain.numbers(run)
    tuned = [
        plain.sgd(plain.linear, used[i], x[i], y[i], LOCALS[1], order(run, 2, i, "finetune"))
        for i in range(5)
    ]
    found = deployed(run, 2)
    for i in range(5):
        np.testing.assert_allclose(found[i]["finetuned"], tuned[i], **CLOSE)
        np.testing.assert_allclose(found[i]["global"], used[i], **CLOSE)
    assert outcomes[-1].correct.T.tolist() == [right(run, tuned), right(run, used)]
    np.testing.assert_allclose(run.server["model"], w, **CLOSE)  # tuning left it alone


@pytest.mark.parametrize("prior", [0.0, 0.7])
def test_fine_tuning_does_not_change_the_rounds(tmp_path: Path, prior: float) -> None:
    options = fedavg_ft.Options(prior=prior)
    tuned, _ = train(tmp_path, options, 3, local=LOCALS[0])
    rare, _ = train(tmp_path, options, 3, local=LOCALS[0], evaluate=Evaluate(every=9))
    never, _ = train(tmp_path, fedavg.Options(prior=prior), 3, local=LOCALS[0])
    assert torch.equal(tuned.server["model"], never.server["model"])
    assert torch.equal(rare.server["model"], never.server["model"])


@pytest.mark.parametrize("cohort", [1.0, 0.5])
@pytest.mark.parametrize("trained", LOCALS)
def test_local(tmp_path: Path, trained: Local, cohort: float) -> None:
    run, outcomes = train(tmp_path, local.Options(), 3, local=trained, cohort=cohort)
    x, y = plain.numbers(run)
    models = [plain.initial(run)] * 5
    for t in (1, 2, 3):
        for i in map(int, plain.members(run.config, t, 5)):
            models[i] = plain.sgd(plain.linear, models[i], x[i], y[i], trained, order(run, t, i))
    np.testing.assert_allclose(run.state["model"], models, **CLOSE)
    assert outcomes[-1].correct[:, 0].tolist() == right(run, models)


@pytest.mark.parametrize("name", ["local", "amn"])
def test_who_stays_out_keeps_the_last_model(tmp_path: Path, name: str) -> None:
    run = plain.start(tmp_path, get(name).Options(), rounds=6, cohort=0.5, local=LOCALS[0])
    out = 0
    for _t in range(1, 7):
        before = {k: v.clone() for k, v in run.state.items()}
        outcome = plain.one_round(run)
        for i in range(5):
            changed = not torch.equal(run.state["model"][i], before["model"][i])
            assert changed == (i in outcome.cohort)
        idle = [i for i in range(5) if i not in outcome.cohort]
        out += len(idle)
        assert all(torch.equal(run.state[k][idle], before[k][idle]) for k in before)
    assert out == 12


@pytest.mark.parametrize("name", METHODS)
def test_same_seed_same_run_other_seed_another(tmp_path: Path, name: str) -> None:
    trained = LOCALS[0] if get(name).plain_sgd or name == "amn" else LOCALS[1]  # without momentum

    def models(seed: int) -> np.ndarray:
        run = plain.start(tmp_path, get(name).Options(), rounds=7, seed=seed, local=trained, cohort=0.7)
        counts = [plain.one_round(run).correct for t in range(1, 8)]
        return np.array([list(d.values()) for d in deployed(run, 7)]), counts

    (first, counts), (again, same), (other, _) = models(1), models(1), models(2)
    assert np.array_equal(first, again) and np.array_equal(counts, same)
    assert not np.allclose(first, other, atol=1e-3)


@pytest.mark.parametrize("name", METHODS)
def test_evaluation_changes_nothing(tmp_path: Path, name: str) -> None:
    """Evaluated every round or hardly ever: the same models."""
    found = []
    for every in (1, 50):
        run = plain.start(
            tmp_path, get(name).Options(), rounds=9, local=LOCALS[0], evaluate=Evaluate(every=every)
        )
        seen = [plain.one_round(run).correct is not None for t in range(1, 10)]
        assert seen == [every == 1] * 4 + [True] * 5
        found.append(np.array([list(d.values()) for d in deployed(run, 9)]))
    assert np.array_equal(*found)


def test_divergence_names_round_and_client(tmp_path: Path) -> None:
    run = plain.start(tmp_path, fedavg.Options(), rounds=9, local=Local(epochs=1, lr=1e30))
    with pytest.raises(UserError, match=r"round \d: every client of the cohort diverged, client \d first"):
        rounds.train(run, lambda outcome: None)


def broken(what: str) -> Any:
    """A local update that does not keep to what Local declares."""

    def update(client: Client, received: torch.Tensor, engine: Any) -> Update:
        model = engine.train(client.state["model"], client.x, client.y, client.generator("shuffle"))
        return {
            "nothing": Update(),
            "a typing error": Update(state={"mdel": model.clone()}),
            "a figure": Update({"loss": 1.0}, {"model": model.clone()}),
            "workspace": Update(state={"model": model}),
            "a feature": Update(state={"model": model.clone()}, features=torch.zeros(2, 3)),
        }[what]

    return update


@pytest.mark.parametrize(
    ("what", "told"),
    [
        (
            "nothing",
            r"returned state \[\], declared are \['model'\]: return Update\(state=\{name: ...\}\)",
        ),
        ("a typing error", r"returned state \['mdel'\], declared are \['model'\]"),
        ("a figure", r"returned figures \['loss'\], declared are \[\]$"),
        ("workspace", "workspace as state model: clone it"),
        ("a feature", "returned 6 features, declared are 0"),
    ],
)
def test_an_author_hears_of_a_broken_promise_at_once(tmp_path: Path, what: str, told: str) -> None:
    run = plain.start(tmp_path, local.Options(), local=LOCALS[0])
    run.method.local_update = broken(what)  # type: ignore[method-assign]
    with pytest.raises(TypeError, match=told):
        plain.one_round(run)


@pytest.mark.parametrize("names", [("global",), ("local", "global"), ()])
def test_models_are_yielded_as_declared(tmp_path: Path, names: tuple[str, ...]) -> None:
    run = plain.start(tmp_path, local.Options(), local=LOCALS[0])
    usual = run.method.deployed

    def yields(client: Client, *others: Any) -> Any:
        ((_, vector),) = usual(client, *others)
        return ((name, vector) for name in names)

    run.method.deployed = yields  # type: ignore[method-assign]
    found = list(names[: 1 + (names[:1] == ("local",))])
    with pytest.raises(TypeError, match=rf"Local.deployed yielded {re.escape(str(found))}, .* \['local'\]$"):
        for _, models in turns.personal_models(run, 0):
            list(models)


def test_the_number_of_features_is_the_declared_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local.Local, "features", 4)
    for given, told in ((None, "0 features, declared are 4"), (4, "workspace as features: clone it")):
        run = plain.start(tmp_path, local.Options(), local=LOCALS[0])
        usual = run.method.local_update

        def update(client: Client, received: torch.Tensor, engine: Any) -> Update:
            return replace(usual(client, received, engine), features=given and engine.parameters[:given])  # noqa: B023

        run.method.local_update = update  # type: ignore[method-assign]
        with pytest.raises(TypeError, match=told):
            plain.one_round(run)


# ---- what is made of a run


def test_final_models_are_the_reported_ones(tmp_path: Path) -> None:
    for options in (fedavg_ft.Options(), local.Options(), amn.Options(report="hybrid")):
        run, _ = train(tmp_path, options, 7, local=LOCALS[0])
        own = [d[run.method.headline] for d in deployed(run, 7)]
        rows = [(client, row.copy()) for client, row in session.final_models(run)]
        assert [client for client, _ in rows] == list(range(5))
        assert np.array_equal([row for _, row in rows], own)


def test_scores_by_hand(tmp_path: Path) -> None:
    """Means over clients and over the last five evaluated rounds; the best round is the first such."""
    run = plain.start(tmp_path, fedavg_ft.Options(), rounds=7, local=LOCALS[0])
    fed = SimpleNamespace(
        test=np.array([4, 4, 4, 4, 8]), clients=5, concept_group=np.zeros(5), label_group=np.zeros(5)
    )
    made = Recorder(fed, run, None, Progress("off", 7))
    for t, right in enumerate((0, 4, 3, None, 2, 1, 4, 0), 1):  # by the fine-tuned model
        counts = None if right is None else np.array([[right, 1]] * 4 + [[2 * right, 0]])
        made(rounds.Outcome(t, np.arange(5), {}, 0.0, correct=counts))
    scores = made.scores()
    assert scores["mean_accuracy"] == 0 and scores["mean_last5"] == 100 * (3 + 2 + 1 + 4 + 0) / 4 / 5
    assert (scores["best_round"], scores["best_accuracy"]) == (2, 100)
    assert scores["models"]["global"]["mean_last5"] == 20  # four clients at 25 %, one at 0
    assert scores["models"]["global"]["weighted_accuracy"] == pytest.approx(100 * 4 / 24, abs=1e-6)
    assert "mean_accuracy" not in made.rounds[3]
