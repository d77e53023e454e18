"""Runs the command line: every error is one message with its exit code, never a traceback."""

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

import typer

from finetune.cli.app import app
from finetune.cli.render.output import SIGNAL_EXIT_CODE_BASE, build_console_reporter
from finetune.distributed import signals
from finetune.distributed.launch import is_nonzero_rank
from finetune.errors import (
    INTERRUPTED_EXIT_CODE,
    PREEMPTED_EXIT_CODE,
    ConfigError,
    FinetuneError,
)


def run(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; an error is one message, no traceback."""
    # what torch warns of, such as a connection that it tries again, we say where it matters
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if "" not in sys.path:
        sys.path.append("")  # for names like my_package.module:function in the working folder
    arguments = list(sys.argv[1:] if argv is None else argv) or ["--help"]
    try:
        command = typer.main.get_command(app)
        code = command.main(args=arguments, prog_name="finetune", standalone_mode=False)
    except KeyboardInterrupt:
        return _handle_stop_signal(signal.SIGINT)
    except FinetuneError as error:
        if not _is_reported_elsewhere(error):
            _print_error(_extract_message(error))
        return error.exit_code
    except BrokenPipeError:
        # whoever read the output has seen enough; nothing is left to flush
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except Exception as error:
        return _handle_foreign_error(error, arguments)
    if not isinstance(code, int):
        return 0
    signum = code - SIGNAL_EXIT_CODE_BASE
    return _handle_stop_signal(signum) if signum in signals.STOP_SIGNALS else code


def _handle_stop_signal(signum: int) -> int:
    """Say what stopped this process, and return what its starter understands."""
    speaks = not is_nonzero_rank()  # one process of a run says it
    if signum == signal.SIGINT:
        if speaks:
            build_console_reporter().error("stopped by Ctrl-C")
        return INTERRUPTED_EXIT_CODE
    file = os.environ.get(signals.REQUEUE_FILE_VARIABLE)
    if speaks:
        then = "" if file is None else f"; {file} asks for another start"
        build_console_reporter().error(f"stopped by {signal.Signals(signum).name}{then}")
    if file is None:
        return PREEMPTED_EXIT_CODE
    if speaks:
        from finetune.system.files import write_text

        try:
            write_text(Path(file), f"{signal.Signals(signum).name}\n")
        except FinetuneError as error:
            _print_error(str(error))
            return PREEMPTED_EXIT_CODE
    return 0


def _is_reported_elsewhere(error: FinetuneError) -> bool:
    """Tell whether another process of the run says the same."""
    # what is wrong with the command line is wrong in every process, before they have met
    is_everywhere = isinstance(error, ConfigError) and not error.is_published
    return is_nonzero_rank() and (is_everywhere or error.is_from_peer)


def _handle_foreign_error(error: Exception, arguments: Sequence[str]) -> int:
    """Explain what typer, the disk or a defect of ours raised."""
    if hasattr(error, "format_message"):  # typer's own usage errors, wherever it keeps the class
        verb = f"{arguments[0]} " if arguments[0] in _list_commands() else ""
        build_console_reporter().error(f"{error.format_message()} See: finetune {verb}--help")
        return ConfigError.exit_code
    from finetune.system.files import explain_disk_error

    explained = explain_disk_error(error, getattr(error, "filename", None) or "a file")
    if explained is not None:
        _print_error(str(explained))
        return explained.exit_code
    _print_error(
        f"unexpected {type(error).__name__}: {error}. This is a defect of finetune; please report "
        f"it with the output of FINETUNE_DEBUG=1 finetune …"
    )
    return 1


def _print_error(message: str) -> None:
    if os.environ.get("FINETUNE_DEBUG"):
        import traceback

        traceback.print_exc()
    build_console_reporter().error(message)


def _extract_message(error: FinetuneError) -> str:
    """Return the message without the traceback that a reading process wraps it in."""
    text = str(error)
    if text.startswith("Caught ") and f"{type(error).__name__}: " in text:
        text = text.rpartition(f"{type(error).__name__}: ")[2].strip()
    return text


def _list_commands() -> set[str]:
    functions = (command.callback for command in app.registered_commands)
    return {function.__name__ for function in functions if function is not None}
