"""``python -m finetune`` and the console script."""

import sys


def main() -> None:
    """Run the command line and exit with its code."""
    from finetune.cli.main import run

    sys.exit(run())


if __name__ == "__main__":
    main()
