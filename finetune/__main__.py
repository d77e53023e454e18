"""``python -m finetune`` and the console script."""

import os
import sys

from finetune.distributed import signals

_INTERRUPTIBLE_COMMANDS = ("fit", "join-run")


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.argv[1:2] and sys.argv[1] in _INTERRUPTIBLE_COMMANDS:
        signals.install_handlers()  # the imports that follow take seconds, in which a scheduler may call
    from finetune.cli.main import run

    code = run()
    if sys.argv[1:2] and sys.argv[1] in _INTERRUPTIBLE_COMMANDS:
        signals.ignore()  # Python drops its handlers before it ends, and the work is done
    if _has_process_group():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # NCCL would wait for the processes that are gone
    sys.exit(code)


def _has_process_group() -> bool:
    """Tell whether a process group is still there, as after the loss of a process on GPUs."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


if __name__ == "__main__":
    main()
