import sys, dataclasses
from pathlib import Path
from every_method import one
from amn_mpi import blocks, cli, data, methods
from amn_mpi.comm import Communicator
from amn_mpi.session import Session

blocks.BLOCK = int(sys.argv[2])
comm = Communicator()
config = comm.share(cli.parse(sys.argv[3:])[0] if comm.is_server else None)
fed = comm.share(data.prepare(config.data, config.seed) if comm.is_server else None)
ready = Session(config, comm, fed)
ready.meet()
out = {}
for name in ("amn", "fedamp", "heur_fedamp"):
    o = methods.options(name)(**({"common_rounds": 1, "sketch": 100} if name == "amn" else {}))
    for server in ("rank0", "sharded"):
        f = one(ready, dataclasses.replace(config, method=o, server=server))
        f.get("server", {}).pop("models", None)
        out[name, server] = f
if comm.is_server:
    for name in ("amn", "fedamp", "heur_fedamp"):
        a, b = out[name, "rank0"], out[name, "sharded"]
        print(name, a == b, [k for k in a if a[k] != b[k]], a["models"][0][:8])
comm.close()
