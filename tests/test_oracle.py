"""``benchmarks/oracle.py``: AMN told the true groups of the data."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import plain
import pytest
from running import REPOSITORY

from amn_mpi import data, matrix, methods
from amn_mpi.config import Local, Model

FILE = REPOSITORY / "benchmarks" / "oracle.py"


def test_it_attends_to_the_true_groups(tmp_path: Path) -> None:
    """Of whatever seed; of others alike; gates go by what these groups are good for."""
    name, trained = f"{FILE}:ToldGroups", Local(epochs=2, batch_size=8, lr=0.1)
    options = methods.options(name)(
        sketch=16, common_rounds=1, gate=0.4, gate_lr=0.3, evidence_lr=2.0, groups=2
    )
    for seed in (3, 4):
        run = plain.start(
            tmp_path,
            replace(options, name=name),
            seed=seed,
            data={"concept": "permute", "concept_groups": 2},
            model=Model("mlp", hidden=plain.HIDDEN),
            local=trained,
        )
        figures = [plain.one_round(run).figures for _ in range(4)]
        groups = data.prepare(run.config.data, seed).concept_group
        others = (groups[:, None] == groups) & ~np.eye(5, dtype=bool)
        expected = others / np.maximum(others.sum(1, keepdims=True), 1)
        np.testing.assert_allclose(run.method.attention(run.server)[0], expected, atol=1e-6)
        assert len(set(groups)) == 2 and figures[-1]["gate"] != figures[0]["gate"]
        assert figures[-1]["evidence"] == figures[0]["evidence"], "there is nothing to tell layers apart by"


@pytest.mark.parametrize("name", ["fashion_mnist", "cifar10"])
def test_the_files_are_the_suites(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Their AMN is the suite's, to the digest's keys; what is told is AMN but for attention and gates."""
    monkeypatch.chdir(REPOSITORY)
    cells = matrix.read(f"oracle_{name}", {"seeds": ["0"]}, []).cells
    suite = {
        (c.scenario, c.label): c.config for c in matrix.read(f"standard_{name}", {"seeds": ["0"]}, []).cells
    }
    for cell in cells:
        amn = suite[cell.scenario, "amn"]
        method = cell.config.method
        if cell.label == "amn":
            assert cell.config == amn
            continue
        assert replace(cell.config, method=amn.method) == amn and method.groups == amn.data.concept_groups
        same = {key for key in vars(amn.method) if getattr(method, key) == getattr(amn.method, key)}
        assert set(vars(amn.method)) - same <= {"name", "gate", "gate_lr"}
    assert [c.label for c in cells][:4] == ["amn", "told", "told_half", "told_open"]
