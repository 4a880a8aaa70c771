"""YAML files and the command line become one checked Config. Only rank 0 imports this.

jsonargparse reads types; this file merges configs, found by name, and the command line, adds methods
chosen by name, help, and messages of one line that name the key, the value and what is valid.
"""

from __future__ import annotations

import datetime
import difflib
import functools
import json
import re
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jsonargparse
import yaml

from amn_mpi import __version__, methods, plugin
from amn_mpi.config import SECTIONS, Config, Key, all_keys, build, keys, leaves, nested
from amn_mpi.errors import ConfigError, UserError

SWITCHES = {
    "config": "a YAML file, or the name of one that comes with the package; may be given several times",
    "print_config": "print the resolved configuration as YAML and stop",
    "dry_run": "print the configuration, who gets which data, and what the run will need; then stop",
    "version": "print the version and stop",
    "help": "print this list and stop",
}


class Printed(Exception):
    """The command line asked for text (help, version, configuration) instead of a run."""


def parse(argv: Sequence[str]) -> tuple[Config, bool]:
    """The configuration that a command line asks for, and whether it is a dry run.

    Raises:
        Printed: the answer is a text, in the exception's first argument.
        ConfigError: one line that names the key, the value and what is valid.
    """
    words, files, switches = _split(argv)
    if "version" in switches:
        raise Printed(f"amn_mpi {__version__}")
    layers = [read(name) for name in files]
    if "help" in switches:
        raise Printed(_help(all_keys(methods.options(_method_name(words, layers)))))
    config = resolve(layers, words)
    if "print_config" in switches:
        raise Printed(yaml.safe_dump(config.as_dict(), sort_keys=False).rstrip())
    return config, "dry_run" in switches


def resolve(layers: list[dict[str, Any]], words: Sequence[str]) -> Config:
    """The configuration out of layers of {dotted key: value} and ``--key value`` words; later ones win.

    Args:
        layers: each with the name of its source under "", see ``layer``.

    Raises:
        ConfigError: as ``parse``.
    """
    name = _method_name(words, layers)
    options = methods.options(name)
    known = all_keys(options)
    merged = _merge(layers, known, name)
    for word in words[::2]:
        _check_key(word[2:], known, "command line")
    try:
        config = build(_parse_types(merged, words, options), options)
    except ConfigError as error:
        raise ConfigError(f"{_source(str(error), layers, words)}{error}") from None
    _check_baselines(config.baselines)
    for name in methods.listed(config.checkpoint.accept):
        _check_key(name, known, "checkpoint.accept")
    if config.resume == "auto" and not config.out:
        raise ConfigError("resume = auto: goes on in the folder that out names; give --out, too")
    return config


def _split(argv: Sequence[str]) -> tuple[list[str], list[str], set[str]]:
    """Command line -> ([--key, value, ...], config files, switches)."""
    words: list[str] = []
    files: list[str] = []
    switches: set[str] = set()
    rest = ["--help" if word == "-h" else word for word in argv]
    while rest:
        word = rest.pop(0)
        if not word.startswith("--"):
            raise ConfigError(f"{word}: not an option; options are --key value, see --help")
        option, equals, value = word.partition("=")
        if option[2:] in SWITCHES and option != "--config":
            if equals:
                raise ConfigError(f"{word}: takes no value; valid is {option}")
            switches.add(option[2:])
            continue
        if not equals:
            if not rest or rest[0].startswith("--"):
                raise ConfigError(f"{option}: a value is missing after it")
            value = rest.pop(0)
        if option == "--config":
            files.append(value)
        else:
            words += [option, value]
    return words, files, switches


def config_folders() -> list[Path]:
    """Where configs are found by name: inside the installed package, or beside it in a checkout."""
    here = Path(__file__).resolve().parent
    return [f for f in (here / "configs", here.parent / "configs") if f.is_dir()]


def _find(name: str) -> Path:
    path = Path(name)
    if path.is_file():
        return path
    for folder in config_folders():
        for candidate in (folder / name, folder / f"{name}.yaml"):
            if candidate.is_file():
                return candidate
    names = sorted({p.stem for f in config_folders() for p in f.glob("*.yaml")})
    raise ConfigError(f"--config {name}: no such file; known by name are {', '.join(names)}")


def read(name: str) -> dict[str, Any]:
    """One YAML file, by path or by name, as a layer."""
    path = _find(name)
    return layer(load(path), str(path))


def load(path: Path) -> dict[str, Any]:
    """The tree in a YAML file.

    Raises:
        ConfigError: it cannot be read, holds no tree, or has a key twice, of which YAML takes the last.
    """
    try:
        loader = yaml.SafeLoader(path.read_text())
        node = loader.get_single_node()
        _check_once(node, path, ())
        tree = node and loader.construct_document(node) or {}
    except (yaml.YAMLError, OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as YAML: {_one_line(error)}") from None
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: holds {type(tree).__name__}; valid is a tree of key: value")
    return tree


def _check_once(node: yaml.Node | None, path: Path, above: tuple[yaml.Node, ...]) -> None:
    """Every key of a section once, and no section inside itself (``a: &x {b: *x}``)."""
    if node is None:
        return
    if node in above:
        raise ConfigError(f"{path}: line {node.start_mark.line + 1}: a section holds itself")
    inside: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
    if isinstance(node, yaml.MappingNode):
        lines: dict[str, int] = {}
        for key, value in node.value:
            line = key.start_mark.line + 1
            if isinstance(key, yaml.ScalarNode) and key.value in lines:
                raise ConfigError(
                    f"{path}: {key.value}: stands twice, in lines {lines[key.value]} and {line}; "
                    "give it once, with all that is in it"
                )
            if isinstance(key, yaml.ScalarNode):
                lines[key.value] = line
            inside.append(value)
    for each in inside:
        _check_once(each, path, (*above, node))


def layer(tree: dict[str, Any], source: str) -> dict[str, Any]:
    """A tree of keys as {dotted key: value}, with the name of its source kept for messages."""
    return {"": source, **leaves(tree)}


def _method_name(words: Sequence[str], layers: list[dict[str, Any]]) -> str:
    name = methods.DEFAULT
    for layer in layers:
        name = layer.get("method.name", name)
    for option, value in zip(words[::2], words[1::2]):
        name = value if option == "--method.name" else name
    if not isinstance(name, str) or not methods.known(name):
        raise ConfigError(f"method.name = {name}: valid is one of {methods.VALID}")
    return name


def _check_baselines(names: str) -> None:
    for name in methods.listed(names):
        if not methods.known(name):
            raise ConfigError(f"baselines = {names}: {name} is no method; valid are {methods.VALID}")
        methods.get(name, "baselines")
    called: dict[str, str] = {}
    for name in methods.listed(names):
        other = called.setdefault(plugin.short(name), name)
        if other != name:
            raise ConfigError(f"baselines = {names}: {other} and {name} are both called {plugin.short(name)}")


def _merge(layers: list[dict[str, Any]], known: Mapping[str, Key], method: str) -> dict[str, Any]:
    """Later files win; options written for another method than the chosen one do not apply."""
    merged: dict[str, Any] = {"method.name": method}
    current = methods.DEFAULT
    for layer in layers:
        current = layer.get("method.name", current)
        theirs = set(all_keys(methods.options(current))) if methods.known(current) else set()
        for name, value in layer.items():
            if name == "":
                continue
            if name.startswith("method.") and current != method and name in theirs:
                continue
            _check_key(name, known, layer[""])
            if value is not None or known[name].type is not str:  # "out:" is as good as no text
                merged[name] = value
    return {**merged, "method.name": method}


def _source(refusal: str, layers: list[dict[str, Any]], words: Sequence[str]) -> str:
    """The layer that a refused "key = value" is from, as the beginning of a line; "" for the command line."""
    key = refusal.partition(" = ")[0]
    if f"--{key}" in words[::2]:
        return ""
    return next((f"{layer['']}: " for layer in reversed(layers) if key in layer and layer[""]), "")


def _check_key(name: str, known: Mapping[str, Key], where: str) -> None:
    if name in known:
        return
    section = name.rpartition(".")[0]
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.75)
    others = _methods_with(name) if section == "method" else []
    inside = [k for k in known if k.startswith(f"{name}.")]
    beside = [k for k in known if k.rpartition(".")[0] == section] if section else []
    top = [k for k in known if "." not in k] + [f"{s}.*" for s in (*SECTIONS, "method")]
    siblings = inside or beside or top
    near = ["method.name"] if name == "method" else near
    hint = f"did you mean {near[0]}? " if near else ""
    hint = f"it belongs to method.name = {' or '.join(others)}; " if others else hint
    raise ConfigError(f"{name}: unknown key ({where}); {hint}valid are {', '.join(siblings)}")


def _methods_with(name: str) -> list[str]:
    """The methods of the package that have a key."""
    return [m for m in methods.METHODS if any(k.name == name for k in keys(methods.options(m), "method."))]


def _parse_types(merged: dict[str, Any], words: Sequence[str], options: type) -> dict[str, Any]:
    """Types as declared; a refusal is one line with what is valid."""
    known = all_keys(options)
    given = [(name, _text(value, known[name])) for name, value in merged.items()]
    given += [(option[2:], value) for option, value in zip(words[::2], words[1::2])]
    found = {name: key.default for name, key in known.items()}
    for name, text in given:
        try:
            found[name] = _value(known[name].type, text)
        except UserError:
            raise  # a signal that came meanwhile
        except Exception:
            raise ConfigError(f"{name} = {text}: valid is {known[name].valid()}") from None
    return nested(found)


@functools.cache
def _value(kind: Any, text: str) -> Any:
    """A text as a value of a type, by jsonargparse; a comparison asks for few values in hundreds of runs."""
    return _parser(kind).parse_args([f"--value={text}"]).value


@functools.cache
def _parser(kind: Any) -> jsonargparse.ArgumentParser:
    """For one value of a type.

    Not for whole dataclasses: their modules' TYPE_CHECKING imports would then be resolved, and with them
    torch imported, before a typing error is told. Not for all keys: each parse walks through all of them
    several times (25 ms).
    """
    parser = jsonargparse.ArgumentParser(exit_on_error=False, add_help=False)
    parser.add_argument("--value", type=kind)
    return parser


def _text(value: Any, key: Key) -> str:
    """A value from YAML as it would stand on the command line."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and key.type is str:
        return ",".join(map(str, value))
    if value is False and "off" in typing.get_args(key.type):
        return "off"  # how YAML reads that word
    return str(value) if isinstance(value, datetime.date) else json.dumps(value)


def _help(known: Mapping[str, Key]) -> str:
    """One line per key: name, what it is, what is valid, default."""
    lines = ["usage: python -m amn_mpi.main [--config FILE.yaml] [--key value ...]", ""]
    lines += [f"  --{name:<26} {text}" for name, text in SWITCHES.items()] + [""]
    for key in known.values():
        default = f"; default {key.default}" if key.default != "" else ""
        lines.append(f"  --{key.name:<26} {key.help} ({key.valid()}{default})")
    lines += ["", f"methods, each with options of its own under method.: {methods.VALID}"]
    return "\n".join(lines)


def _one_line(error: BaseException) -> str:
    return re.sub(r"\s+", " ", str(error))
