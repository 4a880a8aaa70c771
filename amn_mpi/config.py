"""The configuration: a tree of frozen dataclasses, one per section, and what each key may be.

Every key carries its help text and its valid values, so the command line, ``--help`` and the
error messages cannot drift apart. Reading YAML and the command line is in ``cli.py``.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import operator
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Literal

from amn_mpi import plugin
from amn_mpi.errors import ConfigError

TEXT = ("text", "textcnn")
MODELS = ("linear", "mlp", "cnn", "lenet5", "resnet8", "mlp_bn", "cnn_bn", "lenet5_bn", *TEXT)


def key(default: Any, help: str, names: Sequence[str] = (), **limits: float) -> Any:
    """A configuration key: default, one line of help, limits out of ``ge gt le lt``.

    Args:
        names: valid is one of these, or FILE.py:NAME.
    """
    return field(default=default, metadata={"help": help, "names": tuple(names), "limits": limits})


@dataclass(frozen=True)
class Data:
    """What is learnt from, and who gets which part of it."""

    name: str = key("digits", "digits mnist fashion_mnist emnist cifar10 cifar100, FILE.h5/.npz, or a FOLDER")
    root: str = key("", "folder that holds the data set's files (also $AMN_DATA)")
    cache: str = key("", "folder for prepared data, seen by all hosts (also $AMN_CACHE; ~/.cache/amn_mpi)")
    split: Literal["byclass", "bymerge", "balanced", "letters", "digits", "mnist"] = key(
        "balanced", "which of EMNIST's splits"
    )
    clients: int = key(32, "number of clients; of data that has clients of its own at most so many", ge=1)
    train_per_client: int = key(
        0, "training samples a client, held-out ones included; 0: an equal share of all", ge=0
    )
    test_per_client: int = key(0, "test samples a client; 0: test_fraction decides", ge=0)
    test_fraction: float = key(0.25, "part of a client's samples kept for its test", gt=0, lt=1)
    validation: float = key(
        0.0, "for tuning: this part of the training samples instead of the test samples", ge=0, lt=1
    )
    unseen: float = key(
        0.0, "part of the clients that come when the training is over, and are served then", ge=0, lt=1
    )
    min_samples: int = key(10, "least number of training samples of any client", ge=1)
    labels: Literal["iid", "dirichlet", "classes", "groups", "own"] = key(
        "dirichlet",
        "who sees which labels: the same mix, Dirichlet(alpha), k classes, a mix per group; always own "
        "where the data has clients of its own",
    )
    alpha: float = key(0.5, "Dirichlet concentration: small is skewed", ge=1e-6)
    classes_per_client: int = key(3, "classes each client sees, for labels = classes", ge=1)
    label_groups: int = key(4, "groups of clients that share a label mix, for labels = groups", ge=1)
    sizes: Literal["equal", "lognormal", "own"] = key(
        "equal", "all clients of one size, or log-normal sizes; always own where the data has clients"
    )
    sigma: float = key(1.0, "spread of log-normal sizes", ge=0)
    concept: Literal["none", "rotate", "permute"] = key(
        "permute", "hidden groups see rotated images, or permuted labels"
    )
    concept_groups: int = key(2, "number of hidden groups, for concept = rotate or permute", ge=1)

    @property
    def newcomers(self) -> int:
        """Clients that do not train: at least one where any are asked for."""
        return max(1, round(self.unseen * self.clients)) if self.unseen else 0

    @property
    def training(self) -> int:
        """Clients that do."""
        return self.clients - self.newcomers


@dataclass(frozen=True)
class Model:
    """The network that every client trains."""

    name: str = key("mlp", "network, sized from the data; _bn: with batch normalisation", MODELS)
    hidden: int = key(64, "hidden units of the mlp; filters of each width of textcnn", ge=1)
    vocabulary: int = key(
        20_000, "of text and textcnn: tokens are whole numbers below it, 0 is padding", ge=2, le=2**24
    )
    embedding: int = key(64, "of text and textcnn: numbers that stand for a token", ge=1, le=4096)

    @property
    def tokens(self) -> int:
        """Tokens that the network knows; 0: its samples are no tokens."""
        return self.vocabulary if self.name in TEXT else 0


@dataclass(frozen=True)
class Local:
    """Training at a client, one round."""

    epochs: int = key(5, "passes over the local data", ge=1)
    steps: int = key(0, "steps of SGD instead of whole epochs; 0: epochs decide", ge=0)
    batch_size: int = key(10, "samples a step", ge=1)
    lr: float = key(0.05, "learning rate of SGD", gt=0)
    momentum: float = key(0.0, "momentum of SGD, starting anew each round", ge=0, lt=1)
    weight_decay: float = key(0.0, "L2 pull of the weights towards 0", ge=0)


@dataclass(frozen=True)
class Evaluate:
    """Accuracy on every client's own test samples."""

    every: int = key(1, "rounds between evaluations; the last five rounds are always evaluated", ge=1)
    batch_size: int = key(1000, "samples a forward pass", ge=1)


@dataclass(frozen=True)
class Comm:
    """How ranks wait for each other."""

    wait: Literal["auto", "sleep", "spin"] = key(
        "auto", "while waiting: spin only if every rank on the host has a core"
    )
    timeout: float = key(
        1800.0, "seconds of waiting after which ranks silent for half of it count as hung", gt=0
    )


@dataclass(frozen=True)
class Checkpoint:
    """When all that a run needs to go on is saved; besides, always at a stop and at the end."""

    every: int = key(0, "rounds between checkpoints; 0: only minutes decide", ge=0)
    minutes: float = key(10.0, "minutes between checkpoints; 0: only every decides", ge=0)
    keep: int = key(2, "checkpoints that stay, the newest ones", ge=1)
    accept: str = key("", "keys that may differ from the checkpoint's: local.lr,cohort")


@dataclass(frozen=True)
class Faults:
    """What happens when a rank is lost."""

    survive: bool = key(
        False, "go on without it, from the newest checkpoint; needs Open MPI's mpirun --with-ft ulfm"
    )


@dataclass(frozen=True)
class Logging:
    """What a run keeps to be looked at, and who else is told of it; the results do not depend on it."""

    attention: int = key(10, "most rounds whose attention is kept, evenly spaced; 0: none", ge=0, le=10_000)
    report: bool = key(False, "write report.html at the end of the run; needs the extra report")
    tensorboard: bool = key(False, "scalars and the attention for TensorBoard, in RUN/tensorboard")
    callbacks: str = key("", "told after every round: names, or FILE.py:NAME, separated by commas")


SECTIONS: dict[str, type] = {
    "data": Data,
    "model": Model,
    "local": Local,
    "evaluate": Evaluate,
    "comm": Comm,
    "checkpoint": Checkpoint,
    "faults": Faults,
    "logging": Logging,
}


@dataclass(frozen=True)
class Config:
    """Everything a run depends on."""

    seed: int = key(0, "everything random follows from it", ge=0, lt=2**63)
    rounds: int = key(40, "rounds of training", ge=1)
    cohort: float = key(1.0, "fraction of the clients that train in a round", gt=0, le=1)
    out: str = key("", "run folder (default: runs/<time>-<method>-<data>)")
    resume: str = key(
        "never", "go on from: never, auto (newest good checkpoint in out, if any), or a checkpoint's path"
    )
    baselines: str = key("", "methods run afterwards on the same clients, for the table: local,fedavg_ft")
    device: Literal["auto", "cpu", "cuda"] = key("auto", "where clients train; auto: a GPU if there is one")
    engine: Literal["auto", "compiled", "torch", "batched"] = key(
        "auto",
        "what trains; auto: compiled for linear, mlp, cnn, lenet5 and in fp32 their _bn forms on a CPU, "
        "batched on a GPU, torch for what these do not know",
    )
    engine_clients: int = key(
        0, "clients that engine = batched trains together; 0: as many as fit", ge=0, le=10_000
    )
    precision: Literal["fp32", "bf16"] = key(
        "fp32", "of clients' forward and backward passes; models stay float32 in both"
    )
    server: Literal["rank0", "sharded", "auto"] = key(
        "rank0", "where models are mixed: on rank 0, in columns over all ranks, auto: so above server_gb"
    )
    server_gb: float = key(
        4.0, "most GB of models (and what is mixed with them) on rank 0, for server = auto", ge=0
    )
    threads: int = key(1, "threads of each rank", ge=1, le=1024)
    progress: Literal["auto", "rich", "plain", "off"] = key("auto", "rich on a terminal, else plain lines")
    data: Data = field(default_factory=Data)
    model: Model = field(default_factory=Model)
    local: Local = field(default_factory=Local)
    method: Any = None
    evaluate: Evaluate = field(default_factory=Evaluate)
    comm: Comm = field(default_factory=Comm)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    faults: Faults = field(default_factory=Faults)
    logging: Logging = field(default_factory=Logging)

    def as_dict(self) -> dict[str, Any]:
        """Nested plain values, in the order of the fields."""
        return dataclasses.asdict(self)


@dataclass(frozen=True)
class Key:
    """One leaf of the tree, under its dotted name."""

    name: str
    type: Any
    default: Any
    help: str
    limits: dict[str, float]
    names: tuple[str, ...] = ()

    def valid(self) -> str:
        """What the key may be, in words."""
        choices = typing.get_args(self.type)
        if choices:
            return "one of " + ", ".join(map(str, choices))
        if self.names:
            return f"one of {', '.join(self.names)}, or {plugin.FORM}"
        kind = {int: "a whole number", float: "a number", str: "text", bool: "true or false"}[self.type]
        signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
        limits = [f"{signs[k]} {v if isinstance(v, int) else f'{v:g}'}" for k, v in self.limits.items()]
        return " ".join([kind, " and ".join(limits)]).strip()

    def accepts(self, value: Any) -> bool:
        """Whether a value of the right type is one of the valid ones."""
        choices = typing.get_args(self.type)
        if choices:
            return value in choices
        if self.names:
            return value in self.names or plugin.is_file(value)
        if isinstance(value, float) and not math.isfinite(value):
            return False
        tests = {"ge": operator.ge, "gt": operator.gt, "le": operator.le, "lt": operator.lt}
        return all(tests[k](value, v) for k, v in self.limits.items())


def keys(cls: type, prefix: str = "") -> Iterator[Key]:
    """All leaves of a dataclass tree; ``method`` (chosen by name) is left to its own class."""
    hints = typing.get_type_hints(cls)
    for f in dataclasses.fields(cls):
        if dataclasses.is_dataclass(hints[f.name]):
            yield from keys(hints[f.name], f"{prefix}{f.name}.")
        elif f.name != "method" or prefix:
            limits = dict(f.metadata.get("limits", {}))
            if hints[f.name] is int and not {"lt", "le"} & set(limits):
                limits["lt"] = 2**31
            told, names = f.metadata.get("help", ""), f.metadata.get("names", ())
            yield Key(prefix + f.name, hints[f.name], f.default, told, limits, names)


@functools.cache
def all_keys(options: type) -> Mapping[str, Key]:
    """Every key of a run whose method takes ``options``, by dotted name."""
    found = {k.name: k for k in keys(Config)}
    found.update({k.name: k for k in keys(options, "method.")})
    return MappingProxyType(found)


def leaves(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """A tree of keys as {dotted key: value}; sections that hold nothing are left out."""
    flat: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, dict):
            flat.update(leaves(value, f"{prefix}{name}."))
        elif value is not None or prefix + str(name) not in (*SECTIONS, "method"):
            flat[f"{prefix}{name}"] = value
    return flat


def nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """{dotted key: value} as a tree of keys."""
    tree: dict[str, Any] = {}
    for name, value in flat.items():
        at = tree
        *sections, last = name.split(".")
        for section in sections:
            at = at.setdefault(section, {})
        at[last] = value
    return tree


def filled(tree: dict[str, Any], options: type) -> dict[str, Any]:
    """A tree that was saved as {dotted key: value}; a key that came later has its default."""
    return {**{name: k.default for name, k in all_keys(options).items()}, **leaves(tree)}


def unlike(
    one: dict[str, Any], other: dict[str, Any], free: Sequence[str] = ()
) -> dict[str, tuple[Any, Any]]:
    """Where two configurations, each {dotted key: value}, differ: {key: (one, other)}.

    Args:
        free: keys and sections that may differ.
    """
    return {
        name: (one.get(name), other.get(name))
        for name in {**other, **one}
        if one.get(name) != other.get(name) and not within(name, free)
    }


def within(name: str, keys: Sequence[str]) -> bool:
    """Whether a key is one of these, or in one of these sections."""
    return any(f"{name}.".startswith(f"{key}.") for key in keys)


def differences(config: Config, then: dict[str, Any], free: Sequence[str]) -> dict[str, tuple[Any, Any]]:
    """Keys on which a saved tree says otherwise than ``config``: {key: (then, now)}."""
    return unlike(filled(then, type(config.method)), leaves(config.as_dict()), free)


def build(values: dict[str, Any], options: type) -> Config:
    """The checked, frozen configuration from nested values of the right types.

    Raises:
        ConfigError: a value is out of range, or two keys contradict each other.
    """
    for k in all_keys(options).values():
        value: Any = values
        for part in k.name.split("."):
            value = value[part]
        if not k.accepts(value):
            raise ConfigError(f"{k.name} = {value}: valid is {k.valid()}")
    sections = {**SECTIONS, "method": options}
    return Config(**{k: sections[k](**v) if k in sections else v for k, v in values.items()})
