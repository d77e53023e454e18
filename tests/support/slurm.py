"""SLURM cluster of two nodes on this machine, from Debian's packages, and its jobs.

Each daemon is a child of the test process. Nothing outside of one folder is read or written:
clients find the cluster by SLURM_CONF. It works as root and as any other user.
"""

import getpass
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

NODES = ("n1", "n2")
CPUS_PER_NODE = 2
GPUS_PER_NODE = 2
"""Number of GPU device files, which are empty: the scheduler counts them, no process uses them."""

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "salloc", "scancel", "scontrol", "sinfo")
PACKAGES = "slurmctld slurmd slurm-client"
FINAL_STATES = (
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
)
_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SCANCEL_", "SQUEUE_", "SINFO_")

# auth/none needs no munge. cred_expire is also the delay before a requeued job starts: 120 s by
# default, and also for values below 5. slurmd 22.05 requires a cgroup plugin even if nothing uses
# it; that of v1 touches no mount. config_overrides: nodes may have more cores than this machine.
_CONF = """\
ClusterName=tests
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/none
AuthInfo=cred_expire=5
CredType=cred/none
StateSaveLocation={root}/state
SlurmdSpoolDir={root}/spool/%n
SlurmctldPidFile={root}/slurmctld.pid
SlurmdPidFile={root}/slurmd-%n.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/backfill
SchedulerParameters=bf_interval=1,sched_interval=1,batch_sched_delay=1,sched_min_interval=100000
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ReturnToService=2
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait=5
MinJobAge=3600
InactiveLimit=0
SlurmdTimeout={timeout}
MessageTimeout=10
SlurmdParameters=config_overrides
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=60 PriorityTier=1 PreemptMode=REQUEUE GraceTime=30
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=10 PreemptMode=OFF
"""
_NODE = (
    "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} "
    "RealMemory=1024 Gres=gpu:{gpus} State=UNKNOWN"
)


def find_missing_program() -> str | None:
    """Return the first program of SLURM that is not installed, or None."""
    return next(
        (name for name in PROGRAMS if shutil.which(name, path=_extend_path()) is None), None
    )


class Cluster:
    """Two nodes with a controller, running from ``start`` to ``stop``.

    Args:
        root: Folder of the cluster; its path must be short, as it contains sockets.
        node_timeout_seconds: Seconds without response after which a node is down.
    """

    def __init__(self, root: Path, *, node_timeout_seconds: int = 15) -> None:
        self.root = root
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        # without the settings of a job that runs these tests
        clean = {k: v for k, v in os.environ.items() if not k.startswith(_INHERITED)}
        self.environment = clean | {
            "PATH": _extend_path(),
            "SLURM_CONF": str(root / "slurm.conf"),
            "MASTER_ADDR": "127.0.0.1",  # the names of the nodes are not resolvable
            "OMP_NUM_THREADS": "1",
        }
        self._write_conf(node_timeout_seconds)

    def start(self) -> None:
        """Start the daemons and wait until both nodes are idle."""
        self._start_daemon("slurmctld", "slurmctld", "-D", "-c")
        for name in NODES:
            self.start_node(name)
        self.wait_until(lambda: self.list_idle_nodes() == list(NODES), "both nodes are idle", 30)

    def clear(self) -> None:
        """Cancel all jobs and wait until both nodes are idle."""
        self.run("scancel", "--user", getpass.getuser())
        self.wait_until(lambda: self.list_idle_nodes() == list(NODES), "both nodes are idle", 30)

    def stop(self) -> None:
        """Stop all jobs, then the daemons."""
        with suppress(AssertionError):
            self.clear()
        for name in list(self._daemons):
            self._stop_daemon(name, signal.SIGTERM)

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        self._start_daemon(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """Kill all processes of a node at once, as a power failure does."""
        pids = _find_descendants(self._daemons[name].pid) + self._find_step_pids(name)
        self._stop_daemon(name, signal.SIGKILL)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def run(self, *command: object, folder: Path | None = None, **extra: str) -> str:
        """Return the output of a command, which must succeed."""
        process = self.try_run(*command, folder=folder, **extra)
        assert process.returncode == 0, f"{command}: {process.stdout}{process.stderr}"
        return process.stdout.strip()

    def try_run(
        self, *command: object, folder: Path | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Return the completed process of a command, which may fail."""
        return subprocess.run(
            list(map(str, command)),
            cwd=folder,
            env=self.environment | extra,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def submit(
        self, folder: Path, *args: object, options: Sequence[str] = (), **extra: str
    ) -> "Job":
        """Submit a batch script with its arguments from a folder, which also takes its log."""
        command = ("sbatch", "--parsable", *options)
        return Job(self, self.run(*command, *args, folder=folder, **extra))

    def list_idle_nodes(self) -> list[str]:
        """Return the nodes that are ready for jobs and run none."""
        process = self.try_run("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N")
        return sorted(set(process.stdout.split()))

    def wait_until(
        self, condition: Callable[[], bool], description: str, seconds: float = 60
    ) -> None:
        """Wait for a condition; fail after ``seconds``."""
        deadline = time.monotonic() + seconds
        while not condition():
            late = time.monotonic() > deadline
            assert not late, f"not within {seconds:g} s: {description}\n{self._read_logs()}"
            time.sleep(0.1)

    def _start_daemon(self, key: str, program: str, *arguments: str) -> None:
        with (self.root / f"{key}.log").open("ab") as log:
            self._daemons[key] = subprocess.Popen(
                [program, *arguments],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C stops the tests, and they stop the daemons
            )

    def _stop_daemon(self, key: str, number: signal.Signals) -> None:
        daemon = self._daemons.pop(key)
        daemon.send_signal(number)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _find_step_pids(self, node: str) -> list[int]:
        """Return the processes of a node's job steps; slurmstepd detaches from slurmd."""
        steps = [
            pid
            for pid in _list_pids()
            if _read_command_line(pid).startswith("slurmstepd")
            and f"SLURM_CONF={self.environment['SLURM_CONF']}" in _read_environment(pid)
            and any(
                f"SLURMD_NODENAME={node}" in _read_environment(c) for c in _find_descendants(pid)
            )
        ]
        return steps + [child for pid in steps for child in _find_descendants(pid)]

    def _write_conf(self, timeout: int) -> None:
        host = socket.gethostname().partition(".")[0]
        ports = _find_free_ports(1 + len(NODES))
        for folder in ("state", "cgroup", *(f"spool/{name}" for name in NODES)):
            (self.root / folder).mkdir(parents=True, exist_ok=True)
        for number in range(GPUS_PER_NODE):
            (self.root / f"gpu{number}").touch()
        nodes = "\n".join(
            _NODE.format(name=name, host=host, port=port, cpus=CPUS_PER_NODE, gpus=GPUS_PER_NODE)
            for name, port in zip(NODES, ports[1:], strict=True)
        )
        conf = _CONF.format(
            host=host, port=ports[0], user=getpass.getuser(), root=self.root, nodes=nodes,
            timeout=timeout,
        )  # fmt: skip
        devices = f"{self.root}/gpu[0-{GPUS_PER_NODE - 1}]"
        gres = "".join(f"NodeName={name} Name=gpu File={devices}\n" for name in NODES)
        (self.root / "slurm.conf").write_text(conf)
        (self.root / "gres.conf").write_text(gres)
        (self.root / "cgroup.conf").write_text(
            f"CgroupPlugin=cgroup/v1\nCgroupMountpoint={self.root}/cgroup\n"
        )

    def _read_logs(self) -> str:
        files = sorted(self.root.glob("*.log"))
        return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in files)


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job.

    Attributes:
        cluster: Cluster of the job.
        id: Job ID; that of an array task is ``12_0``.
    """

    cluster: Cluster
    id: str

    @property
    def properties(self) -> Mapping[str, str]:
        """Output of scontrol show job: JobState, ExitCode, Restarts and more."""
        words = self.cluster.run("scontrol", "show", "job", self.id, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def restarts(self) -> int:
        """Number of requeues."""
        return int(self.properties["Restarts"])

    @property
    def log_text(self) -> str:
        """Output of the job and its processes so far."""
        log = Path(self.properties["StdOut"])
        return log.read_text(errors="replace") if log.exists() else ""

    def wait_until_ended(self, seconds: float = 120) -> str:
        """Wait for the end of the job and return its final state."""
        return self.wait_for_state(FINAL_STATES, seconds)

    def wait_until_completed(self, seconds: float = 120) -> None:
        """Wait for the end of the job, which must have succeeded."""
        state = self.wait_until_ended(seconds)
        assert state == "COMPLETED", f"{state}\n{self.log_text[-8000:]}"

    def wait_for_state(self, states: Sequence[str], seconds: float = 60) -> str:
        """Wait until the job is in one of the states and return it."""
        self.wait_until(lambda: self.properties["JobState"] in states, " or ".join(states), seconds)
        return self.properties["JobState"]

    def wait_until(
        self, condition: Callable[[], bool], description: str, seconds: float = 60
    ) -> None:
        """Wait for a condition; fail with the log after ``seconds`` or if the job ends before."""

        def is_decided() -> bool:
            return condition() or self.properties["JobState"] in FINAL_STATES

        try:
            self.cluster.wait_until(is_decided, f"job {self.id}: {description}", seconds)
            assert condition(), f"job {self.id} ended before: {description}"
        except AssertionError as error:
            details = f"{self.properties}\n{self.log_text[-8000:]}"
            raise AssertionError(f"{error}\n{details}") from None


def _extend_path() -> str:
    """Return PATH with the folders of daemons, which only root has by default."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _find_free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _list_pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _find_descendants(pid: int) -> list[int]:
    """Return the present descendants of a process."""
    children: dict[int, list[int]] = {}
    for other in _list_pids():
        with suppress(OSError, IndexError):
            stat = Path(f"/proc/{other}/stat").read_text()
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(other)
    descendants = list(children.get(pid, []))
    for child in descendants:
        descendants += children.get(child, [])
    return descendants


def _read_environment(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    return []


def _read_command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""
