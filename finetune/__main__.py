"""Entry point of ``python -m finetune`` and of the console script."""

import os
import sys

from finetune.distributed import signals
from finetune.system.openmp import wait_passively

_INTERRUPTIBLE_COMMANDS = ("fit", "join-run")


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.argv[1:2] and sys.argv[1] in _INTERRUPTIBLE_COMMANDS:
        # the following imports take seconds, during which a scheduler may send a signal
        signals.install_handlers()
    wait_passively(os.environ)
    from finetune.cli.main import run

    code = run()
    if sys.argv[1:2] and sys.argv[1] in _INTERRUPTIBLE_COMMANDS:
        signals.ignore()  # Python removes its handlers before it exits, and the work is done
    if _has_process_group():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)  # NCCL would wait for the ranks that are gone
    sys.exit(code)


def _has_process_group() -> bool:
    """Return whether a process group still exists, as after the loss of a rank on GPUs."""
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()


if __name__ == "__main__":
    main()
