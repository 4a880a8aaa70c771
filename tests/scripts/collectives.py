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

# Owner a gives owner b the number 10 a + b, a + b + 1 times (all owners, the last one has nothing).
owners, me = comm.owners, comm.owner
last = owners - 1 if owners > 1 else owners
give = [] if me is None else [(me + b + 1) * (me < last > b) for b in range(owners)]
own = np.repeat([10.0 * (me or 0) + b for b in range(len(give))], give).astype(np.float32)
into = np.full(sum(give), -1, np.float32)  # what a and b give each other is equally long
comm.swap(own, give or [0] * owners, into, give or [0] * owners)
expected = np.repeat([10.0 * b + (me or 0) for b in range(len(give))], give)
checks["swap"] = bool((into == expected).all())

mine = None if me in (None, last) else np.full((2, 3), me, np.float32)
box = np.empty((2, 3), np.float32)
turns = [array.tolist() for array in comm.in_turn(mine, last, box)]
checks["turns"] = turns == ([[[float(k)] * 3] * 2 for k in range(last)] if comm.is_server else [])

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
