"""A run with all trackers, whose files are read back."""

import json
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

import finetune
from finetune.cli.main import run as run_command
from finetune.commands.fit.run_tracking.sweep_run import adopt_sweep_run
from finetune.commands.fit.run_tracking.tracker_table import TRACKERS, open_tracking
from finetune.commands.stored_run import read_stored_config
from finetune.config.load import build_config, get_explicit_values
from finetune.system.run_folder import RunFolder
from finetune.types import Reporter
from tests.support.helpers import RecordingReporter
from tests.support.runs import create_small_config, create_small_training, read_rows, write_weights
from tests.support.tracked_runs import (
    TrackedRun,
    get_csv_curves,
    read_event_files,
    read_mlflow_run,
)
from tests.support.wandb_file import OfflineRun, read_offline_runs

# MLflow asks SQLAlchemy for a strategy that 2.1 deprecates, https://github.com/mlflow/mlflow
pytestmark = [
    pytest.mark.runs,
    pytest.mark.filterwarnings("ignore:The ``noload`` loader strategy is deprecated"),
]

SECRETS = ("0123456789abcdef0123456789abcdef01234567", "netrc-secret-4711", "mlflow-secret-4711")


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tracked")


@pytest.fixture(scope="module")
def run(place: Path, animals: Path) -> Iterator[Path]:
    """Return a run of two epochs after a probe, tracked three times with keys in the environment.

    Never change it.
    """
    photos = shutil.copytree(animals, place / "photos")
    for number in (0, 1):  # mistakes
        file, other = (photos / "val" / name / f"0{number}.png" for name in ("ant", "bee"))
        moved, content = file.read_bytes(), other.read_bytes()
        file.write_bytes(content)
        other.write_bytes(moved)
    with Image.open(file) as image:  # one of another form than the others
        image.crop((0, 0, image.width, image.height // 2)).save(file)
    (place / ".netrc").write_text(f"machine api.wandb.ai login user password {SECRETS[1]}\n")
    config = create_small_config(
        data__path=str(photos),
        report__enabled="on",
        model__weights=str(write_weights(place / "weights.pth")),
        unfreeze__name="all",
        augment__name="light",
        output=str(place / "run"),
        tracking__wandb="offline",
        tracking__tensorboard=True,
        tracking__mlflow=f"sqlite:///{place}/mlflow.db",
        tracking__project="insects",
        tracking__tags=["first"],
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_API_KEY", SECRETS[0])
        patch.setenv("NETRC", str(place / ".netrc"))
        patch.setenv("MLFLOW_TRACKING_TOKEN", SECRETS[2])
        patch.setenv("SLURM_ARRAY_JOB_ID", "815")
        reporter = RecordingReporter()
        finetune.fit(config, reporter=reporter)
        assert reporter.warnings == []
        yield place / "run"


@pytest.fixture(scope="module")
def wandb_run(run: Path) -> OfflineRun:
    (part,) = read_offline_runs(run)
    return part


@pytest.fixture(scope="module")
def events(run: Path) -> TrackedRun:
    return read_event_files(run / "tensorboard")


@pytest.fixture(scope="module")
def mlflow_run(run: Path, place: Path) -> TrackedRun:
    return read_mlflow_run(f"sqlite:///{place}/mlflow.db")


def test_wandb_has_a_row_an_epoch_on_the_axis_of_steps(run: Path, wandb_run: OfflineRun) -> None:
    curves = get_csv_curves(read_rows(run))
    for name, curve in curves.items():
        logged = [(row["trainer/global_step"], row[name]) for row in wandb_run.rows if name in row]
        assert logged == curve, name
    assert [row["_step"] for row in wandb_run.rows] == [2, 5]
    assert wandb_run.axes["*"] == "trainer/global_step"
    assert set(wandb_run.axes.values()) == {"trainer/global_step"}


def test_wandb_summaries_hold_the_best_value(run: Path, wandb_run: OfflineRun) -> None:
    curves = get_csv_curves(read_rows(run))
    for name, choose in (("val/accuracy", max), ("val/loss", min), ("train_eval/macro_f1", max)):
        goal = {max: "max", min: "min"}[choose]
        assert wandb_run.goals[name] == goal
        assert wandb_run.summary[name] == {goal: choose(value for _, value in curves[name])}
    assert wandb_run.summary["lr/head"] == curves["lr/head"][-1][1]
    assert wandb_run.exit_code == 0


def test_wandb_config_is_flat_with_the_origin_of_the_run(wandb_run: OfflineRun) -> None:
    config = wandb_run.config
    assert config["model.backbone"] == "test_resnet"
    assert config["dataset.class_counts"]["train"] == {"ant": 8, "bee": 8, "cow": 8}
    assert config["dataset.num_images.val"] == 15
    assert len(config["dataset.digest"]) == 32
    assert "git.commit" in config
    settings = {name for name in config if not name.startswith(("_wandb", "dataset."))}
    assert not [name for name in settings if isinstance(config[name], dict) and config[name]]
    assert (wandb_run.group, wandb_run.job_type) == ("slurm-815", "train")


def test_wandb_has_the_manifest_as_input_and_the_bundle_as_output(
    run: Path, wandb_run: OfflineRun
) -> None:
    digest = wandb_run.config["dataset.digest"]
    dataset = wandb_run.artifact_records[f"dataset-{digest[:12]}"]
    assert (dataset.kind, dataset.is_input, dataset.files) == ("dataset", True, ["manifest.csv"])
    model = wandb_run.artifact_records[f"model-{wandb_run.run_id}"]
    assert (model.kind, model.is_input, set(model.aliases)) == ("model", False, {"best", "latest"})
    assert {"model.safetensors", "config.json", "finetune.json"} <= set(model.files)
    card = json.loads((run / "bundle" / "finetune.json").read_text())
    assert model.metadata["metrics"] == card["facts"]["metrics"]
    assert model.metadata["classes"] == ["ant", "bee", "cow"]
    assert "weights_license" in model.metadata


def test_wandb_uploads_each_picture_once_and_tables_refer_to_them(
    run: Path, wandb_run: OfflineRun
) -> None:
    (row,) = [row for row in wandb_run.history if "report/path" in row]
    (part,) = (run / "wandb").glob("offline-run-*")
    names = [name for name in wandb_run.uploads if name.startswith("media/images/worst_mistakes")]
    (table,) = (part / "files/media/table/worst_mistakes").rglob("*.table.json")
    rows = json.loads(table.read_text())["data"]
    assert 0 < len(rows) == len(names) == len(set(names)) <= 32
    assert all((part / "files" / name).is_file() for name in names)
    assert [one[0] for one in rows] == list(range(1, len(rows) + 1))
    assert all(isinstance(cell, str | int | float) for one in rows for cell in one)
    assert [one[5] for one in rows] == sorted(one[5] for one in rows)
    logged = {name.partition("/val")[0] for name in row}
    assert {"confusion_matrix", "calibration", "per_class", "worst_mistakes"} <= logged
    assert row["augmented_images/count"] == 1
    sizes = set()
    for name in wandb_run.uploads:
        if name.startswith("media/images/worst_mistakes"):
            with Image.open(next(run.rglob(f"files/{name}"))) as image:
                sizes.add(image.size)
    assert len(sizes) == 1, "W&B shows images of one size side by side, and warns of others"
    assert row["trainer/global_step"] == 5
    assert [name for name in wandb_run.uploads if name.startswith("media/html/report")]


def test_tensorboard_and_mlflow_have_the_curves_of_metrics_csv(
    run: Path, events: TrackedRun, mlflow_run: TrackedRun
) -> None:
    curves = get_csv_curves(read_rows(run))
    final = json.loads((run / "bundle" / "finetune.json").read_text())["facts"]["metrics"]["val"]
    for tracked in (events, mlflow_run):
        for name, curve in curves.items():
            steps, values = zip(*curve, strict=True)
            found_steps, found = zip(*tracked.curves[name], strict=True)
            assert found_steps == steps, name
            assert found == pytest.approx(values, rel=1e-6), name
        assert tracked.curves["final/val/accuracy"][-1][1] == pytest.approx(final["accuracy"])
        assert "probe/val/accuracy" in tracked.curves


def test_tensorboard_and_mlflow_have_the_pictures(
    events: TrackedRun, mlflow_run: TrackedRun
) -> None:
    pictures = {"confusion_matrix/val", "calibration/val", "worst_mistakes/val/01"}
    pictures.add("augmented_images/01")
    assert pictures <= events.names
    assert {"config", "per_class/val", "worst_mistakes/val/table"} <= events.names
    assert {f"{name}.png" for name in pictures} <= mlflow_run.names
    files = {"dataset/manifest.csv", "model/model.safetensors", "report.html", "per_class/val.csv"}
    assert files <= mlflow_run.names


def test_mlflow_has_the_resolved_settings(run: Path, mlflow_run: TrackedRun) -> None:
    assert mlflow_run.params["model.backbone"] == "test_resnet"
    assert mlflow_run.params["trainer.monitor"] == "accuracy"
    assert float(mlflow_run.params["optim.lr"]) == read_stored_config(RunFolder(run)).optim.lr
    assert mlflow_run.status == "FINISHED"


def test_keys_are_in_no_file(run: Path, place: Path) -> None:
    files = [path for path in place.rglob("*") if path.is_file() and path.name != ".netrc"]
    assert any(path.suffix == ".wandb" for path in files)
    assert any(path.name == "mlflow.db" for path in files)
    for path in files:
        content = path.read_bytes()
        assert not [secret for secret in SECRETS if secret.encode() in content], path


@pytest.mark.parametrize("kind", [kind for kind in TRACKERS if kind.modules], ids=lambda k: k.extra)
def test_missing_extra_is_named_before_anything_is_written(
    kind: object,
    animals: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    extra = getattr(kind, "extra")  # noqa: B009
    value = "true" if extra == "tensorboard" else "sqlite:///store.db"
    monkeypatch.setitem(sys.modules, extra, None)
    command = ["fit", str(animals), f"tracking.{extra}={value}", "--output", str(tmp_path / "run")]
    assert run_command(command) == 2
    message = " ".join(capsys.readouterr().err.split())
    assert f"pip install 'finetune-vision[{extra}]'" in message
    assert list(tmp_path.iterdir()) == []


def test_open_tracking_starts_trackers_on_rank_0_alone(animals: Path, tmp_path: Path) -> None:
    training = create_small_training(animals, tracking__tensorboard=True)
    tracker = open_tracking(RunFolder(tmp_path), training, Reporter(), rank=1)
    assert tracker.trackers == ()
    assert list(tmp_path.iterdir()) == []


def test_run_of_a_sweep_has_a_folder_of_its_own_that_is_resumed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = build_config({}, assignments={"optim.lr": 0.1})
    assert adopt_sweep_run(config) is config
    monkeypatch.setenv("WANDB_SWEEP_ID", "swp12345")
    monkeypatch.setenv("WANDB_RUN_ID", "agent001")
    adopted = adopt_sweep_run(config)
    assert (adopted.output, adopted.resume) == ("runs/sweep-swp12345/agent001", "auto")
    assert get_explicit_values(adopted).keys() == {"optim.lr", "output", "resume"}
    given = build_config({}, assignments={"output": "mine"})
    assert adopt_sweep_run(given) is given
