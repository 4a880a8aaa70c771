"""What a run's results depend on, as a short text by which a kept run is recognised. Pure.

All keys count that ``matrix.FREE`` does not free, but for the seed, and for values at which
``amn_mpi/neutral.py`` leaves a key out. The package's version does not count: most versions change no
result, and one number would throw hours of runs away with each; a change of code that does change a method's
results is counted in ``neutral.REVISED`` instead, also for a user's method that derives from it. Nor does the
data itself: a data set is known by its name.
"""

from __future__ import annotations

import re
from hashlib import sha256
from typing import Any

from amn_mpi import methods, neutral, plugin
from amn_mpi.config import Config, all_keys, leaves, within
from amn_mpi.matrix import FREE

PARTS = ("data", "model", "local", "method", "run")  # run: keys of no such section
SIGNS = 5  # hexadecimal, of each part
FORM = re.compile("-".join([f"[0-9a-f]{{{SIGNS}}}"] * len(PARTS)))


def of(config: Config) -> str:
    """The digest, five hexadecimal numbers; each part has its own so that one can say which keys differ.

    Raises:
        ConfigError: a user's own file cannot be read.
    """
    told: dict[str, list[str]] = {part: [] for part in PARTS}
    for key, value in sorted(what_counts(config).items()):
        section = key.partition(".")[0]
        told[section if section in PARTS else "run"].append(f"{key} = {value!r}")
    return "-".join(sha256("\n".join(lines).encode()).hexdigest()[:SIGNS] for lines in told.values())


def differing(one: str, other: str) -> list[str]:
    """The parts in which two digests differ."""
    return [name for name, a, b in zip(PARTS, one.split("-"), other.split("-")) if a != b]


def what_counts(config: Config) -> dict[str, Any]:
    """{dotted key: value} of all that a digest is made of; a file is its name and its checksum."""
    name, values = config.method.name, leaves(config.as_dict())
    options: type = type(config.method)
    known = all_keys(options)
    left_out = {key: k.default for key, k in known.items()} | neutral.NEUTRAL
    bases = _bases(name)
    for base in reversed(bases):
        left_out |= {f"method.{key}": value for key, value in neutral.METHODS.get(base, {}).items()}
    del left_out["method.name"]
    found = {
        key: float(value) if known[key].type is float else value
        for key, value in values.items()
        if not within(key, ("seed", *FREE)) and (key not in left_out or value != left_out[key])
    }
    for key, crc in plugin.checksums(config).items():
        found[key] = f"{plugin.short(values[key])} {crc:08x}"
    counted = revision(name)
    return {**found, "method.revision": counted} if any(counted) else found


def revision(name: str) -> tuple[int, int]:
    """How often results have changed with no key: of all methods, and of this one or what it derives from."""
    return neutral.REVISED.get("", 0), max(neutral.REVISED.get(base, 0) for base in _bases(name))


def _bases(name: str) -> list[str]:
    """The method, or those of the package that one of a user's own file derives from, the nearest first."""
    if not plugin.is_file(name):
        return [name]
    ours = {place: base for base, place in methods.METHODS.items()}
    places = [f"{cls.__module__}:{cls.__qualname__}" for cls in methods.get(name).__mro__]
    return [ours[place] for place in places if place in ours] or [name]
