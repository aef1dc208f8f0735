"""A SLURM of this machine alone, on its loopback interface, for tests that run as root."""

from __future__ import annotations

import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "squeue", "srun", "scontrol")
HOLD_S = 10
"""How long SLURM holds a job that it queues again; two minutes by default."""

CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmdPort={port_of_node}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/none
AuthInfo=cred_expire={hold}
CredType=cred/none
SlurmUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
ReturnToService=2
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
MpiDefault=none
SchedulerParameters=sched_interval=2,bf_interval=2
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=main Nodes={host} Default=YES
"""


def why_missing() -> str:
    """Return why SLURM cannot run here; empty if it can."""
    missing = [name for name in PROGRAMS if shutil.which(name) is None]
    if missing:
        return f"needs {', '.join(missing)}: apt-get install slurmctld slurmd slurm-client slurm-wlm-basic-plugins"
    return "" if os.geteuid() == 0 else "needs root, which SLURM without munge trusts"


@contextmanager
def slurm(folder: Path) -> Iterator[dict[str, str]]:
    """Run a cluster of two processors, and yield the variables with which its commands find it."""
    for name in ("state", "spool"):
        (folder / name).mkdir()
    file, host, port = folder / "slurm.conf", platform.node().partition(".")[0], 20000 + os.getpid() % 20000
    file.write_text(CONFIGURATION.format(host=host, port=port, port_of_node=port + 20000, folder=folder, hold=HOLD_S))
    variables = {"SLURM_CONF": str(file)}
    try:
        for name in ("slurmctld", "slurmd"):
            subprocess.run([name, "-f", file], check=True)
        wait_until(lambda: "idle" in output(variables, "sinfo", "--noheader"), 30)
        yield variables
    finally:
        subprocess.run(["scontrol", "shutdown"], env={**os.environ, **variables}, check=False)
        wait_until(lambda: not [*folder.glob("*.pid")], 60)


def output(variables: dict[str, str], *words: str) -> str:
    """Return what a command of SLURM prints; empty if it fails."""
    return subprocess.run(words, env={**os.environ, **variables}, capture_output=True, text=True, check=False).stdout


def wait_until(condition: Callable[[], object], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.2)
