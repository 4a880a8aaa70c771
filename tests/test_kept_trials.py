"""The standard suites' options are those that the kept trials choose, and no others."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from amn_mpi import cli, kept, known, matrix
from amn_mpi.scores import best_trials

FOLDER = Path(cli.__file__).parent.parent / "configs" / "compare"


@pytest.mark.parametrize("name", ["standard_fashion_mnist", "standard_cifar10"])
def test_options_are_what_all_trials_choose(name: str) -> None:
    tuning = matrix.read(f"{name}_tune", {}, ())
    found = known.sort(kept.read(Path(tuning.known)), tuning.cells, known.digests(tuning.cells))
    assert set(found.scores) == {cell.folder for cell in tuning.cells}, "trials that are still to be run"
    chosen = {
        label: tuning.trials[label][trial] for label, trial in best_trials(found.scores.values()).items()
    }
    tuned = FOLDER / f"{name}_tuned.yaml"
    assert yaml.safe_load(tuned.read_text())["methods"] == chosen
    suite = yaml.safe_load((FOLDER / f"{name}.yaml").read_text())
    assert suite["tuned"] == tuned.name and set(suite["methods"]) == set(chosen)
