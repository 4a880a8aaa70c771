"""AMN on real Fashion-MNIST with concept shift; skips where the data set is not installed."""

from __future__ import annotations

from pathlib import Path

import pytest
from running import end, result, start

FOLDER = Path("/usr/share/datasets/fashion-mnist")
SEEDS = 2


@pytest.mark.skipif(not FOLDER.is_dir(), reason="needs Debian's package dataset-fashion-mnist")
def test_amn_leads_by_two_points_under_rotation(tmp_path: Path) -> None:
    """Four hidden groups, Dirichlet 0.5, 32 clients x 100 samples, mlp, 40 rounds, each of two seeds."""
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
    for each in found:
        for name, model in (("local", "local"), ("fedavg_ft", "finetuned"), ("fedavg_ft", "global")):
            other = each["baselines"][name]["models"][model]["mean_last5"]
            print(f"amn {each['mean_last5']:.2f}, {name}'s {model} model {other:.2f}")
            assert each["mean_last5"] >= other + 2, (each["seed"], name, model)
