"""Compile the library: at installation, or by ``python -m amn_mpi.native`` in a checkout.

It is plain C without any header of Python's or torch's, so one library serves every Python. Compute
nodes may be older or newer than the node it is built on: what computes is compiled for every
instruction set, and one is chosen when the library is loaded. Imports nothing of the package:
``setup.py`` runs this file by itself.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import platform
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

FOLDER = Path(__file__).resolve().parent
LIBRARY = "libsteps.so"
FLAGS = ("-std=gnu11", "-O3", "-fPIC", "-fvisibility=hidden", "-ffp-contract=fast", "-fno-math-errno")
EVERY_SET = ("steps.c", "sums.c")
AVX512 = ("-mavx512f", "-mavx512vl", "-mavx512dq", "-mavx512bw", "-mavx2", "-mfma")
# Best first: name, floats in a vector, flags.
SETS = {
    "avx512bf16": (16, (*AVX512, "-mavx512bf16")),
    "avx512": (16, AVX512),
    "avx2": (8, ("-mavx2", "-mfma")),
    "generic": (4, ()),
}
PRECISION = {name: "bf16" if name == "avx512bf16" else "fp32" for name in SETS}  # what each computes in


class BuildError(Exception):
    """The library cannot be built here; says why in one line."""


def sources() -> str:
    """A digest of what the library is made of: it has to be the one that it was built from."""
    digest = hashlib.sha256()
    for name in (*EVERY_SET, "support.c"):
        digest.update((FOLDER / name).read_bytes())
    return digest.hexdigest()[:16]


def build(target: Path = FOLDER / LIBRARY) -> Path:
    """Compile and link ``target``; a process that loads it meanwhile sees the old or the new one.

    Raises:
        BuildError: no compiler, or it fails.
    """
    compiler = _compiler()
    names = list(SETS) if platform.machine().lower() in ("x86_64", "amd64") else ["generic"]
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build") as folder:
        support = f"{folder}/support.o"
        define = f'-DSOURCES="{sources()}"'
        _run([*compiler, *FLAGS, define, "-c", str(FOLDER / "support.c"), "-o", support])
        objects = [support]
        for name in names:
            lanes, flags = SETS[name]
            made = {source: f"{folder}/{name}-{source}.o" for source in EVERY_SET}
            command = [*compiler, *FLAGS, *flags, f"-DISA={name}", f"-DLANES={lanes}"]
            try:
                for source, compiled in made.items():
                    _run([*command, "-c", str(FOLDER / source), "-o", compiled])
            except BuildError:
                if name == "generic":
                    raise
                continue  # a compiler that does not know the set
            objects += made.values()
        whole = f"{folder}/{LIBRARY}"
        _run([*compiler, "-shared", *objects, "-o", whole, "-lm"])
        os.replace(whole, target)
    return target


def _compiler() -> list[str]:
    wanted = [os.environ.get("CC", ""), sysconfig.get_config_var("CC") or "", "cc", "gcc", "clang"]
    for command in map(shlex.split, wanted):
        if command and shutil.which(command[0]):
            return command
    if importlib.util.find_spec("ziglang"):
        return [sys.executable, "-m", "ziglang", "cc", "-mcpu=baseline"]  # not this processor
    raise BuildError("no C compiler found (cc, gcc, clang or $CC); pip install ziglang brings one")


def _run(command: list[str]) -> None:
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise BuildError(f"{command[0]}: {error.strerror}") from error
    if done.returncode:
        first = next(
            (line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200]
        )
        raise BuildError(f"{command[0]} failed: {first}")
