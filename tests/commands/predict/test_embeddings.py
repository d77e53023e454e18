"""Embeddings of ``predict``, and what others make of them."""

import csv
import re
from pathlib import Path

import numpy as np
import pytest
import torch

import finetune
from finetune.bundle.bundle import load_model
from finetune.commands.predict import feature_outputs
from finetune.data.images.decode import open_image
from finetune.data.transforms.eval_transform import EvalTransform
from finetune.errors import ConfigError
from finetune.models.classifier import normalise
from tests.support.helpers import ROOT


def _compute_features(run: Path, file: Path) -> torch.Tensor:
    """Return the features of an image by timm's contract, shape (D,)."""
    bundle = load_model(run)
    image = open_image(file, options=bundle.card.read_options)
    pixels = torch.from_numpy(EvalTransform(bundle.card.spec)(image).pixels)
    network, spec = bundle.network, bundle.card.spec
    with torch.inference_mode():
        maps = network.forward_features(  # type: ignore[operator]
            normalise(pixels[None], mean=spec.mean, std=spec.std)
        )
        features: torch.Tensor = network.forward_head(maps, pre_logits=True)[0]  # type: ignore[operator]
    return features


def test_formats_have_the_same_embeddings(digits_run: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    images = digits_run.parent / "digits-0-4" / "val"
    files = [tmp_path / f"embeddings{suffix}" for suffix in (".parquet", ".npz", ".csv")]
    for file in files:
        result = finetune.predict(digits_run, images, embeddings=file, batch_size=20, device="cpu")
    table = parquet.read_table(files[0])
    assert table.schema.field("embedding").type.list_size == 96
    embeddings = np.stack(table.column("embedding").to_numpy())
    archive = np.load(files[1])
    assert np.array_equal(archive["embeddings"], embeddings)
    assert archive["embeddings"].dtype == np.float32
    with files[2].open(encoding="utf-8", newline="") as stream:
        rows = list(csv.DictReader(stream))
    values = np.array([[float(row[f"embedding_{n}"]) for n in range(96)] for row in rows])
    assert np.array_equal(values.astype(np.float32), embeddings)
    paths = table.column("path").to_pylist()
    assert paths == archive["paths"].tolist() == [row["path"] for row in rows]
    assert paths == [prediction.path for prediction in result.predictions]
    folders = [Path(path).parent.name for path in paths]
    assert table.column("folder").to_pylist() == archive["folders"].tolist() == folders
    assert archive["labels"].tolist() == [p.labels[0] for p in result.predictions]
    expected = _compute_features(digits_run, Path(paths[7]))
    assert embeddings[7] == pytest.approx(expected.numpy(), abs=1e-5)


@pytest.mark.runs
@pytest.mark.parametrize("page", ["README.md", "docs/guides/embeddings.md"])
def test_example_with_support_vectors_reads_digits(
    page: str,
    digits_run: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Run the example as it stands: 96% of 75 images, more than the head of the run (93%)."""
    data = digits_run.parent / "digits-0-4"
    for split in ("train", "val"):
        finetune.predict(
            digits_run, data / split, embeddings=tmp_path / f"{split}.npz", device="cpu"
        )
    text = (ROOT / page).read_text(encoding="utf-8")
    blocks = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    exec(next(block for block in blocks if "SVC" in block), {})
    accuracy = load_model(digits_run).card.facts["metrics"]["val"]["accuracy"]
    assert float(capsys.readouterr().out) > max(0.94, accuracy)


def test_folders_are_those_of_the_classes(digits_run: Path, tmp_path: Path) -> None:
    source = next((digits_run.parent / "digits-0-4" / "val" / "two").iterdir())
    for name in ("cat/b.png", "cat/siamese/a.png", "dog/x/y/z/b.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes(source.read_bytes())
    file = tmp_path / "embeddings.npz"
    finetune.predict(digits_run, tmp_path / "photos", embeddings=file, device="cpu")
    assert np.load(file)["folders"].tolist() == ["cat", "cat", "dog"]


def test_bad_images_have_no_embedding(digits_run: Path, tmp_path: Path) -> None:
    images = tmp_path / "photos"
    images.mkdir()
    source = next((digits_run.parent / "digits-0-4" / "val" / "two").iterdir())
    for name in ("a.png", "c.png"):
        (images / name).write_bytes(source.read_bytes())
    (images / "b.png").write_bytes(source.read_bytes()[:60])
    file = tmp_path / "embeddings.npz"
    finetune.predict(digits_run, images, embeddings=file, device="cpu")
    archive = np.load(file)
    assert [Path(path).name for path in archive["paths"]] == ["a.png", "c.png"]
    assert np.array_equal(archive["embeddings"][0], archive["embeddings"][1])


def test_file_is_not_written_where_the_prediction_fails(
    digits_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(feature_outputs.FeatureOutputs, "write_embeddings", fail)
    images = digits_run.parent / "digits-0-4" / "val"
    with pytest.raises(OSError, match="disk is full"):
        finetune.predict(digits_run, images, embeddings=tmp_path / "x.npz", device="cpu")
    assert list(tmp_path.iterdir()) == []


def test_unknown_formats_are_refused(digits_run: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"'.xlsx'. Name the file .parquet, .npz or .csv"):
        finetune.predict(digits_run, tmp_path, embeddings=tmp_path / "x.xlsx")
    with pytest.raises(ConfigError, match="is a folder"):
        finetune.predict(digits_run, tmp_path, embeddings=tmp_path)
