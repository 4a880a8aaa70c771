"""``benchmarks/ablation.py``: each variant leaves out what it says and nothing else."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import plain
import pytest
import torch
from running import REPOSITORY

from amn_mpi import cli, matrix, methods, rounds
from amn_mpi.config import Local, Model
from amn_mpi.methods.amn import AMN

FILE = REPOSITORY / "benchmarks" / "ablation.py"
PLAIN = {
    "tau": 3.0,
    "sketch": 16,
    "gate": 0.4,
    "evidence_lr": 2.0,
    "gate_lr": 0.3,
    "common_rounds": 1,
    "drift": 0.0,
}


def begun(folder: Path, variant: str, model: str = "mlp", **given: float) -> rounds.Run:
    name = "amn" if variant == "amn" else f"{FILE}:{variant}"
    method = replace(methods.options(name)(**{**PLAIN, **given}), name=name)
    trained = Local(epochs=2, batch_size=8, lr=0.1)
    return plain.start(folder, method, rounds=9, model=Model(model, hidden=plain.HIDDEN), local=trained)  # type: ignore[arg-type]


def after(run: rounds.Run, count: int) -> rounds.Run:
    for _ in range(count):
        plain.one_round(run)
    return run


def views(run: rounds.Run) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    similarity, allowed, common = run.method._views(run.server, np.arange(run.clients))
    return similarity.numpy(), allowed.numpy(), common.numpy()


def test_a_client_listens_to_itself(tmp_path: Path) -> None:
    run = after(begun(tmp_path, "WithItself"), 3)
    _, allowed, common = views(run)
    samples = run.method.setting.samples
    assert allowed.all()
    np.testing.assert_allclose(common, np.tile(samples / samples.sum(), (5, 1)), rtol=1e-6)
    heard = run.method.attention(run.server)[0]
    assert (np.diag(heard) > 0.2 + 0.01).all(), "it resembles itself most"
    assert np.diag(after(begun(tmp_path, "amn"), 3).method.attention(run.server)[0]).tolist() == [0] * 5


def test_cosines_of_whole_sketches(tmp_path: Path) -> None:
    run, models = (
        begun(tmp_path, "Uncentred", sketch=200),
        np.zeros((5, 57)),
    )  # longer than a layer: as models
    for _ in range(2):
        models += after(run, 1).state["model"].double().numpy() / 2
    cut = plain.HIDDEN * (plain.FEATURES + 1)
    found = views(run)[0]
    for layer, part in enumerate((slice(0, cut), slice(cut, None))):
        unit = models[:, part] / np.linalg.norm(models[:, part], axis=1, keepdims=True)
        np.testing.assert_allclose(found[layer], unit @ unit.T, atol=1e-5)
    assert found.min() > 0.5, "all near 1, as models of one start are"
    assert views(after(begun(tmp_path, "amn", sketch=200), 2))[0].min() < 0


def test_one_layer_is_as_whole_as_the_model(tmp_path: Path) -> None:
    one, same = (after(begun(tmp_path, name, "linear"), 4) for name in ("WholeModel", "amn"))
    assert torch.equal(one.state["model"], same.state["model"])
    assert all(torch.equal(one.server[name], same.server[name]) for name in same.server)
    two, layered = (after(begun(tmp_path, name), 4) for name in ("WholeModel", "amn"))
    assert two.server["meta"].shape == (2, 1) and layered.server["meta"].shape == (2, 2)
    assert two.method._scores == layered.method._scores != slice(0, 0)


def test_lessons_of_clients_alone_make_up_the_one_of_all(tmp_path: Path) -> None:
    """A step of the evidence is linear in the clients: by their samples theirs add up to the shared one."""
    own, shared = (after(begun(tmp_path, name), 2) for name in ("OwnNetworks", "amn"))
    assert torch.equal(own.state["model"], shared.state["model"]), "up to the first step nothing differs"
    weights = own.method.setting.samples / own.method.setting.samples.sum()
    apart = [float(v[0] - v[1]) for v in own.server["meta"][:, 0]]
    assert max(apart) - min(apart) > 1e-4
    all_of_them = float(shared.server["meta"][0, 0] - shared.server["meta"][0, 1])
    assert np.dot(weights, apart) == pytest.approx(all_of_them, rel=1e-4)
    after(own, 2)
    everyone = own.method.mixing(own.server, 5, np.arange(5))
    for i in range(5):
        gates = torch.sigmoid(own.server["meta"][i, 1]).numpy()
        attention = own.method.attention(own.server)[0, i]
        expected = gates[:, None] * attention + (1 - gates[:, None]) * views(own)[2][i]
        np.testing.assert_allclose(everyone[:, i], expected, atol=1e-6)
    assert len({tuple(gates) for gates in own.server["meta"][:, 1].tolist()}) > 1


def test_features_and_prices_that_are_left_out(tmp_path: Path) -> None:
    """Sketches of models, longer than their layers, so that they hold every parameter."""
    newest, kept = (after(begun(tmp_path, name, sketch=200), 3) for name in ("LatestFeatures", "amn"))
    signs = newest.method._sketch
    for run in (newest, kept):
        made = torch.stack([signs(model) for model in run.state["model"]])
        features = run.server["features"] - run.server["features"].mean(0)
        latest = torch.allclose(features, made - made.mean(0), atol=1e-6)
        assert latest == (run is newest)
    shares = np.array([36, 21]) / 57
    np.testing.assert_allclose(begun(tmp_path, "InProportion").method._prices, 0.3 * shares, rtol=1e-6)
    np.testing.assert_allclose(kept.method._prices, 0.3 * shares**1.5, rtol=1e-6)


def test_gradients_keep_what_scales_a_layer(tmp_path: Path) -> None:
    cut = plain.HIDDEN * (plain.FEATURES + 1)
    along = {}
    for name in ("Lengths", "amn"):
        run = after(begun(tmp_path, name), 2)
        model, gradient = run.exchange.up[:, 0, :cut], run.exchange.up[:, 1, :cut]
        along[name] = (model * gradient).sum(1).abs() / model.norm(dim=1) / gradient.norm(dim=1)
    assert (along["amn"] < 1e-5).all() and (along["Lengths"] > 1e-3).all()


def left_out(keys: dict[str, dict[str, object]] | None) -> dict[str, object]:
    """By a variant. Price and passes of the fit do not count: where they are not 0 they are the suite's."""
    said = (keys or {}).get("method", {})
    return {key: value for key, value in said.items() if key not in ("price", "fit") or not value}


def test_the_suites_differ_in_what_they_leave_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same variants on both data sets; each is AMN, and differs from it in its method alone."""
    monkeypatch.chdir(REPOSITORY)
    trees = [cli.load(matrix.find(f"ablation_{data}")) for data in ("fashion_mnist", "cifar10")]
    variants = [{label: left_out(keys) for label, keys in tree["methods"].items()} for tree in trees]
    assert variants[0] == variants[1]
    chosen = {"scenarios": ["rotation"], "seeds": ["0"]}
    found = {cell.label: cell.config for cell in matrix.read("ablation_fashion_mnist", chosen, []).cells}
    for label, config in found.items():
        assert replace(config, method=found["amn"].method) == found["amn"]
        file, _, variant = config.method.name.rpartition(":")
        assert issubclass(methods.get(config.method.name), AMN)
        keys = dict(trees[0]["methods"][label] or {"method": {}})["method"]
        back = {key: getattr(found["amn"].method, key) for key in keys}
        assert replace(config.method, **back) == found["amn"].method
        assert (label == "amn") == (not keys) and file in ("", "benchmarks/ablation.py")
    assert len({str(config.method) for config in found.values()}) == len(found) == 19
