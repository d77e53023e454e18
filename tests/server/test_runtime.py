"""Tests of what computes the network of a server: torch, ONNX Runtime, or a file of either."""

from dataclasses import replace
from pathlib import Path

import pytest

from finetune.bundle.bundle import ModelBundle, combine_models, load_model
from finetune.commands.serve.runtime import choose_runtime
from finetune.errors import ConfigError
from finetune.exporters.export_formats import ExportOptions, get_format
from finetune.types import Reporter
from tests.server.conftest import Starter, create_model, create_photo

pytestmark = pytest.mark.runs

pytest.importorskip("onnxruntime")


def _predict(start: Starter, bundle: ModelBundle) -> list[list[float]]:
    client = start(create_model(bundle))
    files = [("file", (f"{n}.png", create_photo(n, (40 + n, 36)))) for n in range(3)]
    found = client.post("/predict?all=true", files=files).json()["predictions"]
    return [list(entry["probabilities"].values()) for entry in found]


@pytest.mark.parametrize("kind", ["single", "ensemble"])
def test_onnx_runtime_answers_as_torch_does(start: Starter, bundle: ModelBundle, kind: str) -> None:
    model = bundle
    if kind == "ensemble":
        other = replace(bundle, card=replace(bundle.card, temperature=2.0))
        model = combine_models([bundle, other], weights=[1, 3])
    with choose_runtime(model, "onnx", reporter=Reporter()) as (exported, name):
        assert name == "onnx"
        assert create_model(exported).saliency_reason.startswith("The runtime of this model")
        found = _predict(start, exported)
    expected = _predict(start, model)
    for one, other_row in zip(found, expected, strict=True):
        assert one == pytest.approx(other_row, abs=1e-5)


@pytest.fixture(scope="module")
def photo_file(bundle: ModelBundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an ONNX file with its preprocessing inside."""
    folder = tmp_path_factory.mktemp("onnx")
    options = ExportOptions(includes_preprocessing=True)
    get_format("onnx").load_module().write_model(bundle, folder, options, Reporter())
    return folder / "model.onnx"


def test_file_with_its_preprocessing_inside_takes_photos_of_several_sizes(
    start: Starter, bundle: ModelBundle, photo_file: Path
) -> None:
    found, expected = _predict(start, load_model(photo_file)), _predict(start, bundle)
    for one, other in zip(found, expected, strict=True):
        assert one == pytest.approx(other, abs=0.02)


def test_file_of_another_library_keeps_its_runtime(photo_file: Path) -> None:
    model = load_model(photo_file)
    for runtime in ("auto", "onnx"):
        with choose_runtime(model, runtime, reporter=Reporter()) as (served, name):
            assert (served, name) == (model, "onnx")
    message = r"--runtime torch cannot apply to .*model\.onnx, a file that onnx runs"
    with (
        pytest.raises(ConfigError, match=message),
        choose_runtime(model, "torch", reporter=Reporter()),
    ):
        pass
