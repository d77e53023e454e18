"""A signal is noted where nothing may be interrupted, and acted on elsewhere."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator

import pytest

from finetune.distributed import signals
from finetune.distributed.signals import STOP_SIGNALS, StopRequest


@pytest.fixture(autouse=True)
def _own_handlers() -> Iterator[None]:
    """Begin with Python's handlers, also where a shell started the tests with some ignored."""
    before = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in before.items():
        signal.signal(signum, handler)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_a_signal_interrupts_what_may_be_interrupted(signum: int) -> None:
    with pytest.raises(StopRequest) as caught, signals.allow_interrupts():
        send(signum)
    assert caught.value.signum == signum
    assert isinstance(caught.value, KeyboardInterrupt), "or a library would swallow it"


def test_handlers_and_what_was_noted_do_not_outlive_the_block() -> None:
    before = [signal.getsignal(signum) for signum in STOP_SIGNALS]
    with pytest.raises(StopRequest), signals.allow_interrupts():
        send(signal.SIGTERM)
    assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before
    with signals.allow_interrupts():
        assert signals.get_pending_signal() == 0


def test_a_deferred_signal_is_noted_and_raised_behind_the_block() -> None:
    reached = False
    with pytest.raises(StopRequest, match="SIGUSR1"), signals.allow_interrupts():
        with signals.defer():
            send(signal.SIGUSR1)
            assert signals.get_pending_signal() == signal.SIGUSR1
            reached = True
        raise AssertionError
    assert reached


def test_the_most_urgent_of_several_is_noted() -> None:
    with pytest.raises(StopRequest, match="SIGTERM"), signals.allow_interrupts(), signals.defer():
        send(signal.SIGTERM)
        send(signal.SIGUSR1)


def test_a_second_ctrl_c_does_not_wait() -> None:
    with pytest.raises(StopRequest, match="SIGINT"), signals.allow_interrupts(), signals.defer():
        send(signal.SIGINT)
        assert signals.get_pending_signal() == signal.SIGINT
        send(signal.SIGINT)
        raise AssertionError


def test_an_error_in_a_deferred_block_comes_first() -> None:
    with pytest.raises(ZeroDivisionError), signals.allow_interrupts(), signals.defer():
        send(signal.SIGTERM)
        raise ZeroDivisionError


def test_a_job_in_the_background_of_a_shell_is_not_meant_by_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.allow_interrupts():
        send(signal.SIGINT)
        assert signals.get_pending_signal() == 0


def test_in_another_thread_nothing_changes() -> None:
    entered: list[bool] = []

    def enter() -> None:
        with signals.allow_interrupts():
            entered.append(True)

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert entered == [True]


def test_a_signal_during_the_imports_is_acted_on_behind_them() -> None:
    code = (
        "from finetune import signals; signals.listen(); print('up', flush=True);"
        "import time; time.sleep(1); print('imported', flush=True)\n"
        "with signals.interruptible(): print('never')"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate(timeout=30)
    assert out == "imported\n"
    assert "StopRequest: SIGUSR1" in err


def test_what_is_started_while_signals_are_blocked_never_sees_them() -> None:
    code = "import time; print('up', flush=True); time.sleep(0.5); print('alive', flush=True)"
    with signals.block():
        process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=30)
    assert (out, process.returncode) == ("alive\n", 0)
