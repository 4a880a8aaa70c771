"""The samples of newcomers, as the clients of a trained network had theirs: shape, scale, classes.

A file without ``client`` is one newcomer; a file with it, or a folder of clients' files, holds several.
Nothing is drawn but the test part of those who bring none: samples stay in the order of the file.
"""

from __future__ import annotations

import dataclasses
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from amn_mpi.config import Config, Data
from amn_mpi.data import arrays, cache, tokens
from amn_mpi.data.federation import Federation, Plan
from amn_mpi.data.natural import within
from amn_mpi.data.raw import Raw
from amn_mpi.data.readers import READERS, reader
from amn_mpi.data.split import split_tests
from amn_mpi.errors import ConfigError, UserError
from amn_mpi.rng import generator

VALID = f"a file that ends in {', '.join(arrays.SUFFIXES)}, or a folder of clients' files"
TESTS = ("x_test", "y_test")
SHOWN = 10  # class names in one line


@contextmanager
def prepared(raw: Raw, fed: Federation, config: Config, folder: Path) -> Iterator[Federation]:
    """Newcomers whose samples lie in a file, for all ranks, until the ``with`` ends.

    Args:
        raw: of ``read``. fed: the clients that trained. config: of their run.

    Raises:
        UserError: somebody has no sample to train on or to be tested on, or one that is no token where the
            run had texts, or the file cannot be written.
    """
    path = folder / f"newcomers-{secrets.token_hex(8)}.h5"
    try:
        planned = plan(raw, fed, config.data.test_fraction, config.seed)
        tokens.check(raw, planned, config.model.tokens)
        cache.write(path, planned, raw.x)
        found = cache.read(path)
        if found is None:
            raise UserError(f"{path}: was written, but does not read back; set $AMN_CACHE to another folder")
        yield found
    finally:
        path.unlink(missing_ok=True)


# ---- reading


def read(name: str, fed: Federation) -> Raw:
    """Newcomers' samples with their owners; labels are places among the classes of ``fed``.

    Raises:
        ConfigError: ``name`` is no file or folder of samples.
        UserError: they cannot be read, or are not of the kind that ``fed`` had.
    """
    path = Path(name).expanduser()
    if name in READERS and not path.exists():
        raise ConfigError(f"--data {name}: is no newcomer's own data; valid is {VALID}")
    if not path.exists():
        raise ConfigError(f"--data {name}: there is no such file or folder; valid is {VALID}")
    if path.is_dir():
        source, data = reader(Data(name)), Data(name)
        raw = source.read(data, source.locate(data))
    elif path.suffix in arrays.SUFFIXES:
        raw = _file(path, fed)
    else:
        raise ConfigError(f"--data {name}: is of no known kind; valid is {VALID}")
    _check_samples(name, raw, fed)
    labels = _labels(name, raw, fed.class_names)
    return dataclasses.replace(
        raw, y=labels, class_names=list(fed.class_names), scale=fed.scale, shift=fed.shift
    )


def _file(path: Path, fed: Federation) -> Raw:
    """A file of arrays; without ``client`` all of it is one newcomer's, named as the file."""
    found = arrays.load(path, (*arrays.KEYS, *TESTS))
    y = found.get("y")
    if y is not None and y.dtype.kind in "US":
        raise UserError(f"{path}: y is text, expected (n,) integers; the run had {_told(fed.class_names)}")
    if found.get("client") is not None:
        return arrays.raw_of(path, found)
    found = _with_tests(path, found)
    y = found.get("y")
    if y is not None and y.ndim == 1 and found.get("x") is not None:
        found["client"] = np.full(len(y), path.stem)
    return arrays.raw_of(path, found)


def _with_tests(path: Path, found: dict[str, np.ndarray | None]) -> dict[str, np.ndarray | None]:
    """x_test and y_test, where they are, behind x and y, and ``test`` to tell them."""
    tests = [found.get(name) for name in TESTS]
    if tests[0] is None and tests[1] is None:
        return found
    both = {**found, **dict.fromkeys(TESTS)}
    for name, more in zip(("x", "y"), tests):
        own = found.get(name)
        if own is None or more is None:
            missing = name if own is None else f"{name}_test"
            raise UserError(
                f"{path}: has no array {missing}; expected x and y, with x_test and y_test or not"
            )
        alike = 0 < own.ndim == more.ndim and own.shape[1:] == more.shape[1:]
        if not alike or own.dtype.kind != more.dtype.kind:
            raise UserError(
                f"{path}: {name}_test has shape {more.shape} and type {more.dtype}, {name} has {own.shape} "
                f"and {own.dtype}; expected the same but for the number of rows"
            )
        both[name] = np.concatenate([own, more])
    if found.get("test") is not None:
        raise UserError(f"{path}: has both test and x_test; expected one of them")
    own, more = found["y"], tests[1]
    if own is not None and more is not None:
        both["test"] = np.repeat([False, True], [len(own), len(more)])
    return both


def _check_samples(name: str, raw: Raw, fed: Federation) -> None:
    """Raises UserError where they are not of the shape and type that the run had."""
    own, theirs = (raw.x.shape[1:], raw.x.dtype), (fed.shape, np.dtype(fed.x_dtype))
    if own != theirs:
        given, had = (
            f"{tuple(map(int, shape))} of {'pixels (uint8)' if kind == np.uint8 else 'floats'}"
            for shape, kind in (own, theirs)
        )
        raise UserError(f"{name}: has samples of shape {given}; the run had {had}")


def _labels(name: str, raw: Raw, classes: list[str]) -> np.ndarray:
    """Places of the labels among the run's classes: by name; numbers also by place, where names are words."""
    place = {known: k for k, known in enumerate(classes)}
    numbered = all(known.isdecimal() for known in classes)
    table = np.full(len(raw.class_names), -1)
    for k in np.unique(raw.y).tolist():
        own = raw.class_names[k]
        if own in place:
            table[k] = place[own]
        elif own.isdecimal() and not numbered and int(own) < len(classes):
            table[k] = int(own)
        else:
            raise UserError(f"{name}: y has the label {own}; the run had {_told(classes)}")
    return table[raw.y].astype(np.int64)


def _told(classes: list[str]) -> str:
    more = ", ..." if len(classes) > SHOWN else ""
    return f"{len(classes)} classes: {', '.join(classes[:SHOWN])}{more}"


# ---- who has which samples


def plan(raw: Raw, fed: Federation, test_fraction: float, seed: int) -> Plan:
    """Each newcomer's training samples, then its test samples; both in the order in which they came."""
    owner, count = np.asarray(raw.client), len(raw.client_names)
    tested = _tests(raw, test_fraction, seed) if raw.test is None else raw.test
    test = np.bincount(owner[tested], minlength=count)
    train = np.bincount(owner[~tested], minlength=count)
    for number, name in enumerate(raw.client_names):
        if not (train[number] and test[number]):
            raise UserError(
                f"newcomer {name}: has {train[number]} training and {test[number]} test samples; valid is at "
                "least one of each"
            )
    order, none = np.lexsort((tested, owner)), np.zeros(count, np.int64)
    cells = owner[~tested] * fed.classes + raw.y[~tested]
    found = dataclasses.replace(
        fed,
        start=np.concatenate([[0], np.cumsum(train + test)]),
        train=train,
        test=test,
        train_counts=np.bincount(cells, minlength=count * fed.classes).reshape(count, -1),
        label_group=none,
        concept_group=none,
        client_names=list(raw.client_names),
    )
    return Plan(found, order, raw.y[order].astype(np.int32), none[owner[order]], 1)


def _tests(raw: Raw, fraction: float, seed: int) -> np.ndarray:
    """(n,) bool: a part of each newcomer's samples by class, as clients without a split have it."""
    tested, owner = np.zeros(len(raw.y), bool), np.asarray(raw.client)
    for number in range(len(raw.client_names)):
        draw = generator(seed, "newcomer tests", client=number)
        rows = draw.permutation(np.flatnonzero(owner == number))
        test = np.maximum(1, np.minimum(np.rint(len(rows) * fraction), len(rows) - 1)).astype(np.int64)
        counts = np.bincount(raw.y[rows], minlength=len(raw.class_names))
        quota = split_tests(counts[None], test[None], draw)[0]
        tested[rows] = within(raw.y[rows]) < quota[raw.y[rows]]
    return tested
