"""Batches for BatchNorm statistics: even, mixed, and independent of the names of files."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import finetune
from finetune.bundle.bundle import load_model
from finetune.commands.ensembles.statistics_batches import iterate_statistics_batches
from finetune.data.manifest import Manifest
from finetune.types import Sample, Split
from tests.commands.ensembles.conftest import Runs, train

pytestmark = pytest.mark.runs


def write_images(root: Path, names: dict[str, list[str]]) -> list[Sample]:
    """Write noise under a colour for each class; an image is the same under any name."""
    samples = []
    for number, (label, files) in enumerate(names.items()):
        (root / label).mkdir(parents=True)
        for index, name in enumerate(files):
            random = np.random.default_rng(1000 * number + index)
            pixels = random.integers(0, 170, (36, 36, 3))
            pixels[..., number] += 60
            Image.fromarray(pixels.astype(np.uint8)).save(root / label / name)
            digest = hashlib.blake2b((root / label / name).read_bytes()).hexdigest()
            samples.append(Sample(f"{label}/{name}", label, Split.TRAIN, digest=digest))
    return samples


@pytest.mark.parametrize(("num_images", "sizes"), [(2, [2]), (32, [32]), (33, [17, 16])])
def test_batches_are_even_without_single_image(
    runs: Runs, tmp_path: Path, num_images: int, sizes: list[int]
) -> None:
    samples = write_images(tmp_path, {"a": [f"{number:02}.png" for number in range(num_images)]})
    card = load_model(runs.first).card
    batches = list(iterate_statistics_batches(Manifest(tmp_path, ("a",), tuple(samples)), card))
    assert [len(batch) for batch in batches] == sizes


def test_batches_mix_classes_whatever_the_names_of_files(runs: Runs, tmp_path: Path) -> None:
    card = load_model(runs.first).card
    names = [f"{number:02}.png" for number in range(40)]
    found = []
    for root, order in ((tmp_path / "one", names), (tmp_path / "other", names[::-1])):
        samples = write_images(root, {"a": order, "b": order})
        manifest = Manifest(root, ("a", "b"), tuple(samples))
        found.append(list(iterate_statistics_batches(manifest, card)))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=0)
        red, green = one.mean(dim=(2, 3))[:, 0], one.mean(dim=(2, 3))[:, 1]
        assert 0.2 < float((red > green).double().mean()) < 0.8


def test_soup_of_33_training_images_and_map_of_one_pixel(tmp_path: Path) -> None:
    names = [f"{number:02}.png" for number in range(15)]
    write_images(tmp_path / "data", dict.fromkeys("abc", names))
    paths = [
        train(
            tmp_path / "data", tmp_path / f"run{number}", optim={"lr": lr},
            data={"val_fraction": 4 / 15, "test_fraction": 0},
            model={"backbone": "resnet10t", "batch_norm": "train"},
        )
        for number, lr in enumerate((0.01, 0.02))
    ]  # fmt: skip
    assert (paths[0] / "manifest.csv").read_text().count(",train,") == 33
    result = finetune.export(paths, tmp_path / "soup", soup="uniform")
    assert result.soup is not None
    assert result.soup["batch_norm"] == "recomputed on training images"
    card = load_model(tmp_path / "soup").card
    assert card.temperature == 1.0
    assert "temperature_in_head" not in card.facts, "the runs were not calibrated with 12 images"
