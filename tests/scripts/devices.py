"""Each rank says which GPU it would take. Those that Slurm has made visible count, though there are none.

The argument is a folder for the result, which the job scripts want to see.
"""

import os
import sys
from pathlib import Path

import torch

from amn_mpi.comm import Communicator
from amn_mpi.session import choose_device

comm = Communicator()
visible = os.environ["CUDA_VISIBLE_DEVICES"].split(",")
torch.cuda.is_available = lambda: True
torch.cuda.device_count = lambda: len(visible)
device = "none"
if comm.owner is not None:
    device = str(choose_device("cuda", comm.rank_on_host - comm.server_on_host))
told = comm.collect(f"{comm.rank} {os.environ['SLURMD_NODENAME']} {device}")
if comm.is_server:
    print("\n".join(told), flush=True)
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    (out / "result.json").write_text("{}")
comm.close()
