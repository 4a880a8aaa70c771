"""A comparison's file: which cells it means, what each is configured as, and what is refused."""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml

from amn_mpi import cli, matrix, methods
from amn_mpi.config import Config
from amn_mpi.errors import ConfigError
from amn_mpi.matrix import Cell, Matrix, difference

FOLDER = Path(cli.__file__).parent.parent / "configs" / "compare"
SHIPPED = sorted(path for path in FOLDER.glob("*.yaml") if not path.stem.endswith("_tuned"))
SMALL = """
seeds: [0, 1]
keys: {rounds: 2, data: {clients: 4}}
scenarios:
  iid: {data: {labels: iid}}
  skew: {data: {labels: dirichlet}}
methods:
  amn:
  fedavg: {local: {lr: 0.5}}
"""


def write(folder: Path, text: str, name: str = "my.yaml") -> Path:
    (folder / name).write_text(text)
    return folder / name


def read(folder: Path, text: str, *words: str, **chosen: str) -> Matrix:
    picked = {kind: names.split(",") for kind, names in chosen.items()}
    return matrix.read(str(write(folder, text)), picked, words)


def refused(folder: Path, text: str, *words: str, **chosen: str) -> str:
    """The one line with which a file is refused."""
    with pytest.raises(ConfigError) as caught:
        read(folder, text, *words, **chosen)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def has(line: str, *words: str) -> None:
    assert [word for word in words if word not in line] == [], line


def places(found: Matrix) -> list[tuple[str, int, str]]:
    return [(cell.scenario, cell.seed, cell.label) for cell in found.cells]


def only(found: Matrix) -> Cell:
    assert len(found.cells) == 1
    return found.cells[0]


# ---- cells


def test_cells_come_scenario_by_scenario_and_seed_by_seed(tmp_path: Path) -> None:
    """The order in which they run: the same data is not prepared twice in a row."""
    found = read(tmp_path, SMALL)
    assert places(found) == [(s, k, m) for s in ("iid", "skew") for k in (0, 1) for m in ("amn", "fedavg")]
    assert [cell.folder for cell in found.cells[:3]] == ["iid/amn/seed0", "iid/fedavg/seed0", "iid/amn/seed1"]
    assert len({cell.folder for cell in found.cells}) == 8
    assert (found.tunes, found.reference, found.path) == (False, "amn", tmp_path / "my.yaml")
    for cell in found.cells:
        config = cell.config
        assert (config.seed, config.method.name, cell.trial) == (cell.seed, cell.label, -1)
        assert (config.rounds, config.data.clients) == (2, 4)
        assert config.data.labels == {"iid": "iid", "skew": "dirichlet"}[cell.scenario]
        assert config.local.lr == {"amn": 0.05, "fedavg": 0.5}[cell.label]


def test_a_file_says_seeds_and_reference_or_not(tmp_path: Path) -> None:
    least = "scenarios: {s: }\nmethods: {local: }\n"
    assert places(read(tmp_path, least)) == [("s", 0, "local")]
    assert only(read(tmp_path, least)).config == cli.resolve([], ["--method.name", "local"])
    assert read(tmp_path, "reference: local\n" + least).reference == "local"


def test_parts_of_a_matrix(tmp_path: Path) -> None:
    """In the file's order, however they are asked for; a seed may be one that the file lacks."""
    assert places(read(tmp_path, SMALL, scenarios="skew", methods="fedavg,amn", seeds="1")) == [
        ("skew", 1, "amn"), ("skew", 1, "fedavg")
    ]  # fmt: skip
    assert places(read(tmp_path, SMALL, scenarios="iid", methods="amn", seeds="7,0")) == [
        ("iid", 7, "amn"), ("iid", 0, "amn")
    ]  # fmt: skip
    part = read(tmp_path, SMALL, methods="amn")
    assert part.trials == {"amn": [{}]}
    whole = {cell.folder: cell.config for cell in read(tmp_path, SMALL).cells}
    assert all(whole[cell.folder] == cell.config for cell in part.cells)


def test_nothing_is_run_twice(tmp_path: Path) -> None:
    for found in (
        read(tmp_path, SMALL, seeds="0,0,00"),
        read(tmp_path, SMALL.replace("[0, 1]", "[3, 3]")),
        read(tmp_path, SMALL, methods="amn,amn"),
    ):
        assert len({cell.folder for cell in found.cells}) == len(found.cells)


# ---- keys


LAYERS = """
config: [{config}]
keys: {{local: {{lr: 0.002, momentum: 0.2, weight_decay: 0.2, batch_size: 2, epochs: 2}}}}
scenarios: {{s: {{local: {{lr: 0.003, momentum: 0.3, weight_decay: 0.3, batch_size: 3}}}}}}
tuned: tuned.yaml
methods: {{ditto: {{local: {{lr: 0.005, momentum: 0.5}}}}}}
"""


def test_later_layers_win(tmp_path: Path) -> None:
    """config < keys < scenario < tuned < methods < command line."""
    first = "local: {lr: 0.001, momentum: 0.1, weight_decay: 0.1, batch_size: 1, epochs: 1, steps: 1}"
    config = write(tmp_path, f"{first}\nrounds: 9\n", "first.yaml")
    write(tmp_path, "methods: {ditto: {local: {lr: 4.0, momentum: 0.4, weight_decay: 0.4}}}", "tuned.yaml")
    text = LAYERS.format(config=config)
    cell = only(read(tmp_path, text, "--local.lr", "0.006"))
    local = cell.config.local
    assert (local.lr, local.momentum, local.weight_decay) == (0.006, 0.5, 0.4)
    assert (local.batch_size, local.epochs, local.steps, cell.config.rounds) == (3, 2, 1, 9)
    assert cell.config.method.name == "ditto"


def test_of_several_configs_the_last_wins(tmp_path: Path) -> None:
    one, two = (
        write(tmp_path, f"rounds: {k}\n{key}: 1\n", f"{k}.yaml") for k, key in ((3, "threads"), (4, "seed"))
    )
    text = f"config: [{one}, {two}, fashion_mnist]\nscenarios: {{s: }}\nmethods: {{local: }}"
    config = only(read(tmp_path, text)).config
    assert (config.rounds, config.threads, config.data.name) == (40, 1, "fashion_mnist")
    assert config.seed == 0, "the seed is the matrix's"


def test_tuned_values_lie_under_a_method_s_own(tmp_path: Path) -> None:
    """Key by key; labels that the file itself does not have are left out."""
    tuned = {
        "ditto": {"method": {"lam": 3.0}, "local": {"lr": 0.3}},
        "fedavg": {"local": {"lr": 0.9}},
        "apfl": {},
    }
    write(tmp_path, yaml.safe_dump({"methods": tuned}), "tuned.yaml")
    own = "{ditto: {local: {lr: 0.1, epochs: 7}}, local: , fedavg: }"
    text = f"scenarios: {{s: }}\ntuned: tuned.yaml\nmethods: {own}"
    found = {cell.label: cell.config for cell in read(tmp_path, text).cells}
    assert list(found) == ["ditto", "local", "fedavg"]
    ditto = found["ditto"]
    assert (ditto.method.lam, ditto.local.lr, ditto.local.epochs) == (3.0, 0.1, 7)
    assert found["fedavg"].local.lr == 0.9
    assert found["local"] == cli.resolve([], ["--method.name", "local"])


def test_tuned_file_that_is_no_good(tmp_path: Path) -> None:
    text = "scenarios: {s: }\ntuned: %s\nmethods: {local: }"
    has(refused(tmp_path, text % "gone.yaml"), "my.yaml", "tuned = gone.yaml", "no such file")
    has(refused(tmp_path, text % ""), "my.yaml", "tuned")
    write(tmp_path, "chosen: {}", "tuned.yaml")
    has(refused(tmp_path, text % "tuned.yaml"), "tuned.yaml", "methods: missing")
    write(tmp_path, "methods: {local: {nosuch: 1}}", "tuned.yaml")
    has(refused(tmp_path, text % "tuned.yaml"), "tuned.yaml, method local", "nosuch: unknown key")
    for value in ("fast", -1):
        write(tmp_path, f"methods: {{local: {{local: {{lr: {value}}}}}}}", "tuned.yaml")
        line = refused(tmp_path, text % "tuned.yaml")
        has(line, "tuned.yaml, method local", f"local.lr = {value}", "valid is")
        assert "my.yaml" not in line, "the value is not in that file"
    write(tmp_path, "methods: {local: {seed: 1}}", "tuned.yaml")
    has(refused(tmp_path, text % "tuned.yaml"), "tuned.yaml, method local: seed: a comparison sets it itself")
    write(tmp_path, "methods: [", "tuned.yaml")
    has(refused(tmp_path, text % "tuned.yaml"), "tuned.yaml: cannot be read as YAML")


def test_labels_of_one_s_own(tmp_path: Path) -> None:
    text = """
scenarios: {s: }
methods:
  ditto:
  strong: {method: {name: ditto, lam: 2}}
  weak: {method: {name: ditto, lam: 0.01}}
  amn: {method: {tau: 3}}
"""
    found = read(tmp_path, text)
    assert [cell.config.method.name for cell in found.cells] == ["ditto", "ditto", "ditto", "amn"]
    lam = [getattr(cell.config.method, "lam", None) for cell in found.cells]
    assert lam == [methods.options("ditto")().lam, 2.0, 0.01, None]
    assert found.cells[1].folder == "s/strong/seed0" and found.cells[3].config.method.tau == 3.0
    has(refused(tmp_path, text.replace("name: ditto, ", "")), "strong: no method", "amn, local, fedavg")


def test_empty_entries(tmp_path: Path) -> None:
    text = "keys:\nscenarios: {s: , t: {}, u: {data: }}\nmethods: {local: , fedavg: {}, amn: {local: }}"
    found = read(tmp_path, text)
    assert len(found.cells) == 9
    for cell in found.cells:
        assert cell.config == cli.resolve([], ["--method.name", cell.label])


def test_an_empty_method_section_is_as_good_as_an_empty_data_section(tmp_path: Path) -> None:
    cell = only(read(tmp_path, "scenarios: {s: }\nmethods: {local: {method: }}"))
    assert cell.config == cli.resolve([], ["--method.name", "local"])


def test_what_a_command_line_adds_holds_for_every_run(tmp_path: Path) -> None:
    found = read(tmp_path, SMALL, "--rounds", "5", "--threads", "2")
    assert {(cell.config.rounds, cell.config.threads) for cell in found.cells} == {(5, 2)}
    has(refused(tmp_path, SMALL, "--nosuch", "1"), "nosuch: unknown key (command line)", "valid are")
    has(refused(tmp_path, SMALL, "--local.lrr", "1"), "local.lrr", "did you mean local.lr?")
    has(refused(tmp_path, SMALL, "--rounds", "0"), "rounds = 0", ">= 1")
    has(refused(tmp_path, SMALL, "--method.lam", "1"), "belongs to method.name = ", "hold for all methods")


# ---- grids


GRID = """
keys: {data: {validation: 0.25}}
scenarios: {s: , t: }
trials: 4
grid:
  local: {local: {lr: [0.1, 0.2, 0.3, 0.4]}}
  mine: {method: {name: ditto, lam: [1, 2]}, local: {lr: [0.1, 0.2], momentum: 0.5}}
"""


def test_trials_are_all_combinations(tmp_path: Path) -> None:
    found = read(tmp_path, GRID)
    assert found.tunes and len(found.cells) == 16
    mine = [cell for cell in found.cells if cell.label == "mine" and cell.scenario == "t"]
    assert [cell.trial for cell in mine] == [0, 1, 2, 3]
    values = [(c.config.method.lam, c.config.local.lr, c.config.local.momentum) for c in mine]
    assert values == [(1.0, 0.1, 0.5), (1.0, 0.2, 0.5), (2.0, 0.1, 0.5), (2.0, 0.2, 0.5)]
    assert mine[2].folder == "t/mine-02/seed0" and {c.config.method.name for c in mine} == {"ditto"}
    assert found.trials["mine"][3] == {
        "method": {"name": "ditto", "lam": 2},
        "local": {"lr": 0.2, "momentum": 0.5},
    }
    keys = "keys: {data: {validation: 0.25}}"
    methods = json.dumps({"mine": found.trials["mine"][3]})
    again = read(tmp_path, f"{keys}\nscenarios: {{t: }}\nmethods: {methods}")
    assert only(again).config == mine[3].config


def test_a_list_of_trials_may_have_combinations(tmp_path: Path) -> None:
    lists = "[{method: {name: ditto, lam: 3}}, {method: {name: ditto, lam: [1, 2]}, local: {lr: 0.2}}]"
    found = read(tmp_path, change(GRID, trials="3", grid=f"{{mine: {lists}}}"))
    mine = [cell.config for cell in found.cells if cell.label == "mine" and cell.scenario == "t"]
    assert [(c.method.lam, c.local.lr) for c in mine] == [(3.0, 0.05), (1.0, 0.2), (2.0, 0.2)]


def test_nothing_is_tuned_on_test_samples_and_no_trial_counts_twice(tmp_path: Path) -> None:
    line = refused(tmp_path, GRID.replace("keys: {data: {validation: 0.25}}\n", ""))
    has(line, "my.yaml, s: data.validation = 0: a tuning needs a part to judge by")
    line = refused(tmp_path, GRID.replace("[0.1, 0.2, 0.3, 0.4]", "[0.1, 0.2, 0.30, 0.3]"))
    has(line, "my.yaml: grid: local: trials 2 and 3 are the same (s)")


def test_every_method_gets_equally_many_trials(tmp_path: Path) -> None:
    line = refused(tmp_path, GRID.replace("[1, 2]", "[1, 2, 3]"))
    has(line, "my.yaml: grid: mine has 6 trials", "trials = 4")
    has(refused(tmp_path, GRID.replace("trials: 4", "")), "trials = None: valid is a whole number >= 1")
    has(refused(tmp_path, GRID.replace("[1, 2]", "[]")), "grid: mine has 0 trials")
    has(refused(tmp_path, GRID.replace("trials: 4", "trials: 0")), "trials = 0: valid is a whole number >= 1")
    has(refused(tmp_path, f"{GRID}\nmethods: {{amn: }}"), "methods: beside grid")
    has(refused(tmp_path, GRID.replace("lam", "lamm")), "method.lamm: unknown key")
    has(
        refused(tmp_path, GRID.replace("lr: [0.1, 0.2, 0.3, 0.4]", "lr: [0.1, 0.2, 0.3, -4]")),
        "local.lr = -4",
    )


# ---- what is refused


def change(text: str, **sections: str) -> str:
    """SMALL with some of its sections written otherwise."""
    tree = {**yaml.safe_load(text), **{k: yaml.safe_load(v) for k, v in sections.items()}}
    return yaml.safe_dump(tree, sort_keys=False)


WRONG: list[tuple[str, str, tuple[str, ...]]] = [
    ("nosuch", "1", ("my.yaml: nosuch: unknown key", "seeds, config, keys, scenarios, methods")),
    ("methods", "{nosuch: }", ("methods: nosuch: no method", "amn, local, fedavg")),
    ("methods", "{x: {method: {name: nosuch}}}", ("nosuch", "amn, local, fedavg")),
    ("methods", "{x: {method: {name: [ditto]}}}", ("x", "amn, local, fedavg")),
    ("methods", "{x: {method: ditto}}", ("x", "amn, local, fedavg")),
    ("methods", "{amn: 3}", ("methods: amn = 3", "a table of keys")),
    ("methods", "[amn, local]", ("methods: missing", "a table of names")),
    ("methods", "{}", ("methods: missing",)),
    ("methods", "{amn: {nosuch: 1}}", ("nosuch: unknown key", "my.yaml, method amn")),
    ("methods", "{local: {method: {tau: 1}}}", ("method.tau: unknown key", "my.yaml, method local")),
    ("methods", "{local: {local: {lr: abc}}}", ("local.lr = abc", "a number > 0")),
    ("scenarios", "{}", ("scenarios: missing",)),
    ("scenarios", "{s: {data: {nosuch: 1}}}", ("data.nosuch: unknown key", "my.yaml, scenario s")),
    ("scenarios", "{s: [1]}", ("scenarios: s = [1]",)),
    ("scenarios", "{../s: }", ("scenarios", "../s")),
    ("scenarios", "{'': {}}", ("scenarios: ''", "cannot be the name of a folder")),
    ("scenarios", "{' ': {}}", ("scenarios: ' '", "cannot be the name of a folder")),
    ("methods", '{"a\\nb": {}}', ("methods: 'a\\nb'", "cannot be the name of a folder")),
    ("keys", "{nosuch: 1}", ("nosuch: unknown key", "my.yaml, keys")),
    ("keys", "[1]", ("my.yaml", "keys")),
    ("keys", "3", ("my.yaml", "keys")),
    ("seeds", "3", ("seeds = 3", "a list of whole numbers")),
    ("seeds", "[a]", ("seeds = ['a']", "a list of whole numbers")),
    ("seeds", "[true]", ("seeds = [True]", "a list of whole numbers")),
    ("seeds", "[]", ("seeds = []", "a list of whole numbers")),
    ("seeds", "[-1]", ("seed -1", ">= 0")),
    ("seeds", "[1, 9223372036854775808]", ("seed 9223372036854775808", "< 9223372036854775808")),
    ("config", "[nosuch]", ("nosuch", "no such file", "default")),
    ("config", "fashion_mnist", ("my.yaml", "config = fashion_mnist")),
    ("config", "3", ("my.yaml", "config = 3")),
    ("config", "[3]", ("my.yaml", "config")),
    ("reference", "nosuch", ("my.yaml", "reference", "nosuch", "amn, fedavg")),
]


@pytest.mark.parametrize(("section", "value", "words"), WRONG, ids=[f"{s}={v}" for s, v, _ in WRONG])
def test_sections_that_are_not_valid(tmp_path: Path, section: str, value: str, words: Sequence[str]) -> None:
    has(refused(tmp_path, change(SMALL, **{section: value})), *words)


def test_an_empty_config_section_is_none(tmp_path: Path) -> None:
    """As an empty ``keys`` is."""
    assert len(read(tmp_path, "config:\n" + SMALL).cells) == 8


def test_files_that_are_not_valid(tmp_path: Path) -> None:
    has(refused(tmp_path, "a: [1,\n b: {"), "my.yaml: cannot be read as YAML")
    has(refused(tmp_path, "- 1"), "my.yaml: holds list")
    has(refused(tmp_path, ""), "my.yaml", "missing; valid is a table of names")
    with pytest.raises(ConfigError, match=r"^nosuch: neither a folder .* by name are .*quick, quick_tune"):
        matrix.read("nosuch", {}, [])
    (tmp_path / "folder.yaml").mkdir()
    with pytest.raises(ConfigError, match="neither a folder"):
        matrix.find(str(tmp_path / "folder.yaml"))


@pytest.mark.parametrize(
    ("kind", "value", "valid"),
    [
        ("scenarios", "skew,nosuch", "iid, skew"),
        ("methods", "nosuch", "amn, fedavg"),
        ("methods", "local", "amn, fedavg"),
        ("seeds", "x", "0, 1"),
        ("seeds", "-1", "0, 1"),
        ("seeds", "²", "0, 1"),
        ("seeds", "1.5", "0, 1"),
    ],
)
def test_parts_that_are_not_there(tmp_path: Path, kind: str, value: str, valid: str) -> None:
    line = refused(tmp_path, SMALL, **{kind: value})
    has(line, f"--{kind} {value.split(',')[-1]}", "my.yaml", f"valid are {valid}")


def test_a_seed_asked_for_is_one_that_a_run_takes(tmp_path: Path) -> None:
    assert read(tmp_path, SMALL, seeds=str(2**63 - 1)).cells
    has(refused(tmp_path, SMALL, seeds=f"0,{2**63}"), f"my.yaml: seed {2**63}: valid is a whole number >= 0")


# ---- what may differ between a finished cell and the file


def changed(config: Config, key: str, value: object) -> dict[str, Any]:
    """The configuration in a result.json, with one key written otherwise."""
    done = json.loads(json.dumps(config.as_dict()))
    *parents, leaf = key.split(".")
    at = done
    for parent in parents:
        at = at[parent]
    assert leaf in at and at[leaf] != value
    at[leaf] = value
    return done


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("out", "elsewhere"), ("progress", "rich"), ("threads", 8), ("device", "cuda"), ("comm.wait", "spin"),
        ("comm.timeout", 3.0), ("data.root", "/there"), ("data.cache", "/scratch"),
    ],
)  # fmt: skip
def test_what_changes_no_result_may_differ(key: str, value: object) -> None:
    config = cli.resolve([], [])
    assert difference(config, changed(config, key, value)) == ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("rounds", 3), ("seed", 5), ("cohort", 0.5), ("local.lr", 0.9), ("local.steps", 9),
        ("model.name", "cnn"), ("model.hidden", 3), ("data.name", "mnist"), ("data.clients", 3),
        ("data.alpha", 9.0), ("data.validation", 0.25), ("evaluate.every", 5), ("method.tau", 1.25),
        ("method.name", "local"),
    ],
)  # fmt: skip
def test_what_changes_a_result_may_not(key: str, value: object) -> None:
    config = cli.resolve([], [])
    line = difference(config, changed(config, key, value))
    was = changed(config, key, value)
    now: Any = config.as_dict()
    for part in key.split("."):
        was, now = was[part], now[part]
    assert line == f"{key} = {was}, now {now}"


def test_the_same_run_does_not_differ(tmp_path: Path) -> None:
    for cell in read(tmp_path, SMALL).cells:
        before = cell.config.as_dict()
        done = json.loads(json.dumps(before))
        kept = copy.deepcopy(done)
        assert difference(cell.config, done) == ""
        assert done == kept and cell.config.as_dict() == before


def test_another_method_differs() -> None:
    one, other = (cli.resolve([], ["--method.name", name]) for name in ("ditto", "local"))
    assert "method.name = local, now ditto" in difference(one, other.as_dict())
    assert difference(other, one.as_dict())


# ---- the files that come with the package


@pytest.fixture(scope="module")
def tune() -> Matrix:
    """Half of quick's tuning."""
    return matrix.read("quick_tune", {"scenarios": ["label_skew"]}, [])


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_comparisons_parse(path: Path) -> None:
    """All methods in one scenario, and one method in all scenarios, of one seed."""
    tree = cli.load(path)
    scenarios, labels = list(tree["scenarios"]), list(tree["grid" if "grid" in tree else "methods"])
    for places, who in ((scenarios[:1], labels), (scenarios, labels[:1])):
        chosen = {"scenarios": places, "methods": who, "seeds": [str(tree["seeds"][0])]}
        found = matrix.read(str(path), chosen, [])
        assert len(found.cells) == len(places) * len(who) * tree.get("trials", 1)
        assert len({cell.folder for cell in found.cells}) == len(found.cells)
        assert found.reference in labels
        for cell in found.cells:
            assert (cell.config.data.validation > 0) == found.tunes


@pytest.mark.parametrize("name", ["standard_fashion_mnist", "standard_cifar10"])
def test_controls_differ_from_their_methods_by_the_prior_alone(name: str) -> None:
    """In every trial of the tuning; the suite has tuned learning rates and weight decays, too."""
    methods_of = cli.load(matrix.find(name))["methods"]
    grid = cli.load(matrix.find(f"{name}_tune"))["grid"]
    assert set(grid) == set(methods_of)
    for method in ("fedavg", "fedavg_ft"):
        label, control = f"{method}_prior", {"name": method, "prior": 1.0}
        assert methods_of[label] == {"method": control}
        trials = [own if isinstance(own, list) else [own] for own in (grid[method], grid[label])]
        assert trials[1] == [{**own, "method": {**own.get("method", {}), **control}} for own in trials[0]]
        chosen = {"scenarios": ["rotation"], "methods": [method, label]}
        for file in (name, f"{name}_tune"):
            found = [cell.config for cell in matrix.read(file, {**chosen, "seeds": ["100"]}, []).cells]
            first, second = found[: len(found) // 2], found[len(found) // 2 :]
            assert [one.method.prior for one in first + second] == [0.0] * len(first) + [1.0] * len(first)
            for one, two in zip(first, second, strict=True):
                tuned = {"lr": two.local.lr, "weight_decay": two.local.weight_decay} if file == name else {}
                trained = dataclasses.replace(one.local, **tuned)
                assert dataclasses.replace(one, method=two.method, local=trained) == two


def test_quick_has_all_methods_and_its_tuning_treats_them_alike(tune: Matrix) -> None:
    quick, grid = (cli.load(matrix.find(name)) for name in ("quick", "quick_tune"))
    assert set(quick["methods"]) == set(methods.METHODS) == set(grid["grid"])
    assert {label: len(trials) for label, trials in tune.trials.items()} == dict.fromkeys(grid["grid"], 6)
    for label, trials in tune.trials.items():
        assert len({json.dumps(trial) for trial in trials}) == 6, f"{label}: the same trial twice"
    assert not set(quick["seeds"]) & set(grid["seeds"])
    for name, keys in grid["scenarios"].items():
        assert quick["scenarios"][name] == keys
    for label, keys in quick["methods"].items():  # the same model in both
        assert (keys or {}).get("model") == tune.trials[label][0].get("model")


def test_quick_parses_with_any_tuned_values(tmp_path: Path, tune: Matrix) -> None:
    """With those that quick_tune could choose, whether or not it has run."""
    chosen = {label: trials[-1] for label, trials in tune.trials.items()}
    write(tmp_path, yaml.safe_dump({"methods": chosen}), "quick_tuned.yaml")
    path = write(tmp_path, matrix.find("quick").read_text(), "quick.yaml")
    found = matrix.read(str(path), {"seeds": ["0"], "scenarios": ["rotation"]}, [])
    assert len(found.cells) == len(methods.METHODS)
    last = {cell.label: cell.config for cell in tune.cells if cell.trial == 5}
    for cell in found.cells:
        assert cell.config.method == last[cell.label].method
        assert cell.config.local == last[cell.label].local
        assert cell.config.model.name == ("mlp_bn" if cell.label == "fedbn" else "mlp")
