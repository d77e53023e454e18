"""Training on two nodes whose network fails or of which one is lost."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import TwoNodes, create_two_nodes
from tests.support.runs import NUM_EPOCHS, compute_largest_difference, load_weights, read_rows
from tests.support.torchrun import TIMEOUT, run_uninterrupted, start_on_two_nodes, write_place

pytestmark = pytest.mark.cluster


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def expected(place: Path) -> Path:
    """Return an uninterrupted run of one process."""
    return run_uninterrupted(place)


@pytest.fixture
def nodes() -> Iterator[TwoNodes]:
    with create_two_nodes() as joined:
        yield joined


def test_network_failure_without_restarts_exits_7_on_both_nodes(
    nodes: TwoNodes, place: Path, tmp_path: Path
) -> None:
    nodes.shorten_tcp_timeout()
    settings = {"MAX_RESTARTS": "0", "OUTAGE_SECONDS": "5"}
    with start_on_two_nodes(nodes, place, tmp_path, **settings) as job:
        job.wait_for_epochs(2)
        nodes.disconnect()
        start = time.monotonic()
        while not all("error:" in output.lower() for output in job.outputs):
            assert time.monotonic() - start < 2 * TIMEOUT, job.outputs
            time.sleep(0.1)
        assert time.monotonic() - start >= TIMEOUT - 2
        assert [job.wait(0), job.wait(1)] == [7, 7], job.outputs
        for output in job.outputs:
            assert "Traceback" not in output


def assert_same_result(run: Path, expected: Path) -> None:
    """Check that both runs have the same epochs and, up to rounding, the same weights."""
    assert [row["epoch"] for row in read_rows(run)] == [str(n + 1) for n in range(NUM_EPOCHS)]
    assert compute_largest_difference(load_weights(run), load_weights(expected)) <= 1e-6


def test_temporary_network_failure_restarts_with_the_same_result(
    nodes: TwoNodes, place: Path, tmp_path: Path, expected: Path
) -> None:
    with start_on_two_nodes(nodes, place, tmp_path, OUTAGE_SECONDS="90") as job:
        job.wait_for_epochs(2)
        nodes.disconnect()
        time.sleep(2 * TIMEOUT)
        nodes.reconnect()
        assert [job.wait(0), job.wait(1)] == [0, 0], job.outputs
    assert "".join(job.outputs).count("Resuming") == 1
    assert_same_result(job.run, expected)


@pytest.mark.parametrize("evicted", [1, 0], ids=["guest", "rendezvous host"])
def test_evicted_node_is_replaced_with_the_same_result(
    evicted: int, nodes: TwoNodes, place: Path, tmp_path: Path, expected: Path
) -> None:
    """Eviction as by Kubernetes: SIGTERM to a pod, and a new pod after exit code 85."""
    with start_on_two_nodes(nodes, place, tmp_path, OUTAGE_SECONDS="20") as job:
        job.wait_for_epochs(2)
        job.terminate(evicted)
        assert job.wait(evicted) == 85, job.outputs
        num_epochs = len(read_rows(job.run))
        if evicted == 0:
            assert job.wait(1) == 85, job.outputs  # the run is saved, the rendezvous host is gone
            job.start(1)
        job.start(evicted)
        assert [job.wait(0), job.wait(1)] == [0, 0], job.outputs
    assert 2 <= num_epochs < NUM_EPOCHS
    assert "".join(job.outputs).count("Resuming") == 1
    assert_same_result(job.run, expected)


def test_one_of_two_nodes_continues_alone_with_nnodes_range(
    nodes: TwoNodes, place: Path, tmp_path: Path, expected: Path
) -> None:
    settings = {"NNODES": "1:2", "OUTAGE_SECONDS": "20"}
    with start_on_two_nodes(nodes, place, tmp_path, **settings) as job:
        job.wait_for_epochs(2)
        nodes.disconnect()
        nodes.kill_processes(1)
        assert job.wait(1) != 0
        assert job.wait(0) == 0, job.outputs
    assert re.findall(r"32-true on cpu( x 2)?", job.outputs[0]) == [" x 2", ""]
    assert_same_result(job.run, expected)
