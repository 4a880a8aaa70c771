"""A method out of a user's own file: its options on the command line, runs, comparisons."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import plain
import pytest
from ready import run_each
from running import REPOSITORY, one_line, result, run

from amn_mpi import cli, inspect, main, matrix, methods
from amn_mpi.config import Config
from amn_mpi.errors import ConfigError, Misdeclared
from amn_mpi.finished import score_of
from amn_mpi.runfolder import default_folder

EXAMPLE = REPOSITORY / "examples" / "own_method.py"
KEYS = ("--data.clients", 4, "--rounds", 3, "--local.epochs", 1, "--progress", "off")
HEAD = """from dataclasses import dataclass
from amn_mpi.methods.base import Method, Wire
from amn_mpi.methods.fedavg import FedAvg
"""
# FedAvg in a user's words; the default name is another method's, and does not matter.
PLAIN = """
@dataclass(frozen=True)
class Options:
    name: str = "ditto"
    scale: float = 1.0

class Mine(FedAvg):
    Options = Options
"""


def written(folder: Path, text: str, file: str = "mine.py") -> str:
    (folder / file).write_text(HEAD + text)
    return f"{folder / file}:Mine"


def parsed(*words: object) -> Config:
    return cli.parse(list(map(str, words)))[0]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("own")
    name = written(folder, PLAIN)
    start = f"{EXAMPLE}:HeadStart"
    example = (*KEYS, "--method.name", start, "--method.epochs", 2, "--checkpoint.every", 1)
    lines = [
        (*KEYS, "--method.name", name, "--baselines", f"fedavg,{name}", "--out", folder / "three"),
        (*example, "--out", folder / "start3"),
        (*example, "--rounds", 2, "--out", folder / "parts"),
        (*example, "--resume", "auto", "--out", folder / "parts"),
    ]
    ended = run_each(lines, folder, ranks=3)
    assert (ended.returncode, ended.stderr) == (0, "")
    ended = run_each([(*example, "--out", folder / "start1")], folder, ranks=1)
    assert (ended.returncode, ended.stderr) == (0, "")
    return folder


def test_the_same_rule_gives_the_same_numbers(done: Path) -> None:
    """A subclass that changes nothing is FedAvg, as the run itself and as a baseline."""
    found = result(done / "three")
    name = f"{done}/mine.py:Mine"
    assert found["method"] == found["config"]["method"]["name"] == name
    baselines = found["baselines"]
    assert list(baselines) == ["fedavg", name]
    scores = [each["models"] for each in (found, baselines["fedavg"], baselines[name])]
    assert scores[0] == scores[1] == scores[2] and scores[0]["global"]["best_accuracy"] > 20
    folders = {path.name for path in (done / "three" / "checkpoints").iterdir() if path.is_dir()}
    assert folders == {"fedavg", "mine-Mine"}


def test_the_same_bits_on_one_and_three_ranks_and_in_parts(done: Path) -> None:
    found = [result(done / name) for name in ("start1", "start3", "parts")]
    assert len({each["models_sha256"] for each in found}) == 1
    assert found[0]["models_sha256"] != result(done / "three")["models_sha256"]
    assert found[0]["config"]["method"]["epochs"] == 2


def test_tables_and_folders_have_a_short_name(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert score_of(done / "three" / "result.json").label == "mine-Mine"
    config = parsed("--method.name", f"{done}/mine.py:Mine")
    assert default_folder(config).endswith("-mine-Mine-digits")


def test_its_checkpoint_can_be_looked_into(done: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect.main([str(done / "parts")]) == 0
    assert "own_method.py:HeadStart" in capsys.readouterr().out


def test_options_on_the_command_line_and_on_other_ranks(tmp_path: Path) -> None:
    name = written(tmp_path, PLAIN)
    config = parsed("--method.name", name, "--method.scale", 2)
    assert (config.method.name, config.method.scale) == (name, 2.0)
    assert pickle.loads(pickle.dumps(config)) == config
    assert methods.baseline(config, name).method.name == name
    with pytest.raises(ConfigError, match="method.lam: unknown key.*method.scale"):
        parsed("--method.name", name, "--method.lam", 2)
    with pytest.raises(cli.Printed, match="--method.scale"):
        parsed("--method.name", name, "--help")


def test_in_a_comparison(tmp_path: Path) -> None:
    name = written(tmp_path, PLAIN)
    path = tmp_path / "cmp.yaml"
    path.write_text(
        f"scenarios: {{a: {{}}}}\nmethods: {{fedavg: , mine: {{method: {{name: '{name}', scale: 3}}}}}}\n"
    )
    cells = matrix.read(str(path), {}, []).cells
    assert [cell.folder for cell in cells] == ["a/fedavg/seed0", "a/mine/seed0"]
    assert cells[1].config.method.scale == 3.0


OPTIONS = "\n@dataclass(frozen=True)\nclass Options:\n    {}\n\nclass Mine(FedAvg):\n    Options = Options\n"
BAD = {
    "class": ("class Mine: pass", "is no subclass of amn_mpi.methods.base.Method"),
    "function": ("def Mine(): pass", "is no subclass"),
    "absent": (
        "@dataclass\nclass Options: pass\ndef _own(): pass\nclass Other(FedAvg): pass",
        "the file has no Mine; it has Other",
    ),
    "wire": ("class Mine(Method): pass", "says nothing of what it moves"),
    "options": ("class Mine(Method):\n    wire = Wire('none', 'none')", "its Options are missing"),
    "plain": ("class Mine(FedAvg):\n    Options = 3", "its Options are no dataclass"),
    "thawed": (OPTIONS.replace("frozen=True", "frozen=False").format("name: str = 'x'"), "are not frozen"),
    "first": (OPTIONS.format("mu: float = 1.0"), "begin with mu; valid is a frozen dataclass"),
    "default": (OPTIONS.format("name: str"), "have name without a default"),
    "type": (OPTIONS.format("name: str = 'x'\n    a: list = ()"), "have a of a type other than int"),
    "value": (
        "from amn_mpi.config import key\n"
        + OPTIONS.format("name: str = 'x'\n    a: int = key(0, 'a', ge=1)"),
        "have method.a = 0, but valid is a whole number >= 1",
    ),
    "import": ("import not_there", "fails on import: line 4: ModuleNotFoundError"),
    "way": (
        "class Mine(FedAvg):\n    wire = Wire('sideways', 'mean')",
        "Wire(down='sideways'): valid is",
    ),
    "models": ("class Mine(FedAvg):\n    models = ()", "has no models"),
    "model": ("class Mine(FedAvg):\n    models = 'global'", "has models = 'global'; valid is a tuple"),
    "word": ("class Mine(FedAvg):\n    wire = 'broadcast'", "has wire = 'broadcast'; valid is Wire(...)"),
    "cost": ("class Mine(FedAvg):\n    fresh = 'many'", "has fresh = 'many'; valid is a number"),
    "turn": (
        OPTIONS.format("name: str = 'x'").replace("(FedAvg):", "(Method):\n    wire = Wire('none', 'none')"),
        "has no local_update, the client's turn",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_no_method(tmp_path: Path, name: str) -> None:
    text, told = BAD[name]
    path = written(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        parsed("--method.name", path)
    line = str(caught.value)
    assert line.startswith(f"method.name = {path}: ") and told in line and "\n" not in line
    with pytest.raises(ConfigError) as caught:
        parsed("--baselines", f"local,{path}")
    assert str(caught.value).startswith(f"baselines = {path}: ") and told in str(caught.value)


def test_an_exception_in_it_is_one_line(tmp_path: Path) -> None:
    """On one rank only, while the others train."""
    text = (
        PLAIN
        + """
    def local_update(self, client, received, engine):
        if client.number == 3:
            raise ValueError("only of the last")
        return super().local_update(client, received, engine)
"""
    )
    name = written(tmp_path, text)
    ended = run(*KEYS, "--method.name", name, "--out", tmp_path / "out", ranks=3)
    assert ended.returncode == 1
    line = one_line(ended.stderr)
    assert line.startswith("amn_mpi: error on rank 2 ")
    assert line.endswith(f"method.name = {name}: line 15: ValueError: only of the last")


WRONG = {
    "aggregate none": ("aggregate", "None", "Mine.aggregate returned NoneType; valid is {name: figure}"),
    "column": ("aggregate", "{'round': 9}", "returned a figure round, which every run has"),
    "object": ("aggregate", "{'seen': {1}}", "a figure seen that is no JSON value: Object of type set"),
    "server": (
        "aggregate",
        "args[0].update(n=3) or {}",
        "server state holds n of type int; valid is a tensor",
    ),
    "init": ("init", "None", "Mine.init returned NoneType; valid is {name: tensor}"),
    "keeps": ("keeps", "{'own': 3}", "Mine.keeps holds own of type int; valid is a tensor"),
    "deployed none": ("deployed", "None", "Mine.deployed yielded [], declared models are ['global']"),
    "short": (
        "deployed",
        "[('global', args[1][0][:3])]",
        "yielded model global of shape (3,); valid is (650,)",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_a_method_returns_by_mistake(tmp_path: Path, name: str) -> None:
    function, returned, says = WRONG[name]
    text = f"{PLAIN}\n    def {function}(self, *args):\n        return {returned}\n"
    keys = (*KEYS, "--model.name", "linear", "--method.name", written(tmp_path, text))
    with pytest.raises(Misdeclared) as caught:
        plain.here(*keys, "--out", tmp_path / "out")
    line = main.account(caught.value, plain.communicator())
    assert says in line and "\n" not in line


def test_figures_of_numpy_and_torch_are_numbers(tmp_path: Path) -> None:
    made = "{'a': np.float32(0.5), 'b': torch.tensor([1, 2]), 'c': 'x', 'd': np.arange(2)}"
    text = f"import numpy as np, torch\n{PLAIN}\n    def aggregate(self, *args):\n        return {made}\n"
    plain.here(*KEYS, "--method.name", written(tmp_path, text), "--out", tmp_path / "out")
    row = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    assert [row[name] for name in "abcd"] == [0.5, [1, 2], "x", [0, 1]]


def test_options_from_a_file_beside_it(tmp_path: Path) -> None:
    """Other ranks import it as the first one does."""
    (tmp_path / "beside_mine.py").write_text(
        "from dataclasses import dataclass\n\n@dataclass(frozen=True)\nclass Options:\n"
        "    name: str = 'mine'\n    scale: float = 2.0\n"
    )
    text = "import beside_mine\n\nclass Mine(FedAvg):\n    Options = beside_mine.Options\n"
    name = written(tmp_path, text)
    done = run(*KEYS, "--method.name", name, "--method.scale", 3, "--out", tmp_path / "out", ranks=3)
    assert (done.returncode, done.stderr) == (0, "")
    assert result(tmp_path / "out")["config"]["method"]["scale"] == 3.0


@pytest.mark.parametrize(
    ("returned", "says"),
    [
        ("None", "Mine.local_update returned NoneType; valid is Update"),
        ("Update(state={'a': received[0][:3]})", "returned state a of shape (3,), declared (650,)"),
    ],
)
def test_what_is_not_declared(tmp_path: Path, returned: str, says: str) -> None:
    text = (
        "from amn_mpi.methods.base import Update\n"
        + PLAIN
        + f"""
    def keeps(self, initial):
        return {{"a": initial}}
    def local_update(self, client, received, engine):
        super().local_update(client, received, engine)
        return {returned}
"""
    )
    keys = (*KEYS, "--model.name", "linear", "--method.name", written(tmp_path, text))
    with pytest.raises(Misdeclared) as caught:
        plain.here(*keys, "--out", tmp_path / "out")
    assert says in main.account(caught.value, plain.communicator()).splitlines()[0]


def test_two_baselines_of_one_name(tmp_path: Path) -> None:
    """Their checkpoints would lie in one folder."""
    (tmp_path / "other").mkdir()
    one, other = written(tmp_path, PLAIN), written(tmp_path / "other", PLAIN)
    with pytest.raises(ConfigError, match="are both called mine-Mine"):
        parsed("--baselines", f"{one},local,{other}")
    assert parsed("--baselines", f"{one},local,{one}").baselines


def test_names_that_are_no_file_either(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"method.name = fed: valid is one of amn,.*, or FILE\.py:NAME$"):
        parsed("--method.name", "fed")
    with pytest.raises(ConfigError, match="cannot read .*absent.py: No such file"):
        parsed("--method.name", f"{tmp_path}/absent.py:Mine")
