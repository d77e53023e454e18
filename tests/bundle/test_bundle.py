"""The bundle: the same model again, from files alone."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import timm
import torch
from torch import Tensor, nn

from finetune.bundle.bundle import load_model, save_bundle
from finetune.bundle.model_card import ModelCard, read_card_json
from finetune.errors import ModelError, RunFolderError, StorageError
from finetune.evaluation.priors import Priors
from finetune.models.backbone import create_network
from finetune.types import PreprocessSpec
from tests.support.helpers import names_in, run_python, tiny_disk
from tests.support.networks import one_thread, randomise, settle

if TYPE_CHECKING:
    from finetune.commands.fit.fit import FitResult

CLASSES = ("bée", "fly", "wasp, red")


def network_and_card(
    backbone: str, *, size: int, kwargs: dict[str, Any] | None = None
) -> tuple[nn.Module, ModelCard]:
    """Return a network of which every number was moved, as training does, and its card."""
    made = create_network(backbone, num_classes=3, weights="random", image_size=size, kwargs=kwargs)
    randomise(made.module)
    settle(made.module, images(size))
    spec = replace(made.spec, crop_pct=0.9, interpolation="bilinear", mean=(0.1, 0.2, 0.3))
    facts = {"weights": "random", "metrics": {"val": {"accuracy": 0.5}}}
    return made.module, ModelCard(backbone, made.model_args, CLASSES, spec, facts)


def images(size: int) -> Tensor:
    return torch.randn(4, 3, size, size, generator=torch.Generator().manual_seed(3))


def outputs(network: nn.Module, size: int) -> Tensor:
    with torch.inference_mode():
        logits: Tensor = network(images(size))
    assert float(logits.std(dim=0).min()) > 1e-3, "outputs that do not differ prove nothing"
    return logits


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a bundle of a tiny network; never change it."""
    folder = tmp_path_factory.mktemp("bundles") / "bundle"
    save_bundle(*network_and_card("test_resnet", size=32), folder)
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
def test_a_network_comes_back_bit_for_bit(
    tmp_path: Path, backbone: str, size: int, kwargs: dict[str, Any]
) -> None:
    network, card = network_and_card(backbone, size=size, kwargs=kwargs)
    expected = outputs(network, size)
    save_bundle(network, card, tmp_path / "bundle")
    back = load_model(tmp_path / "bundle")
    assert back.card == card
    assert back.source == tmp_path / "bundle"
    assert not any(module.training for module in back.network.modules())
    assert torch.equal(outputs(back.network, size), expected)


TIMM_ALONE = """
import json, sys, torch
{register}
import timm
from timm.data import create_transform, resolve_model_data_config
from PIL import Image
torch.set_num_threads(1)  # as here: sums over several differ in the last bits
folder, inputs, picture, out = sys.argv[1:]
model = timm.create_model("local-dir:" + folder, pretrained=True).eval()
config = resolve_model_data_config(model)
transform = create_transform(**config, is_training=False)
with torch.inference_mode():
    logits = model(torch.load(inputs))
torch.save({{"logits": logits, "pixels": transform(Image.open(picture))}}, out)
print(json.dumps([model.pretrained_cfg["label_names"], config, "finetune" in sys.modules]))
"""


@pytest.mark.parametrize(
    ("backbone", "register"),
    [
        ("test_resnet", ""),
        pytest.param("test_vit", "", marks=pytest.mark.slow),
        pytest.param("googlenet", "import finetune", marks=pytest.mark.slow),
    ],
)
def test_timm_alone_reads_the_same_network(
    tmp_path: Path, insects: Path, backbone: str, register: str
) -> None:
    network, card = network_and_card(backbone, size=64)
    save_bundle(network, card, tmp_path / "bundle")
    torch.save(images(64), tmp_path / "inputs.pt")
    picture = next(insects.rglob("*.png"))
    places = (tmp_path / "bundle", tmp_path / "inputs.pt", picture, tmp_path / "out.pt")
    names, config, with_finetune = json.loads(
        run_python(TIMM_ALONE.format(register=register), *places)
    )
    assert with_finetune is bool(register)
    assert names == list(CLASSES)
    found = torch.load(tmp_path / "out.pt", weights_only=True)
    torch.testing.assert_close(found["logits"], outputs(network, 64), rtol=0, atol=1e-6)
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
counts = [len(predicted.predictions), exported.parity.same_top_class]
print(json.dumps([result.to_json()["metrics"], *counts]))
"""


def test_using_a_bundle_needs_neither_lightning_nor_the_run(
    trained: FitResult, insects: Path, tmp_path: Path
) -> None:
    import finetune

    bundle = shutil.copytree(trained.run_dir / "bundle", tmp_path / "alone")
    found = json.loads(run_python(WITHOUT_LIGHTNING, bundle, insects, tmp_path))
    here = finetune.evaluate(bundle, insects, device="cpu").to_json()["metrics"]
    assert found[0] == pytest.approx(here, abs=1e-6)
    assert found[1:] == [38, 38]


def test_the_folder_holds_what_it_promises(saved: Path) -> None:
    assert names_in(saved) == [
        "README.md", "config.json", "finetune.json", "model.safetensors",
    ]  # fmt: skip
    tree = read_card_json(saved)
    weights = (saved / "model.safetensors").read_bytes()
    assert tree["sha256"] == hashlib.sha256(weights).hexdigest()
    assert tree["classes"] == list(CLASSES)
    assert tree["versions"]["timm"] == timm.__version__
    readme = (saved / "README.md").read_text(encoding="utf-8")
    assert "bée, fly, wasp, red" in readme
    assert "| val | accuracy | 0.5000 |" in readme
    assert "import finetune" not in readme


def test_the_readme_of_a_classic_says_that_timm_must_be_told(tmp_path: Path) -> None:
    save_bundle(*network_and_card("googlenet", size=64), tmp_path / "bundle")
    readme = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert readme.index("import finetune") < readme.index("import timm")


def test_a_bundle_replaces_the_one_before_and_a_full_disk_does_not(tmp_path: Path) -> None:
    network, card = network_and_card("test_resnet", size=32)
    with tiny_disk(tmp_path / "disk", size="3m") as disk:
        save_bundle(network, card, disk / "bundle")
        save_bundle(network, replace(card, facts={"seed": 1}), disk / "bundle")
        assert read_card_json(disk / "bundle")["facts"] == {"seed": 1}
        filler = disk / "filler"
        filler.write_bytes(bytes(1_200_000))
        with pytest.raises(StorageError, match="no space is left"):
            save_bundle(network, replace(card, facts={"seed": 2}), disk / "bundle")
        assert names_in(disk) == ["bundle", "filler"]
        back = load_model(disk / "bundle")
        assert back.card.facts == {"seed": 1}
        assert torch.equal(outputs(back.network, 32), outputs(network, 32))


def edited(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
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
        (lambda b: (b / "model.safetensors").unlink(), "damaged .*No such file.*Export it again"),
        (lambda b: (b / "model.safetensors").write_bytes(b""), "damaged .*Export it again"),
        (lambda b: (b / "finetune.json").write_text("{"), "missing or damaged.*Export it again"),
        (lambda b: (b / "finetune.json").write_bytes(b"\xff\xfe{"), "missing or damaged"),
        (lambda b: (b / "finetune.json").write_text("[1]"), "damaged .*Export it again"),
        (edited(lambda tree: tree.pop("classes")), "damaged .*'classes'.*Export it again"),
        (edited(lambda tree: tree.update(classes=["a", "b"])), "damaged .*Export it again"),
        (edited(lambda tree: tree.update(spec=None)), "damaged .*Export it again"),
        (edited(lambda tree: tree.update(backbone=7)), "damaged .*Export it again"),
        (edited(lambda tree: tree["spec"].update(zoom=2)), "damaged .*zoom.*Export it again"),
        (edited(lambda tree: tree.update(temperature=0)), "temperature 0 is no positive number"),
        (edited(lambda tree: tree.update(temperature=None)), "damaged .*Export it again"),
        (edited(lambda tree: tree.update(temperature=math.nan)), "temperature nan is no positive"),
        (
            edited(lambda tree: tree.update(priors={"train": [1], "model": [1], "target": None})),
            "priors are no shares of 3 classes",
        ),
        (edited(lambda tree: tree.update(priors={"train": [1, 0, 0]})), "damaged .*Export it"),
        (edited(lambda tree: tree.update(format=2)), r"format 2, .* 1\)\. Upgrade finetune"),
    ],
)
def test_a_damaged_bundle_is_one_message(
    bundle: Path, damage: Callable[[Path], object], message: str
) -> None:
    damage(bundle)
    with pytest.raises(RunFolderError, match=message) as caught:
        load_model(bundle)
    assert str(bundle) in str(caught.value)
    assert len(str(caught.value).splitlines()) == 1


def test_a_backbone_that_timm_lost_is_no_damage(bundle: Path) -> None:
    edited(lambda tree: tree.update(backbone="resnet9000.tag"))(bundle)
    with pytest.raises(
        ModelError, match=r"bundle: timm .* does not know 'resnet9000.tag'; upgrade"
    ):
        load_model(bundle)


def test_a_run_gives_its_bundle_and_while_it_trains_its_best_checkpoint(
    trained: FitResult, tmp_path: Path
) -> None:
    run = Path(shutil.copytree(trained.run_dir, tmp_path / "run"))
    finished = load_model(run)
    assert finished.source == run / "bundle"
    shutil.rmtree(run / "bundle")
    training = load_model(run)
    assert training.source == run / "checkpoints" / "best.ckpt"
    assert torch.equal(outputs(training.network, 32), outputs(finished.network, 32))
    shutil.rmtree(run / "checkpoints")
    with pytest.raises(RunFolderError, match=f"no model.*finetune fit --resume {run}"):
        load_model(run)


def test_a_checkpoint_alone_is_the_model(trained: FitResult, tmp_path: Path) -> None:
    alone = tmp_path / "elsewhere.ckpt"
    shutil.copy(trained.run_dir / "checkpoints" / "best.ckpt", alone)
    found, expected = load_model(alone), load_model(trained.run_dir)
    assert torch.equal(outputs(found.network, 32), outputs(expected.network, 32))
    assert (found.card.classes, found.card.spec) == (expected.card.classes, expected.card.spec)


@pytest.mark.parametrize(
    "content", [b"", b"no zip", pytest.param(None, id="truncated"), {"state_dict": {}}, [1]]
)
def test_a_file_that_is_no_checkpoint_is_one_message(
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
    with pytest.raises(RunFolderError, match="is no checkpoint that finetune wrote") as caught:
        load_model(file)
    assert len(str(caught.value).splitlines()) == 1


def test_code_in_a_checkpoint_does_not_run(tmp_path: Path) -> None:
    class Trap:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (tmp_path / "ran",))

    torch.save({"finetune": Trap()}, tmp_path / "a.ckpt")
    with pytest.raises(RunFolderError, match="is no checkpoint"):
        load_model(tmp_path / "a.ckpt")
    assert not (tmp_path / "ran").exists()


def test_a_checkpoint_of_a_newer_release_says_to_upgrade(
    trained: FitResult, tmp_path: Path
) -> None:
    best = trained.run_dir / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(best, weights_only=True)
    checkpoint["finetune"]["format"] = 99
    torch.save(checkpoint, tmp_path / "a.ckpt")
    with pytest.raises(RunFolderError, match=r"a\.ckpt: a newer finetune wrote it .*Upgrade"):
        load_model(tmp_path / "a.ckpt")


def test_what_is_missing_or_holds_no_model_says_so(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="gone does not exist"):
        load_model(tmp_path / "gone")
    with pytest.raises(RunFolderError, match="holds no model"):
        load_model(tmp_path)


def test_a_card_is_plain_json_and_back() -> None:
    spec = PreprocessSpec((3, 32, 48), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "nearest", 1.0, "squash")
    card = ModelCard("vgg16", {"img_size": 32}, ("b", "a"), spec, {"seed": 0, "none": None})
    tree = card.to_json()
    assert ModelCard.from_json(json.loads(json.dumps(tree))) == card
    plain = (str, int, float, list, dict, type(None))
    assert all(type(value) in plain for value in tree.values())


def test_a_temperature_stands_in_the_card_and_not_in_the_weights(
    saved: Path, tmp_path: Path
) -> None:
    bundle = load_model(saved)
    card = replace(bundle.card, temperature=0.7318264501)
    save_bundle(bundle.network, card, tmp_path / "bundle")
    assert load_model(tmp_path / "bundle").card == card
    assert read_card_json(tmp_path / "bundle")["sha256"] == read_card_json(saved)["sha256"]
    readme = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "logits are divided by 0.7318264501" in readme
    assert "(model(transform(image)[None]) / 0.7318264501).softmax(1)" in readme
    assert "0.73" not in (saved / "README.md").read_text(encoding="utf-8")


def test_a_bundle_from_before_there_were_temperatures_has_none(bundle: Path) -> None:
    edited(lambda tree: tree.pop("temperature"))(bundle)
    assert load_model(bundle).card.temperature == 1


def test_priors_stand_in_the_card_and_the_readme_says_what_answers_are_for(
    saved: Path, tmp_path: Path
) -> None:
    bundle = load_model(saved)
    assert "probabilities are for" not in (saved / "README.md").read_text(encoding="utf-8")
    train = (0.7, 0.2, 0.1)
    for number, (priors, said) in enumerate(
        [
            (Priors(train, train), "are for the shares of the training images."),
            (Priors(train, (1 / 3,) * 3), "are for every class alike."),
            (
                Priors(train, train, (1 / 3,) * 3),
                "are for every class alike, where the network's are for the shares of the training "
                "images: finetune adds log(target / model)",
            ),
        ]
    ):
        card = replace(bundle.card, priors=priors)
        folder = tmp_path / str(number)
        save_bundle(bundle.network, card, folder)
        assert load_model(folder).card == card
        assert read_card_json(folder)["sha256"] == read_card_json(saved)["sha256"]
        readme = (folder / "README.md").read_text(encoding="utf-8")
        assert said in readme
        assert ("(model(transform(image)[None]) + shift).softmax(1)" in readme) is (number == 2)


def test_a_bundle_from_before_there_were_priors_has_none(bundle: Path) -> None:
    edited(lambda tree: tree.pop("priors"))(bundle)
    assert load_model(bundle).card.priors is None


def test_the_readme_says_which_metric_is_undefined(saved: Path, tmp_path: Path) -> None:
    bundle = load_model(saved)
    facts = {"metrics": {"val": {"accuracy": 0.5, "rarest_third_recall": None}}}
    save_bundle(bundle.network, replace(bundle.card, facts=facts), tmp_path / "bundle")
    readme = (tmp_path / "bundle" / "README.md").read_text(encoding="utf-8")
    assert "| val | rarest_third_recall | undefined |" in readme
