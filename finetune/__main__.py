"""Entry point of ``python -m finetune`` and of the console script."""

import os
import signal
import sys
from collections.abc import Sequence
from contextlib import suppress

from finetune.distributed import signals
from finetune.errors import INTERRUPTED_EXIT_CODE, PREEMPTED_EXIT_CODE
from finetune.system import process_clock

_RESUMABLE_COMMANDS = ("fit", "tune", "join-run")


def main() -> None:
    """Run the command line and exit with its code."""
    process_clock.start_clock()
    is_resumable = _is_resumable(sys.argv[1:])
    # the following imports take seconds, during which a person or a scheduler may send a signal
    if is_resumable:
        signals.install_handlers(report_early_stop)
    else:
        signals.install_interrupt_handler(report_early_stop)
    from finetune.system import output_streams
    from finetune.system.openmp import wait_passively

    output_streams.protect()
    wait_passively(os.environ)
    from finetune.cli.main import check_output, run

    code = check_output(run())
    if is_resumable:
        signals.ignore()  # Python removes its handlers before it exits, and the work is done
    if _has_process_group():
        os._exit(code)  # NCCL would wait for the ranks that are gone
    sys.exit(code)


def _is_resumable(args: Sequence[str]) -> bool:
    """Return whether a command continues what an earlier start of it has done."""
    if args[:1] == ["predict"]:
        return any(arg.partition("=")[0] == "--shards" for arg in args)
    return args[:1] != [] and args[0] in _RESUMABLE_COMMANDS


def report_early_stop(signum: int) -> int:
    """Report a signal that ends the process before its command works; return the exit code."""
    is_ctrl_c = signum == signal.SIGINT
    message = "Interrupted by Ctrl-C." if is_ctrl_c else f"Stopped by {signals.get_name(signum)}."
    code = INTERRUPTED_EXIT_CODE if is_ctrl_c else PREEMPTED_EXIT_CODE
    if any(os.environ.get(name, "0") != "0" for name in ("RANK", "SLURM_PROCID")):
        return code  # one process of a run reports it
    file = None if is_ctrl_c else os.environ.get(signals.REQUEUE_FILE_VARIABLE)
    if file is not None:
        try:
            with open(file, "w") as stream:  # noqa: PTH123 - pathlib may be half imported
                stream.write(f"{signals.get_name(signum)}\n")
        except OSError as error:
            message += f" No restart was requested: cannot write {file}: {error.strerror}."
        else:
            message, code = f"{message} A restart was requested through {file}.", 0
    with suppress(OSError):
        newline = "\n" if is_ctrl_c and os.isatty(2) else ""  # after the terminal's ^C
        os.write(2, f"{newline}error: {message}\n".encode(errors="backslashreplace"))
    return code


def _has_process_group() -> bool:
    """Return whether a process group still exists, as after the loss of a rank on GPUs."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


if __name__ == "__main__":
    main()
