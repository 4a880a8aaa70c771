"""More networks, steps and kinds of labels: bitwise the same on one rank and on three."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from test_mpi_runs import on_ranks

SMALL = ("--rounds", 2, "--data.clients", 5, "--local.epochs", 1)
EXCHANGED = ("--method.common_rounds", 1)  # the second round mixes by attention
CASES = [
    ("--model.name", "resnet8", "--data.train_per_client", 20, "--data.test_per_client", 8),
    ("--local.steps", 7, "--local.momentum", 0.5),
    ("--data.labels", "classes", "--data.classes_per_client", 2, "--data.sizes", "lognormal"),
    ("--data.labels", "groups", "--data.label_groups", 2, "--rounds", 3),
]


def same(tmp_path: Path, *args: object) -> dict:
    one, three = on_ranks(tmp_path, *SMALL, *EXCHANGED, *args, ranks=(1, 3))
    assert one == three
    assert len(one["models_sha256"]) == 64
    rows = one["rounds"]
    assert rows[-1]["gate"] != [0.5] * len(rows[-1]["gate"]), "the meta-network has not moved"
    return one


@pytest.mark.parametrize("args", CASES, ids=["resnet8", "steps", "classes", "groups"])
def test_on_digits(tmp_path: Path, args: tuple[object, ...]) -> None:
    found = same(tmp_path, *args)
    labels = found["per_client"]["label_group"]
    assert (len(set(labels)) == 2) == ("groups" in args)


def test_lenet5_on_images_of_28x28(tmp_path: Path) -> None:
    draw = np.random.default_rng(5)
    y = np.arange(200) % 4
    x = draw.integers(0, 90, (200, 28, 28)).astype(np.uint8)
    for image, label in zip(x, y):
        image[6 * label : 6 * label + 6, 4:24] += 150
    np.savez(tmp_path / "bars.npz", x=x, y=y)
    args = ("--data.name", tmp_path / "bars.npz", "--model.name", "lenet5")
    same(tmp_path, *args, "--data.train_per_client", 20, "--data.test_per_client", 8)


def test_steps_are_counted_and_not_epochs(tmp_path: Path) -> None:
    """Seven steps are another training than one epoch: what is equal above is no ignored option."""
    seven, epoch = (
        on_ranks(folder, *SMALL, *args, ranks=(0,))[0]["models_sha256"]
        for folder, args in ((tmp_path / "a", ("--local.steps", 7)), (tmp_path / "b", ()))
        if folder.mkdir() is None
    )
    assert seven != epoch
