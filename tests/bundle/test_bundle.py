"""Bundles: saving and loading a model, errors of damaged files, and the README."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from torch import Tensor, nn

import finetune
from finetune.bundle.bundle import load_model, save_bundle
from finetune.bundle.model_card import ModelCard, read_card_json
from finetune.errors import ModelError, RunFolderError, StorageError
from finetune.evaluation.priors import Priors
from finetune.models.backbone import create_network
from finetune.types import PreprocessSpec
from tests.support.helpers import list_names, mount_tiny_disk, run_python
from tests.support.networks import randomise, set_batch_norm_statistics

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult

CLASSES = ("bée", "fly", "wasp, red")


def build_network_and_card(
    backbone: str, *, size: int, kwargs: dict[str, Any] | None = None
) -> tuple[nn.Module, ModelCard]:
    """Return a network with changed parameters and statistics, as after training, and its card."""
    built = create_network(
        backbone, num_classes=3, weights="random", image_size=size, kwargs=kwargs
    )
    randomise(built.module)
    set_batch_norm_statistics(built.module, build_images(size))
    spec = replace(built.spec, crop_pct=0.9, interpolation="bilinear", mean=(0.1, 0.2, 0.3))
    facts = {"weights": "random", "metrics": {"val": {"accuracy": 0.5}}}
    return built.module, ModelCard(backbone, built.model_args, CLASSES, spec, facts)


def build_images(size: int) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(3))


def compute_outputs(network: nn.Module, size: int) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = network(build_images(size))
    assert float(logits.std(dim=0).min()) > 1e-3, "outputs that do not differ prove nothing"
    return logits


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of a tiny network; never change it."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    save_bundle(*build_network_and_card("test_resnet", size=32), folder)
    return folder


@pytest.fixture
def bundle(saved: Path, tmp_path: Path) -> Path:
    """Return a copy of ``saved`` to damage."""
    return Path(shutil.copytree(saved, tmp_path / "bundle"))


@pytest.mark.parametrize(
    ("backbone", "size", "kwargs"),
    [
        ("test_resnet", 32, {}),
        # built for 160 px: its position embeddings have the size in their shape
        ("test_vit", 64, {}),
        ("test_convnext", 48, {"drop_path_rate": 0.1}),
        pytest.param("googlenet", 64, {}, marks=pytest.mark.slow),
        pytest.param("alexnet", 64, {"drop_rate": 0.3}, marks=pytest.mark.slow),
        pytest.param("vgg11_bn", 64, {}, marks=pytest.mark.slow),
    ],
)
def test_load_model_restores_saved_network_bit_for_bit(
    tmp_path: Path, backbone: str, size: int, kwargs: dict[str, Any]
) -> None:
    network, card = build_network_and_card(backbone, size=size, kwargs=kwargs)
    expected = compute_outputs(network, size)
    save_bundle(network, card, tmp_path / "bundle")
    loaded = load_model(tmp_path / "bundle")
    assert loaded.card == card
    assert loaded.source == tmp_path / "bundle"
    assert not any(module.training for module in loaded.network.modules())
    assert torch.equal(compute_outputs(loaded.network, size), expected)


TIMM_ALONE = """
import json, sys, torch
{registration}
import timm
from timm.data import create_transform, resolve_model_data_config
from PIL import Image
torch.set_num_threads(1)  # as in the tests: sums over several threads differ in the last bits
folder, inputs, picture, out = sys.argv[1:]
model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
config = resolve_model_data_config(model)
transform = create_transform(**config, is_training=False)
with torch.inference_mode():
    logits = model(torch.load(inputs))
torch.save({{"logits": logits, "pixels": transform(Image.open(picture))}}, out)
with_finetune = "finetune" in sys.modules
names = ("googlenet", "alexnet", "resnet18")
before = [timm.is_model(name) for name in names]
import finetune.timm_models
after = [timm.is_model(name) for name in names]
label_names = model.pretrained_cfg["label_names"]
print(json.dumps([label_names, config, with_finetune, before, after]))
"""


@pytest.mark.runs
@pytest.mark.parametrize(
    ("backbone", "registration"),
    [
        ("test_resnet", ""),
        pytest.param("test_vit", "", marks=pytest.mark.slow),
        pytest.param("googlenet", "import finetune.timm_models", marks=pytest.mark.slow),
    ],
)
def test_timm_create_model_loads_the_same_network(
    tmp_path: Path, insects: Path, backbone: str, registration: str
) -> None:
    network, card = build_network_and_card(backbone, size=64)
    save_bundle(network, card, tmp_path / "bundle")
    torch.save(build_images(64), tmp_path / "inputs.pt")
    picture = next(insects.rglob("*.png"))
    paths = (tmp_path / "bundle", tmp_path / "inputs.pt", picture, tmp_path / "out.pt")
    names, config, with_finetune, before, after = json.loads(
        run_python(TIMM_ALONE.format(registration=registration), *paths)
    )
    assert with_finetune is bool(registration)
    # networks of torchvision are known to timm after the import
    assert before == [bool(registration), bool(registration), True]
    assert after == [True, True, True]
    assert names == list(CLASSES)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    torch.testing.assert_close(found["logits"], compute_outputs(network, 64), rtol=0, atol=1e-6)
    spec = card.spec
    assert config["input_size"] == list(spec.input_size) == [3, 64, 64]
    assert (config["mean"], config["std"]) == (list(spec.mean), list(spec.std))
    assert (config["interpolation"], config["crop_pct"]) == ("bilinear", 0.9)
    assert found["pixels"].shape == (3, 64, 64)


WITHOUT_LIGHTNING = """
import json, sys
for name in ("pytorch_lightning", "lightning", "lightning_fabric", "wandb"):
    sys.modules[name] = None
import finetune, torch
torch.set_num_threads(1)
from pathlib import Path
model, data, config = map(Path, sys.argv[1:])
result = finetune.evaluate(model, data, device="cpu")
predicted = finetune.predict(model, data, device="cpu")
exported = finetune.export(model, config / "exported", images=data)
counts = [len(predicted.predictions), exported.parity.num_same_top1]
print(json.dumps([result.to_json()["metrics"], *counts]))
"""


@pytest.mark.runs
def test_bundle_is_usable_without_lightning_and_run_folder(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    bundle = shutil.copytree(trained.run_dir / "bundle", tmp_path / "alone")
    found = json.loads(run_python(WITHOUT_LIGHTNING, bundle, insects, tmp_path))
    here = finetune.evaluate(bundle, insects, device="cpu").to_json()["metrics"]
    assert found[0] == pytest.approx(here, abs=1e-6)
    assert found[1:] == [38, 38]


def test_save_bundle_writes_weights_card_and_readme(saved: Path) -> None:
    assert list_names(saved) == [
        "README.md", "config.json", "finetune.json", "model.safetensors",
    ]  # fmt: skip
    tree = read_card_json(saved)
    weights = (saved / "model.safetensors").read_bytes()
    assert tree["sha256"] == hashlib.sha256(weights).hexdigest()
    assert tree["classes"] == list(CLASSES)
    assert tree["versions"]["timm"] == timm.__version__
    assert tree["versions"]["finetune"] == finetune.__version__
    readme = (saved / "README.md").read_text(encoding="utf-8")
    assert "| 0 | bée |\n| 1 | fly |\n| 2 | wasp, red |\n" in readme
    assert "| val | accuracy | 0.5000 |" in readme
    assert "import finetune" not in readme


def test_readme_of_googlenet_imports_timm_models_first(tmp_path: Path) -> None:
    save_bundle(*build_network_and_card("googlenet", size=64), tmp_path / "bundle")
    readme = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert readme.index("import finetune.timm_models") < readme.index("import timm\n")


def test_save_bundle_replaces_existing_one_and_full_disk_keeps_it(tmp_path: Path) -> None:
    network, card = build_network_and_card("test_resnet", size=32)
    with mount_tiny_disk(tmp_path / "disk", size="3m") as disk:
        save_bundle(network, card, disk / "bundle")
        save_bundle(network, replace(card, facts={"seed": 1}), disk / "bundle")
        assert read_card_json(disk / "bundle")["facts"] == {"seed": 1}
        filler = disk / "filler"
        filler.write_bytes(bytes(1_200_000))
        with pytest.raises(StorageError, match="no space"):
            save_bundle(network, replace(card, facts={"seed": 2}), disk / "bundle")
        assert list_names(disk) == ["bundle", "filler"]
        loaded = load_model(disk / "bundle")
        assert loaded.card.facts == {"seed": 1}
        assert torch.equal(compute_outputs(loaded.network, 32), compute_outputs(network, 32))


def edit_card(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        file = bundle / "finetune.json"
        tree = json.loads(file.read_text(encoding="utf-8"))
        change(tree)
        file.write_text(json.dumps(tree), encoding="utf-8")

    return edit


def truncate(bundle: Path) -> None:
    file = bundle / "model.safetensors"
    os.truncate(file, file.stat().st_size // 2)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (truncate, "damaged .*Export it again"),
        (lambda b: (b / "model.safetensors").unlink(), "damaged .*No such file"),
        (lambda b: (b / "model.safetensors").write_bytes(b""), "damaged .*Export it again"),
        (lambda b: (b / "finetune.json").write_text("{"), "missing or damaged.*Export it again"),
        (lambda b: (b / "finetune.json").write_bytes(b"\xff\xfe{"), "missing or damaged"),
        (lambda b: (b / "finetune.json").write_text("[1]"), "damaged .*Export it again"),
        (edit_card(lambda tree: tree.pop("classes")), "damaged .*'classes'.*Export it again"),
        (edit_card(lambda tree: tree.update(classes=["a", "b"])), "damaged .*Export it again"),
        (edit_card(lambda tree: tree.update(spec=None)), "damaged .*Export it again"),
        (edit_card(lambda tree: tree.update(backbone=7)), "damaged .*Export it again"),
        (edit_card(lambda tree: tree["spec"].update(zoom=2)), "damaged .*zoom.*Export it again"),
        (edit_card(lambda tree: tree.update(temperature=0)), "temperature 0 "),
        (edit_card(lambda tree: tree.update(temperature=None)), "damaged .*Export it again"),
        (edit_card(lambda tree: tree.update(temperature=math.nan)), "temperature nan "),
        (
            edit_card(
                lambda tree: tree.update(priors={"train": [1], "model": [1], "target": None})
            ),
            "3 classes",
        ),
        (edit_card(lambda tree: tree.update(priors={"train": [1, 0, 0]})), "damaged .*Export it"),
        (edit_card(lambda tree: tree.update(format=3)), r"format 3; .* 2\)"),
    ],
)
def test_load_model_damaged_bundle_raises_one_line(
    bundle: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(bundle)
    with pytest.raises(RunFolderError, match=message) as caught:
        load_model(bundle)
    assert str(bundle) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_load_model_backbone_unknown_to_timm_raises_model_error(bundle: Path) -> None:
    edit_card(lambda tree: (tree.update(backbone="resnet9000.tag"), tree.pop("digests")))(bundle)
    (bundle / "config.json").unlink()
    with pytest.raises(ModelError, match=rf"bundle: .*'resnet9000.tag'.* timm {timm.__version__}"):
        load_model(bundle)


def test_load_model_of_run_uses_bundle_else_best_checkpoint(
    trained: FitResult, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained.run_dir, tmp_path / "run"))
    finished = load_model(run)
    assert finished.source == run / "bundle"
    shutil.rmtree(run / "bundle")
    training = load_model(run)
    assert training.source == run / "checkpoints" / "best.ckpt"
    assert torch.equal(compute_outputs(training.network, 32), compute_outputs(finished.network, 32))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunFolderError, match=f"finetune fit --resume {run}"):
        load_model(run)


def test_load_model_accepts_a_single_checkpoint(trained: FitResult, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere.ckpt"
    shutil.copy(trained.run_dir / "checkpoints" / "best.ckpt", alone)
    loaded, expected = load_model(alone), load_model(trained.run_dir)
    assert torch.equal(compute_outputs(loaded.network, 32), compute_outputs(expected.network, 32))
    assert (loaded.card.classes, loaded.card.spec) == (expected.card.classes, expected.card.spec)


@pytest.mark.parametrize(
    "content", [b"", b"no zip", pytest.param(None, id="truncated"), {"state_dict": {}}, [1]]
)
def test_load_model_invalid_checkpoint_raises_one_line(
    trained: FitResult, tmp_path: Path, content: object
) -> None:
    file = tmp_path / "a.ckpt"
    if content is None:
        whole = (trained.run_dir / "checkpoints" / "best.ckpt").read_bytes()
        content = whole[: len(whole) // 2]
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(RunFolderError, match=r"a\.ckpt .*not a checkpoint") as caught:
        load_model(file)
    assert len(str(caught.value).splitlines()) == 1


def test_load_model_does_not_run_code_of_a_checkpoint(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"finetune": Trap()}, tmp_path / "a.ckpt")
    with pytest.raises(RunFolderError, match=r"a\.ckpt .*not a checkpoint"):
        load_model(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


def test_load_model_checkpoint_of_newer_format_raises_run_folder_error(
    trained: FitResult, tmp_path: Path
) -> None:
    best = trained.run_dir / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["finetune"]["format"] = 99
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(RunFolderError, match=r"a\.ckpt: .*format 99"):
        load_model(tmp_path / "a.ckpt")


def test_load_model_missing_or_empty_path_raises_run_folder_error(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match=r"gone .*not exist"):
        load_model(tmp_path / "gone")
    with pytest.raises(RunFolderError, match=r"is empty\. Pass a run folder"):
        load_model(tmp_path)


def test_model_card_json_round_trip() -> None:
    spec = PreprocessSpec((3, 32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "nearest", 1.0, "squash")
    card = ModelCard("vgg16", {"img_size": 32}, ("b", "a"), spec, {"seed": 0, "none": None})
    tree = card.to_json()
    assert ModelCard.from_json(json.loads(json.dumps(tree))) == card
    plain = (str, int, float, list, dict, type(None))
    assert all(type(value) in plain for value in tree.values())


def test_temperature_is_stored_in_the_card_and_not_in_the_weights(
    saved: Path, tmp_path: Path
) -> None:
    bundle = load_model(saved)
    card = replace(bundle.card, temperature=0.7318264501)
    save_bundle(bundle.network, card, tmp_path / "bundle")
    assert load_model(tmp_path / "bundle").card == card
    assert read_card_json(tmp_path / "bundle")["sha256"] == read_card_json(saved)["sha256"]
    readme = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "the temperature 0.7318264501" in " ".join(readme.split())
    assert "(model(transform(image)[None]) / 0.7318264501).softmax(1)" in readme
    assert "0.73" not in (saved / "README.md").read_text(encoding="utf-8")


def test_load_model_card_without_temperature_has_temperature_one(bundle: Path) -> None:
    edit_card(lambda tree: (tree.pop("temperature"), tree.pop("digests")))(bundle)
    assert load_model(bundle).card.temperature == 1


def test_priors_are_stored_in_the_card_and_described_in_the_readme(
    saved: Path, tmp_path: Path
) -> None:
    bundle = load_model(saved)
    assert "prior" not in (saved / "README.md").read_text(encoding="utf-8")
    train = (0.7, 0.2, 0.1)
    for number, (priors, description) in enumerate(
        [
            (Priors(train, train), "probabilities: training class frequencies."),
            (Priors(train, (1 / 3,) * 3), "probabilities: uniform."),
            (
                Priors(train, train, (1 / 3,) * 3),
                "probabilities: uniform. The network's own prior: training class frequencies. "
                "finetune adds log(target / model)",
            ),
        ]
    ):
        card = replace(bundle.card, priors=priors)
        folder = tmp_path / str(number)
        save_bundle(bundle.network, card, folder)
        assert load_model(folder).card == card
        assert read_card_json(folder)["sha256"] == read_card_json(saved)["sha256"]
        readme = (folder / "README.md").read_text(encoding="utf-8")
        assert description in readme
        assert ("(model(transform(image)[None]) + shift).softmax(1)" in readme) is (number == 2)


def test_load_model_card_without_priors_has_none(bundle: Path) -> None:
    edit_card(lambda tree: (tree.pop("priors"), tree.pop("digests")))(bundle)
    assert load_model(bundle).card.priors is None


def test_config_of_own_weights_claims_no_origin_of_timm(saved: Path, tmp_path: Path) -> None:
    bundle = load_model(saved)
    claims = {"tag", "paper_ids", "paper_name", "origin_url", "hf_hub_id"}
    network = timm.create_model("resnet18.a1_in1k", pretrained=False, num_classes=2)
    found = {}
    for weights in ("hub (resnet18.a1_in1k)", "mine.pth"):
        card = replace(bundle.card, backbone="resnet18.a1_in1k", facts={"weights": weights})
        save_bundle(network, card, tmp_path / "bundle")
        config = json.loads((tmp_path / "bundle" / "config.json").read_text(encoding="utf-8"))
        found[weights] = claims & config["pretrained_cfg"].keys()
        timm.create_model(f"local-dir:{tmp_path / 'bundle'}", pretrained=False)
    assert "tag" in found["hub (resnet18.a1_in1k)"]
    assert not found["mine.pth"]


def test_readme_shows_undefined_metrics(saved: Path, tmp_path: Path) -> None:
    bundle = load_model(saved)
    facts = {"metrics": {"val": {"accuracy": 0.5, "rarest_third_recall": None}}}
    save_bundle(bundle.network, replace(bundle.card, facts=facts), tmp_path / "bundle")
    readme = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "| val | rarest_third_recall | undefined |" in readme


def test_load_model_without_a_model_quotes_the_command_that_resumes(tmp_path: Path) -> None:
    folder = tmp_path / "my run"
    folder.mkdir()
    for name in ("config.yaml", "manifest.csv"):
        (folder / name).touch()
    with pytest.raises(
        RunFolderError,
        match=r"bundle/finetune\.json.*resume it: finetune fit --resume '.*/my run'$",
    ):
        load_model(folder)
