"""Compiles ``amn_mpi/native``; everything else is in ``setup.cfg``."""

import importlib.util
import os
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

HERE = Path(__file__).resolve().parent
_spec = importlib.util.spec_from_file_location("native_build", HERE / "amn_mpi" / "native" / "build.py")
native = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(native)


class Build(build_ext):
    """One library for several instruction sets; without a compiler there is ``--engine torch``."""

    def build_extension(self, ext):
        try:
            native.build(Path(self.get_ext_fullpath(ext.name)))
        except native.BuildError as error:
            print(f"amn_mpi: the compiled engine is not built, --engine torch needs none: {error}")

    def get_ext_filename(self, fullname):
        return os.path.join(*fullname.split(".")[:-1], native.LIBRARY)


setup(
    ext_modules=[Extension("amn_mpi.native.steps", ["amn_mpi/native/steps.c"], optional=True)],
    cmdclass={"build_ext": Build},
)
