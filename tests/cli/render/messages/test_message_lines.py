"""Tests of messages in lines: what fits a width, and which words stay together."""

import re
from pathlib import Path

import pytest

import finetune
from finetune.cli.render.messages.message_lines import wrap_message

FILLER = "Some words before it take much of the width, as in most messages, and then comes"


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("See: finetune fit --help", "finetune fit --help"),
        ("as in: finetune predict MODEL... IMAGES", "finetune predict MODEL... IMAGES"),
        ("them: finetune report runs/a runs/b", "finetune report runs/a runs/b"),
        ("Install it: pip install 'finetune-vision[onnx]'", "pip install 'finetune-vision[onnx]'"),
        ("Try: finetune fetch resnet50", "finetune fetch resnet50"),
        ("Search: finetune fit --config best.yaml --folds 5",
         "finetune fit --config best.yaml --folds 5"),
        ("Use: srun --nodes=2 finetune fit 'my photos' --epochs 3",
         "srun --nodes=2 finetune fit 'my photos' --epochs 3"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("width", [40, 80])
def test_command_at_the_end_has_a_line_of_its_own(text: str, command: str, width: int) -> None:
    lines = wrap_message(f"{FILLER}. {text}", width, start=len("error: "))
    assert lines[-1] == f"  {command}"
    assert lines[-2].endswith(":")
    assert " ".join(" ".join(lines).split()) == f"{FILLER}. {text}"
    assert wrap_message(text, 200) == [text]


@pytest.mark.parametrize(
    ("text", "command"),
    [
        ("Resume it with finetune fit --resume runs/a, or choose another --output.",
         "finetune fit --resume runs/a,"),
        ("Run finetune fit --lr-find in one process, then submit.", "finetune fit --lr-find"),
        ("Missing: finetune fetch resnet50. Or pass a local file.", "finetune fetch resnet50."),
        ("evaluate it; finetune export --format onnx writes a file.",
         "finetune export --format onnx"),
        ("Use `finetune export`, or a weights file.", "`finetune export`,"),
        ("Then on each node torchrun --nnodes=2 -m finetune fit … is started.",
         "torchrun --nnodes=2 -m finetune fit …"),
    ],
)  # fmt: skip
def test_command_in_a_sentence_is_whole_at_every_width(text: str, command: str) -> None:
    for width in range(20, 90):
        lines = wrap_message(f"{FILLER}. {text}", width)
        assert sum(command in line for line in lines) == 1
        assert all(len(line) <= max(width, len(command)) for line in lines)
        assert " ".join(lines) == f"{FILLER}. {text}"


def test_messages_bring_no_prefix_which_the_console_adds_or_leaves_out() -> None:
    call = re.compile(r"\.(note|warn|error)\(\s*f?[\"'](note|warning|error): ", re.IGNORECASE)
    sources = sorted(Path(finetune.__file__).parent.rglob("*.py"))
    assert len(sources) > 100
    assert [str(path) for path in sources if call.search(path.read_text(encoding="utf-8"))] == []


def test_sentences_about_the_program_break_anywhere() -> None:
    text = "It is read by finetune predict and finetune evaluate; finetune needs no more of it."
    assert wrap_message(text, 26) == [
        "It is read by", "finetune predict and", "finetune evaluate;", "finetune needs no more of",
        "it.",
    ]  # fmt: skip


def test_sentence_about_a_command_after_a_colon_is_no_command() -> None:
    text = f"{FILLER}: finetune predict and finetune evaluate read the bundle, wherever it is."
    lines = wrap_message(text, 60)
    assert " ".join(lines) == text
    assert max(map(len, lines)) <= 60


def test_short_lines_are_as_they_were_and_long_ones_keep_their_indentation() -> None:
    text = "2 errors:\n  data.path: the folder does not exist\n  a  b\n\nwritten     one two three"
    assert wrap_message(text, 24) == [
        "2 errors:", "  data.path: the folder", "  does not exist", "  a  b", "",
        "written     one two", "            three",
    ]  # fmt: skip
    assert wrap_message("/a/path/that/is/longer/than the width", 12) == [
        "/a/path/that/is/longer/than", "the width",
    ]  # fmt: skip
    assert wrap_message("", 80) == [""]
    assert wrap_message(" " * 100, 80) == [" " * 100]
    assert wrap_message("写真 写真 写真", 10) == ["写真 写真", "写真"]  # two columns each
