"""Two hosts, n1 and n2, on one machine, joined by TCP only. Holds no test."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parent / "scripts" / "two_hosts.sh"
# MPICH has two ways to a network; left alone it finds that the hosts share their memory.
NETWORKS = {
    "ucx": {"MPIR_CVAR_CH4_NETMOD": "ucx", "UCX_TLS": "tcp"},
    "ofi": {"MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"},
}


def under() -> list[str]:
    """The command under which a run is on n1 and can reach n2; skips the test where none is allowed."""
    missing = [name for name in ("ip", "unshare", "mount") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"two hosts need {', '.join(missing)} (Debian: iproute2, util-linux)")
    user = [] if os.getuid() == 0 else ["--map-root-user"]
    start = ["unshare", *user, "--net", "--mount", "--uts", "sh"]
    probe = "mount -t tmpfs tmpfs /run; ip netns add n2; ip link add veth type veth peer netns n2"
    tried = subprocess.run([*start, "-ec", probe], capture_output=True, text=True)
    if tried.returncode:
        pytest.skip(f"two hosts need network namespaces: {tried.stderr.strip()}")
    return [*start, str(SCRIPT)]
