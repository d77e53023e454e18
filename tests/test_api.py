"""``finetune.fit`` and ``finetune.plan_fit`` with a path and options, or with a config."""

import ast
from pathlib import Path
from typing import Any

import pytest

import finetune
from finetune.api.fit_options import OPTION_KEYS, FitOptions, build_fit_config
from finetune.cli.options.config_flags import FLAG_KEYS
from finetune.config.load import build_config, diff_from_defaults
from finetune.errors import ConfigError, DataError
from tests.support.helpers import run_python, write_images
from tests.support.runs import write_photos, write_weights


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    return write_images(tmp_path / "photos", "a/1.png", "b/1.png")


def test_options_are_those_of_the_command_line() -> None:
    assert {f"--{name.replace('_', '-')}": key for name, key in OPTION_KEYS.items()} == FLAG_KEYS
    assert set(FitOptions.__annotations__) == set(OPTION_KEYS)


def test_build_fit_config_sets_options_and_config_keys(photos: Path, tmp_path: Path) -> None:
    config = build_fit_config(
        photos,
        config={"data.leakage": "error", "loss.name": "focal"},
        backbone="test_resnet",
        weights=tmp_path / "weights.pth",
        epochs=5,
        batch_size=16,
        lr=0.01,
        image_size=64,
        unfreeze="gradual",
        imbalance="weighted",
        augment="light",
        precision="32-true",
        devices=1,
        num_nodes=1,
        seed=0,
        wandb="offline",
        output=tmp_path / "run",
    )
    expected = build_config(
        {},
        assignments={
            "data.path": str(photos),
            "data.leakage": "error",
            "loss.name": "focal",
            "model.backbone": "test_resnet",
            "model.weights": str(tmp_path / "weights.pth"),
            "trainer.epochs": 5,
            "trainer.batch_size": 16,
            "optim.lr": 0.01,
            "data.image_size": 64,
            "unfreeze.name": "gradual",
            "imbalance.strategy": "weighted",
            "augment.name": "light",
            "trainer.precision": "32-true",
            "trainer.devices": 1,
            "trainer.num_nodes": 1,
            "seed": 0,
            "tracking.wandb": "offline",
            "output": str(tmp_path / "run"),
        },
    )
    assert config == expected


def test_build_fit_config_without_options_keeps_the_defaults(photos: Path) -> None:
    config = build_fit_config(str(photos))
    assert diff_from_defaults(config) == {"data.path": str(photos)}


def test_build_fit_config_seed_zero_is_given_and_none_is_not(photos: Path) -> None:
    options: dict[str, Any] = {"seed": 0, "epochs": None}
    config = build_fit_config(photos, config={"trainer.epochs": 3}, **options)
    assert (config.seed, config.trainer.epochs) == (0, 3)


def test_build_fit_config_returns_a_config_unchanged() -> None:
    config = finetune.Config.model_validate({"trainer": {"epochs": 3}})
    assert build_fit_config(config) is config


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"epoch": 5}, r"'epoch'.*'epochs'"),
        ({"batchsize": 5}, r"'batchsize'.*'batch_size'"),
        ({"leakage": "error"}, r"'leakage'.*config="),
        ({"epochs": 0}, r"trainer\.epochs: .*0.*\(epochs\)"),
        ({"config": {"data.leakag": "error"}}, r"data\.leakag: .*'data\.leakage'"),
        ({"epochs": 5, "config": {"trainer.epochs": 6}}, r"epochs 5 .*trainer\.epochs=6"),
    ],
)
def test_build_fit_config_invalid_option_raises_config_error(
    photos: Path, options: dict[str, Any], match: str
) -> None:
    with pytest.raises(ConfigError, match=match):
        build_fit_config(photos, **options)


@pytest.mark.parametrize("extra", [{"epochs": 3}, {"config": {"trainer.epochs": 3}}])
def test_build_fit_config_config_with_options_raises_config_error(extra: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"epochs"):
        build_fit_config(finetune.Config(), **extra)


def test_build_fit_config_missing_path_raises_data_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="missing"):
        build_fit_config(tmp_path / "missing")


def test_tune_reads_the_space_of_a_file_and_adds_it_to_the_default_one(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("optuna")
    (tmp_path / "space.yaml").write_text("augment.cutmix: [0, 1]\n")
    sizes: list[Any] = []
    monkeypatch.setattr(
        "finetune.commands.tune.tune.tune", lambda config, size, reporter: sizes.append(size)
    )
    finetune.tune(photos, search=tmp_path / "space.yaml", with_default_space=True)
    finetune.tune(photos, search={"augment.cutmix": [0, 1]}, trials=3)
    assert [dimension.key for size in sizes for dimension in size.space] == ["augment.cutmix"] * 2
    assert [size.extends_default for size in sizes] == [True, False]


def test_build_fit_config_imports_no_torch(photos: Path) -> None:
    code = (
        "import sys; from finetune.api.fit_options import build_fit_config; "
        "build_fit_config(sys.argv[1]); print('torch' in sys.modules)"
    )
    assert run_python(code, photos) == "False\n"


def test_plan_fit_and_fit_with_path_and_options(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", num_train=4)
    options: dict[str, Any] = {
        "backbone": "test_resnet",
        "weights": "random",
        "epochs": 1,
        "batch_size": 6,
        "image_size": 32,
        "devices": 1,
        "output": tmp_path / "run",
        "config": {"data.num_workers": 0, "trainer.accelerator": "cpu"},
    }
    plan = finetune.plan_fit(photos, **options)
    assert plan["training"]["epochs"] == 1
    assert not (tmp_path / "run").exists()
    result = finetune.fit(photos, **options)
    assert result.run_dir == tmp_path / "run"
    assert 0 <= (result.metrics["val"]["accuracy"] or 0) <= 1
    # paths may be strings in every verb
    evaluated = finetune.evaluate(str(result.run_dir))
    assert evaluated.evaluation.metrics["accuracy"] == result.metrics["val"]["accuracy"]
    predicted = finetune.predict(str(result.run_dir), str(photos))
    assert len(predicted.predictions) == 4 * 3 + 5 * 3
    exported = finetune.export(str(result.run_dir), str(tmp_path / "export"))
    assert (exported.output / "model.safetensors").is_file()
    assert finetune.resume(str(result.run_dir)).metrics == result.metrics


def test_inspect_with_path_writes_the_audit(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", num_train=4)
    result = finetune.inspect(str(photos), output=str(tmp_path / "audit"))
    assert result.audit.num_images == 4 * 3 + 5 * 3
    assert (tmp_path / "audit" / "audit.json").is_file()


def test_compare_with_path_ranks_backbones(tmp_path: Path) -> None:
    photos = write_photos(tmp_path / "photos", num_train=4)
    (tmp_path / "weights").mkdir()
    write_weights(tmp_path / "weights" / "test_resnet.pth")
    result = finetune.compare(
        str(photos),
        "test_resnet",
        weights=str(tmp_path / "weights"),
        csv=str(tmp_path / "table.csv"),
        config={"data.image_size": 32, "trainer.accelerator": "cpu"},
    )
    assert [row.backbone for row in result.rows] == ["test_resnet"]
    assert (tmp_path / "table.csv").is_file()


def test_package_annotations_name_every_public_function() -> None:
    tree = ast.parse(Path(finetune.__file__ or "").read_text(encoding="utf-8"))
    typed = {
        alias.name: node.module
        for branch in tree.body
        if isinstance(branch, ast.If)
        for node in branch.body
        if isinstance(node, ast.ImportFrom) and node.module != "typing"
        for alias in node.names
    }
    assert typed == finetune._LAZY_IMPORTS
