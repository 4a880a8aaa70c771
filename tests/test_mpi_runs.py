"""Whole runs on 1 to 5 ranks, and the main job once on 33: bitwise the same results."""

from __future__ import annotations

import gzip
import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import plain
import pytest
from ready import run_each
from running import REPOSITORY, result, run


def finished(out: Path, *args: object, ranks: int, timeout: float = 120) -> dict[str, Any]:
    """The result of a run that must succeed without a word on standard error."""
    env = {"AMN_CACHE": out.parent / "cache"}
    done = run("--out", out, "--progress", "off", *args, ranks=ranks, timeout=timeout, env=env)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return result(out)


def what_counts(found: dict[str, Any], out: Path) -> dict[str, Any]:
    """All that must not depend on the number of ranks."""
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    kept = {k: found[k] for k in ("models_sha256", "per_client", "models", "mean_last5", "worst10")}
    scores = {name: {**s, "round_seconds": 0} for name, s in found["baselines"].items()}
    return {**kept, "baselines": scores, "rounds": [{**row, "seconds": 0, "turn_seconds": 0} for row in rows]}


def on_ranks(
    folder: Path, cases: Mapping[str, Sequence[object]], ranks: tuple[int, ...] = (1, 3, 5)
) -> dict[str, dict[int, dict[str, Any]]]:
    """What counts of each case, by number of ranks; one start of the ranks for all cases."""
    found: dict[str, dict[int, dict[str, Any]]] = {name: {} for name in cases}
    for n in ranks:
        outs = {name: folder / f"{name}-{n}" for name in cases}
        lines = [("--out", outs[name], "--progress", "off", *words) for name, words in cases.items()]
        done = run_each(lines, folder, ranks=n)
        assert (done.returncode, done.stderr) == (0, "")
        for name, out in outs.items():
            assert result(out)["ranks"] == n
            found[name][n] = what_counts(result(out), out)
    return found


def write_images(folder: Path, count: int) -> None:
    """Fashion-MNIST's four files in miniature: ten classes that a network can tell apart."""
    draw = np.random.default_rng(3)
    for part, size in (("train", count), ("t10k", count // 4)):
        y = draw.integers(0, 10, size).astype(np.uint8)
        y[:16] = [9, 0, 0, 3, 0, 2, 7, 2, 5, 5, 0, 9, 5, 5, 7, 9][: min(16, size)]
        x = draw.integers(0, 60, (size, 28, 28)).astype(np.uint8)
        for image, label in zip(x, y):
            image[2 * label : 2 * label + 6, 4:24] += 150
        for name, array in ((f"{part}-images-idx3-ubyte.gz", x), (f"{part}-labels-idx1-ubyte.gz", y)):
            head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
            (folder / name).write_bytes(gzip.compress(head + array.tobytes(), 1))


CASES: dict[str, tuple[object, ...]] = {
    # Five common rounds, then five with attention and meta steps.
    "amn_and_baselines": ("--rounds", 10, "--local.epochs", 1, "--baselines", "local,fedavg,fedavg_ft"),
}
for method in ("amn", "fedavg"):
    CASES[f"half_a_cohort_and_skewed_sizes_{method}"] = (
        *("--rounds", 9, "--local.epochs", 1, "--cohort", 0.5, "--data.sizes", "lognormal"),
        *("--method.name", method, "--data.clients", 13, "--local.momentum", 0.5),
        *(("--method.drift", 0) if method == "amn" else ()),
    )
# The 582,026-parameter CNN, from IDX files to models, with half of the clients a round.
for method, engine in (("amn", "torch"), ("fedavg", "auto")):
    CASES[f"cnn_on_images_{method}_{engine}"] = (
        *("--config", "fashion_mnist", "--model.name", "cnn", "--rounds", 2, "--data.clients", 8),
        *("--data.train_per_client", 24, "--data.test_per_client", 8, "--data.root", "IMAGES"),
        *("--cohort", 0.5, "--local.epochs", 1, "--method.name", method, "--engine", engine),
        *(("--method.common_rounds", 1) if method == "amn" else ()),
    )


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[int, dict[str, Any]]]:
    folder = tmp_path_factory.mktemp("found")
    write_images(folder, 800)
    cases = {name: [folder if word == "IMAGES" else word for word in words] for name, words in CASES.items()}
    return on_ranks(folder, cases)


@pytest.mark.parametrize("name", CASES)
def test_the_same_bits_on_1_3_and_5_ranks(found: dict[str, dict[int, dict[str, Any]]], name: str) -> None:
    one, three, five = (found[name][n] for n in (1, 3, 5))
    assert one == three == five
    assert len(one["rounds"]) == CASES[name][CASES[name].index("--rounds") + 1]
    if name == "amn_and_baselines":
        assert set(one["baselines"]) == {"local", "fedavg", "fedavg_ft"}


@pytest.mark.alone
def test_the_main_job_on_33_ranks(tmp_path: Path) -> None:
    """What `make run` does, as on one rank; AMN beats training alone on the embedded digits."""
    args = ("--config", "default", "--baselines", "local,fedavg_ft")
    many = finished(tmp_path / "many", *args, ranks=33, timeout=240)
    plain.here(*args, "--progress", "off", "--out", tmp_path / "one", "--data.cache", tmp_path / "cache")
    one = result(tmp_path / "one")
    assert what_counts(many, tmp_path / "many") == what_counts(one, tmp_path / "one")
    assert many["ranks"] == 33 and many["clients"] == 32 and one["ranks"] == 1
    assert many["mean_last5"] > many["baselines"]["local"]["mean_last5"] + 2


def test_resulting_files(tmp_path: Path) -> None:
    """result.json agrees with metrics.jsonl and with models.h5 used outside the package."""
    import h5py

    from amn_mpi import data
    from amn_mpi.config import Data

    args = ("--rounds", 7, "--local.epochs", 1, "--method.name", "amn", "--evaluate.every", 3)
    done = run_each([["--out", tmp_path / "run", "--progress", "off", *args]], tmp_path, ranks=3)
    assert (done.returncode, done.stderr) == (0, "")
    found = result(tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert [row["round"] for row in rows] == list(range(1, 8))
    assert [row["round"] for row in rows if "mean_accuracy" in row] == [3, 4, 5, 6, 7]
    assert found["mean_accuracy"] == rows[-1]["mean_accuracy"]
    last5 = [row["mean_accuracy"] for row in rows[2:]]
    assert found["mean_last5"] == pytest.approx(np.mean(last5), abs=1e-5)
    best = max(rows[2:], key=lambda row: row["mean_accuracy"])
    assert (found["best_round"], found["best_accuracy"]) == (best["round"], best["mean_accuracy"])

    with h5py.File(tmp_path / "run" / "models.h5") as file:
        models = file["models"][...]
        scale, shift = file.attrs["scale"], file.attrs["shift"]
        layout = json.loads(file.attrs["layout"])
        assert json.loads(file.attrs["class_names"]) == [str(c) for c in range(10)]
    assert models.shape == (32, 64 * 64 + 64 + 64 * 10 + 10) and layout["size"] == models.shape[1]
    places = {name: (start, shape) for name, shape, start in layout["tensors"]}

    def tensor(row: np.ndarray, name: str) -> np.ndarray:
        start, shape = places[name]
        return row[start : start + int(np.prod(shape))].reshape(shape)

    fed = data.prepare(Data(cache=str(tmp_path / "cache")), 0)
    assert (fed.scale, fed.shift) == (scale, shift)
    accuracies = []
    for row, client in zip(models, data.load_clients(fed, range(32))):
        x = client.x_test.reshape(len(client.y_test), -1)
        hidden = np.maximum(x @ tensor(row, "fc1.weight").T + tensor(row, "fc1.bias"), 0)
        scores = hidden @ tensor(row, "fc2.weight").T + tensor(row, "fc2.bias")
        accuracies.append(100 * np.mean(scores.argmax(1) == client.y_test))
    assert accuracies == pytest.approx(found["per_client"]["accuracy"], abs=1e-4)
    assert found["mean_accuracy"] == pytest.approx(np.mean(accuracies), abs=1e-4)
    worst = np.sort(accuracies)[:4]
    assert found["worst10"] == pytest.approx(np.mean(worst), abs=1e-4)

    example = (REPOSITORY / "README.md").read_text().split("```python\n")[1].split("```")[0]
    script = tmp_path / "example.py"
    script.write_text(example.replace("runs/RUN", str(tmp_path / "run")))
    shown = run(script=script, env={"AMN_CACHE": tmp_path / "cache"})
    assert 100 * float(shown.stdout) == pytest.approx(accuracies[7], abs=1e-4), shown.stderr

    sent, size = found["bytes_sent"], models.nbytes
    assert sent["scatter"] == 7 * 2 * size  # hybrids, means of drifts
    figures = 7 * 32 * 2 * 8 + 5 * 32 * 3 * 8  # seconds, reaches; counts of three models
    sketches = 7 * 32 * 2 * 512 * 4
    vectors = (7 + 2) * size  # models; gradients in the last two rounds, where the meta-network learns
    assert sent["gather"] == vectors + figures + sketches
