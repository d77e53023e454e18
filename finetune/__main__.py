"""``python -m finetune`` and the console script."""

import sys

from finetune import signals

_MAY_BE_STOPPED = ("fit", "join-run")


def main() -> None:
    """Run the command line and exit with its code."""
    if sys.argv[1:2] and sys.argv[1] in _MAY_BE_STOPPED:
        signals.listen()  # the imports that follow take seconds, in which a scheduler may call
    from finetune.cli.main import run

    code = run()
    if sys.argv[1:2] and sys.argv[1] in _MAY_BE_STOPPED:
        signals.ignore()  # Python drops its handlers before it ends, and the work is done
    sys.exit(code)


if __name__ == "__main__":
    main()
