"""Picture of some test images with what each run predicts of them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

from finetune.commands.predict.predict import predict
from finetune.data.scan import scan
from finetune.system.files import write_file_atomically

_NUM_PER_CLASS = 8
_TILE, _CAPTION, _MARGIN = 96, 54, 8
_LABEL_WIDTH, _HEADER = 64, 40
_RIGHT_COLOR, _WRONG_COLOR, _TEXT_COLOR = "#15803d", "#c2410c", "#1e293b"


@dataclass(frozen=True, slots=True)
class DigitExample:
    """Test image with its predictions.

    Attributes:
        path: Path relative to the folder of test images.
        label: True class.
        predicted: Predicted class by run.
    """

    path: str
    label: str
    predicted: Mapping[str, str]


def predict_examples(runs: Mapping[str, Path], test: Path) -> list[DigitExample]:
    """Return the first test images of each class with the predictions of the runs.

    Args:
        runs: Run folder by key.
        test: Folder of class folders.
    """
    scanned = scan(test, splits="none")
    chosen = []
    for label in sorted({sample.label for sample in scanned.samples}):
        chosen += [sample for sample in scanned.samples if sample.label == label][:_NUM_PER_CLASS]
    predicted: dict[str, dict[str, str]] = {sample.path: {} for sample in chosen}
    for key, run in runs.items():
        for prediction in predict(run, test).predictions:
            path = Path(prediction.path).resolve().relative_to(scanned.root).as_posix()
            if path in predicted:
                predicted[path][key] = prediction.labels[0]
    return [DigitExample(s.path, s.label, predicted[s.path]) for s in chosen]


def draw_examples(
    examples: Sequence[DigitExample], methods: Mapping[str, str], test: Path, file: Path
) -> None:
    """Draw one row per class; below each image the prediction of every run, red where wrong.

    Args:
        examples: Images and predictions.
        methods: Key of each run to its name.
        test: Folder that the paths of ``examples`` are relative to.
        file: PNG to write.

    Raises:
        StorageError: The disk is full or not writable.
    """
    labels = list(dict.fromkeys(example.label for example in examples))
    columns = max(sum(e.label == label for e in examples) for label in labels)
    width = _LABEL_WIDTH + columns * (_TILE + _MARGIN)
    row_height = _TILE + _CAPTION + _MARGIN
    sheet = Image.new("RGB", (width, _HEADER + len(labels) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    title = "Predictions, from above: " + ", ".join(methods.values())
    draw.text((_MARGIN, 12), title, fill=_TEXT_COLOR, font=ImageFont.load_default(16))
    for row, label in enumerate(labels):
        top = _HEADER + row * row_height
        draw.text((_MARGIN, top + _TILE / 2 - 8), label, fill=_TEXT_COLOR, font=font)
        own = [example for example in examples if example.label == label]
        for column, example in enumerate(own):
            left = _LABEL_WIDTH + column * (_TILE + _MARGIN)
            with Image.open(test / example.path) as image:
                tile = image.convert("RGB").resize((_TILE, _TILE), Image.Resampling.NEAREST)
            sheet.paste(tile, (left, top))
            for line, key in enumerate(methods):
                predicted = example.predicted[key]
                color = _RIGHT_COLOR if predicted == label else _WRONG_COLOR
                draw.text((left + 2, top + _TILE + 17 * line), predicted, fill=color, font=font)
    with write_file_atomically(file) as temporary:
        sheet.save(temporary, format="PNG")
