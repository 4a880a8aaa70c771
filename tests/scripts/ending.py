"""A run that ends as $HOW says: all workers go wrong at once, rank 0 is slow in writing, or all is well.

When it is, $MARK tells when rank 0 began.
"""

import os
import sys
import time
from pathlib import Path

begun = time.time()
from amn_mpi import main  # noqa: E402  # first: its clock starts with its import

# isort: split
from amn_mpi import comm, compiled, local  # noqa: E402
from amn_mpi.runfolder import RunFolder  # noqa: E402

HOW, RANK = os.environ["HOW"], os.environ["PMI_RANK"]
train, write, keep = compiled.CompiledEngine.train, RunFolder.write_models, comm.Communicator.keep


def wrong(self: local.Engine, *args: object, **keys: object) -> object:
    raise ZeroDivisionError("broken on purpose")


def busy(self: local.Engine, *args: object, **keys: object) -> object:
    """Rank 1 alone is at work until 3.6 s after the idle rank began to wait."""
    while RANK == "1" and time.monotonic() < kept[0] + 3.6:
        self.tick()
        time.sleep(0.05)
    return train(self, *args, **keys)


def slow(self: RunFolder, *args: object) -> str:
    """4.8 seconds in which rank 0 answers nobody, as in a write to a slow disk."""
    Path(os.environ["MARK"]).write_text(f"{time.monotonic() - kept[0]:.2f}")
    time.sleep(4.8)
    return write(self, *args)


def remember(self: comm.Communicator, size: int) -> bool:
    kept.append(time.monotonic())
    return keep(self, size)


kept: list[float] = []
comm.Communicator.keep = remember
if HOW == "wrong":
    compiled.CompiledEngine.train = wrong
if HOW == "slow":
    compiled.CompiledEngine.train, RunFolder.write_models = busy, slow
if HOW == "timed" and RANK == "0":
    Path(os.environ["MARK"]).write_text(str(begun))
main.main(sys.argv[1:])
