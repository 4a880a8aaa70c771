"""More than 2^31 elements in one gather and one scatter: three rows of 0.8e9 bytes each.

Takes 5 GB of memory; run under mpirun -n 4 by test_mpi_comm.
"""

import numpy as np

from amn_mpi.comm import Communicator

LENGTH = 800_000_000

comm = Communicator()
counts = [1] * comm.owners
own = np.full((0 if comm.owner is None else 1, LENGTH), comm.rank, np.uint8)
into = np.zeros((comm.owners, LENGTH), np.uint8) if comm.is_server else None
rows = comm.gather_rows(own, counts, into)
if comm.is_server:
    assert rows.size > 2**31, "use at least 4 ranks"
    for owner in range(comm.owners):
        assert rows[owner].min() == rows[owner].max() == owner + 1, owner
        rows[owner, -1] = 100 + owner
back = comm.scatter_rows(rows if comm.is_server else None, counts, own)
if comm.owner is not None:
    assert back[0, -1] == 100 + comm.owner and back[0, 0] == comm.rank
comm.collect(None)
if comm.is_server:
    print(f"{rows.size:,} elements gathered and scattered")
comm.close()
