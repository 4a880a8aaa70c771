"""AMN on real Fashion-MNIST with concept shift; skips where the data set is not installed."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest
from running import end, result, start

FOLDER = Path("/usr/share/datasets/fashion-mnist")
SEEDS = 2


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_amn_leads_by_two_points_under_rotation(tmp_path: Path) -> None:
    """Four hidden groups, Dirichlet 0.5, 32 clients x 100 samples, mlp, 40 rounds, two seeds.

    On each of them AMN leads by 2.9 points or more.
    """
    runs = [
        start(
            *("--config", "fashion_mnist", "--seed", seed, "--out", tmp_path / str(seed)),
            *("--progress", "off", "--baselines", "local,fedavg_ft", "--evaluate.every", 40),
            env={"AMN_CACHE": tmp_path / "cache"},
        )
        for seed in range(SEEDS)
    ]
    for run in runs:
        assert end(run, 300).returncode == 0
    found = [result(tmp_path / str(seed)) for seed in range(SEEDS)]
    data = found[0]["config"]["data"]
    assert (data["labels"], data["alpha"], data["concept_groups"]) == ("dirichlet", 0.5, 4)
    assert (data["train_per_client"], found[0]["rounds"]) == (100, 40)
    amn = statistics.fmean(f["mean_last5"] for f in found)
    for name, model in (("local", "local"), ("fedavg_ft", "finetuned"), ("fedavg_ft", "global")):
        others = [f["baselines"][name]["models"][model]["mean_last5"] for f in found]
        print(f"amn {amn:.2f}, {name}'s {model} model {statistics.fmean(others):.2f}")
        assert amn >= statistics.fmean(others) + 2, (name, model)
