"""Digests: what counts in them, and what may change without throwing kept runs away. Pure."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from amn_mpi import cli, digest, matrix, methods, neutral
from amn_mpi.config import all_keys, within


def of(*words: object) -> str:
    return digest.of(cli.resolve([], list(map(str, words))))


def by_hand(**lines: str) -> str:
    """The first five signs of each part's SHA-256, of lines ``key = value``."""
    parts = (lines.get(part, "") for part in ("data", "model", "local", "method", "run"))
    return "-".join(hashlib.sha256(text.encode()).hexdigest()[:5] for text in parts)


def test_a_digest_is_of_what_is_not_at_its_neutral_value() -> None:
    """By hand; and as text: a digest that changes by itself would throw all kept runs away."""
    assert of("--method.name", "local") == by_hand(method="method.name = 'local'")
    assert of("--method.name", "local") == "e3b0c-e3b0c-e3b0c-f1c3d-e3b0c"
    words = ("--method.name", "ditto", "--method.lam", 0.5, "--local.lr", 1, "--rounds", 60)
    words += ("--data.name", "fashion_mnist", "--data.alpha", 0.3, "--evaluate.every", 2)
    assert of(*words) == by_hand(
        data="data.alpha = 0.3\ndata.name = 'fashion_mnist'",
        local="local.lr = 1.0",
        method="method.lam = 0.5\nmethod.name = 'ditto'",
        run="evaluate.every = 2\nrounds = 60",
    )
    assert of("--local.lr", 0.05, "--rounds", 40, "--method.tau", 8) == of()


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("rounds", 3, "run"), ("cohort", 0.5, "run"), ("evaluate.every", 5, "run"),
        ("precision", "bf16", "run"), ("server", "auto", "run"),
        ("local.lr", 0.9, "local"), ("local.steps", 9, "local"), ("model.name", "cnn", "model"),
        ("model.hidden", 3, "model"), ("data.name", "mnist", "data"), ("data.clients", 3, "data"),
        ("data.validation", 0.25, "data"), ("method.tau", 1.25, "method"), ("method.name", "local", "method"),
    ],
)  # fmt: skip
def test_what_changes_a_result_changes_its_part_of_the_digest(key: str, value: object, part: str) -> None:
    assert digest.differing(of(), of(f"--{key}", value)) == [part]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("seed", 9), ("out", "here"), ("threads", 8), ("device", "cpu"), ("engine", "torch"),
        ("comm.timeout", 3.0), ("data.root", "/there"), ("data.cache", "/scratch"), ("progress", "off"),
        ("checkpoint.every", 3), ("logging.report", "true"), ("logging.attention", 0),
    ],
)  # fmt: skip
def test_what_changes_no_result_changes_no_digest(key: str, value: object) -> None:
    assert of(f"--{key}", value) == of()


def test_methods_without_keys_differ() -> None:
    assert len({of("--method.name", name) for name in methods.METHODS}) == len(methods.METHODS)


@pytest.mark.parametrize("name", methods.METHODS)
def test_every_key_has_a_neutral_value(name: str) -> None:
    """A new key has to say with which value runs are what they were without it; see ``neutral.py``.

    A default that is changed needs nothing: the entry stays what it was.
    """
    keys = [k for k in all_keys(methods.options(name)) if not within(k, ("seed", *matrix.FREE))]
    own = [key.removeprefix("method.") for key in keys if key.startswith("method.")]
    assert sorted(own) == sorted(["name", *neutral.METHODS.get(name, ["no entry"])])
    assert sorted(key for key in keys if not key.startswith("method.")) == sorted(neutral.NEUTRAL)


def test_a_key_that_comes_later_changes_no_digest() -> None:
    counts = digest.what_counts(cli.resolve([], ["--method.name", "ditto"]))
    assert counts == {"method.name": "ditto"}, "a key with its neutral value is as good as none"


def test_a_default_that_changes_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if Ditto's lam had been 0.5 by default, and kept runs were made so."""
    then = by_hand(method="method.name = 'ditto'")
    monkeypatch.setitem(neutral.METHODS, "ditto", {**neutral.METHODS["ditto"], "lam": 0.5})
    assert of("--method.name", "ditto", "--method.lam", 0.5) == then
    assert of("--method.name", "ditto") == by_hand(method="method.lam = 0.1\nmethod.name = 'ditto'")


def test_code_that_changes_results_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    ditto, local = ("--method.name", "ditto"), ("--method.name", "local")
    before = of(*ditto), of(*local)
    monkeypatch.setitem(neutral.REVISED, "ditto", 1)
    assert of(*ditto) != before[0] and of(*local) == before[1]
    monkeypatch.setitem(neutral.REVISED, "", 1)
    assert of(*local) != before[1]


def test_a_method_of_one_s_own_counts_with_those_it_derives_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    head = "from amn_mpi.methods.heur_fedamp import HeurFedAMP\nfrom amn_mpi.methods.local import Local\n"
    body = "class Mine(HeurFedAMP): pass\nclass Other(Local): pass\n"
    (tmp_path / "own.py").write_text(head + body)
    mine, other = (("--method.name", f"{tmp_path}/own.py:{name}") for name in ("Mine", "Other"))
    before = of(*mine), of(*other)
    monkeypatch.setitem(neutral.METHODS, "heur_fedamp", {**neutral.METHODS["heur_fedamp"], "sigma": 50.0})
    monkeypatch.setitem(neutral.METHODS, "fedamp", {**neutral.METHODS["fedamp"], "sigma": 99.0})
    assert of(*mine, "--method.sigma", 50) == before[0] != of(*mine), "a default that has changed"
    monkeypatch.undo()
    monkeypatch.setitem(neutral.REVISED, "fedamp", 1)
    assert of(*mine) != before[0] and of(*other) == before[1]


def test_a_file_of_one_s_own_is_known_by_what_it_holds(tmp_path: Path) -> None:
    """plugin reads a file once a process, so each text has a folder."""
    texts = {"a": "net = 1\n", "moved": "net = 1\n", "edited": "net = 2\n"}
    for folder, text in texts.items():
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "own.py").write_text(text)
    found = {name: of("--model.name", f"{tmp_path / name}/own.py:net") for name in texts}
    assert found["a"] == found["moved"] and digest.differing(found["a"], found["edited"]) == ["model"]
