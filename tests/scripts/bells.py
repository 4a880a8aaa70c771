"""Rank 0 rings rank 1 and nobody else; run under mpirun by test_mpi_comm."""

import time

import numpy as np

from amn_mpi.bells import Bells
from amn_mpi.comm import Communicator

LONG, SHORT = 300.0, 0.5  # seconds; nobody sleeps the long ones, else the test takes too long

comm = Communicator()
bells = Bells(comm._node, comm.rank)
rung = None
if comm.is_server:
    reached = bells.reach([1, 2]), bells.reach([1, 7])
    time.sleep(0.3)  # rank 1 sleeps by now, or finds that it was rung before
    bells.ring([1, 7])
elif comm.rank == 1:
    rung = [bells.sleep(LONG), bells.sleep(SHORT)]
else:
    rung = [bells.sleep(SHORT)]
said = comm.collect(rung)
# More often than anybody listens: it may not block, and what is kept wakes.
if comm.is_server:
    for _ in range(1000):
        bells.ring([1])
comm.broadcast(np.zeros(1))
said += comm.collect(None if comm.rank != 1 else bells.sleep(LONG))
if comm.is_server:
    print(reached, said)
comm.close()
