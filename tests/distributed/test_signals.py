"""Stop signals: deferred where interruption is unsafe, raised elsewhere."""

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
def _default_handlers() -> Iterator[None]:
    """Start from Python's handlers, even if a shell started the tests with signals ignored."""
    previous_handlers = {signum: signal.getsignal(signum) for signum in STOP_SIGNALS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    for signum, handler in previous_handlers.items():
        signal.signal(signum, handler)


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_allow_interrupts_signal_raises_stop_request(signum: int) -> None:
    with pytest.raises(StopRequest) as caught, signals.allow_interrupts():
        send(signum)
    assert caught.value.signum == signum
    assert isinstance(caught.value, KeyboardInterrupt), "libraries catch Exception"


def test_allow_interrupts_restores_handlers_and_clears_pending_signal() -> None:
    before = [signal.getsignal(signum) for signum in STOP_SIGNALS]
    with pytest.raises(StopRequest), signals.allow_interrupts():
        send(signal.SIGTERM)
    assert [signal.getsignal(signum) for signum in STOP_SIGNALS] == before
    with signals.allow_interrupts():
        assert signals.get_pending_signal() == 0


def test_defer_signal_is_recorded_and_raised_after_block() -> None:
    is_recorded = False
    with pytest.raises(StopRequest, match="SIGUSR1"), signals.allow_interrupts():  # noqa: PT012
        with signals.defer():
            send(signal.SIGUSR1)
            assert signals.get_pending_signal() == signal.SIGUSR1
            is_recorded = True
        raise AssertionError
    assert is_recorded


def test_defer_several_signals_raises_most_urgent() -> None:
    with pytest.raises(StopRequest, match="SIGTERM"), signals.allow_interrupts(), signals.defer():  # noqa: PT012
        send(signal.SIGTERM)
        send(signal.SIGUSR1)


def test_defer_second_ctrl_c_raises_immediately() -> None:
    with pytest.raises(StopRequest, match="SIGINT"), signals.allow_interrupts(), signals.defer():  # noqa: PT012
        send(signal.SIGINT)
        assert signals.get_pending_signal() == signal.SIGINT
        send(signal.SIGINT)
        raise AssertionError


def test_defer_error_in_block_takes_precedence() -> None:
    with pytest.raises(ZeroDivisionError), signals.allow_interrupts(), signals.defer():  # noqa: PT012
        send(signal.SIGTERM)
        raise ZeroDivisionError


def test_allow_interrupts_background_job_ignores_ctrl_c() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with signals.allow_interrupts():
        send(signal.SIGINT)
        assert signals.get_pending_signal() == 0


def test_allow_interrupts_in_other_thread_does_nothing() -> None:
    handlers: list[bool] = []

    def enter() -> None:
        with signals.allow_interrupts():
            handlers.append(signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)

    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert handlers == [True]


def start_python(code: str) -> subprocess.Popen[str]:
    """Start code in a process of its own, and wait until it has printed its first line, "up"."""
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "up\n"
    return process


INSTALLED = (
    "from finetune.distributed import signals\n"
    "def report(signum):\n"
    "    print(signals.get_name(signum), flush=True)\n"
    "    return 77\n"
    "signals.install_handlers(report)\n"
)


@pytest.mark.parametrize("signum", STOP_SIGNALS)
def test_install_handlers_signal_before_work_ends_process_at_once(signum: int) -> None:
    code = f"{INSTALLED}print('up', flush=True)\nwhile True: pass"
    with start_python(code) as process:
        process.send_signal(signum)
        out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == (f"{signal.Signals(signum).name}\n", "", 77)


def test_install_handlers_signal_in_work_is_raised_and_after_it_recorded() -> None:
    code = (
        f"{INSTALLED}"
        "try:\n"
        "    with signals.allow_interrupts():\n"
        "        print('up', flush=True)\n"
        "        input()\n"
        "except signals.StopRequest as stop: print(stop, flush=True)\n"
        "import os; os.kill(os.getpid(), 15); print('done')"
    )
    with start_python(code) as process:
        process.send_signal(signal.SIGUSR1)
        out, err = process.communicate("\n", timeout=30)
    assert (out, err, process.returncode) == ("SIGUSR1\ndone\n", "", 0)


def test_block_started_process_never_receives_signals() -> None:
    with signals.block():
        process = start_python("print('up', flush=True); input(); print('alive', flush=True)")
    with process:
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate("\n", timeout=30)
    assert (out, process.returncode) == ("alive\n", 0)
