"""Two machines train together; the cable is pulled out, or one of them is taken away."""

import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.namespaces import Machines, two_machines
from tests.support.networks import one_thread
from tests.support.runs import NUM_EPOCHS, largest_difference, rows, weights
from tests.support.torchrun import TIMEOUT, started, uninterrupted, write_place

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_place(tmp_path_factory.mktemp("place"))


@pytest.fixture(scope="module")
def expected(place: Path) -> Path:
    """Return the run of one process that never stopped."""
    return uninterrupted(place)


@pytest.fixture
def machines() -> Iterator[Machines]:
    with two_machines() as joined:
        yield joined


def test_without_the_cable_both_machines_give_up_and_say_so(
    machines: Machines, place: Path, tmp_path: Path
) -> None:
    machines.give_up_soon()
    settings = {"MAX_RESTARTS": "0", "OUTAGE_SECONDS": "5"}
    with started(machines, place, tmp_path, **settings) as job:
        job.wait_for_epochs(2)
        machines.cut()
        cut = time.monotonic()
        while not all("error:" in said for said in job.said):
            assert time.monotonic() - cut < 2 * TIMEOUT, job.said
            time.sleep(0.1)
        assert time.monotonic() - cut >= TIMEOUT - 2
        assert [job.code(0), job.code(1)] == [7, 7], job.said
        for said in job.said:
            assert "error: Another process of the run ended before its time" in said
            assert "Traceback" not in said


def assert_alike(run: Path, expected: Path) -> None:
    """Fail unless both runs have the same epochs and the same weights."""
    assert [row["epoch"] for row in rows(run)] == [str(n + 1) for n in range(NUM_EPOCHS)]
    assert largest_difference(weights(run), weights(expected)) <= 1e-6


def test_after_the_cable_is_mended_both_go_on_and_end_alike(
    machines: Machines, place: Path, tmp_path: Path, expected: Path
) -> None:
    with started(machines, place, tmp_path, OUTAGE_SECONDS="90") as job:
        job.wait_for_epochs(2)
        machines.cut()
        time.sleep(2 * TIMEOUT)
        machines.mend()
        assert [job.code(0), job.code(1)] == [0, 0], job.said
    assert "".join(job.said).count("Goes on") == 1
    assert_alike(job.run, expected)


@pytest.mark.parametrize("evicted", [1, 0], ids=["a guest", "where all meet"])
def test_an_evicted_machine_is_replaced_and_all_end_alike(
    evicted: int, machines: Machines, place: Path, tmp_path: Path, expected: Path
) -> None:
    """What Kubernetes does to a pod whose machine is drained: SIGTERM, and a new pod for 85."""
    with started(machines, place, tmp_path, OUTAGE_SECONDS="20") as job:
        job.wait_for_epochs(2)
        job.terminate(evicted)
        assert job.code(evicted) == 85, job.said
        done = len(rows(job.run))
        if evicted == 0:
            assert job.code(1) == 85, job.said  # its run is saved, and nobody left to meet
            job.start(1)
        job.start(evicted)
        assert [job.code(0), job.code(1)] == [0, 0], job.said
    assert 2 <= done < NUM_EPOCHS
    assert "".join(job.said).count("Goes on") == 1
    assert_alike(job.run, expected)


def test_one_of_two_machines_goes_on_alone_where_that_is_allowed(
    machines: Machines, place: Path, tmp_path: Path, expected: Path
) -> None:
    with started(machines, place, tmp_path, NNODES="1:2", OUTAGE_SECONDS="20") as job:
        job.wait_for_epochs(2)
        machines.cut()
        machines.kill_all(1)
        assert job.code(1) != 0
        assert job.code(0) == 0, job.said
    assert re.findall(r"32-true on cpu( x 2)?", job.said[0]) == [" x 2", ""]
    assert_alike(job.run, expected)
