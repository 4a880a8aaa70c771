"""Every collective on every rank against what it must give; run under mpirun by test_mpi_comm."""

import sys

import numpy as np

from amn_mpi.comm import Communicator

comm = Communicator()
comm.configure(sys.argv[1], 60)
counts = [1 + 2 * (owner % 3) for owner in range(comm.owners)]
total, mine = sum(counts), 0 if comm.owner is None else counts[comm.owner]
first = 0 if comm.owner is None else sum(counts[: comm.owner])
checks = {}

rows = np.arange(total * 14, dtype=np.float32).reshape(total, 2, 7)
out = np.full((mine, 2, 7), -1, np.float32)
got = comm.scatter_rows(rows.copy() if comm.is_server else None, counts, out)
if comm.owner is not None:
    checks["scatter"] = bool((got == rows[first : first + mine]).all())

into = np.full_like(rows, -1) if comm.is_server and comm.size > 1 else None
back = comm.gather_rows(got, counts, into)
if comm.is_server:
    checks["gather"] = bool((back == rows).all())

vector = np.full(1000, comm.rank, np.float32)
comm.broadcast(vector)
checks["broadcast"] = bool((vector == 0).all())

# Numbers whose float sum would depend on the order; as integers it cannot.
parts = np.array([2**60 + comm.rank, -(2**60), 1], np.int64)
summed = comm.sum_exact(parts.copy())
if comm.is_server:
    ranks = comm.size
    expect = [ranks * 2**60 + ranks * (ranks - 1) // 2, -ranks * 2**60, ranks]
    checks["sum"] = [int(v) for v in summed] == [((e + 2**63) % 2**64) - 2**63 for e in expect]

thing = {"text": "ä" * 3000, "number": 7}
checks["share"] = comm.share(thing if comm.is_server else None) == thing
found = comm.collect("x" * comm.rank)
checks["collect"] = found == (["x" * r for r in range(comm.size)] if comm.is_server else [])

bad = [name for name, right in checks.items() if not right]
here = (comm.rank_on_host, comm.ranks_on_host, comm.server_on_host)
everybody = comm.collect((bad, sorted(checks), dict(comm.sent), here))
if comm.is_server:
    print("bad:", [b for b, *_ in everybody if b])
    print("checked:", sorted({c for _, names, *_ in everybody for c in names}))
    print("sent:", sum(sent.get("scatter", 0) for _, _, sent, _ in everybody))
    print("places:", [place for *_, place in everybody])
    print("spins:", comm.spins)

stays = comm.keep(2)
if stays:
    small = np.full(3, comm.rank, np.float32)
    comm.broadcast(small)
    if comm.is_server:
        print("kept:", comm.size)
comm.close()
