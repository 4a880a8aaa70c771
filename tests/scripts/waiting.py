"""One rank computes for three seconds, the others wait for it; prints what the waiting cost."""

import time

import numpy as np

from amn_mpi.comm import Communicator

comm = Communicator()
if comm.rank == 1:
    until = time.process_time() + 3
    while time.process_time() < until:
        sum(range(1000))
comm.wait_cpu = comm.wait_seconds = 0.0
if comm.is_server:
    late = time.monotonic()
comm.sum_exact(np.zeros(10, np.int64))
costs = comm.collect((comm.wait_seconds, comm.wait_cpu))
if comm.is_server:
    others = [cost for rank, cost in enumerate(costs) if rank != 1]
    print(f"{min(wall for wall, _ in others[:1]):.3f} {sum(cpu for _, cpu in others):.3f}")
comm.close()
