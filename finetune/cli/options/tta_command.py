"""Commands with the option ``--tta``, whose value may be left out."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import typer
from typer.core import TyperCommand

from finetune.types import Tta


class TtaCommand(TyperCommand):
    """Command whose option ``--tta`` may be without a value, as in earlier releases."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse arguments with the value "hflip" for ``--tta`` alone."""
        return super().parse_args(ctx, list(_complete_tta(args)))


def _complete_tta(args: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, with "hflip" where ``--tta`` has no value but a path or an option."""
    for number, arg in enumerate(args):
        if arg == "--":
            yield from args[number:]
            return
        following = args[number + 1] if number + 1 < len(args) else "-"
        is_value = following in list(Tta) or not (
            following.startswith("-") or Path(following).exists()
        )
        yield f"--tta={Tta.HFLIP}" if arg == "--tta" and not is_value else arg
