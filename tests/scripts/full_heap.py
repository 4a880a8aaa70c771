"""Ranks that meet after Python has filled the heap with text; some of it is free again."""

import os

from amn_mpi.comm import Communicator

texts = [os.urandom(size).hex() for size in (300, 450, 750, 1500, 2500, 4500) for _ in range(400)]
kept = texts[::2]
del texts
comm = Communicator()
met = comm.collect(comm.rank)
if comm.is_server:
    print("met:", *met, flush=True)
comm.close()
