"""``scripts/torchrun.sh``: options passed to torchrun, exit codes, and exact restarts."""

import importlib.util
import os
import signal
import subprocess
import time
from pathlib import Path
from types import ModuleType

import pytest

from tests.support.helpers import ROOT
from tests.support.runs import NUM_EPOCHS, compute_largest_difference, load_weights, read_rows
from tests.support.torchrun import (
    SCRIPT,
    build_args,
    run_uninterrupted,
    start_script,
    write_place,
)

MAX_SECONDS = 200


@pytest.fixture(scope="module")
def agent() -> ModuleType:
    """Return the module of ``scripts/torchrun_agent.py``."""
    spec = importlib.util.spec_from_file_location("agent", ROOT / "scripts/torchrun_agent.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run_with_echo(*args: str, **env: str) -> subprocess.CompletedProcess[str]:
    """Run the script with ``echo`` instead of Python."""
    variables = {"PATH": os.environ["PATH"], "PYTHON": "echo", **env}
    return subprocess.run(
        [str(SCRIPT), *args], env=variables, capture_output=True, text=True, check=False
    )


def parse_options(*args: str, **env: str) -> tuple[dict[str, str], list[str]]:
    """Return the options passed to torchrun, and the command that torchrun runs."""
    process = run_with_echo(*(args or ("photos", "--output", "run")), **env)
    assert process.returncode == 0, process.stderr
    before, _, after = process.stdout.strip().partition(" -- ")
    pairs = (word.partition("=") for word in before.split() if word.startswith("--"))
    return {name.removeprefix("--"): value for name, _, value in pairs}, after.split()


def test_torchrun_on_one_node_needs_no_setting() -> None:
    args = ["photos", "--output", "run", "--epochs", "3"]
    options, command = parse_options(*args, NPROC="2")
    assert command == ["finetune", "fit", *args, "resume=auto"]
    assert (options["nnodes"], options["nproc-per-node"], options["max-restarts"]) == (
        "1",
        "2",
        "3",
    )
    assert (options["rdzv-endpoint"], options["local-addr"]) == ("localhost:0", "127.0.0.1")
    assert options["rdzv-backend"] == "c10d"
    assert "module" in options


def test_torchrun_keeps_a_given_resume_option() -> None:
    _, command = parse_options("photos", "output=run", "resume=auto")
    assert command.count("resume=auto") == 1


@pytest.mark.parametrize(
    ("env", "endpoint", "is_host"),
    [
        ({"NNODES": "2", "RDZV": "a:1", "NODE_RANK": "1"}, "a:1", ",is_host=false"),
        ({"NNODES": "1:2", "RDZV": "a:1", "JOB_COMPLETION_INDEX": "0"}, "a:1", ",is_host=true"),
        ({"NNODES": "2", "RDZV": "a:1"}, "a:1", ""),
        ({"PET_NNODES": "2", "PET_RDZV_ENDPOINT": "w-0:23456"}, "w-0:23456", ""),
        (
            {"PET_NNODES": "2", "PET_MASTER_ADDR": "n-0.n", "PET_NODE_RANK": "0"},
            "n-0.n:29500",
            ",is_host=true",
        ),
    ],
    ids=["manual", "Indexed Job", "host names", "PyTorchJob", "TrainJob"],
)
def test_torchrun_on_several_nodes_uses_one_endpoint(
    env: dict[str, str], endpoint: str, is_host: str
) -> None:
    options, _ = parse_options(NPROC="1", **env)
    assert options["nnodes"] == env.get("NNODES", env.get("PET_NNODES"))
    assert options["rdzv-endpoint"] == endpoint
    assert options["rdzv-conf"] == f"join_timeout=600,read_timeout=120{is_host}"
    assert "local-addr" not in options


def test_torchrun_passes_environment_settings() -> None:
    env = {"NNODES": "2", "RDZV": "a:1", "LOCAL_ADDR": "10.0.0.7", "PET_NPROC_PER_NODE": "4"}
    times = {"MAX_RESTARTS": "0", "JOIN_SECONDS": "30", "OUTAGE_SECONDS": "9", "RDZV_ID": "mine"}
    options, _ = parse_options(**env, **times)
    assert (options["local-addr"], options["nproc-per-node"]) == ("10.0.0.7", "4")
    assert (options["max-restarts"], options["rdzv-id"]) == ("0", "mine")
    assert options["rdzv-conf"] == "join_timeout=30,read_timeout=9"


@pytest.mark.parametrize(
    ("args", "env", "names"),
    [
        ((), {}, ["usage: scripts/torchrun.sh DATA"]),
        (("photos",), {}, ["--output"]),
        (("photos", "--output", "run"), {"NNODES": "2"}, ["NNODES=2", "RDZV=host:port"]),
    ],
)
def test_torchrun_missing_setting_exits_2(
    args: tuple[str, ...], env: dict[str, str], names: list[str]
) -> None:
    process = run_with_echo(*args, **env)
    assert process.returncode == 2
    assert all(name in process.stderr for name in names)
    assert process.stdout == ""


def test_torchrun_host_name_of_loopback_warns(tmp_path: Path) -> None:
    fake = tmp_path / "getent"
    fake.write_text("#!/bin/sh\necho 127.0.1.1 me\n")
    fake.chmod(0o755)
    env = {"PATH": f"{tmp_path}:{os.environ['PATH']}", "NNODES": "2", "RDZV": "a:1"}
    command = ("photos", "--output", "run")
    assert "INTERFACE" in run_with_echo(*command, **env).stderr
    assert run_with_echo(*command, **env, GLOO_SOCKET_IFNAME="eth1").stderr == ""


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        ([7, 3], 3),
        ([85, 2], 2),
        ([7, 85, -15], 85),
        ([7, -9], 7),
        ([-9, -9], 137),
        ([1], 1),
        ([], 7),
    ],
)
def test_select_exit_code_prefers_final_errors_then_preemption(
    agent: ModuleType, codes: list[int], expected: int
) -> None:
    assert agent.select_exit_code(codes) == expected


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def expected(place: Path) -> Path:
    """Return an uninterrupted run of one process."""
    return run_uninterrupted(place)


def assert_same_result(run: Path, expected: Path) -> None:
    """Check that both runs have the same epochs and, up to rounding, the same weights."""
    assert [row["epoch"] for row in read_rows(run)] == [str(n + 1) for n in range(NUM_EPOCHS)]
    assert compute_largest_difference(load_weights(run), load_weights(expected)) <= 1e-6


def wait(process: subprocess.Popen[bytes], log: Path) -> tuple[int, str]:
    """Wait for the script and return its exit code and output."""
    try:
        code = process.wait(MAX_SECONDS)
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return code, log.read_text()


@pytest.mark.cluster
def test_torchrun_two_processes_equal_one(place: Path, tmp_path: Path, expected: Path) -> None:
    log = tmp_path / "log"
    process = start_script(place, *build_args(place, tmp_path / "run"), log=log)
    code, output = wait(process, log)
    assert code == 0, output
    assert_same_result(tmp_path / "run", expected)


@pytest.mark.cluster
def test_torchrun_killed_process_restarts_all_with_the_same_result(
    place: Path, tmp_path: Path, expected: Path
) -> None:
    log, marker = tmp_path / "log", tmp_path / "killed"
    extra = {"KILL_ONCE": str(marker)}
    process = start_script(place, *build_args(place, tmp_path / "run"), extra=extra, log=log)
    code, output = wait(process, log)
    assert code == 0, output
    assert marker.exists()
    assert "Signal 9 (SIGKILL) received" in output or "exitcode: -9" in output
    assert output.count("Resuming") == 1
    assert_same_result(tmp_path / "run", expected)


def wait_for_epochs(run: Path, count: int, process: subprocess.Popen[bytes], log: Path) -> None:
    """Wait until a number of epochs of a run is complete."""
    deadline = time.monotonic() + MAX_SECONDS
    while not (run / "metrics.csv").is_file() or len(read_rows(run)) < count:
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)


# sent to torchrun as by Kubernetes, to all processes as by SLURM and a terminal
STOPS = (
    (1, signal.SIGTERM, os.kill),
    (2, signal.SIGUSR1, os.killpg),
    (4, signal.SIGINT, os.killpg),
)


@pytest.mark.cluster
def test_torchrun_stopped_by_signals_saves_and_resumes(
    place: Path, tmp_path: Path, expected: Path
) -> None:
    run, log = tmp_path / "run", tmp_path / "log"
    for num_epochs, signum, send in STOPS:
        extra = {"STEP_SECONDS": "0.05"}
        process = start_script(place, *build_args(place, run), extra=extra, log=log)
        wait_for_epochs(run, num_epochs, process, log)
        send(process.pid, signum)
        code, output = wait(process, log)
        assert code == (130 if signum == signal.SIGINT else 85), output
        assert num_epochs <= len(read_rows(run)) < NUM_EPOCHS
    code, output = wait(start_script(place, *build_args(place, run), log=log), log)
    assert code == 0, output
    assert output.count("Resuming") == len(STOPS)
    assert "Traceback" not in output
    assert_same_result(run, expected)


@pytest.mark.cluster
def test_torchrun_final_error_is_not_restarted(place: Path, tmp_path: Path) -> None:
    log = tmp_path / "log"
    args = build_args(place, tmp_path / "run", "--epochs", "many")
    code, output = wait(start_script(place, *args, log=log), log)
    assert code == 2, output
    assert "trainer.epochs" in output
    assert "'many'" in output
    assert 1 <= output.lower().count("error:") <= 2  # at most one per process: no restart
