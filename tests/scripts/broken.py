"""A run whose rank 2 goes wrong in its first training, as $HOW says."""

import os
import sys
import time
from pathlib import Path

from amn_mpi import compiled, local, main

train = compiled.CompiledEngine.train


def broken(self: local.Engine, *args: object, **keys: object) -> object:
    if os.environ["PMI_RANK"] != "2":
        return train(self, *args, **keys)
    Path(os.environ["MARK"]).touch()
    if os.environ["HOW"] == "hang":
        time.sleep(3600)
    if os.environ["HOW"] == "memory":
        raise MemoryError("Unable to allocate 1. TiB")
    raise ZeroDivisionError("broken on purpose")


compiled.CompiledEngine.train = broken
main.main(sys.argv[1:])
