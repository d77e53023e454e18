"""Options of ``demo`` that contradict each other, and the digits as text."""

from pathlib import Path

import pytest
from PIL import Image

from finetune.cli.render.digit_text import draw_digits
from tests.cli.conftest import Cli


@pytest.mark.parametrize(
    ("args", "found"),
    [
        (("--transfer", "0-4:5-9"), "--transfer needs --data"),
        (("--images-per-class", "10"), "--images-per-class needs --data"),
        (("--backbone", "resnet18"), "--backbone needs --data"),
        (("trainer.epochs=1",), "KEY=VALUE needs --data"),
        (("--data", "{photos}"), "--transfer SOURCE:TARGET"),
        (("--data", "{photos}", "--transfer", "cat:dog"), "single class"),
        (("--data", "{photos}", "--transfer", "cat,dog:x", "optim.lt=1"), "optim.lt"),
        (("--data", "{photos}", "--transfer", "a:b", "--images-per-class", "2,ten"), "'2'"),
        (("--data", "{photos}", "--transfer", "a:b", "other"), "--data other"),
        (("--data", "{photos}/missing", "--transfer", "a:b"), "does not exist"),
    ],
)
def test_demo_refuses_options_that_cannot_apply(
    cli: Cli, photos: Path, args: tuple[str, ...], found: str
) -> None:
    result = cli("demo", *(arg.format(photos=photos) for arg in args))
    assert result.code in (2, 3)
    assert found in " ".join(result.err.split())


def test_draw_digits_shows_bright_pixels_as_full_blocks(tmp_path: Path) -> None:
    image = Image.new("L", (16, 16))
    image.paste(255, (0, 0, 8, 8))
    image.save(tmp_path / "corner.png")
    lines = draw_digits([tmp_path / "corner.png"] * 2, size=4)
    assert lines == 2 * ["████    ████    "] + 2 * [16 * " "]
