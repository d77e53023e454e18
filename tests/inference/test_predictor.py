"""Class probabilities of images."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform
from torch import Tensor

from finetune.bundle import ModelBundle, load_model
from finetune.errors import DataError
from finetune.inference.predictor import Predictor

if TYPE_CHECKING:
    from finetune.commands.fit import FitResult


@pytest.fixture(scope="module")
def bundle(trained: FitResult) -> ModelBundle:
    return load_model(trained.run_dir)


@pytest.fixture(scope="module")
def files(insects: Path) -> list[Path]:
    return sorted(insects.rglob("*.png"))


def of_timm(folder: Path, files: list[Path]) -> Tensor:
    """Return what timm alone says: its own loading, preprocessing and forward pass, one by one."""
    network = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    config = resolve_model_data_config(network)  # type: ignore[no-untyped-call]
    transform = create_transform(**config, is_training=False)
    with torch.inference_mode():
        rows = [network(transform(Image.open(f).convert("RGB"))[None]).softmax(1) for f in files]
    return torch.cat(rows)


def test_probabilities_are_those_of_timm_in_the_order_of_the_files(
    bundle: ModelBundle, files: list[Path]
) -> None:
    ours = Predictor(bundle, device="cpu").probabilities(files[::-1])
    theirs = of_timm(bundle.source, files[::-1])
    assert ours.dtype == torch.float32
    assert ours.shape == (38, 3)
    assert float(ours.std(dim=0).min()) > 0.01, "images that all look alike prove no order"
    # two resizing codes differ by up to 1/255 in a pixel
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-3)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_batch_size_does_not_matter(
    bundle: ModelBundle, files: list[Path], batch_size: int
) -> None:
    found = Predictor(bundle, device="cpu", batch_size=batch_size).probabilities(files)
    expected = Predictor(bundle, device="cpu").probabilities(files)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


@pytest.mark.slow
def test_reading_processes_change_nothing(bundle: ModelBundle, files: list[Path]) -> None:
    found = Predictor(bundle, device="cpu", num_workers=2).probabilities(files)
    assert torch.equal(found, Predictor(bundle, device="cpu").probabilities(files))


def test_the_most_probable_classes_come_first(bundle: ModelBundle, files: list[Path]) -> None:
    predictor = Predictor(bundle, device="cpu")
    table = predictor.probabilities(files).numpy()
    for top_k in (1, 2, 3, 9):
        for file, row, found in zip(
            files, table, predictor.predict(files, top_k=top_k), strict=True
        ):
            order = np.argsort(-row)[:top_k]
            assert found.path == str(file)
            assert found.labels == tuple(bundle.card.classes[k] for k in order)
            assert found.probabilities == tuple(row[order].tolist())


def test_progress_counts_every_image(bundle: ModelBundle, files: list[Path]) -> None:
    counts: list[int] = []
    Predictor(bundle, device="cpu", batch_size=16).probabilities(files, on_batch=counts.append)
    assert counts == [16, 16, 6]


def test_no_files_give_no_rows(bundle: ModelBundle) -> None:
    assert Predictor(bundle, device="cpu").probabilities([]).shape == (0, 3)


def test_a_file_that_cannot_be_read_is_named(bundle: ModelBundle, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no image")
    with pytest.raises(DataError, match=r"broken\.png: not an image"):
        Predictor(bundle, device="cpu").probabilities([broken])
