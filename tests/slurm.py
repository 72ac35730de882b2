"""A Slurm cluster of this machine alone, for as long as a test needs one: slurm-wlm and munge, on localhost."""

import getpass
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "scancel", "squeue", "scontrol", "setpriv")

# Without control groups and accounting. Jobs share the two processors. Those that begin again wait until credentials of
# their first life are void: ten seconds, not two minutes.
CONFIGURATION = """
ClusterName=imago
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=10
SlurmUser={user}
SlurmdUser={user}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1,bf_interval=1
SlurmdParameters=config_overrides
KillWait=5
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 RealMemory=4000
PartitionName=test Nodes={host} Default=YES OverSubscribe=FORCE:4
"""


def missing() -> list[str]:
    """The programs that this machine lacks, such as those of Slurm."""
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin"])
    return [name for name in PROGRAMS if shutil.which(name, path=path) is None]


@contextmanager
def cluster() -> Iterator[dict[str, str]]:
    """Inside, a cluster of one node runs; gives the environment in which its commands work. Nothing is left of it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("SLURM", "SBATCH"))}
    environment["PATH"] = os.pathsep.join([environment["PATH"], "/usr/sbin"])
    with tempfile.TemporaryDirectory(prefix="imago-slurm-") as name, ExitStack() as stack:
        folder = Path(name)
        for part in ("state", "spool"):
            (folder / part).mkdir()
        (folder / "munge.key").write_bytes(os.urandom(128))
        (folder / "munge.key").chmod(0o400)
        file = folder / "slurm.conf"
        host, user = socket.gethostname().partition(".")[0], getpass.getuser()
        file.write_text(CONFIGURATION.format(folder=folder, host=host, user=user, ports=free_ports(2)))
        environment["SLURM_CONF"] = str(file)
        munge = [f"--{name}={folder}/munge.{name}" for name in ("socket", "pid-file", "log-file", "seed-file")]
        for command in (
            ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", *munge],
            ["slurmctld", "-D", "-f", str(file)],
            ["slurmd", "-D", "-f", str(file)],
        ):
            with (folder / f"{command[0]}.txt").open("w") as log:
                process = subprocess.Popen(
                    ["setpriv", "--pdeathsig", "TERM", *command], env=environment, stdout=log, stderr=log
                )
            stack.callback(end, process)
        wait_for_node(folder, environment)
        stack.callback(cancel_all, environment)
        yield environment


def free_ports(count: int) -> list[int]:
    """Ports of localhost that nobody listens on."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [int(one.getsockname()[1]) for one in sockets]


def wait_for_node(folder: Path, environment: dict[str, str]) -> None:
    end = time.monotonic() + 60
    while "idle" not in asked(["sinfo", "--noheader", "--format=%T"], environment):
        if time.monotonic() > end:
            logs = "\n".join(path.read_text()[-1000:] for path in folder.glob("*.txt"))
            raise AssertionError(f"Slurm did not begin:\n{logs}")
        time.sleep(0.1)


def cancel_all(environment: dict[str, str]) -> None:
    """End all jobs, and wait until their processes are gone."""
    subprocess.run(["scancel", "--user", getpass.getuser()], env=environment, check=False)
    end = time.monotonic() + 20
    while asked(["squeue", "--noheader"], environment).strip() and time.monotonic() < end:
        time.sleep(0.1)


def asked(command: list[str], environment: dict[str, str]) -> str:
    """What a command prints; nothing where it fails."""
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False).stdout


def end(process: subprocess.Popen[bytes]) -> None:
    """Stop a daemon."""
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(10)
    process.kill()
    process.wait()
