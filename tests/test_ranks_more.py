"""More networks, steps and kinds of labels: bitwise the same on one rank and on three."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from test_mpi_runs import on_ranks

SMALL = ("--rounds", 2, "--data.clients", 5, "--local.epochs", 1)
EXCHANGED = ("--method.common_rounds", 1)  # the second round mixes by attention
ON_BARS = ("--data.name", "BARS", "--model.name", "lenet5")
CASES: dict[str, tuple[object, ...]] = {
    "resnet8": ("--model.name", "resnet8", "--data.train_per_client", 20, "--data.test_per_client", 8),
    "lenet5": (*ON_BARS, "--data.train_per_client", 20, "--data.test_per_client", 8),
    "steps": ("--local.steps", 7, "--local.momentum", 0.5, "--method.drift", 0),
    "epochs": ("--local.momentum", 0.5, "--method.drift", 0),
    "classes": ("--data.labels", "classes", "--data.classes_per_client", 2, "--data.sizes", "lognormal"),
    "groups": ("--data.labels", "groups", "--data.label_groups", 2, "--rounds", 3),
}


def write_bars(path: Path) -> Path:
    """Images of 28 x 28 in four classes."""
    draw = np.random.default_rng(5)
    y = np.arange(200) % 4
    x = draw.integers(0, 90, (200, 28, 28)).astype(np.uint8)
    for image, label in zip(x, y):
        image[6 * label : 6 * label + 6, 4:24] += 150
    np.savez(path, x=x, y=y)
    return path


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("found")
    bars = write_bars(folder / "bars.npz")
    cases = {
        name: [*SMALL, *EXCHANGED, *(bars if word == "BARS" else word for word in words)]
        for name, words in CASES.items()
    }
    return on_ranks(folder, cases, ranks=(1, 3))


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_on_1_and_3_ranks(found: dict[str, dict[int, dict[str, Any]]], name: str) -> None:
    one, three = found[name][1], found[name][3]
    assert one == three
    assert len(one["models_sha256"]) == 64
    rows = one["rounds"]
    assert rows[-1]["gate"] != [0.1] * len(rows[-1]["gate"]), "the meta-network has not moved"
    assert (len(set(one["per_client"]["label_group"])) == 2) == (name == "groups")


def test_steps_are_counted_and_not_epochs(found: dict[str, dict[int, dict[str, Any]]]) -> None:
    """Seven steps are another training than one epoch: what is equal above is no ignored option."""
    assert found["steps"][1]["models_sha256"] != found["epochs"][1]["models_sha256"]
