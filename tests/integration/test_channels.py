"""Runs on images of other channels, and of networks of one's own, from fit to export."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import nn

from finetune.bundle.bundle import load_model
from finetune.commands.evaluate import evaluate
from finetune.commands.export.export import export
from finetune.commands.fit.fit import fit, resume
from finetune.commands.predict.predict import predict
from finetune.errors import ConfigError, DataError
from finetune.inference.predictor import Predictor
from finetune.types import Reporter
from tests.support.helpers import ROOT
from tests.support.runs import CLASSES, create_small_config, load_checkpoint, run_finetune

pytestmark = pytest.mark.runs

SIDE = 32
BIT_DEPTHS = {1: 8, 4: 8, 6: 16}


class Notes(Reporter):
    """Reporter that keeps notes."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


def write_images(root: Path, channels: int) -> Path:
    """Write images of the size of the input: grey or RGBA PNGs, or TIFFs of 6 bands of 12 bits."""
    random = np.random.default_rng(5)
    for split, count in (("train", 8), ("val", 4)):
        for number, name in enumerate(CLASSES):
            folder = root / split / name
            folder.mkdir(parents=True)
            for image in range(count):
                values = random.integers(0, 3000, (SIDE, SIDE, channels))
                values[..., number % channels] += 1000 // (1 + number // channels)
                write_image(folder / f"{image}", values)
    return root


def write_image(path: Path, values: NDArray[np.int64]) -> None:
    if values.shape[2] == 6:
        array = values.astype(np.uint16)
        tifffile.imwrite(f"{path}.tif", array, photometric="minisblack", planarconfig="contig")
        return
    levels = (values >> 4).astype(np.uint8)
    Image.fromarray(levels[..., 0] if values.shape[2] == 1 else levels).save(f"{path}.png")


def read_image(path: Path) -> NDArray[np.float64]:
    """Return an image in [0, 1], shape (C, H, W), by other libraries."""
    if path.suffix == ".tif":
        return np.moveaxis(np.rint(tifffile.imread(path) * (65_535 / 4095)) / 65_535, 2, 0)
    values = np.asarray(Image.open(path)) / 255
    return values[None] if values.ndim == 2 else np.moveaxis(values, 2, 0)


def predict_plainly(network: nn.Module, bundle: Path, files: list[Path]) -> torch.Tensor:
    """Return probabilities of images of the size of the input, from the files of a bundle."""
    card = json.loads((bundle / "finetune.json").read_text())
    mean, std = (np.array(card["spec"][key])[:, None, None] for key in ("mean", "std"))
    images = np.stack([(read_image(file) - mean) / std for file in files])
    with torch.no_grad():
        logits = network.eval()(torch.from_numpy(images).float())
    return (logits / card["temperature"]).softmax(1)  # type: ignore[no-any-return]


def _fit(root: Path, **settings: Any) -> tuple[Path, Notes]:
    output = root.parent / "run"
    notes = Notes()
    config = create_small_config(
        data__path=str(root),
        output=str(output),
        model__pretrained_cfg={"crop_pct": 1.0},
        trainer__epochs=1,
        **settings,
    )
    fit(config, reporter=notes)
    return output, notes


@pytest.mark.parametrize("channels", BIT_DEPTHS)
def test_every_command_takes_the_channels(tmp_path: Path, channels: int) -> None:
    root = write_images(tmp_path / "data", channels)
    run, notes = _fit(
        root,
        data__channels=channels,
        data__bit_depth=BIT_DEPTHS[channels],
        data__normalize="dataset",
        augment__name="medium",
    )
    has_note = any("without color jitter" in line for line in notes.lines)
    assert has_note == (channels != 1)

    before = load_checkpoint(run)["finetune"]["spec"]
    resume(run, assignments={"trainer.epochs": 2})
    assert load_checkpoint(run)["finetune"]["spec"] == before, "measured once"

    card = load_model(run).card
    train = sorted((root / "train").rglob("*.*"))
    files = sorted((root / "val").rglob("*.*"))
    pixels = np.stack([read_image(file) for file in train])
    assert card.spec.input_size == (channels, SIDE, SIDE)
    assert card.spec.mean == pytest.approx(pixels.mean((0, 2, 3)), rel=1e-4)
    assert card.spec.std == pytest.approx(pixels.std((0, 2, 3)), rel=1e-4)
    network = timm.create_model(f"local-dir:{run / 'bundle'}", pretrained=True)
    expected = predict_plainly(network, run / "bundle", files)
    assert torch.allclose(Predictor(load_model(run)).predict_proba(files), expected, atol=1e-5)

    predicted = predict(run, root / "val")
    assert len(predicted.predictions) == len(files)
    assert {p.path: p.probabilities[0] for p in predicted.predictions} == pytest.approx(
        {str(f): float(p) for f, p in zip(files, expected.max(1).values, strict=True)}, abs=1e-5
    )
    truth = [CLASSES.index(file.parent.name) for file in files]
    accuracy = (expected.argmax(1) == torch.tensor(truth)).float().mean()
    assert evaluate(run).evaluation.metrics["accuracy"] == pytest.approx(float(accuracy))
    parity = export(run, tmp_path / "export").parity
    assert parity is not None
    assert parity.num_same_top1 == parity.num_images == len(files)


def test_files_of_other_channels_are_rejected_with_their_number(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", 6)
    Image.fromarray(np.zeros((SIDE, SIDE, 3), np.uint8)).save(root / "train" / "ant" / "rgb.png")
    run, _ = _fit(root, data__channels=6)
    rejected = (run / "rejected.csv").read_text()
    assert "rgb.png" in rejected
    assert "data.channels=6 needs a TIFF of that many bands" in rejected
    with pytest.raises(DataError):
        _fit(write_images(tmp_path / "more" / "data", 6), data__channels=3)


def test_statistics_are_either_given_or_measured(tmp_path: Path) -> None:
    root = write_images(tmp_path / "data", 1)
    config = create_small_config(
        data__path=str(root),
        output=str(tmp_path / "run"),
        data__normalize="dataset",
        model__pretrained_cfg={"mean": [0.5, 0.5, 0.5]},
    )
    with pytest.raises(ConfigError, match=r"data\.normalize=dataset cannot apply.*mean"):
        fit(config)


NETWORK = """
from torch import nn

def create_model(num_classes, in_chans=3, width=4):
    return nn.Sequential(
        nn.Conv2d(in_chans, width, 3, stride=2), nn.BatchNorm2d(width), nn.ReLU(),
        nn.Conv2d(width, 8, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(8, num_classes),
    )
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_processes", [1, 2])
def test_network_of_ones_own_in_every_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, num_processes: int
) -> None:
    name = f"network_of_{num_processes}"
    (tmp_path / f"{name}.py").write_text(NETWORK)
    monkeypatch.syspath_prepend(str(tmp_path))
    root = write_images(tmp_path / "data", 4)
    output = tmp_path / "run"
    options = (
        "--backbone", f"{name}:create_model", "--image-size", SIDE, "--batch-size", 8,
        "--epochs", 1, "--precision", "32-true", "trainer.accelerator=cpu", "data.channels=4",
        "model.kwargs={width: 5}", "model.pretrained_cfg={crop_pct: 1.0}", "--output", output,
    )  # fmt: skip
    done = run_finetune(tmp_path, "fit", root, *options, "--devices", num_processes)
    assert done.returncode == 0, done.stderr
    assert "states no input_size, mean, std" in " ".join((done.stdout + done.stderr).split())
    resumed = run_finetune(tmp_path, "fit", "--resume", output, "--epochs", 2)
    assert resumed.returncode == 0, resumed.stderr

    spec = importlib.util.spec_from_file_location("reference", tmp_path / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network = module.create_model(3, in_chans=4, width=5)
    network.load_state_dict(load_file(output / "bundle" / "model.safetensors"))
    files = sorted((root / "val").rglob("*.png"))
    expected = predict_plainly(network, output / "bundle", files)
    actual = Predictor(load_model(output)).predict_proba(files)
    assert torch.allclose(actual, expected, atol=1e-5)
    assert evaluate(output).evaluation.num_images == len(files)
    with pytest.raises(ConfigError, match=r"timm format cannot apply.*timm does not know"):
        export(output, tmp_path / "export")
    if num_processes == 1:
        other = tmp_path / "other"
        done = run_finetune(tmp_path, "fit", root, *options[:-1], other, "seed=1")
        assert done.returncode == 0, done.stderr
        parity = export([output, other], tmp_path / "ensemble").parity
        assert parity is not None
        assert parity.max_abs_diff < 1e-5
    assert f"{name}:create_model" in (output / "bundle" / "README.md").read_text()
    outside = run_finetune(ROOT, "predict", output, files[0], extra={"PYTHONPATH": str(ROOT)})
    assert outside.returncode != 0
    assert f"cannot import '{name}'" in " ".join(outside.stderr.split())
