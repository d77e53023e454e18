"""A real SLURM of two nodes on this machine, from Debian's packages, and the jobs in it.

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
"""Empty files: the scheduler counts them, and no process finds a GPU behind them."""

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "srun", "salloc", "scancel", "scontrol", "sinfo")
PACKAGES = "slurmctld slurmd slurm-client"
ENDED = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "OUT_OF_MEMORY", "BOOT_FAIL")
_INHERITED = ("SLURM_", "SBATCH_", "SRUN_", "SCANCEL_", "SQUEUE_", "SINFO_")

# auth/none needs no munge. cred_expire is also how long a requeued job is held before it starts
# again: 120 s by default, and again so below 5. slurmd 22.05 wants a cgroup plugin even where
# nothing uses it, and that of v1 touches no mount. config_overrides: the nodes claim more cores
# than there may be.
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


def missing_program() -> str | None:
    """Return the first program of SLURM that is not installed, or None."""
    return next((name for name in PROGRAMS if shutil.which(name, path=_path()) is None), None)


class Cluster:
    """Two nodes with a controller, between ``start`` and ``stop``.

    Args:
        root: A folder of its own, with a short path: sockets lie in it.
        node_timeout_seconds: How long a node may be silent before it counts as dead.
    """

    def __init__(self, root: Path, *, node_timeout_seconds: int = 15) -> None:
        self.root = root
        self._daemons: dict[str, subprocess.Popen[bytes]] = {}
        # no test may run in the settings of a job that it is itself a part of
        clean = {k: v for k, v in os.environ.items() if not k.startswith(_INHERITED)}
        self.environment = clean | {
            "PATH": _path(),
            "SLURM_CONF": str(root / "slurm.conf"),
            "MASTER_ADDR": "127.0.0.1",  # no resolver knows the nodes
            "OMP_NUM_THREADS": "1",
        }
        self._write_conf(node_timeout_seconds)

    def start(self) -> None:
        """Start the daemons and return when both nodes take jobs."""
        self._start_daemon("slurmctld", "slurmctld", "-D", "-c")
        for name in NODES:
            self.start_node(name)
        self.until(lambda: self.idle_nodes() == list(NODES), "both nodes take jobs", 30)

    def clear(self) -> None:
        """Cancel all jobs and return when both nodes are free."""
        self.run("scancel", "--user", getpass.getuser())
        self.until(lambda: self.idle_nodes() == list(NODES), "both nodes take jobs", 30)

    def stop(self) -> None:
        """End all jobs, then the daemons."""
        with suppress(AssertionError):
            self.clear()
        for name in list(self._daemons):
            self._end(name, signal.SIGTERM)

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        self._start_daemon(name, "slurmd", "-D", "-N", name)

    def kill_node(self, name: str) -> None:
        """Kill all that runs on a node at once, as a power cut does."""
        pids = _descendants(self._daemons[name].pid) + self._steps_of(name)
        self._end(name, signal.SIGKILL)
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def run(self, *command: object, folder: Path | None = None, **extra: str) -> str:
        """Return what a command prints; it must end well."""
        done = self.attempt(*command, folder=folder, **extra)
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout.strip()

    def attempt(
        self, *command: object, folder: Path | None = None, **extra: str
    ) -> subprocess.CompletedProcess[str]:
        """Return how a command ended."""
        return subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env=self.environment | extra,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    def submit(
        self, folder: Path, *words: object, options: Sequence[str] = (), **extra: str
    ) -> "Job":
        """Submit a batch script with its words from a folder, where its log will lie too."""
        given = ("sbatch", "--parsable", *options)
        return Job(self, self.run(*given, *words, folder=folder, **extra))

    def idle_nodes(self) -> list[str]:
        """Return the nodes on which nothing runs and jobs may begin."""
        done = self.attempt("sinfo", "--noheader", "--Node", "--states=idle", "--format=%N")
        return sorted(set(done.stdout.split()))

    def until(self, reached: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Return once something is so; fail where it does not become so in time."""
        end = time.monotonic() + seconds
        while not reached():
            assert time.monotonic() < end, f"not in {seconds:g} s: {what}\n{self._logs()}"
            time.sleep(0.1)

    def _start_daemon(self, key: str, program: str, *arguments: str) -> None:
        with (self.root / f"{key}.log").open("ab") as log:
            self._daemons[key] = subprocess.Popen(
                [program, *arguments],
                env=self.environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C ends the tests, and they end the daemons
            )

    def _end(self, key: str, number: signal.Signals) -> None:
        daemon = self._daemons.pop(key)
        daemon.send_signal(number)
        try:
            daemon.wait(10)
        except subprocess.TimeoutExpired:
            daemon.kill()
            daemon.wait()

    def _steps_of(self, node: str) -> list[int]:
        """Return the processes of a node's job steps: slurmstepd leaves its parent behind."""
        steps = [
            pid
            for pid in _pids()
            if _command_line(pid).startswith("slurmstepd")
            and f"SLURM_CONF={self.environment['SLURM_CONF']}" in _environment(pid)
            and any(f"SLURMD_NODENAME={node}" in _environment(c) for c in _descendants(pid))
        ]
        return steps + [child for pid in steps for child in _descendants(pid)]

    def _write_conf(self, timeout: int) -> None:
        host = socket.gethostname().partition(".")[0]
        ports = _free_ports(1 + len(NODES))
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

    def _logs(self) -> str:
        files = sorted(self.root.glob("*.log"))
        return "\n".join(f"{file.name}: {file.read_text()[-2000:]}" for file in files)


@dataclass(frozen=True, slots=True)
class Job:
    """A submitted job.

    Attributes:
        cluster: Where it is.
        id: Its number; a task of an array is ``12_0``.
    """

    cluster: Cluster
    id: str

    @property
    def facts(self) -> Mapping[str, str]:
        """What SLURM says of it: JobState, ExitCode, Restarts and more."""
        words = self.cluster.run("scontrol", "show", "job", self.id, "--oneliner").split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    @property
    def restarts(self) -> int:
        """How often it was started again."""
        return int(self.facts["Restarts"])

    @property
    def text(self) -> str:
        """What it and its processes have printed so far."""
        log = Path(self.facts["StdOut"])
        return log.read_text(errors="replace") if log.exists() else ""

    def ended(self, seconds: float = 120) -> str:
        """Wait for the end and return the state in which it is then."""
        return self.reaches(ENDED, seconds)

    def completes(self, seconds: float = 120) -> None:
        """Wait for the end, which must be a good one."""
        state = self.ended(seconds)
        assert state == "COMPLETED", f"{state}\n{self.text[-8000:]}"

    def reaches(self, states: Sequence[str], seconds: float = 60) -> str:
        """Wait until it is in one of the states and return it."""
        self.until(lambda: self.facts["JobState"] in states, " or ".join(states), seconds)
        return self.facts["JobState"]

    def until(self, reached: Callable[[], bool], what: str, seconds: float = 60) -> None:
        """Return once something is so; fail with the log where it does not become so."""

        def settled() -> bool:
            return reached() or self.facts["JobState"] in ENDED

        try:
            self.cluster.until(settled, f"job {self.id}: {what}", seconds)
            assert reached(), f"job {self.id} ended before: {what}"
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.facts}\n{self.text[-8000:]}") from None


def _path() -> str:
    """Return PATH with the folders of daemons, which other users than root lack."""
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _free_ports(count: int) -> list[int]:
    with ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _pids() -> list[int]:
    return [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]


def _descendants(pid: int) -> list[int]:
    """Return the processes below one, as they are now."""
    children: dict[int, list[int]] = {}
    for other in _pids():
        with suppress(OSError, IndexError):
            stat = Path(f"/proc/{other}/stat").read_text()
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(other)
    found = list(children.get(pid, []))
    for child in found:
        found += children.get(child, [])
    return found


def _environment(pid: int) -> list[str]:
    with suppress(OSError):
        return Path(f"/proc/{pid}/environ").read_text(errors="replace").split("\0")
    return []


def _command_line(pid: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_text(errors="replace")
    return ""
