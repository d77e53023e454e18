"""Commands with the options ``--tta`` and ``--reject``, whose values may be left out."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import typer
from typer.core import TyperCommand

from finetune.system.given_paths import exists
from finetune.types import Tta

_VALUES_ALONE: Mapping[str, str] = {"--tta": Tta.HFLIP, "--reject": ""}
"""Value of an option that is given without one."""


class TtaCommand(TyperCommand):
    """Command whose options ``--tta`` and ``--reject`` may be without a value."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """Parse arguments with the values that the options have alone."""
        return super().parse_args(ctx, list(_complete_values(args)))


def _complete_values(args: Sequence[str]) -> Iterator[str]:
    """Yield the arguments, with a value where an option is followed by a path or an option."""
    for number, arg in enumerate(args):
        if arg == "--":
            yield from args[number:]
            return
        following = args[number + 1] if number + 1 < len(args) else "-"
        is_value = (arg == "--tta" and following in list(Tta)) or not (
            following.startswith("-") or exists(Path(following))
        )
        is_alone = arg in _VALUES_ALONE and not is_value
        yield f"{arg}={_VALUES_ALONE[arg]}" if is_alone else arg
