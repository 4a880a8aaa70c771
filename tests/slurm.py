"""A real Slurm for tests: munge, a controller and five virtual nodes on this host. Holds no test.

Partitions: main (n1, n2); frail (n3 to n5), for nodes that fail; low and urgent on n5, of which urgent
preempts low. Every node has two GPUs that are none.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from running import REPOSITORY, environment

NODES = 5
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scontrol", "setpriv")
SETTINGS = """
ClusterName=test
FirstJobId={first}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
GresTypes=gpu
MpiDefault=none
ReturnToService=2
KillWait=15
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=100000
SlurmdParameters=config_overrides
PropagateResourceLimits=NONE
{nodes}
PartitionName=main Nodes=n[1-2] Default=YES
PartitionName=frail Nodes=n[3-5]
PartitionName=low Nodes=n5 PriorityTier=1 GraceTime=20
PartitionName=urgent Nodes=n5 PriorityTier=9 PreemptMode=OFF
"""


@dataclass
class Cluster:
    """A running one. ``env``: where its commands and jobs work; ``began``: when its controller did."""

    folder: Path
    env: dict[str, str]
    began: float = 0.0

    def ask(self, *words: object, cwd: Path | None = None, **env: str) -> str:
        """What a Slurm command prints."""
        done = subprocess.run(
            list(map(str, words)),
            env={**self.env, **env},
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=30,
        )
        assert done.returncode == 0, f"{words}: {done.stderr}\n{self.logs()}"
        return done.stdout.strip()

    def submit(self, script: str, *words: object, cwd: Path, options: str = "", **env: str) -> Job:
        """``sbatch OPTIONS SCRIPT WORDS`` in a folder that has the job scripts."""
        if not (cwd / "jobs").exists():
            (cwd / "jobs").symlink_to(REPOSITORY / "jobs")
        number = self.ask("sbatch", "--parsable", *options.split(), script, *words, cwd=cwd, **env)
        return Job(self, number, cwd)

    def freeze(self, node: str) -> None:
        """Let a node fall silent, as one does that has lost its power."""
        for pid, variables, words in _processes(self.env["SLURM_CONF"]):
            if f"SLURMD_NODENAME={node}" in variables or words[:1] + words[-1:] == ["slurmd", node]:
                os.kill(pid, signal.SIGSTOP)

    def rank(self, job: str, number: int) -> int:
        """Process id of a job's rank under srun."""
        wanted = {f"SLURM_JOB_ID={job}", f"SLURM_PROCID={number}", f"PMI_RANK={number}"}
        found = [pid for pid, variables, _ in _processes(self.env["SLURM_CONF"]) if wanted <= {*variables}]
        assert len(found) == 1, f"{job} has {len(found)} ranks {number}"
        return found[0]

    def logs(self, lines: int = 20) -> str:
        """The ends of the daemons' logs."""
        return "\n".join(
            f"== {path.name}\n{_last(path.read_text(errors='replace'), lines)}"
            for path in sorted(self.folder.glob("*.log"))
        )


@dataclass
class Job:
    cluster: Cluster
    number: str
    folder: Path

    @property
    def facts(self) -> dict[str, str]:
        """What Slurm knows of it, such as JobState."""
        words = self.cluster.ask("scontrol", "--oneliner", "show", "job", self.number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def state(self) -> str:
        return self.facts["JobState"]

    @property
    def log(self) -> str:
        """Of all its starts."""
        return "\n".join(path.read_text() for path in sorted(self.folder.glob(f"*-{self.number}.log")))

    def until(self, what: Callable[[], object], name: str, seconds: float = 150.0) -> None:
        """Poll until something is true, or fail with the logs."""
        end = time.monotonic() + seconds
        while not what():
            if time.monotonic() > end:
                pytest.fail(f"{name}: not within {seconds:g} s\n{self.told()}\n{self.cluster.logs()}")
            time.sleep(0.4)

    def ends(self, state: str, seconds: float = 150.0) -> None:
        """Wait for its last state, which has to be this one."""
        last = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "PREEMPTED")
        self.until(lambda: self.state in last, "the end", seconds)
        assert self.state == state, f"{self.told()}\n{self.cluster.logs()}"

    def told(self) -> str:
        return f"job {self.number}: {self.facts}\n{_last(self.log, 40)}"


def missing() -> str:
    """Why there can be no Slurm here; "" if there can."""
    lacking = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if lacking:
        return f"no {', '.join(lacking)}: needs slurmctld, slurmd, slurm-client and munge"
    return "" if os.geteuid() == 0 else "Slurm's daemons need root"


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[Cluster]:
    """Bring one up, and take it down whatever happens."""
    folder.mkdir(parents=True)
    env = environment({"PATH": _path(), "SLURM_CONF": folder / "slurm.conf", "AMN_VENV": sys.prefix})
    here, daemons = Cluster(folder, env), list[subprocess.Popen[bytes]]()
    _configure(folder)

    def start(name: str, *words: str) -> None:
        """In the foreground, and ended by the system if this process dies."""
        with open(folder / f"{name}.log", "wb") as log:
            what = ["setpriv", "--pdeathsig", "TERM", *words]
            daemons.append(subprocess.Popen(what, stdout=log, stderr=log, env=env, start_new_session=True))

    try:
        files = [f"--{kind}-file={folder}/munge.{kind}" for kind in ("key", "pid", "seed")]
        start("munged", "munged", "-F", "--force", f"--socket={folder}/munge.socket", *files)
        _until(here, (folder / "munge.socket").exists)
        here.began = time.monotonic()
        start("slurmctld", "slurmctld", "-D", "-c")
        for n in range(1, NODES + 1):
            start(f"slurmd.n{n}", "slurmd", "-D", "-N", f"n{n}")
        _until(here, lambda: _idle(here) == NODES)
        yield here
    finally:
        _end(daemons)
        for pid, _, _ in _processes(env["SLURM_CONF"]):  # jobs outlive the daemons
            os.kill(pid, signal.SIGKILL)


def _idle(here: Cluster) -> int:
    words = ["sinfo", "-h", "-N", "-t", "idle", "-o", "%N"]
    done = subprocess.run(words, env=here.env, capture_output=True, text=True, timeout=30)
    return len(set(done.stdout.split()))


def _until(here: Cluster, what: Callable[[], object]) -> None:
    end = time.monotonic() + 30
    while not what():
        if time.monotonic() > end:
            pytest.fail(f"Slurm did not come up\n{here.logs()}")
        time.sleep(0.1)


def _configure(folder: Path) -> None:
    """slurm.conf and gres.conf with free ports; munge's key."""
    host = socket.gethostname().split(".")[0]
    ports = _free_ports(1 + NODES)
    nodes = [
        f"NodeName=n{n} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[n]} CPUs=16 Gres=gpu:2"
        for n in range(1, NODES + 1)
    ]
    settings = {"host": host, "folder": folder, "ports": ports, "nodes": "\n".join(nodes)}
    # MPICH under srun names its shared memory after the job: no number twice on a machine.
    settings["first"] = random.randrange(10**6, 10**7)
    (folder / "slurm.conf").write_text(SETTINGS.format(**settings))
    (folder / "gpu0").symlink_to("/dev/null")  # any device will do
    (folder / "gpu1").symlink_to("/dev/zero")
    (folder / "gres.conf").write_text(f"NodeName=n[1-{NODES}] Name=gpu File={folder}/gpu[0-1]\n")
    for name in ("state", *(f"{kind}/n{n}" for kind in ("spool", "tmp") for n in range(1, NODES + 1))):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o600)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _end(daemons: list[subprocess.Popen[bytes]]) -> None:
    for daemon in reversed(daemons):
        daemon.terminate()
        daemon.send_signal(signal.SIGCONT)
    for daemon in reversed(daemons):
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()


def _processes(conf: str) -> Iterator[tuple[int, list[str], list[str]]]:
    """(process id, environment, command line) of what was started with these settings."""
    for path in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            variables = (path / "environ").read_text(errors="replace").split("\0")
            if f"SLURM_CONF={conf}" in variables:
                yield int(path.name), variables, (path / "cmdline").read_text().split("\0")[:-1]


def _path() -> str:
    """This Python's programs first; daemons live in sbin."""
    return os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"], "/usr/sbin", "/sbin"])


def _last(text: str, lines: int) -> str:
    return "\n".join(text.splitlines()[-lines:])
